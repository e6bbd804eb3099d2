"""The gate's operating characteristic: chances of a wrong verdict, and the items that would settle one.

Invariant: normal approximations throughout, from widths that were found (which hold n,
disagreement and clusters) or, before a run, from a disagreement that is assumed.
Source: Chow, Shao & Wang 2008.
"""

from collections.abc import Mapping, Sequence
from math import ceil, floor, inf, isfinite, log, log1p, sqrt
from typing import NamedTuple

from harness import comparison, formatting, stats
from harness.comparison import Comparison
from harness.gating.shared_items import NOTHING_SHARED, SharedItems
from harness.gating.verdict import (
    MissRate,
    TaskComparison,
    is_relative,
    is_reported_only,
    macro_scales,
    margin_of,
    margin_share,
    margin_text,
    own_margin,
)
from harness.spec import GatePolicy, Suite, Task
from harness.stats import Array, Interval

_MACRO_LOSSES = (-0.01, -0.02, -0.03, -0.05)
_TASK_LOSSES = (-0.05, -0.10)
_POWER = 0.8
_ROUNDING = 1e-9
_ASSUMED_DISAGREEMENT = 0.15
MOST_ITEMS = 100  # times the items at hand: beyond that, more items are no advice


class Macro(NamedTuple):
    """The macro delta, its one-sided bounds, and the standard error that its lower bound amounts to.

    In the unit of the policy's margin: points, or shares of the base's skill, each task's delta
    then multiplied by its own of the `scales`. `weights` say what each task counts, and `correlations`,
    where tasks share items, how far their deltas move together.
    """

    delta: float
    lower: float
    upper: float
    se: float
    scales: tuple[float, ...]
    weights: tuple[float, ...]
    correlations: Array | None

    def se_of(self, standard_errors: Sequence[float]) -> float:
        """Combine the tasks' standard errors, each in points, to the macro's."""
        triples = zip(self.weights, self.scales, standard_errors, strict=True)
        return stats.quadrature([weight * scale * se for weight, scale, se in triples], self.correlations)


def average_macro(
    admitted: Sequence[TaskComparison], policy: GatePolicy, shared: SharedItems = NOTHING_SHARED
) -> Macro:
    """Average the admitted tasks' deltas, with their one-sided bounds combined by MOVER.

    Each half-task has half the weight of a task, and copies of one task have together that of one.

    Raises:
        ValueError: no task is admitted.
    """
    if not admitted:
        raise ValueError("found no admitted task to average")
    scales = macro_scales(admitted, policy)
    scaled = [(s, t.counted) for s, t in zip(scales, admitted, strict=True)]
    bounds = [Interval(s * c.lower, s * c.upper) for s, c in scaled]
    weights, correlations = shared.weights(admitted), shared.matrix(admitted)
    deltas = [s * c.delta for s, c in scaled]
    delta, (lower, upper) = stats.mover_mean(deltas, bounds, weights, correlations)
    se = (delta - lower) / stats.z_quantile(1 - policy.alpha)
    return Macro(delta, lower, upper, se, scales, weights, correlations)


def power_warnings(
    suites: Sequence[Suite],
    n: Mapping[str, int],
    policy: GatePolicy,
    disagreement: Mapping[str, float] | None = None,
    n_members: int = 1,
) -> tuple[str, ...]:
    """Say before anything runs which margins the items at hand probably cannot show.

    `n` maps the names of tasks to their items, `disagreement` to the share of items expected
    to differ (0.15 where it is not known). A margin can be shown where an equal model passes
    the macro, and a loss of twice a task's margin is noticed, in 80 % of cases; a critical
    task where at least losing nothing would pass. Clusters are not known yet and left out. Of
    `n_members` fine-tunes each has to be shown at the level of Holm's first step.
    """
    among = f", as one of {n_members} fine-tunes," if n_members > 1 else ""
    show = policy.model_copy(update={"alpha": policy.alpha / max(n_members, 1)})
    known = disagreement or {}
    counted = [
        (task, suite.name, n[task.name], known.get(task.name, _ASSUMED_DISAGREEMENT))
        for suite in suites
        for task in suite.tasks
        if n.get(task.name)
    ]
    capability = {task.name for suite in suites if suite.role == "capability" for task in suite.tasks}
    judged = [c for c in counted if c[0].name in capability and not is_reported_only(c[0])]
    warnings = [_macro_warning([(n_items, d) for _, _, n_items, d in judged], show, among)]
    warnings += [_each_warning(task, n_items, d, len(judged), policy) for task, _, n_items, d in judged]
    critical = [c for c in counted if {c[0].name, c[1]} & set(policy.critical)]
    warnings += [_critical_warning(task, n_items, show, among) for task, _, n_items, _ in critical]
    return tuple(w for w in warnings if w)


def miss_rates(
    admitted: Sequence[TaskComparison], macro: Macro, validity: Comparison | None, policy: GatePolicy
) -> tuple[MissRate, ...]:
    """Work out the operating characteristic from the found widths, which hold n, disagreement and clusters.

    Normal approximations. A true loss larger than the disagreement found needs more of it,
    and gets the variance that goes with it. "equal" counts the macro and validity rules.
    """
    if macro.se <= 0:
        return ()
    rates = [_macro_miss(admitted, macro, d, policy) for d in _MACRO_LOSSES]
    rates += [_each_miss(admitted, d, policy) for d in _TASK_LOSSES]
    passes = stats.noninferiority_power(0.0, margin_share(policy.macro), macro.se, policy.alpha)
    if validity is not None and lower_se(comparison.orient(validity)) > 0:
        se = lower_se(comparison.orient(validity))
        passes *= stats.noninferiority_power(0.0, policy.validity, se, policy.alpha)
    return (*rates, MissRate(0.0, 1 - passes, "equal"))


def _each_miss(admitted: Sequence[TaskComparison], delta: float, policy: GatePolicy) -> MissRate:
    """Find the task on which `each` would most probably pass this loss, at Holm's hardest step."""
    alpha = policy.alpha / len(admitted)

    def chance(t: TaskComparison) -> float:
        found = upper_se(t.comparison) or planning_se(t.comparison, 0.0)  # 0 where all items rose
        se = _se_at(t.comparison, delta, found)
        return 1 - _detection_chance(delta, margin_of(t, policy), se, alpha, _step(t.comparison))

    hardest = max(admitted, key=chance)
    return MissRate(delta, chance(hardest), f"each: {hardest.task.name}")


def _step(c: Comparison) -> float:
    """Return how far apart the deltas are that can be found: one item for scores of 0 and 1."""
    return 0.0 if c.base_passed is None else 1 / c.n


def _detection_chance(delta: float, margin: float, se: float, alpha: float, step: float = 0.0) -> float:
    """Return the chance that a loss is shown and found beyond the margin, so that `each` does not pass.

    Where deltas come in steps, the normal is cut half a step beyond the last that is not beyond.
    """
    beyond = (floor(margin / step + _ROUNDING) + 0.5) * step if step else margin
    found_beyond = stats.regression_power(delta, beyond, se, alpha=0.5)
    return min(stats.regression_power(delta, 0.0, se, alpha), found_beyond)


def _macro_miss(
    admitted: Sequence[TaskComparison], macro: Macro, delta: float, policy: GatePolicy
) -> MissRate:
    """Work out the chance to miss that every task lost so many points."""
    se = macro.se_of([_se_at(t.counted, delta, lower_se(t.counted)) for t in admitted])
    lost = delta * sum(w * s for w, s in zip(macro.weights, macro.scales, strict=True))
    passes = stats.noninferiority_power(lost, margin_share(policy.macro), se, policy.alpha)
    return MissRate(delta, passes, "macro")


def _se_at(c: Comparison, delta: float, se: float) -> float:
    if abs(delta) <= c.disagreement:
        return se
    return max(se, stats.paired_se(abs(delta), c.n, delta, c.design_effect))


def lower_se(c: Comparison) -> float:
    """Return the standard error that the lower one-sided bound amounts to."""
    return (c.delta - c.lower) / stats.z_quantile(1 - c.alpha)


def upper_se(c: Comparison) -> float:
    """Return the standard error that the upper one-sided bound amounts to."""
    return (c.upper - c.delta) / stats.z_quantile(1 - c.alpha)


def planning_se(c: Comparison, se: float) -> float:
    """Return the standard error from which to foretell what more items would show.

    The bounds of few scores of 0 and 1 are wider than their spread, by an amount that falls with n
    and not with its root. So their spread is taken from the items that were lost and gained, half an
    item added to each and two to all: what was never seen among few is not taken for impossible.

    Source: the added items after Agresti & Min 2005.
    """
    if c.base_passed is None or c.estimator == "identical":
        return se
    grown = c.n / (c.n + 2)
    return stats.paired_se((c.n * c.disagreement + 1) / (c.n + 2), c.n, c.delta * grown, c.design_effect)


def macro_planning_se(admitted: Sequence[TaskComparison], macro: Macro) -> float:
    """Return the macro's standard error as `planning_se` gives it of every task."""
    return macro.se_of([planning_se(t.counted, lower_se(t.counted)) for t in admitted])


def facing_se(delta: float, ends: Interval, margin: float, alpha: float) -> float:
    """Return the standard error that the one-sided bound between the delta and −margin amounts to."""
    width = delta - ends.low if delta >= -margin else ends.high - delta
    return width / stats.z_quantile(1 - alpha)


def more_items(
    delta: float, se: float, margin: float, n: int, alpha: float, found_se: float
) -> tuple[int | None, str]:
    """Say how many more items would settle the margin with 80 % power, and under which true delta.

    `se` is the one to plan with (`planning_se`), `found_se` that of the bound which left the margin
    open (`facing_se`): it is used where by the planned one the items at hand would have done. The
    true delta is taken to be the observed one where that is a loss, else 0 (a gain that is not
    shown is not counted on), however many items that takes. Where the observed loss lies so close
    to the margin that a hundred times the items would not tell them apart, the number is that for
    a true delta of 0.
    """
    if not isfinite(se):
        return None, "too few clusters show no spread, so items of other clusters would have to"
    truth = min(delta, 0.0)
    factor = _factor(se, abs(truth + margin), alpha)
    if factor <= 1:
        factor = _factor(found_se, abs(truth + margin), alpha)
    if factor <= MOST_ITEMS or (truth == 0 and isfinite(factor)):
        assumed = "the true delta is the one found" if truth < 0 else "nothing is lost"
        more = max(1, ceil(n * (factor - 1)))
        return more, f"some {formatting.count(more)} more items would settle it with 80 % power if {assumed}"
    if truth == 0:
        return None, "no number of items would settle a margin so small"
    at_margin = "the loss found lies at the margin, which no reasonable number of items would settle"
    factor = _factor(se, margin, alpha)
    if factor <= 1:
        return None, at_margin
    more = max(1, ceil(n * (factor - 1)))
    return more, f"{at_margin}; if nothing is lost, some {formatting.count(more)} more would, with 80 % power"


def _factor(se: float, gap: float, alpha: float) -> float:
    """Return by how much the items must grow until the gap is (z_{1−α} + z_power) standard errors."""
    reach = se * (stats.z_quantile(1 - alpha) + stats.z_quantile(_POWER))
    times = reach / gap if gap > 0 else inf
    return times * times  # ** raises where the square is beyond what a float holds


def _times(n: int, factor: float) -> float:
    return ceil(n * factor) if isfinite(factor) else inf


def _macro_warning(items: Sequence[tuple[int, float]], policy: GatePolicy, among: str) -> str:
    """Warn where an equal model would not pass the macro often enough; (n, disagreement) of each task."""
    if not items:
        return "no capability task has items: the macro cannot pass"
    if is_relative(policy.macro):
        return f"macro margin {margin_text(policy.macro)}: what it takes is known once the base is measured"
    margin = margin_share(policy.macro)
    n, se = sum(n for n, _ in items), sqrt(sum(d / n for n, d in items)) / len(items)
    power = stats.noninferiority_power(0.0, margin, se, policy.alpha)
    if power >= _POWER:
        return ""
    needed = _times(n, _factor(se, margin, policy.alpha))
    return (
        f"macro margin {formatting.percent(margin)} pp: with {formatting.count(n)} items over "
        f"{formatting.counted(len(items), 'task')} an equal model{among} passes in {100 * power:.0f} % of "
        f"cases; 80 % take some {formatting.count(needed)} items"
    )


def _each_warning(task: Task, n: int, disagreement: float, n_tasks: int, policy: GatePolicy) -> str:
    written, alpha = own_margin(task, policy), policy.alpha / n_tasks
    if is_relative(written):
        return ""
    margin = margin_share(written)
    if 2 * margin >= 1:
        return ""  # no task can lose twice as much
    se = stats.paired_se(disagreement, n, -2 * margin)
    power = _detection_chance(-2 * margin, margin, se, alpha)
    if power >= _POWER:
        return ""
    needed = _times(n, max(_factor(se, 2 * margin, alpha), _factor(se, margin, 0.5)))
    return (
        f"{task.name}, margin {formatting.percent(margin)} pp: with {formatting.count(n)} items a true loss "
        f"of {formatting.percent(2 * margin)} pp is noticed in {100 * power:.0f} % of cases; "
        f"80 % take some {formatting.count(needed)} items"
    )


def _critical_warning(task: Task, n: int, policy: GatePolicy, among: str) -> str:
    """Warn where even losing nothing would not pass: α^{1/n} is then the bound on what is kept."""
    needed = ceil(log(policy.alpha) / log1p(-2 * policy.critical_margin))
    if n >= needed:
        return ""
    return (
        f"{task.name}, critical margin {formatting.percent(policy.critical_margin)} %: with "
        f"{formatting.count(n)} items not even losing nothing passes; it takes {formatting.count(needed)} "
        f"items that the base passes{among.rstrip(',')}"
    )
