"""Chance that the rule `each` stops a candidate, over all tasks and by Holm's first step.

Invariant: scores of 0 and 1 by the binomial laws of how many items differ and how many of these are lost,
each task's disagreement shrunk to that of all; other scores by the normal approximation.
Source: Holm 1979 for the step; DerSimonian & Laird 1986 for the spread between tasks.
"""

from collections.abc import Sequence
from math import floor, isfinite, sqrt
from statistics import fmean
from typing import NamedTuple

import numpy as np
from scipy import special

from harness import stats
from harness.comparison import Comparison
from harness.gating.items_needed import find_planning_se, upper_se
from harness.gating.verdict import TaskComparison, margin_of
from harness.spec import GatePolicy

_ROUNDING = 1e-9
_TAIL = 8  # standard deviations of the number of differing items beyond which nothing is added up


class Stop(NamedTuple):
    """Chance that a task stops `each`, and the mean delta that is then found on it."""

    chance: float
    delta: float


def stops(admitted: Sequence[TaskComparison], delta: float, policy: GatePolicy) -> list[Stop]:
    """Work out of each task, at a true delta, the chance that it stops `each`, by a veto or a doubt."""
    alpha = policy.alpha / len(admitted)
    shares = _shrunk_disagreements([t.counted for t in admitted])
    return [
        _stop(t.counted, delta, share, margin_of(t, policy), alpha)
        for t, share in zip(admitted, shares, strict=True)
    ]


def chance_to_pass(admitted: Sequence[TaskComparison], delta: float, policy: GatePolicy) -> float:
    """Return the chance that `each` passes where one task, named at random, truly lost so much."""
    kept = [1 - stop.chance for stop in stops(admitted, 0.0, policy)]
    lost = [1 - stop.chance for stop in stops(admitted, delta, policy)]
    return fmean(one * float(np.prod(kept[:i] + kept[i + 1 :])) for i, one in enumerate(lost))


def _shrunk_disagreements(comparisons: Sequence[Comparison]) -> list[float]:
    """Shrink each task's share of differing items to that of all, by how far the tasks differ in truth.

    One item is added that differs, and one that does not: what was never seen is not taken for impossible.
    """
    n = np.array([c.n / c.design_effect for c in comparisons])
    found = np.array([c.disagreement for c in comparisons])
    pooled = float((n @ found + 1) / (n.sum() + 2))
    variance = pooled * (1 - pooled) / n
    weights = 1 / variance
    spread = float(weights @ (found - pooled) ** 2) - (len(n) - 1)
    scale = float(weights.sum() - weights @ weights / weights.sum())
    between = max(spread / scale, 0.0) if scale > 0 else 0.0
    shrunk: list[float] = (pooled + between / (between + variance) * (found - pooled)).tolist()
    return shrunk


def _stop(c: Comparison, delta: float, disagreement: float, margin: float, alpha: float) -> Stop:
    if c.base_passed is None:
        found_se = upper_se(c) or find_planning_se(c, 0.0)  # 0 where all items rose
        return _normal_stop(delta, margin, se_at(c, delta, found_se), alpha)
    return _binomial_stop(delta, margin, max(1, round(c.n / c.design_effect)), disagreement, alpha)


def _normal_stop(delta: float, margin: float, se: float, alpha: float) -> Stop:
    if not isfinite(se):  # too few clusters to show anything
        return Stop(0.0, -margin)
    beyond = max(margin, stats.z_quantile(1 - alpha) * se)
    z = (-beyond - delta) / se
    chance = float(special.ndtr(z))
    density = float(np.exp(-(z**2) / 2)) / sqrt(2 * np.pi)
    return Stop(chance, delta - se * density / chance if chance else -beyond)


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
