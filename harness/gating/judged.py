"""One candidate judged against one baseline: what every form of a verdict is printed from.

Invariant: the exit code, the terminal, JUnit, the GitHub summary and JSON all come from this one
object.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from harness import gating
from harness.gating import TaskComparison, Verdict
from harness.spec import GatePolicy


@dataclass(frozen=True, slots=True)
class Judged:
    """A candidate's verdict against a baseline, with the comparisons that it rests on.

    `tasks` holds every metric of every task; `notes` say what was left out and why.
    """

    candidate: str
    baseline: str
    tasks: tuple[TaskComparison, ...]
    verdict: Verdict
    policy: GatePolicy
    notes: tuple[str, ...] = ()


_FROM_BEST_TO_WORST = (0, 4, 3)  # exit codes: one that fails counts before one that is inconclusive


def exit_code(judged: Sequence[Judged]) -> int:
    """Return the code of the worst verdict; 0 of none."""
    codes = (gating.exit_code(j.verdict, j.policy) for j in judged)
    return max(codes, key=_FROM_BEST_TO_WORST.index, default=0)


def worst(judged: Sequence[Judged]) -> Judged:
    """Return the first of those whose verdict alone gives the exit code of them all."""
    code = exit_code(judged)
    return next(j for j in judged if exit_code([j]) == code)
