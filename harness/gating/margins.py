"""Margins as people write them: a loss in [0, 1], or a share of the base's skill above chance.

Invariant: a relative margin becomes a loss only once the base was measured; until then what it
amounts to is unknown.
"""

from collections.abc import Sequence

from harness import formatting
from harness.gating.verdict import TaskComparison
from harness.spec import GatePolicy, Margin, Task


def share(margin: Margin) -> float:
    """Return the margin as a number in (0, 1): of the scale, or of the skill where `is_relative`."""
    return float(margin.rstrip("% ")) / 100 if isinstance(margin, str) else margin


def is_relative(margin: Margin) -> bool:
    """Tell whether a margin is a share of the base's skill, written `10%`."""
    return isinstance(margin, str)


def own_margin(task: Task, policy: GatePolicy) -> Margin:
    """Return the margin of a task: its own, else the policy's for each task."""
    return task.margin or policy.each


def margin_of(t: TaskComparison, policy: GatePolicy) -> float:
    """Return the loss in [0, 1] that counts as a regression on this task."""
    margin = own_margin(t.task, policy)
    return share(margin) * (skill(t) if is_relative(margin) else 1.0)


def skill(t: TaskComparison) -> float:
    """Return how far the base is above chance; an admitted task's is above 0."""
    return t.comparison.base - t.task.chance


def macro_scales(admitted: Sequence[TaskComparison], policy: GatePolicy) -> tuple[float, ...]:
    """Return what each task's delta is multiplied by in the macro: 1, or 1/skill for a relative margin."""
    return tuple(1 / skill(t) if is_relative(policy.macro) else 1.0 for t in admitted)


def shown(margin: Margin) -> str:
    """Print a margin: `2.0 pp`, or `10.0 % of the base's skill`."""
    unit = "% of the base's skill" if is_relative(margin) else "pp"
    return f"{formatting.percent(share(margin))} {unit}"
