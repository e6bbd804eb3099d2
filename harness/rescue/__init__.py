"""Forgetting mitigation search for a fine-tune that gains and forgets too much, cheapest trial first.

Invariant: a trial is a candidate like any other, with its own recipe, run, rows and verdict. It is
chosen on one half of the suites' items and judged on the other.
"""

from collections.abc import Sequence
from typing import NamedTuple

from harness.errors import UserError
from harness.evaluation.candidate_rows import regularization_problems
from harness.evaluation.session import Session
from harness.experiment import refuse_folds
from harness.report import ExperimentReport
from harness.rescue.result import (
    HalfVerdict,
    Rescue,
    TrialResult,
    exit_code,
    front_file,
    read,
    report_files,
    rescue_document,
    to_json,
    write,
)
from harness.rescue.search import RescueCase, answer_whole_tasks, find_case, search, select_case
from harness.rescue.trials import (
    TrialCost,
    TrialSchedule,
    estimate_trials,
    largest_work,
    plan_document,
    schedule_for_run,
)
from harness.store import list_runs


class PreparedRescue(NamedTuple):
    """A run to rescue, what will be tried, and a session that knows the recipes."""

    session: Session
    case: RescueCase
    schedule: TrialSchedule

    @property
    def plan(self) -> list[TrialCost]:
        """Work and time of each trial."""
        return estimate_trials(self.session, self.schedule, self.case.run.seed)


def prepare(session: Session, selected: Sequence[str], wanted: str) -> PreparedRescue:
    """Find the run that a candidate's name or a run's id means, and list what to try.

    Computes nothing, except that the weights of a run of `--sequential` answer whole tasks first.

    Raises:
        UserError: nobody has this name, there is nothing to rescue, or the target is tested in folds; says
            which.
        IncompatibleRuns: there is no run of it as written now.
    """
    refuse_folds(session, "harness rescue", "where every trial would have to be made again in each")
    return _prepare(session, find_case(session, selected, answer_whole_tasks(session, selected, wanted)))


def prepare_from_report(session: Session, found: ExperimentReport) -> PreparedRescue | None:
    """Choose what to rescue of a finished experiment; None where there is nothing."""
    if session.folds:
        return None  # every trial would have to be made again in each fold
    case = select_case(found, list_runs(session.store, session.experiment.name))
    return _prepare(session, case) if case else None


def run(prepared: PreparedRescue) -> Rescue:
    """Try one recipe after the other, as far as that is not done.

    Raises:
        HarnessError: another process is working in the same runs folder.
    """
    return search(prepared.session, prepared.case, prepared.schedule)


def _prepare(session: Session, case: RescueCase) -> PreparedRescue:
    found = schedule_for_run(session, case.run)
    if problems := [p for trial in found.trials for p in regularization_problems(session, trial.source)]:
        raise UserError(dict.fromkeys(problems))
    recipes = {name: recipe for trial in found.trials for name, recipe in trial.recipes.items()}
    return PreparedRescue(session.with_candidates(recipes), case, found)
