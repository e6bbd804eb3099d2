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


def exit_code(judged: Sequence[Judged]) -> int:
    """Return the code of the worst verdict: one that fails before one that is inconclusive."""
    codes = {gating.exit_code(j.verdict, j.policy) for j in judged}
    return 3 if 3 in codes else 4 if 4 in codes else 0
