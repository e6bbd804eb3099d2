"""Significance of the gate's rules: the p of each, and the veto of many small losses.

Invariant: a p-value belongs to a bound, so it is below a level exactly where the bound at that level passes.
Scores of 0 and 1 by the binomial laws of how many items differ and how many of these are lost, each task's
disagreement shrunk to that of all; other scores by the normal approximation.
Source: a bound inverted over its level; Clopper & Pearson 1934 for the critical rule; Šidák 1967 for the
chance over candidates; Holm 1979 for the step; DerSimonian & Laird 1986 for the spread between tasks
"""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from math import floor, isfinite, sqrt
from statistics import fmean
from typing import NamedTuple

import numpy as np
from scipy import special

from harness import stats
from harness.analysis.estimators import Comparison, Estimate, at_level, orient
from harness.analysis.items_needed import find_planning_se, upper_se
from harness.analysis.macro import SharedItems, average_macro
from harness.analysis.verdict import TargetFacts, TaskComparison, margin_of, margin_share
from harness.spec import GatePolicy, TargetPolicy

_MOST_Z = 8.0  # smaller p-values than this leaves decide nothing
_STEP_Z = 1e-4  # p-values differ by less than a thousandth of themselves from one step to the next
_TARGET_CONFIDENCE = 0.975  # one-sided: the target is judged by 95 % intervals


def macro_p(admitted: Sequence[TaskComparison], policy: GatePolicy, shared: SharedItems) -> float:
    """Return the p of H0 "the macro lost the margin or more", where it passes at the policy's alpha."""

    def lower(alpha: float) -> float:
        return average_macro([t.at_level(alpha) for t in admitted], policy, shared).lower

    return _invert_bound(lower, -margin_share(policy.macro), policy.alpha)


def noninferiority_p(c: Comparison, least: float, alpha: float) -> float:
    """Return the p of H0 "the delta is at most `least`", where its bound at alpha is above that."""
    return _invert_bound(lambda level: at_level(c, level).lower, least, alpha)


def loss_rate_p(lost: float, passed: float, rate: float) -> float:
    """Return the p of H0 "the loss rate is `rate` or more": the level at which its exact bound is that."""
    return float(special.betaincc(lost + 1, passed - lost, rate)) if lost < passed else 1.0


def target_p(found: TargetFacts, wanted: TargetPolicy) -> float:
    """Return the largest p of the level, the gain and the win rate declared, where all are shown."""
    ps = [] if wanted.min is None else [_level_p(found.score, wanted.min)]
    if wanted.gain is not None and found.gain is not None:
        ps.append(noninferiority_p(orient(found.gain), wanted.gain, 1 - _TARGET_CONFIDENCE))
    if wanted.win_rate is not None and found.wins is not None and found.wins.rate is not None:
        ps.append(_level_p(found.wins.rate, wanted.win_rate))
    return max(ps)


def _level_p(found: Estimate, wanted: float) -> float:
    """Return the p of H0 "the score falls short of `wanted`", by the normal that its interval amounts to."""
    sign = found.unit.sign
    width = found.score - found.low if sign > 0 else found.high - found.score
    if width <= 0:
        return 0.0
    return float(special.ndtr(-sign * (found.score - wanted) * stats.z_quantile(_TARGET_CONFIDENCE) / width))


def bound_passing_chance(alpha: float, n: int) -> float:
    """Return the chance, at most, that of n candidates at the margin one passes.

    1 − (1 − α)^n holds for independent candidates, and bounds those that share items and a base.
    """
    return 1 - (1 - alpha) ** n


def _invert_bound(lower: Callable[[float], float], least: float, alpha: float) -> float:
    """Return the level at which a bound, which passes at alpha, is no longer above `least`."""

    def level(step: float) -> float:
        return float(special.ndtr(-(z + step * _STEP_Z)))

    if lower(alpha) <= least:
        return alpha
    z = stats.z_quantile(1 - alpha)
    steps = range(1, 1 + max(0, round((_MOST_Z - z) / _STEP_Z)))
    # Not by scipy.optimize, whose import takes as long as all the rest of a verdict.
    last = bisect_right(steps, 0.0, key=lambda step: least - lower(level(step)))
    return level(last + 0.5)  # in the middle between the last that is above and the first that is not


_ROUNDING = 1e-9
_TAIL = 8  # standard deviations of the number of differing items beyond which nothing is added up


class Stop(NamedTuple):
    """Chance that a task stops `each`, and the mean delta that is then found on it."""

    chance: float
    delta: float


def stops(admitted: Sequence[TaskComparison], delta: float, policy: GatePolicy) -> list[Stop]:
    """Work out of each task, at a true delta, the chance that it stops `each`, by a veto or a doubt."""
    alpha = policy.alpha / len(admitted)
    # Each task's share of differing items is shrunk to that of all, by how far the tasks differ in truth.
    # One item is added that differs, and one that does not: what was never seen is not taken for impossible.
    comparisons = [t.counted for t in admitted]
    n = np.array([c.n / c.design_effect for c in comparisons])
    found = np.array([c.disagreement for c in comparisons])
    pooled = float((n @ found + 1) / (n.sum() + 2))
    variance = pooled * (1 - pooled) / n
    weights = 1 / variance
    spread = float(weights @ (found - pooled) ** 2) - (len(n) - 1)
    scale = float(weights.sum() - weights @ weights / weights.sum())
    between = max(spread / scale, 0.0) if scale > 0 else 0.0
    shares: list[float] = (pooled + between / (between + variance) * (found - pooled)).tolist()
    return [
        _stop(t.counted, delta, share, margin_of(t, policy), alpha)
        for t, share in zip(admitted, shares, strict=True)
    ]


def chance_to_pass(admitted: Sequence[TaskComparison], delta: float, policy: GatePolicy) -> float:
    """Return the chance that `each` passes where one task, named at random, truly lost so much."""
    kept = [1 - stop.chance for stop in stops(admitted, 0.0, policy)]
    lost = [1 - stop.chance for stop in stops(admitted, delta, policy)]
    return fmean(one * float(np.prod(kept[:i] + kept[i + 1 :])) for i, one in enumerate(lost))


def _stop(c: Comparison, delta: float, disagreement: float, margin: float, alpha: float) -> Stop:
    if c.base_passed is None:
        found_se = upper_se(c) or find_planning_se(c, 0.0)  # 0 where all items rose
        se = se_at(c, delta, found_se)
        if not isfinite(se):  # too few clusters to show anything
            return Stop(0.0, -margin)
        beyond = max(margin, stats.z_quantile(1 - alpha) * se)
        z = (-beyond - delta) / se
        chance = float(special.ndtr(z))
        density = float(np.exp(-(z**2) / 2)) / sqrt(2 * np.pi)
        return Stop(chance, delta - se * density / chance if chance else -beyond)
    return _binomial_stop(delta, margin, max(1, round(c.n / c.design_effect)), disagreement, alpha)


def _binomial_stop(delta: float, margin: float, n: int, disagreement: float, alpha: float) -> Stop:
    """Add up over the number D of differing items, of which L are lost: 2L − D > max(margin · n, z √D)."""
    share = min(max(disagreement, abs(delta)), 1.0)
    lost = (1 - delta / share) / 2
    centre, reach = n * share, _TAIL * sqrt(n * share * (1 - share)) + _TAIL
    differing = np.arange(max(0, floor(centre - reach)), min(n, floor(centre + reach)) + 1)  # (D,)
    weights = special.bdtr(differing, n, share) - np.where(
        differing > 0, special.bdtr(differing - 1, n, share), 0.0
    )
    beyond = np.maximum(floor(margin * n + _ROUNDING), stats.z_quantile(1 - alpha) * np.sqrt(differing))
    least = np.floor((differing + beyond) / 2 + _ROUNDING) + 1  # of L, to be beyond
    over = np.where(least <= differing, special.bdtrc(least - 1, differing, lost), 0.0)
    fewer = np.maximum(differing - 1, 0)
    lost_then = (
        differing
        * lost
        * np.where(least <= differing, np.where(least >= 2, special.bdtrc(least - 2, fewer, lost), 1.0), 0.0)
    )
    chance = float(weights @ over)
    mean = float(weights @ (2 * lost_then - differing * over)) / chance if chance > 0 else margin * n
    return Stop(chance, -mean / n)


def se_at(c: Comparison, delta: float, se: float) -> float:
    """Return the standard error at a true delta: a loss beyond the disagreement found needs more of it."""
    if abs(delta) <= c.disagreement:
        return se
    return max(se, stats.paired_se(abs(delta), c.n, delta, c.design_effect))
