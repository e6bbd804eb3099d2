"""The gate's operating characteristic: chances of a wrong verdict, before a run and after it.

Invariant: from widths that were found (which hold n, disagreement and clusters) or, before a run, from a
disagreement that is assumed; normal approximations but for what `veto` works out of scores of 0 and 1.
Source: Chow, Shao & Wang 2008.
"""

from collections.abc import Mapping, Sequence
from math import ceil, inf, isfinite, log, log1p, sqrt
from typing import NamedTuple

from scipy import special

from harness import comparison, formatting, stats
from harness.comparison import Comparison
from harness.gating.items_needed import POWER, find_settling_growth, lower_se
from harness.gating.macro import Macro
from harness.gating.significance import chance_to_pass, se_at, stops
from harness.gating.verdict import (
    MissRate,
    TaskComparison,
    find_own_margin,
    is_judged,
    is_relative,
    is_reported_only,
    margin_share,
    margin_text,
)
from harness.spec import GatePolicy, Suite, Task

_MACRO_LOSSES = (-0.01, -0.02, -0.03, -0.05, -0.10)
_TASK_LOSSES = (-0.05, -0.10)
_ASSUMED_DISAGREEMENT = 0.15


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
    among = f" as one of {n_members}" if n_members > 1 else ""
    show = policy.model_copy(update={"alpha": policy.alpha / max(n_members, 1)})
    counted = _list_judged(suites, n, policy, disagreement or {})
    judged = _list_of_macro(counted)
    critical = [c for c in counted if {c.task.name, c.suite.name} & set(policy.critical)]
    refusing = [
        c for c in counted if c.suite.role == "safety" and c not in critical and policy.safety is not None
    ]
    warnings = [_macro_warning(judged, show, among)]
    for vetoed, role in ((judged, "capability"), (refusing, "safety")):
        warnings += [_warn_of_each(c.task, c.n, c.disagreement, len(vetoed), policy, role) for c in vetoed]
    warnings += [_critical_warning(c.task, c.n, show, among) for c in critical]
    return tuple(w for w in warnings if w)


def miss_rates(
    admitted: Sequence[TaskComparison], macro: Macro, validity: Comparison | None, policy: GatePolicy
) -> tuple[MissRate, ...]:
    """Work out the operating characteristic from the found widths, which hold n, disagreement and clusters.

    A true loss larger than the disagreement found needs more of it, and gets the variance that goes
    with it. "each" is of a loss in one task, named at random; "equal" counts macro, each and validity.
    """
    if macro.se <= 0:
        return ()
    rates = [_macro_miss(admitted, macro, d, policy) for d in _MACRO_LOSSES]
    rates += [MissRate(d, chance_to_pass(admitted, d, policy), "each") for d in _TASK_LOSSES]
    passes = _macro_and_each(admitted, macro, policy)
    if validity is not None and lower_se(comparison.orient(validity)) > 0:
        se = lower_se(comparison.orient(validity))
        passes *= stats.noninferiority_power(0.0, policy.validity, se, policy.alpha)
    return (*rates, MissRate(0.0, 1 - passes, "equal"))


def _macro_and_each(admitted: Sequence[TaskComparison], macro: Macro, policy: GatePolicy) -> float:
    """Return the chance that an equal model passes both rules: the macro's, less what `each` stops of it.

    Where a task stops `each`, what is found on it takes the macro down with it.
    """
    margin, z = margin_share(policy.macro), stats.z_quantile(1 - policy.alpha)
    passes = stats.noninferiority_power(0.0, margin, macro.se, policy.alpha)
    if not isfinite(macro.se):  # too few clusters to show anything
        return passes
    kept, stopped, both = 1.0, 0.0, 0.0
    for t, stop, factor in zip(admitted, stops(admitted, 0.0, policy), macro.factors, strict=True):
        own = factor * lower_se(t.counted)
        rest = sqrt(max(macro.se**2 - own**2, 0.0))
        room = margin + factor * stop.delta - z * macro.se
        passes_then = float(special.ndtr(room / rest)) if rest else float(room > 0)
        kept, stopped = kept * (1 - stop.chance), stopped + stop.chance
        both += stop.chance * passes_then
    return max(passes - (1 - kept) * both / stopped, 0.0) if stopped else passes


def _detection_chance(delta: float, margin: float, se: float, alpha: float) -> float:
    """Return the chance that a loss is shown and found beyond the margin, so that `each` does not pass."""
    found_beyond = stats.regression_power(delta, margin, se, alpha=0.5)
    return min(stats.regression_power(delta, 0.0, se, alpha), found_beyond)


def _macro_miss(
    admitted: Sequence[TaskComparison], macro: Macro, delta: float, policy: GatePolicy
) -> MissRate:
    """Work out the chance to miss that every task lost so many points."""
    se = macro.se_of([se_at(t.counted, delta, lower_se(t.counted)) for t in admitted])
    lost = delta * sum(macro.factors)
    passes = stats.noninferiority_power(lost, margin_share(policy.macro), se, policy.alpha)
    return MissRate(delta, passes, "macro")


def _times(n: int, factor: float) -> float:
    return ceil(n * factor) if isfinite(factor) else inf


def chance_of_an_equal_model(
    suites: Sequence[Suite], n: Mapping[str, int], policy: GatePolicy, n_members: int = 1
) -> float | None:
    """Work out before a run how often one of `n_members` fine-tunes that lost nothing passes the macro.

    `n` maps the names of tasks to their items, of which 15 % are expected to differ. None where the margin is
    relative to the base's skill, or no capability task is judged.
    """
    judged = _list_of_macro(_list_judged(suites, n, policy, {}))
    if not judged or is_relative(policy.macro):
        return None
    policy = policy.model_copy(update={"alpha": policy.alpha / max(n_members, 1)})
    return stats.noninferiority_power(0.0, margin_share(policy.macro), _macro_se(judged), policy.alpha)


class _PlannedTask(NamedTuple):
    """Task that the gate will judge: its suite, its items and the share of them expected to differ."""

    task: Task
    suite: Suite
    n: int
    disagreement: float


def _list_judged(
    suites: Sequence[Suite], n: Mapping[str, int], policy: GatePolicy, disagreement: Mapping[str, float]
) -> list[_PlannedTask]:
    return [
        _PlannedTask(task, suite, n[task.name], disagreement.get(task.name, _ASSUMED_DISAGREEMENT))
        for suite in suites
        for task in suite.tasks
        if n.get(task.name) and is_judged(task.name, policy)
    ]


def _list_of_macro(planned: Sequence[_PlannedTask]) -> list[_PlannedTask]:
    return [one for one in planned if one.suite.role == "capability" and not is_reported_only(one.task)]


def _macro_se(planned: Sequence[_PlannedTask]) -> float:
    return sqrt(sum(one.disagreement / one.n for one in planned)) / len(planned)


def _macro_warning(planned: Sequence[_PlannedTask], policy: GatePolicy, among: str) -> str:
    """Warn where an equal model would not pass the macro often enough."""
    if not planned:
        return "no capability task has items, so the macro cannot pass"
    if is_relative(policy.macro):
        return (
            f"macro margin {margin_text(policy.macro)}: once the base has answered, it is known what it takes"
        )
    margin, n, se = margin_share(policy.macro), sum(one.n for one in planned), _macro_se(planned)
    power = stats.noninferiority_power(0.0, margin, se, policy.alpha)
    if power >= POWER:
        return ""
    needed = _times(n, find_settling_growth(se, margin, policy.alpha))
    return (
        f"macro margin {formatting.percent(margin)} points: with {formatting.count(n)} items over "
        f"{formatting.pluralize(len(planned), 'task')} a fine-tune that lost nothing passes{among} only "
        f"{100 * power:.0f} % of the time; some {formatting.count(needed)} items make that 80 %"
    )


def _warn_of_each(
    task: Task, n: int, disagreement: float, n_tasks: int, policy: GatePolicy, role: str
) -> str:
    written, alpha = find_own_margin(task, policy, role), policy.alpha / n_tasks
    if is_relative(written):
        return ""
    margin = margin_share(written)
    if 2 * margin >= 1:
        return ""  # no task can lose twice as much
    se = stats.paired_se(disagreement, n, -2 * margin)
    power = _detection_chance(-2 * margin, margin, se, alpha)
    if power >= POWER:
        return ""
    needed = _times(
        n, max(find_settling_growth(se, 2 * margin, alpha), find_settling_growth(se, margin, 0.5))
    )
    return (
        f"{task.name}, margin {formatting.percent(margin)} points: with {formatting.count(n)} items a real "
        f"loss of {formatting.percent(2 * margin)} points is noticed {100 * power:.0f} % of the time; "
        f"some {formatting.count(needed)} items make that 80 %"
    )


def _critical_warning(task: Task, n: int, policy: GatePolicy, among: str) -> str:
    """Warn where even losing nothing would not pass: α^{1/n} is then the bound on what is kept."""
    needed = ceil(log(policy.alpha) / log1p(-2 * policy.critical_margin))
    if n >= needed:
        return ""
    return (
        f"{task.name}, critical margin {formatting.percent(policy.critical_margin)} %: {formatting.count(n)} "
        f"items are too few for anything to pass{among}, even without a single loss; it takes "
        f"{formatting.count(needed)} items that the base passes"
    )
