"""Cost of the trials of a rescue: tokens, seconds and USD of each, and what is stored already.

Invariant: a cost is that of a trial made alone from the fine-tune that is there, and what is stored costs
nothing more.
"""

from collections.abc import Sequence
from typing import NamedTuple

from harness import formatting
from harness.evaluation import costs
from harness.evaluation.candidates import base_weights
from harness.evaluation.costs import Work
from harness.evaluation.rows.row_sets import (
    RunRequest,
    list_further_sets,
    suite_sets,
    target_sets,
    total_work,
)
from harness.evaluation.session import Session
from harness.experiment import estimate_tracking, find_stored_runs, fit_work
from harness.report import ResultDocument, Section
from harness.rescue.trials import RescueTrial, TrialSchedule, trials_before_sweep


class TrialCost(NamedTuple):
    """One trial: what it takes in tokens, seconds and USD, and whether it is stored already."""

    name: str
    step: str
    says: str
    work: Work
    time_s: float
    cost_usd: float
    stored: bool


def estimate_trials(session: Session, found: TrialSchedule, seed: int) -> list[TrialCost]:
    """Estimate every trial, on a session that knows their recipes."""
    return [_estimate_trial(session, trial, seed) for trial in found.trials]


def plan_document(plan: Sequence[TrialCost], left_out: Sequence[str]) -> ResultDocument:
    """Lay out the tokens, time and cost of each trial, and the sum last."""
    rows = [
        [
            one.name,
            *map(formatting.count, (one.work.trained, one.work.read, one.work.generated)),
            "stored" if one.stored else formatting.seconds(one.time_s),
            formatting.usd(0 if one.stored else one.cost_usd),
        ]
        for one in plan
    ]
    columns = ("trial", "trained", "read", "generated", "about", "USD")
    open_ = [one for one in plan if not one.stored]
    total_s, total_usd = sum(o.time_s for o in open_), sum(o.cost_usd for o in open_)
    most = f"at most {formatting.seconds(total_s)} and {formatting.usd(total_usd)} USD"
    notes = [f"not tried: {reason}" for reason in left_out]
    return ResultDocument(
        "", [Section(columns=columns, rows=rows, notes=notes)], f"{most}; the first that passes ends it"
    )


def largest_work(session: Session, selected: Sequence[str]) -> Work:
    """Estimate all trials of the fine-tune whose rescue takes longest; which it will be, the gate says."""
    works = [
        sum((_work(session, t, 0) for t in trials_before_sweep(session, name)), Work()) for name in selected
    ]
    return max(works, key=session.seconds, default=Work())


def _estimate_trial(session: Session, trial: RescueTrial, seed: int) -> TrialCost:
    work, candidate = _work(session, trial, seed), session.candidates[trial.name]
    time_s = session.seconds(work, candidate.base)
    hour = session.experiment.decide.device_hour_usd
    (there,) = find_stored_runs(session, [RunRequest(candidate, seed)])
    return TrialCost(
        trial.name,
        trial.step,
        trial.says,
        work,
        time_s,
        costs.price_usd(time_s, session.machine.device, hour),
        there is not None and there.state == "done",
    )


def _work(session: Session, trial: RescueTrial, seed: int) -> Work:
    weights = base_weights(session.source)
    evaluated = session, trial.recipe, weights, 0
    sets = [*suite_sets(session, weights), *target_sets(*evaluated), *list_further_sets(*evaluated)]
    making = fit_work(session, trial.source, seed) + estimate_tracking(session, trial.source)
    return total_work(sets) + making + Work(opened=1, runs=1)
