"""Margins: how large a loss each rule of the gate allows, how one is judged against it and printed.

Invariant: margins are computed only here, for the rules, their power and the announcements before a run. A
relative margin has a known size only after the base was measured. One-sided bounds judge a margin: it passes
if the lower bound is above it, fails if the upper bound is below it, and is open otherwise.
"""

from collections.abc import Iterable
from typing import NamedTuple

from harness import formatting
from harness.analysis.estimators import Comparison
from harness.analysis.items_needed import MoreItems, find_facing_se
from harness.analysis.verdict import Outcome, TaskComparison, is_in_macro, is_safety
from harness.spec import GatePolicy, Margin, Task
from harness.stats import Interval


class LossRates(NamedTuple):
    """Loss rates of a critical task, which fails if a rate above `fails_above` is shown.

    It passes if a rate below `passes_below` is shown.
    """

    fails_above: float
    passes_below: float


def task_margin(task: Task, role: str, policy: GatePolicy) -> Margin:
    """Return the margin of a task as written: its own, else the policy's for tasks of its role."""
    return task.margin or (policy.safety if role == "safety" and policy.safety else policy.each)


def critical_rates(policy: GatePolicy) -> LossRates:
    """Return the loss rates that judge a critical task, as shares of the items that the base passed."""
    return LossRates(policy.critical_margin, 2 * policy.critical_margin)


def margin_of(t: TaskComparison, policy: GatePolicy) -> float:
    """Return the loss that counts as a regression on this task, as a share of its metric's range."""
    return allowed_loss(task_margin(t.task, t.role, policy), skill(t))


def map_margins(tasks: Iterable[TaskComparison], policy: GatePolicy) -> dict[str, float]:
    """Map the tasks that count in the macro or for safety to the loss that counts as a regression on them."""
    return {t.task.name: margin_of(t, policy) for t in tasks if is_in_macro(t) or is_safety(t, policy)}


def allowed_loss(margin: Margin, skill: float) -> float:
    """Return the loss that a margin allows if the base is `skill` above chance."""
    return margin_share(margin) * (skill if is_relative(margin) else 1.0)


def margin_share(margin: Margin) -> float:
    """Return the margin as a number in (0, 1): a share of the scale, or of the skill if `is_relative`."""
    return float(margin.rstrip("% ")) / 100 if isinstance(margin, str) else margin


def is_relative(margin: Margin) -> bool:
    """Tell whether a margin is a share of the base's skill, written `10%`."""
    return isinstance(margin, str)


def skill(t: TaskComparison) -> float:
    """Return how far the base is above chance on the admitting items, as a share of the metric's range."""
    return ((t.half.admitting_score if t.half else t.comparison.base) - t.task.chance) / t.span


def margin_text(margin: Margin) -> str:
    """Format a margin: `2.0 pp`, or `10.0 % of the base's skill`."""
    unit = "% of the base's skill" if is_relative(margin) else "pp"
    return f"{formatting.percent(margin_share(margin))} {unit}"


def margin_outcome(lower: float, upper: float, margin: float) -> Outcome:
    """Judge a loss by its one-sided bounds against a margin, all as shares."""
    return "pass" if lower > -margin else "fail" if upper < -margin else "inconclusive"


def ruled_out(low: float, lower: float, margin: float, policy: GatePolicy) -> str:
    """State that a loss is ruled out, with the one-sided bound if the printed interval still contains it."""
    bound = f"{formatting.percent(-lower)} pp is the one-sided {100 * (1 - policy.alpha):g} % bound"
    return "a larger loss is ruled out" + (f" ({bound})" if low <= -margin else "")


def margin_verdict(
    outcome: Outcome, margin: str, excluded: str, advice: MoreItems, broken: str = "a loss beyond it is shown"
) -> str:
    """Describe how a margin was judged and, if it is open, what would settle it."""
    words = {"pass": excluded, "fail": broken, "inconclusive": f"not shown; {advice.sentence}"}
    return f"margin {margin}: {words[outcome]}"


def comparison_facing_se(c: Comparison, margin: float) -> float:
    """Return the standard error of a comparison on the side facing the margin."""
    return find_facing_se(c.delta, Interval(c.lower, c.upper), margin, c.alpha)


def loss_margin_text(t: TaskComparison, policy: GatePolicy) -> str:
    """Describe a task's loss and the allowed one: `piqa fell 8.0 points [3, 13], 5.0 allowed`."""
    c, of_range = t.counted, "" if t.span == 1 else " of its range"
    fell = formatting.interval(-c.delta, -c.high, -c.low).replace(" [", f" points{of_range} [")
    return f"{t.task.name} fell {fell}, {formatting.percent(margin_of(t, policy))} allowed"
