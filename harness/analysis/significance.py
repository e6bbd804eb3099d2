"""p-values of the gate's rules, chances of a wrong verdict, and what would settle an open one.

Invariant: a p-value is below a level exactly where the bound at that level passes. Chances come from observed
widths or, before a run, from an assumed disagreement; scores of 0 and 1 by binomial laws, others by the
normal approximation. Source: Clopper & Pearson 1934 for the critical rule; Šidák 1967 for the chance over
candidates; Holm 1979 for the step; DerSimonian & Laird 1986 for the spread between tasks; Chow, Shao & Wang
2008 for sizes.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import ceil, floor, inf, isfinite, log, log1p, sqrt
from statistics import fmean
from typing import NamedTuple

import numpy as np
from scipy import special

from harness import formatting, stats
from harness.analysis import margins
from harness.analysis.estimators import Comparison, Estimate, at_level, orient
from harness.analysis.macro import Macro, SharedItems, average_macro
from harness.analysis.verdict import (
    ItemsNeeded,
    MissRate,
    TargetFacts,
    TaskComparison,
    Verdict,
    is_judged,
    is_named_critical,
    is_reported_only,
    list_items_needed,
    may_decide,
)
from harness.spec import Experiment, GatePolicy, Suite, TargetPolicy, Task

_MOST_Z = 8.0  # p-values beyond this z change no decision
_STEP_Z = 1e-4  # p-values differ by less than a thousandth of themselves from one step to the next
_TARGET_CONFIDENCE = 0.975  # one-sided: the target is judged by 95 % intervals
_ROUNDING = 1e-9
_TAIL = 8  # standard deviations of the number of differing items beyond which terms are ignored
_MACRO_LOSSES = (-0.01, -0.02, -0.03, -0.05, -0.10)
_TASK_LOSSES = (-0.05, -0.10)
_ASSUMED_DISAGREEMENT = 0.15
Planned = tuple[Task, Suite, int]  # a task with its number of items
WIDEST_MARGIN = 0.1  # largest margin that is offered: a larger loss is forgetting
_STEP = 1000  # margins are offered in tenths of a point


def macro_p(admitted: Sequence[TaskComparison], policy: GatePolicy, shared: SharedItems) -> float:
    """Return the p of H0 "the macro lost the margin or more", where it passes at the policy's alpha."""

    def lower(alpha: float) -> float:
        return average_macro([t.at_level(alpha) for t in admitted], policy, shared).lower

    return _invert_bound(lower, -margins.margin_share(policy.macro), policy.alpha)


def noninferiority_p(c: Comparison, limit: float, alpha: float) -> float:
    """Return the p of H0 "the delta is at most `limit`", if its bound at alpha is above `limit`."""
    return _invert_bound(lambda level: at_level(c, level).lower, limit, alpha)


def loss_rate_p(lost: float, passed: float, rate: float) -> float:
    """Return the p of H0 "the loss rate is `rate` or more": the level at which its exact bound is that."""
    return float(special.betaincc(lost + 1, passed - lost, rate)) if lost < passed else 1.0


def target_p(facts: TargetFacts, policy: TargetPolicy) -> float:
    """Return the largest p of the declared level, gain and win rate, if all of them are shown."""
    ps = [] if policy.min is None else [_level_p(facts.score, facts.score.unit.value_at(policy.min))]
    if policy.gain is not None and facts.gain is not None:
        least = facts.gain.unit.change_at(policy.gain)
        ps.append(noninferiority_p(orient(facts.gain), least, 1 - _TARGET_CONFIDENCE))
    if policy.win_rate is not None and facts.wins is not None and facts.wins.rate is not None:
        ps.append(_level_p(facts.wins.rate, policy.win_rate))
    return max(ps)


def _level_p(estimate: Estimate, required: float) -> float:
    """Return the p of H0 "the score falls short of `required`", by the normal that its interval implies."""
    sign = estimate.unit.sign
    width = estimate.score - estimate.low if sign > 0 else estimate.high - estimate.score
    if width <= 0:
        return 0.0
    return float(
        special.ndtr(-sign * (estimate.score - required) * stats.z_quantile(_TARGET_CONFIDENCE) / width)
    )


def bound_passing_chance(alpha: float, n: int) -> float:
    """Return the chance, at most, that of n candidates at the margin one passes: 1 − (1 − α)^n."""
    return 1 - (1 - alpha) ** n


def _invert_bound(lower: Callable[[float], float], limit: float, alpha: float) -> float:
    """Return the level at which a bound that passes at alpha stops being above `limit`."""

    def level(step: float) -> float:
        return float(special.ndtr(-(z + step * _STEP_Z)))

    if lower(alpha) <= limit:
        return alpha
    z = stats.z_quantile(1 - alpha)
    steps = range(1, 1 + max(0, round((_MOST_Z - z) / _STEP_Z)))
    # Without scipy.optimize: importing it takes as long as the rest of a verdict.
    last = bisect_right(steps, 0.0, key=lambda step: limit - lower(level(step)))
    return level(last + 0.5)  # halfway between the last step above the limit and the next one


class Stop(NamedTuple):
    """Chance that a task stops `each`, and the mean delta observed on it in that case."""

    chance: float
    delta: float


def stops(admitted: Sequence[TaskComparison], delta: float, policy: GatePolicy) -> list[Stop]:
    """Compute for each task the chance that it stops `each` at a true delta, by a veto or a doubt."""
    z_alpha = stats.z_quantile(1 - policy.alpha / len(admitted))
    # Shrink each task's share of differing items toward the pooled share, by the true spread between tasks.
    # Add one differing and one equal item, so that an event never observed is not taken to be impossible.
    comparisons = [t.counted for t in admitted]
    n = np.array([c.n / c.design_effect for c in comparisons])
    observed_shares = np.array([c.disagreement for c in comparisons])
    pooled = float((n @ observed_shares + 1) / (n.sum() + 2))
    variance = pooled * (1 - pooled) / n
    weights = 1 / variance
    spread = float(weights @ (observed_shares - pooled) ** 2) - (len(n) - 1)
    scale = float(weights.sum() - weights @ weights / weights.sum())
    between = max(spread / scale, 0.0) if scale > 0 else 0.0
    shares: list[float] = (pooled + between / (between + variance) * (observed_shares - pooled)).tolist()
    found_stops = []
    for t, c, disagreement in zip(admitted, comparisons, shares, strict=True):
        margin = margins.margin_of(t, policy)
        if c.base_passed is None:
            se = se_at(c, delta, margins.upper_se(c) or margins.find_planning_se(c, 0.0))  # 0: all items rose
            if not isfinite(se):  # too few clusters to show anything
                found_stops.append(Stop(0.0, -margin))
                continue
            beyond = max(margin, z_alpha * se)
            z = (-beyond - delta) / se
            chance, density = float(special.ndtr(z)), float(np.exp(-(z**2) / 2)) / sqrt(2 * np.pi)
            found_stops.append(Stop(chance, delta - se * density / chance if chance else -beyond))
            continue
        # Sum over the number D of differing items, L of them lost: 2L − D > max(margin · n, z √D).
        size, share = max(1, round(c.n / c.design_effect)), min(max(disagreement, abs(delta)), 1.0)
        lost = (1 - delta / share) / 2
        centre, reach = size * share, _TAIL * sqrt(size * share * (1 - share)) + _TAIL
        differing = np.arange(max(0, floor(centre - reach)), min(size, floor(centre + reach)) + 1)  # (D,)
        fewer_than = np.where(differing > 0, special.bdtr(differing - 1, size, share), 0.0)
        chances = special.bdtr(differing, size, share) - fewer_than
        excess = np.maximum(floor(margin * size + _ROUNDING), z_alpha * np.sqrt(differing))
        least_lost = np.floor((differing + excess) / 2 + _ROUNDING) + 1  # smallest L beyond the margin
        over = np.where(least_lost <= differing, special.bdtrc(least_lost - 1, differing, lost), 0.0)
        fewer = np.maximum(differing - 1, 0)
        others_over = np.where(least_lost >= 2, special.bdtrc(least_lost - 2, fewer, lost), 1.0)
        lost_then = differing * lost * np.where(least_lost <= differing, others_over, 0.0)
        chance = float(chances @ over)
        mean = float(chances @ (2 * lost_then - differing * over)) / chance if chance > 0 else margin * size
        found_stops.append(Stop(chance, -mean / size))
    return found_stops


def se_at(c: Comparison, delta: float, se: float) -> float:
    """Return the standard error at a true delta, raised if the loss exceeds the observed disagreement."""
    if abs(delta) <= c.disagreement:
        return se
    return max(se, stats.paired_se(abs(delta), c.n, delta, c.design_effect))


def power_warnings(
    suites: Sequence[Suite], n: Mapping[str, int], policy: GatePolicy, n_members: int = 1
) -> tuple[str, ...]:
    """Warn before a run of margins that the available items probably cannot show.

    `n` maps task names to numbers of items; 15 % of the items are assumed to differ, without clusters. A
    margin can be shown if an equal model passes the macro, and a loss of twice a task's margin is noticed, in
    80 % of cases; a critical task if losing nothing would pass. Each of `n_members` fine-tunes has to
    be shown at the level of Holm's first step.
    """
    member = f" as one of {n_members}" if n_members > 1 else ""
    strict_policy = policy.model_copy(update={"alpha": policy.alpha / max(n_members, 1)})
    counted, judged = _list_planned(suites, n, policy)
    critical = [c for c in counted if is_named_critical(c[0], c[1].name, policy)]
    refusing = [c for c in counted if c[1].role == "safety" and c not in critical and policy.safety]
    warnings = []
    if not judged:
        warnings.append("no capability task has items, so the macro cannot pass")
    elif margins.is_relative(strict_policy.macro):
        later_text = "once the base has answered, it is known what it takes"
        warnings.append(f"macro margin {margins.margin_text(strict_policy.macro)}: {later_text}")
    else:
        margin, se = margins.margin_share(strict_policy.macro), _macro_se(judged)
        power = chance_of_an_equal_model(suites, n, policy, n_members)
        n_judged = sum(planned[2] for planned in judged)
        if power is not None and power < margins.POWER:
            growth = margins.find_settling_growth(se, margin, strict_policy.alpha)
            needed = ceil(n_judged * growth) if isfinite(growth) else inf
            warnings.append(
                f"macro margin {formatting.percent(margin)} points: with {formatting.count(n_judged)} items"
                f" over {formatting.pluralize(len(judged), 'task')} a fine-tune that lost nothing"
                f" passes{member} only {100 * power:.0f} % of the time; some {formatting.count(needed)} items"
                " make that 80 %"
            )
    vetoed = [(*planned, "capability", len(judged)) for planned in judged]
    vetoed += [(*planned, "safety", len(refusing)) for planned in refusing]
    for task, _, items, role, n_tasks in vetoed:
        written, alpha = margins.task_margin(task, role, policy), policy.alpha / n_tasks
        margin = margins.margin_share(written)
        if margins.is_relative(written) or 2 * margin >= 1:  # no task can lose twice as much
            continue
        se = stats.paired_se(_ASSUMED_DISAGREEMENT, items, -2 * margin)
        found_beyond = stats.noninferiority_power(2 * margin, -margin, se, alpha=0.5)
        power = min(stats.noninferiority_power(2 * margin, 0.0, se, alpha), found_beyond)
        if power >= margins.POWER:
            continue
        growths = [margins.find_settling_growth(se, *gap) for gap in ((2 * margin, alpha), (margin, 0.5))]
        needed = ceil(items * max(growths)) if isfinite(max(growths)) else inf
        warnings.append(
            f"{task.name}, margin {formatting.percent(margin)} points: with {formatting.count(items)} items a"
            f" real loss of {formatting.percent(2 * margin)} points is noticed {100 * power:.0f} % of the"
            f" time; some {formatting.count(needed)} items make that 80 %"
        )
    for task, _, items in critical:
        # Without any loss, the lower bound on the kept share is α^{1/n}.
        needed = ceil(log(strict_policy.alpha) / log1p(-margins.critical_rates(policy)[1]))
        if items >= needed:
            continue
        limit = f"critical margin {formatting.percent(policy.critical_margin)} %"
        too_few = f"{formatting.count(items)} items are too few for anything to pass{member}"
        requirement = f"it takes {formatting.count(needed)} items that the base passes"
        warnings.append(f"{task.name}, {limit}: {too_few}, even without a single loss; {requirement}")
    return tuple(warnings)


def miss_rates(
    admitted: Sequence[TaskComparison], macro: Macro, validity: Comparison | None, policy: GatePolicy
) -> tuple[MissRate, ...]:
    """Compute the operating characteristic from observed widths; “each” assumes a loss in one random task."""
    if macro.se <= 0:
        return ()
    rates = []
    for d in _MACRO_LOSSES:
        ses = [se_at(t.counted, d, margins.lower_se(t.counted)) for t in admitted]
        se = stats.quadrature(np.multiply(macro.factors, ses).tolist(), macro.correlations)
        lost = d * sum(macro.factors)
        missed = stats.noninferiority_power(lost, margins.margin_share(policy.macro), se, policy.alpha)
        rates.append(MissRate(d, missed, "macro"))
    without_loss = stops(admitted, 0.0, policy)
    pass_chances = [1 - stop.chance for stop in without_loss]
    for d in _TASK_LOSSES:  # chance that `each` passes if one random task lost this much
        lost_one = [1 - stop.chance for stop in stops(admitted, d, policy)]
        passing = fmean(
            p * float(np.prod(pass_chances[:i] + pass_chances[i + 1 :])) for i, p in enumerate(lost_one)
        )
        rates.append(MissRate(d, passing, "each"))
    margin, z = margins.margin_share(policy.macro), stats.z_quantile(1 - policy.alpha)
    passes = stats.noninferiority_power(0.0, margin, macro.se, policy.alpha)
    if isfinite(macro.se):  # else too few clusters to show anything
        # If a task stops `each`, its observed loss also lowers the macro.
        all_kept, stopped, stopped_and_passed = 1.0, 0.0, 0.0
        for t, stop, factor in zip(admitted, without_loss, macro.factors, strict=True):
            task_se = factor * margins.lower_se(t.counted)
            rest_se = sqrt(max(macro.se**2 - task_se**2, 0.0))
            room = margin + factor * stop.delta - z * macro.se
            passes_then = float(special.ndtr(room / rest_se)) if rest_se else float(room > 0)
            all_kept, stopped = all_kept * (1 - stop.chance), stopped + stop.chance
            stopped_and_passed += stop.chance * passes_then
        passes = max(passes - (1 - all_kept) * stopped_and_passed / stopped, 0.0) if stopped else passes
    if validity is not None and margins.lower_se(orient(validity)) > 0:
        se = margins.lower_se(orient(validity))
        passes *= stats.noninferiority_power(0.0, policy.validity, se, policy.alpha)
    return (*rates, MissRate(0.0, 1 - passes, "equal"))


def chance_of_an_equal_model(
    suites: Sequence[Suite], n: Mapping[str, int], policy: GatePolicy, n_members: int = 1
) -> float | None:
    """Compute before a run how often an equal fine-tune of `n_members` passes the macro; None if unknown."""
    judged = _list_planned(suites, n, policy)[1]
    if not judged or margins.is_relative(policy.macro):
        return None
    margin, alpha = margins.margin_share(policy.macro), policy.alpha / max(n_members, 1)
    return stats.noninferiority_power(0.0, margin, _macro_se(judged), alpha)


def _list_planned(
    suites: Sequence[Suite], n: Mapping[str, int], policy: GatePolicy
) -> tuple[list[Planned], list[Planned]]:
    """List the judged tasks that have items, and those of them that count in the macro."""
    tasks = ((task, suite) for suite in suites for task in suite.tasks if is_judged(task.name, policy))
    planned = [(task, suite, n[task.name]) for task, suite in tasks if n.get(task.name)]
    return planned, [p for p in planned if p[1].role == "capability" and not is_reported_only(p[0])]


def _macro_se(planned: Sequence[Planned]) -> float:
    return sqrt(sum(_ASSUMED_DISAGREEMENT / n for *_, n in planned)) / len(planned)


class SpareItems(NamedTuple):
    """Test items of a task that used `n` of `held`, limited by settings `keys`; empty if items were drawn."""

    task: str
    keys: tuple[str, ...]
    n: int
    held: int
    is_generated: bool = True

    @property
    def left(self) -> int:
        """Number of unused items."""
        return self.held - self.n


def list_spare_items(
    experiment: Experiment, compared: Iterable[TaskComparison], count_held: Callable[[Task], int]
) -> tuple[SpareItems, ...]:
    """List the judged tasks with unused test items: those not drawn, else those beyond a limit."""
    drawn_tasks = {t.task.name: t for t in compared if isfinite(t.room)}
    if drawn_tasks:
        return tuple(
            SpareItems(name, (), t.comparison.n, t.comparison.n + int(t.room), t.task.kind == "generate")
            for name, t in drawn_tasks.items()
        )
    spare = []
    for at_suite, suite in enumerate(experiment.suites):
        for position, task in enumerate(suite.tasks):
            task_key = position if task.lm_eval else _name_entry(task.name, position)
            path = f"suites.{_name_entry(suite.name, at_suite)}.tasks.{task_key}"
            limits = {f"{path}.limit": task.limit, f"{path}.data.limits.test": task.data.limits.test}
            set_limits = {key: limit for key, limit in limits.items() if limit is not None}
            if set_limits and may_decide(task, suite.role, suite.name, experiment.gate):
                n, generated = min(set_limits.values()), task.kind == "generate"
                spare.append(SpareItems(task.name, tuple(set_limits), n, count_held(task), generated))
    return tuple(items for items in spare if items.left > 0)


def _name_entry(name: str, position: int) -> str:
    """Name an entry of a list as settings do: by its position if its name would be parsed differently."""
    return str(position) if "." in name or name.isdigit() else name


class Settling(NamedTuple):
    """Ways to settle open verdicts: `needed` more items, while the tasks hold `left` unused.

    `sizes` maps tasks to the total number of items to use, empty if they hold too few; `margin` is then the
    setting of the smallest margin that the current items can show, if there is one.
    """

    needed: int
    left: int
    sizes: dict[SpareItems, int]
    margin: str

    @property
    def held_text(self) -> str:
        """Say how many unused items the tasks hold, if these are too few."""
        return f"only {formatting.count(self.left)} unused items" if self.left else "no unused items"

    @property
    def text(self) -> str:
        """Say what would settle the verdicts, and whether it exists."""
        more = f"some {formatting.count(self.needed)} more items would settle it"
        if self.sizes:
            return f"{more}, and the tasks hold them"
        margin_text = f" ({self.margin} can be shown)" if self.margin else ""
        return f"{more}, but the tasks hold {self.held_text}{margin_text}"


def find_settling(verdicts: Sequence[Verdict], spare: Sequence[SpareItems], *, relative: bool) -> Settling:
    """Find what would settle verdicts that need more items; a `relative` margin is a share of skill."""
    rules = [rule for verdict in verdicts for rule in verdict.rules]
    most_needed = max((verdict.items_needed or 0 for verdict in verdicts), default=0)
    needed = list_items_needed(rules) or ItemsNeeded({}, {}, most_needed)
    by_task = {task: n for name, n in needed.of_macro.items() for task in name.split(" and ")}
    by_task |= {task: max(n, by_task.get(task, 0)) for task, n in needed.of_task.items()}
    # An open rule judges by the items of these tasks.
    usable = {s.task: s for s in spare if s.task in by_task or (needed.of_answers > 0 and s.is_generated)}
    # Total items per task that serve every open rule; empty if the tasks hold too few.
    n_unused = {task: spare_items.left for task, spare_items in usable.items()}
    n_macro = sum(n_unused[task] for task in n_unused if task in by_task)
    is_enough = (
        all(n_unused.get(task, 0) >= n for task, n in needed.of_task.items())
        and n_macro >= sum(needed.of_macro.values())
        and sum(n_unused.values()) >= needed.of_answers
    )
    is_exact = not needed.of_answers and all(n_unused.get(task, 0) >= n for task, n in by_task.items())
    sizes = {
        spare_items: spare_items.n + by_task[task] if is_exact and spare_items.keys else spare_items.held
        for task, spare_items in usable.items()
        if is_enough
    }
    # Smallest macro margin that the current items show, unless other rules are open too.
    open_rules = [rule for rule in rules if rule.outcome == "inconclusive"]
    lowers = (float(x) for rule in open_rules if isinstance(x := rule.numbers.get("lower"), float))
    limit, names = (floor(-min(lowers, default=-1.0) * _STEP) + 1) / _STEP, {rule.name for rule in open_rules}
    margin = ""
    if not sizes and names in ({"macro"}, {"cumulative"}) and limit <= WIDEST_MARGIN:
        margin = f"gate.{names.pop()}={margins.write_margin(limit, relative=relative)}"
    return Settling(needed.total, sum(n_unused.values()), sizes, margin)
