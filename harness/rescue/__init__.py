"""Candidates for a fine-tune that gains and forgets too much: tried cheapest first, confirmed once.

Invariant: a trial is a candidate like any other, with its own recipe, run, rows and verdict. It is
chosen on one half of the suites' items and judged on the other.
"""

from collections.abc import Sequence
from typing import NamedTuple

from harness.errors import UserError
from harness.evaluation.regularization import regularization_problems
from harness.evaluation.session import Session
from harness.report import ExperimentReport
from harness.rescue.report import front_file, kept, read, rescue_document, to_json, write
from harness.rescue.result import HalfVerdict, Rescue, Tried, exit_code
from harness.rescue.search import search, with_trials
from harness.rescue.select import Case, case_of, worth_rescuing
from harness.rescue.trials import Ladder, Planned, at_most, ladder_of, plan_document, planned
from harness.store import list_runs

__all__ = [
    "HalfVerdict",
    "Planned",
    "Prepared",
    "Rescue",
    "Tried",
    "at_most",
    "exit_code",
    "front_file",
    "kept",
    "of_finished",
    "plan_document",
    "prepare",
    "read",
    "rescue_document",
    "run",
    "to_json",
    "write",
]


class Prepared(NamedTuple):
    """A run to rescue, what will be tried, and a session that knows the recipes."""

    session: Session
    case: Case
    ladder: Ladder

    @property
    def plan(self) -> list[Planned]:
        """What each trial takes."""
        return planned(self.session, self.ladder, self.case.run.seed)


def prepare(session: Session, selected: Sequence[str], wanted: str) -> Prepared:
    """Find the run that a candidate's name or a run's id means, and list what to try; computes nothing.

    Raises:
        UserError: nobody has this name, or there is nothing to rescue; says which.
        IncompatibleRuns: there is no run of it as written now.
    """
    return _prepared(session, case_of(session, selected, wanted))


def of_finished(session: Session, found: ExperimentReport) -> Prepared | None:
    """Choose what to rescue of a finished experiment; None where there is nothing."""
    case = worth_rescuing(found, list_runs(session.store, session.experiment.name))
    return _prepared(session, case) if case else None


def run(prepared: Prepared) -> Rescue:
    """Try one recipe after the other, as far as that is not done.

    Raises:
        HarnessError: another process is working in the same runs folder.
    """
    return search(prepared.session, prepared.case, prepared.ladder)


def _prepared(session: Session, case: Case) -> Prepared:
    found = ladder_of(session, case.run)
    if problems := [p for trial in found.trials for p in regularization_problems(session, trial.source)]:
        raise UserError(dict.fromkeys(problems))
    return Prepared(with_trials(session, found.trials), case, found)
