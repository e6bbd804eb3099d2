"""Margins: how large a loss each rule of the gate allows, how it is judged, and the items to settle it.

Invariant: margins are computed only here. A one-sided lower bound above −margin passes, an upper bound below
it fails. Items are planned from observed interval widths; a task gets more in proportion to what each of its
items adds to the width (Neyman), and never more than it has.
Source: Chow, Shao & Wang 2008 for the sample size; Neyman 1934 for the allocation.
"""

from collections.abc import Iterable, Sequence
from math import ceil, inf, isfinite, sqrt
from typing import NamedTuple

from harness import formatting, stats
from harness.analysis.estimators import Comparison
from harness.analysis.verdict import Outcome, TaskComparison, is_in_macro, is_safety
from harness.spec import GatePolicy, Margin, Task
from harness.stats import Array

POWER = 0.8
MOST_ITEMS = 100  # times the current items; advising more would be useless
_NAMED = 8  # number of tasks named with their items
_ROUNDING = 1e-9
_BISECTIONS = 60


class DeltaPart(NamedTuple):
    """One task's part in a delta: its standard error, its n items, and how many more items it has."""

    name: str
    se: float
    n: int
    room: float = inf


class MoreItems(NamedTuple):
    """Additional items per task that would settle a margin, and the sentence; None if none would."""

    items: int | None
    sentence: str
    by_task: tuple[str, ...] = ()


def lower_se(c: Comparison) -> float:
    """Return the standard error implied by the lower one-sided bound."""
    return (c.delta - c.lower) / stats.z_quantile(1 - c.alpha)


def upper_se(c: Comparison) -> float:
    """Return the standard error implied by the upper one-sided bound."""
    return (c.upper - c.delta) / stats.z_quantile(1 - c.alpha)


def find_planning_se(c: Comparison, se: float) -> float:
    """Return the standard error for predicting what more items would show; infinite for too few clusters.

    For few scores of 0 and 1 the bounds are wider than the spread, so the spread is taken from the lost and
    gained items, with half an item added to each and two to the total (after Agresti & Min 2005).
    """
    if c.refused:
        return inf
    if c.base_passed is None or c.estimator == "identical":
        return se
    grow = c.n / (c.n + 2)
    return stats.paired_se((c.n * c.disagreement + 1) / (c.n + 2), c.n, c.delta * grow, c.design_effect)


def find_facing_se(delta: float, lower: float, upper: float, margin: float, alpha: float) -> float:
    """Return the standard error implied by the one-sided bound on the side of −margin."""
    width = delta - lower if delta >= -margin else upper - delta
    return width / stats.z_quantile(1 - alpha)


def describe_more_items(
    delta: float,
    parts: Sequence[DeltaPart],
    margin: float,
    alpha: float,
    facing_se: float,
    correlations: Array | None = None,
) -> MoreItems:
    """Describe how many more items would settle the margin with 80 % power, and under which true delta.

    `parts` hold standard errors by `find_planning_se`, `facing_se` is that of the bound that left the margin
    open (`find_facing_se`), used if the planning ones say that the current items are enough; in every case
    the items narrow that bound to the margin. The true delta is assumed to be the observed loss, else 0; also
    0 if a hundred times the items could not tell the loss from the margin.
    """
    se = stats.quadrature([part.se for part in parts], correlations)
    if not isfinite(se):
        return MoreItems(None, "too few clusters to tell how much items differ; add items of other clusters")
    truth = min(delta, 0.0)
    target_se = abs(truth + margin) / _reach(alpha)
    if 0 < se <= target_se:
        parts = [part._replace(se=part.se * facing_se / se) for part in parts]
        se = facing_se
    elif facing_se > (bound_se := abs(delta + margin) / stats.z_quantile(1 - alpha)):
        target_se = min(target_se, se * bound_se / facing_se)
    if _growth(se, target_se) <= MOST_ITEMS or (truth == 0 and isfinite(_growth(se, target_se))):
        assumed = "the loss is as large as it looks" if truth < 0 else "nothing is lost"
        return _advise(parts, target_se, correlations, "", f"would probably settle it if {assumed}")
    if truth == 0:
        return MoreItems(None, "no number of items would settle so small a margin")
    at_margin = "the loss looks as large as the margin, which no reasonable number of items would settle"
    target_se = margin / _reach(alpha)
    if se <= target_se:
        return MoreItems(None, at_margin)
    before = f"{at_margin}; if nothing is lost, "
    return _advise(parts, target_se, correlations, before, "probably would")


def _advise(
    parts: Sequence[DeltaPart], target_se: float, correlations: Array | None, before: str, after: str
) -> MoreItems:
    extra = allocate_items(parts, target_se, correlations)
    if extra is None:
        # Tasks without a limit can have any number of items; only the others have too few.
        room = formatting.count(ceil(sum(part.room for part in parts if isfinite(part.room))))
        return MoreItems(None, f"the {room} items that the tasks still hold would not settle it")
    n = max(1, sum(extra))
    needed = sorted((-m, part.name) for m, part in zip(extra, parts, strict=True) if m)
    by_task = tuple(f"{name} {formatting.count(-m)}" for m, name in needed)
    rest = f" and {formatting.pluralize(len(by_task) - _NAMED, 'task')} more" if len(by_task) > _NAMED else ""
    task_text = f" ({', '.join(by_task[:_NAMED])}{rest})" if len(parts) > 1 and by_task else ""
    return MoreItems(n, f"{before}some {formatting.count(n)} more items {after}{task_text}", by_task)


def allocate_items(
    parts: Sequence[DeltaPart], target_se: float, correlations: Array | None = None
) -> tuple[int, ...] | None:
    """Return the fewest additional items per part that lower the total standard error to `target_se`.

    n_i + m_i ∝ se_i √n_i, at least n_i and at most what the task has; None if all would not be enough.

    Source: Neyman 1934; Cochran 1977, section 5.5.
    """

    def grow(scale: float) -> list[float]:
        return [min(max(part.n, scale * part.se * sqrt(part.n)), part.n + part.room) for part in parts]

    def se(sizes: Sequence[float]) -> float:
        widths = [part.se * sqrt(part.n / size) for part, size in zip(parts, sizes, strict=True)]
        return stats.quadrature(widths, correlations)

    current_se = se([part.n for part in parts])
    if se([part.n + part.room for part in parts]) > target_se:
        return None
    if current_se <= target_se:
        return (0,) * len(parts)
    even_factor = (current_se / target_se) ** 2  # the factor by which all parts would have to grow equally
    low, high = 0.0, even_factor * max(sqrt(part.n) / part.se for part in parts if part.se)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if se(grow(middle)) > target_se else (low, middle)
    return tuple(ceil(size - part.n - _ROUNDING * size) for part, size in zip(parts, grow(high), strict=True))


def find_settling_growth(se: float, gap: float, alpha: float) -> float:
    """Return the factor by which items must grow until the gap is (z_{1−α} + z_power) standard errors."""
    return _growth(se, gap / _reach(alpha))


def _growth(se: float, target_se: float) -> float:
    times = se / target_se if target_se > 0 else inf
    return times * times  # ** raises if the square overflows


def _reach(alpha: float) -> float:
    return stats.z_quantile(1 - alpha) + stats.z_quantile(POWER)


def task_margin(task: Task, role: str, policy: GatePolicy) -> Margin:
    """Return the margin of a task as written: its own, else the policy's for tasks of its role."""
    return task.margin or (policy.safety if role == "safety" and policy.safety else policy.each)


def critical_rates(policy: GatePolicy) -> tuple[float, float]:
    """Return the loss rates of a critical task above which it fails, and below which it passes."""
    return policy.critical_margin, 2 * policy.critical_margin


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
    """Return the margin as a share of the scale, or of the skill if `is_relative`."""
    return float(margin.rstrip("% ")) / 100 if isinstance(margin, str) else margin


def is_relative(margin: Margin) -> bool:
    """Tell whether a margin is a share of the base's skill, written `10%`."""
    return isinstance(margin, str) and margin.endswith("%")


def scale_share(margin: Margin) -> float | None:
    """Return a margin that is a share of the metric's range; None for one relative to the base's skill."""
    return None if is_relative(margin) else margin_share(margin)


def skill(t: TaskComparison) -> float:
    """Return how far the base is above chance on the admitting items, as a share of the metric's range."""
    score = t.half.admitting_score if t.half else t.comparison.base
    return (score - t.floor) / t.span


def write_margin(share: float, *, relative: bool) -> Margin:
    """Write a margin that is this share of the scale, or of the skill."""
    return f"{100 * share:g}%" if relative else share


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


def loss_margin_text(t: TaskComparison, policy: GatePolicy) -> str:
    """Describe a task's loss and the allowed one: `piqa fell 8.0 points [3, 13], 5.0 allowed`."""
    c, of_range = t.counted, "" if t.span == 1 else " of its range"
    fell = formatting.interval(-c.delta, -c.high, -c.low).replace(" [", f" points{of_range} [")
    return f"{t.task.name} fell {fell}, {formatting.percent(margin_of(t, policy))} allowed"
