"""A first result: one candidate that trains nothing answers the target before its base does the suites.

Some items of the candidate that answers first stand below its score, so that it is seen what is compared.
Invariant: the test rows that are evaluated here are those of the candidate's own run, which takes them as
they are. No control arm stands beside them, as nothing of the base is stored yet; it is measured before
anything else of the candidate is evaluated, in the same process, on the same device and threads.
"""

from collections.abc import Sequence

import numpy as np

from harness.comparison import estimate
from harness.errors import UserError
from harness.evaluation.candidates import ResolvedCandidate
from harness.evaluation.judging_stage import score_answered
from harness.evaluation.row_sets import RunRequest
from harness.evaluation.runner import answer
from harness.evaluation.session import Session
from harness.experiment.runs.k_fold import is_cross_validated, sets_of_target
from harness.experiment.runs.run_candidate import begin
from harness.experiment.runs.stored_rows import is_measured
from harness.experiment.weights.candidate_weights import ensure_weights
from harness.formatting import UNKNOWN, quote, score
from harness.metrics import Metric, extremes, item_scores
from harness.records import SampleResult
from harness.report import first_result_line
from harness.report.escape import clean

_N_ITEMS = 3


def show_first_result(session: Session, ordered: Sequence[RunRequest], *, smoke: bool) -> None:
    """Evaluate the first untrained candidate on the target's test, where its base's suites are open.

    What goes wrong is left to the candidate's run, which meets and records it.

    Raises:
        UserError: things are such that no run could be made, for example without room on the disk.
    """
    request = next((one for one in ordered if _answers_as_base(session, one.candidate)), None)
    if request is None:
        return
    try:
        _show(session, request, smoke=smoke)
    except UserError:
        raise
    except Exception:  # noqa: BLE001 (the run records it, and the others go on)
        return


def _answers_as_base(session: Session, candidate: ResolvedCandidate) -> bool:
    """Tell whether a candidate is the experiment's base as published, without judge, folds or draws."""
    own = candidate.given == candidate.served_base == session.source
    waits = candidate.recipe.sampling or session.target.judged or is_cross_validated(session, candidate)
    return own and not candidate.is_remote and not waits


def _show(session: Session, request: RunRequest, *, smoke: bool) -> None:
    candidate, seed = request
    if (candidate.name, seed) in session.failures:
        return
    weights = ensure_weights(session, candidate, seed)
    rows = sets_of_target(session, candidate, weights, seed)[1]
    lacking = score_answered(session, [rows])
    if not lacking or is_measured(session, candidate.base):
        return
    begin(session, candidate.name, seed)
    answer(session, weights, lacking, candidate.name)
    found = rows.read(session.store)
    if all(row.status == "error" for row in found):
        return
    target = estimate(session.target.primary, found)
    metric = session.target.task.primary_metric
    line = first_result_line(candidate.name, target, metric, smoke=smoke)
    session.progress.show(candidate.name, line, *describe_items(session, found))


def describe_items(session: Session, test_rows: Sequence[SampleResult]) -> list[str]:
    """List question, score, answer and reference of the first test items; none once some were described."""
    if session.shown or session.target.task.kind == "bits_per_byte":
        return []
    session.shown.append(session.target.task.name)
    prompts = {example.id: example.prompt for example in session.target.examples("test")}
    lines = []
    for row in [row for row in test_rows if row.status != "error"][:_N_ITEMS]:
        reference = quote(clean(row.references[0])) if row.references else UNKNOWN
        said = f"{_print_score(session.target.primary, row)}: {quote(clean(row.text))}"
        lines += [clean(prompts.get(row.example_id, row.prompt)), f"  {said} (reference: {reference})"]
    return lines


def _print_score(metric: Metric, row: SampleResult) -> str:
    """Call an answer right or wrong where its score is the best or the worst that there is, else print it."""
    ends, parts = extremes(metric, row.references), row.parts[metric.name]
    if parts is None:
        return "not scored"
    if ends and parts in ends:
        return "right" if parts == ends.best else "wrong"
    value = item_scores(metric, np.array([parts]))[0]
    return f"{metric.name} {score(metric.unit, float(value))}"
