"""Sentences and numbers that several rules of the gate share.

Invariant: one-sided bounds judge a margin: a bound above it passes, below it fails, otherwise it is open.
"""

from collections.abc import Mapping, Sequence

from harness import formatting
from harness.comparison import Comparison
from harness.gating.items_needed import MoreItems, find_facing_se
from harness.gating.verdict import Number, Outcome, TaskComparison, margin_of
from harness.spec import GatePolicy
from harness.stats import Interval

NAMED = 20  # items named in a rule's numbers


def margin_outcome(lower: float, upper: float, margin: float) -> Outcome:
    """Judge a loss by its one-sided bounds against a margin, all as shares."""
    return "pass" if lower > -margin else "fail" if upper < -margin else "inconclusive"


def margin_verdict(
    outcome: Outcome, margin: str, advice: MoreItems, broken: str = "a loss beyond it is shown"
) -> str:
    """Say how a margin was judged, and for an open one what would settle it."""
    words = {
        "pass": "a larger loss is ruled out",
        "fail": broken,
        "inconclusive": f"not shown; {advice.sentence}",
    }
    return f"margin {margin}: {words[outcome]}"


def add_items_needed(facts: dict[str, Number], outcome: str, more: int | None) -> dict[str, Number]:
    """Add the number of items that would settle an open rule to its numbers, if known."""
    return {**facts, "items_needed": more} if outcome == "inconclusive" and more is not None else facts


def add_items_of_tasks(
    facts: dict[str, Number], outcome: str, more: Mapping[str, int | None]
) -> dict[str, Number]:
    """Add the number of items of each open task that would settle a rule to its numbers, if all are known."""
    known = {task: n for task, n in more.items() if n}
    if outcome != "inconclusive" or not known or len(known) < len(more):
        return facts
    by_task = [f"{task} {formatting.count(n)}" for task, n in known.items()]
    return {**facts, "items_needed": sum(known.values()), "items_needed_by_task": by_task}


def comparison_facing_se(c: Comparison, margin: float) -> float:
    """Return the standard error of a comparison on the side facing the margin."""
    return find_facing_se(c.delta, Interval(c.lower, c.upper), margin, c.alpha)


def delta_text(t: TaskComparison) -> str:
    """Format a task's change: `piqa −1.0 [−3, +1] pp`."""
    c = t.counted
    of_range = "" if t.span == 1 else " of its range"
    return f"{t.task.name} {formatting.points(c.delta, c.low, c.high)} pp{of_range}"


def loss_margin_text(t: TaskComparison, policy: GatePolicy) -> str:
    """Say how much a task fell and how much is allowed: `piqa fell 8.0 points [3, 13], 5.0 allowed`."""
    c, of_range = t.counted, "" if t.span == 1 else " of its range"
    fell = formatting.interval(-c.delta, -c.high, -c.low).replace(" [", f" points{of_range} [")
    return f"{t.task.name} fell {fell}, {formatting.percent(margin_of(t, policy))} allowed"


def list_ids(ids: Sequence[str]) -> str:
    """Name the first five items, and the number of the others."""
    rest = f" and {len(ids) - 5} more" if len(ids) > 5 else ""
    return ", ".join(ids[:5]) + rest
