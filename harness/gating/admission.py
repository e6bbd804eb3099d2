"""Admission, and the comparisons of both arms' rows on the tasks of the suites.

Invariant: one place for everybody who judges: a finished experiment, stored runs, and results
made elsewhere. Admission looks at the base only.
"""

from collections.abc import Mapping, Sequence
from math import sqrt
from typing import NamedTuple

from harness import comparison, formatting, stats
from harness.comparison import Comparison
from harness.gating.verdict import TaskComparison, is_reported_only
from harness.metrics import Metric
from harness.records import SampleResult
from harness.spec import GatePolicy, Role, Task

_SIGNAL_TO_NOISE = 3.0


class Measurement(NamedTuple):
    """One task of a suite as both arms answered it; `flip_rate` is its A/A noise where that was measured."""

    task: Task
    role: Role
    suite: str
    metrics: Mapping[str, Metric]
    base: Sequence[SampleResult]
    new: Sequence[SampleResult]
    flip_rate: float | None = None


def admit(
    task: Task, metric: Metric, base_rows: Sequence[SampleResult], flip_rate: float | None = None
) -> tuple[bool, str]:
    """Decide from the base's rows whether the task can show forgetting, and say why.

    Admitted where the 95 % interval of the base's score lies above the task's chance level, and the
    score at least three times its A/A noise above it: the standard deviation √(q/2n) that a share q
    of items flipping between two layouts gives each of them. Bits per byte, and any other metric
    where lower is better, never count.

    Raises:
        IncompatibleRuns: no row could be scored.
    """
    if is_reported_only(task) or not metric.higher_is_better:
        return False, f"{task.name}: {metric.name} is reported, never part of the macro"
    score = comparison.estimate(metric, base_rows)
    percent = " %" if score.unit.is_rate else ""
    found = f"the base scores {formatting.score(score.unit, *score[:3])}{percent}"
    chance = f"chance ({formatting.percent(task.chance)} %), n = {formatting.count(score.n)}"
    noise = sqrt((flip_rate or 0.0) / (2 * score.n))
    if score.low > task.chance + stats.TIE and score.score - task.chance < _SIGNAL_TO_NOISE * noise:
        moved = f"less than three times what its layout alone moves it by ({formatting.percent(noise)} pp)"
        return False, f"{task.name} cannot show forgetting: {found}, above {chance} by {moved}"
    if score.low > task.chance + stats.TIE:
        return True, f"{task.name}: {found}, above {chance}"
    return False, f"{task.name} cannot show forgetting: {found}, not above {chance}"


def applicable_policy(policy: GatePolicy, *, trained: bool) -> GatePolicy:
    """Ask a gain over the best untrained candidate only of what has other weights than the base."""
    if trained:
        return policy
    return policy.model_copy(update={"target": policy.target.model_copy(update={"gain": None})})


def compare_measurements(
    measured: Sequence[Measurement], alpha: float, *, identical: bool
) -> list[TaskComparison]:
    """Compare both arms on every metric of every task, each task's primary metric first.

    Raises:
        IncompatibleRuns: the arms hold different items, or an item could be scored in neither.
    """
    return [t for m in measured for t in _task(m, alpha, identical)]


def admitted_tasks(measured: Sequence[Measurement]) -> set[str]:
    """Name the capability tasks that count in the macro, by the base's rows."""
    capability = (m for m in measured if m.role == "capability")
    return {m.task.name for m in capability if _admit_by(m, m.task.primary_metric)[0]}


def _task(m: Measurement, alpha: float, identical: bool) -> list[TaskComparison]:
    primary, out = m.task.primary_metric, []
    for name in sorted(m.metrics, key=lambda n: n != primary):
        difference = comparison.compare_rows(m.metrics[name], m.base, m.new, alpha=alpha, identical=identical)
        admitted, why = _admit_by(m, name) if name == primary else (False, "")
        out.append(TaskComparison(m.task, m.role, difference, admitted, "" if admitted else why, m.suite))
    return out


def _admit_by(m: Measurement, name: str) -> tuple[bool, str]:
    return admit(m.task, m.metrics[name], m.base, m.flip_rate)


def compare_invalid_rates(
    measured: Sequence[Measurement], alpha: float, identical: bool
) -> Comparison | None:
    """Compare the share of invalid answers over the generated rows of tasks where none is wanted."""
    generated = [m for m in measured if m.task.kind == "generate" and m.role != "safety"]
    if not generated:
        return None
    base, new = ([row for m in generated for row in getattr(m, arm)] for arm in ("base", "new"))
    return comparison.compare_validity(base, new, alpha=alpha, identical=identical)
