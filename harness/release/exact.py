"""Score a run's pinned items again in fp32, which tells a lost item from one that rounding moved.

Invariant: the weights are the run's own; only the precision of computing differs.
"""

from dataclasses import replace

from harness.evaluation.session import EngineSlot, Session
from harness.experiment.run_candidate import ensure_weights, suite_arm
from harness.records import Run


def rescore_pinned(session: Session, run: Run) -> list[str]:
    """Answer the regression suites in fp32 with a run's weights; returns the tasks now stored so.

    Raises:
        HarnessError: the weights cannot be opened.
    """
    recipe = session.experiment.candidates[run.candidate]
    weights = ensure_weights(session, recipe, run.seed)
    exact = replace(
        session,
        machine=session.machine._replace(precision="fp32"),
        suites=tuple(m for m in session.suites if m.role == "regression"),
        slot=EngineSlot(),  # a base in fp32 must not answer for one in the run's precision
    )
    session.unload()
    return list(suite_arm(exact, weights, f"{run.candidate} in fp32"))
