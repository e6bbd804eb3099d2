"""Re-scoring of stored answers: by the metrics as they are now, and of pinned items in fp32.

Invariant: the weights are the run's own. Re-scoring by metric loads no model and leaves nothing half done;
in fp32 only the precision of computing differs, which tells a lost item from one that rounding moved.
"""

from dataclasses import replace
from typing import NamedTuple

from harness import store
from harness.comparison import Estimate
from harness.errors import IncompatibleRuns
from harness.evaluation.candidates import base_weights
from harness.evaluation.rescoring import rescore_stored
from harness.evaluation.row_sets import suite_sets
from harness.evaluation.session import EngineSlot, Session
from harness.experiment import Reader, ensure_weights, suite_arm
from harness.experiment.runs import run_candidate
from harness.records import Run
from harness.spec import Recipe


class RescoredRun(NamedTuple):
    """A run as it is scored now, and every task's scores on test by metric."""

    run: Run
    scores: dict[str, dict[str, Estimate]]


def rescore_run(session: Session, run_before: Run) -> RescoredRun:
    """Score a run again, and on the suites its base and the champion.

    Raises:
        IncompatibleRuns: some of its rows answer another task, prompt or model than the file's now.
    """
    candidate = session.candidates.get(run_before.candidate)
    if candidate is None or Recipe.model_validate(run_before.recipe) != candidate.recipe:
        raise IncompatibleRuns(
            f"{run_before.run_id}: the recipe of {run_before.candidate} in the file differs; expected the "
            "one that the run was made with; next: harness compare"
        )
    again, lacking = run_candidate.rescore_run(session, candidate, run_before)
    if again is None:
        raise IncompatibleRuns(
            f"{run_before.run_id}: found no stored answers to {', '.join(lacking)} as prompted now; expected "
            "that only their scoring has changed; next: harness compare evaluates again"
        )
    gated_against = [base_weights(base) for base in candidate.bases]
    champion = store.read_champion(session.store.folder.parent, session.experiment.target.name)
    if champion is not None:
        gated_against.append(gated_against[0]._replace(digest=champion.weights_digest))
    for weights in gated_against:
        rescore_stored(session, suite_sets(session, weights))
    return RescoredRun(again, Reader(session).scores(again))


def rescore_pinned(session: Session, run: Run) -> list[str]:
    """Answer the regression suites in fp32 with a run's weights; returns the tasks now stored so.

    Raises:
        HarnessError: the weights cannot be opened.
    """
    weights = ensure_weights(session, session.candidates[run.candidate], run.seed)
    exact = replace(
        session,
        machine=session.machine._replace(precision="fp32"),
        suites=tuple(m for m in session.suites if m.role == "regression"),
        slot=EngineSlot(),  # a base in fp32 must not answer for one in the run's precision
    )
    session.unload()
    return list(suite_arm(exact, weights, f"{run.candidate} in fp32"))
