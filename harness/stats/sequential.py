"""Repeated tests: e-processes valid at any time, CUSUM, interim analyses, corrections for many tests.

Invariant: an e-process starts at 1 and exceeds 1/α at any time with a chance of at most α while its null
hypothesis holds; a bet on a group never looks at that group. An adjusted p-value is never below the original.
"""

from collections.abc import Sequence
from math import sqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from harness.stats.intervals import Array, finite, z_quantile

BETS = (np.arange(10) + 0.5) / 10  # shares of the largest bet, evenly spread
_PRIOR_SQUARE, _PRIOR_N = 0.1, 50.0  # a tenth of the items differ, before anything is seen
_NODES = 256  # of the quadrature: the bounds of ten looks are right to six digits
_REACH = 9.0  # standard deviations below which no path is followed


class SharedEffects(NamedTuple):
    """Mean and variance of the effect that items of each group (t,) share, predicted from earlier groups."""

    mean: Array
    variance: Array


def betting_mixture(
    groups: Sequence[Array], largest: ArrayLike, shared: SharedEffects | None = None, mean: float = 0.0
) -> Array:
    """Return the log-wealth (t, b) after each of t groups of b bets against H0: the mean change is ≥ `mean`.

    ∏ (1 − λ (d − mean)) over the items of the groups so far, for b fixed bets λ; `log_mean_wealth` joins them
    to the e-process, which rejects at 1/α at any time. `largest` bounds |d| by group (t,) and must be known
    before the changes are. The effect that items of a group share is taken to be normal: its expected product
    exp(−λ n m + λ² n² v/2) is divided out. On single items that got better, worse or stayed this is the
    one-sided sign process with a uniform prior. Not for items of a cluster, unless the cluster's mean is one
    change.
    Source: Waudby-Smith & Ramdas 2024, arXiv:2010.09686, with Robbins' 1970 mixture over the bet.
    """
    n, d = np.array([len(group) for group in groups]), finite(np.concatenate(groups), "changes")
    bounds = np.broadcast_to(np.asarray(largest, float), n.shape)
    if not n.all() or (np.abs(d) > np.repeat(bounds, n) + 1e-6).any():
        raise ValueError(f"expected groups of changes of at most {bounds.max():g}, found {np.abs(d).max():g}")
    bets = BETS / (bounds + max(-mean, 0.0))[:, None]  # (t, b), so that no wealth falls to 0
    starts = np.concatenate([[0], np.cumsum(n)[:-1]])
    log_gains = np.log1p((mean - d)[:, None] * np.repeat(bets, n, axis=0))  # (n, b)
    log_wealth = np.add.reduceat(log_gains, starts, axis=0)
    if shared is not None:
        total_bets = bets * n[:, None]
        log_wealth += total_bets * shared.mean[:, None] - total_bets**2 * shared.variance[:, None] / 2
    return np.asarray(np.cumsum(log_wealth, axis=0))


def log_mean_wealth(log_wealth: ArrayLike) -> Array:
    """Return the log of the mean wealth over all bets, (…, b) → (…): an e-process, as each bet's wealth is.

    Not for bets that were chosen by their results.
    Source: Robbins 1970, the mixture over the bet.
    """
    wealth = np.asarray(log_wealth, float)
    return np.asarray(np.logaddexp.reduce(wealth, axis=-1) - np.log(wealth.shape[-1]))


class _TrainingChanges(NamedTuple):
    """Changes seen so far of the model of one training."""

    name: str = ""
    total: float = 0.0
    n: int = 0


def seed_effects(
    groups: Sequence[Array], makings: Sequence[str], sd: float, n_references: int = 1, mean: float = 0.0
) -> SharedEffects:
    """Predict by how much training seeds shift each group's mean change, from the groups before it.

    `makings` names the training behind each group. Every training has a normal effect with standard deviation
    `sd`; the reference, which all groups share, has the mean of `n_references` such effects; `mean` is the
    true mean change. The prediction is at most 0, so that a past gain allows no later loss. Groups with an
    empty name come from the reference's own weights, and nothing shifts them. A training that comes again
    after another counts as a new one. Not where seeds move single items independently of each other.
    Source: Henderson 1975, best linear unbiased prediction; the noise of items from the groups before.
    """
    effects = SharedEffects(np.zeros(len(groups)), np.zeros(len(groups)))
    if sd <= 0:
        return effects
    precision, weighted, making = n_references / sd**2, 0.0, _TrainingChanges()  # of the reference's effect
    square_sum, n_seen = _PRIOR_SQUARE * _PRIOR_N, _PRIOR_N
    sizes = [len(group) for group in groups]
    sums = [float(group.sum()) - mean * n for group, n in zip(groups, sizes, strict=True)]
    squares = [float(((group - mean) ** 2).sum()) for group in groups]
    for i, name in enumerate(makings):
        noise = square_sum / n_seen
        if name and name != making.name:
            info = _precision(making, noise, sd)
            precision, weighted = precision + info, weighted + info * making.total / max(making.n, 1)
            making = _TrainingChanges(name)
        if name:
            # Mean and variance of the sum of the reference's effect and the training's own.
            observed, info = making.total / max(making.n, 1), _precision(making, noise, sd)
            reference_effect = (weighted + info * observed) / (precision + info)
            shrinkage = making.n / (making.n + noise / sd**2)
            shift = reference_effect + shrinkage * (observed - reference_effect)
            effects.mean[i] = min(shift, 0.0)
            variance = (1 - shrinkage) ** 2 / (precision + info) + (1 - shrinkage) * sd**2
            effects.variance[i] = variance
            making = _TrainingChanges(name, making.total + sums[i], making.n + sizes[i])
        square_sum, n_seen = square_sum + squares[i], n_seen + sizes[i]
    return effects


def _precision(making: _TrainingChanges, noise: float, sd: float) -> float:
    """Return the information of a training's mean about the reference's effect: its inverse variance."""
    return 1 / (sd**2 + noise / making.n) if making.n else 0.0


class Cusum(NamedTuple):
    """Both sums of the chart after each value (n,), and whether one of them exceeds the limit."""

    high: Array
    low: Array
    alarm: NDArray[np.bool_]


def cusum(values: ArrayLike, target: float, slack: float, limit: float) -> Cusum:
    """Chart a series against its target: S⁺ = max(0, S⁺ + x − target − slack), S⁻ likewise below.

    The alarm is on where a sum exceeds `limit`; all are in the unit of the values. A slack of half the shift
    to detect and a limit of 4 to 5 standard deviations are usual. Not for correlated values, nor without a
    fixed reference.
    Source: Page 1954; NIST/SEMATECH handbook, section 6.3.2.3.
    """
    x = finite(values)
    if slack < 0 or limit <= 0:
        raise ValueError(f"expected slack >= 0 and limit > 0, found {slack} and {limit}")
    high, low = _walk_one_sided(x - target - slack), _walk_one_sided(target - slack - x)
    return Cusum(high, low, (high > limit) | (low > limit))


def _walk_one_sided(steps: Array) -> Array:
    """Return the cumulative sum of the steps, held at 0 or above: the walk less its lowest point so far."""
    walk = np.cumsum(steps)
    return np.asarray(walk - np.minimum(np.minimum.accumulate(walk), 0.0))


def alpha_spent(fraction: float, alpha: float = 0.05) -> float:
    """Return how much of a one-sided alpha may be spent at this fraction of the information.

    2(1 − Φ(z_{1−α/2}/√t)): little at first, all at the end. Not for looks timed by the results.
    Source: Lan & DeMets 1983, the function after O'Brien & Fleming 1979.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"expected a fraction of the information in (0, 1], found {fraction}")
    return float(2 * special.ndtr(-z_quantile(1 - alpha / 2) / sqrt(fraction)))


def interim_bounds(fractions: Sequence[float], alpha: float = 0.05) -> tuple[float, ...]:
    """Return the z that the statistic has to exceed at each look, so that all looks together err at alpha.

    `fractions` are the shares of the last look's information at the looks, rising to 1. Gauss-Legendre
    quadrature carries the density of paths that have not crossed a bound from look to look, and each bound is
    bisected for the error that may be spent there. 1 − Φ(z) is the alpha at which an interval made at that
    look holds together with those of all other looks (a repeated confidence interval). Not for looks planned
    from earlier results, nor for an open-ended series (`betting_mixture`).
    Source: Armitage, McPherson & Rowe 1969; Jennison & Turnbull 2000, chapters 7, 9 and 19.
    """
    steps = np.diff([0.0, *fractions])
    if not len(fractions) or steps.min() <= 0 or abs(fractions[-1] - 1) > 1e-9 or not 0 < alpha < 0.5:
        raise ValueError(f"expected fractions that rise to 1 and alpha in (0, 0.5): {fractions}, {alpha}")
    roots, shares = np.polynomial.legendre.leggauss(_NODES)
    bounds: list[float] = []
    spent_before, nodes, weight = 0.0, np.zeros(1), np.ones(1)  # paths start at 0
    for fraction, step in zip(fractions, steps, strict=True):
        spent = alpha_spent(min(float(fraction), 1.0), alpha)
        # Bisect for the limit that this share of the paths exceeds at the next look.
        low, high = -_REACH, _REACH
        while high - low > 1e-12:
            middle = (low + high) / 2
            beyond = float(weight @ special.ndtr((nodes - middle) / sqrt(float(step))))
            low, high = (middle, high) if beyond > (spent - spent_before) else (low, middle)
        limit = (low + high) / 2
        bounds.append(limit / sqrt(fraction))
        # Carry the paths below the limit to new nodes (k,), each with the share of paths that it represents.
        lowest = min(-_REACH * sqrt(float(fraction)), limit - 1.0)
        new_nodes = lowest + (limit - lowest) * (roots + 1) / 2
        gaps = (new_nodes[:, None] - nodes) / sqrt(float(step))  # (k, paths)
        density = np.exp(-(gaps**2) / 2) @ weight / sqrt(2 * np.pi * float(step))
        nodes, weight = new_nodes, density * shares * (limit - lowest) / 2
        spent_before = spent
    return tuple(bounds)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values so that the chance of any false rejection stays at the level.

    max_{j ≤ i} min(1, (k − j + 1) p_(j)) over the sorted p-values, in the order given. Valid under any
    dependence. Not where the share of false discoveries is what matters (`benjamini_hochberg`).
    Source: Holm 1979.
    """
    p = _p_array(p_values)
    order = np.argsort(p, kind="stable")
    steps = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(steps, 1.0)
    return [float(x) for x in adjusted]


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values so that, on average, at most the level's share of the rejected ones is false.

    min_{j ≥ i} min(1, k p_(j)/j) over the sorted p-values, in the order given. Valid for independent or
    positively dependent tests, as comparisons with one reference are. Not where a single false alarm is too
    many (`holm`).
    Source: Benjamini & Hochberg 1995; Benjamini & Yekutieli 2001 for the dependence.
    """
    p = _p_array(p_values)
    order = np.argsort(p, kind="stable")[::-1]
    steps = np.minimum.accumulate(p[order] * len(p) / np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(steps, 1.0)
    return [float(x) for x in adjusted]


def _p_array(p_values: Sequence[float]) -> Array:
    p = np.asarray(p_values, float)
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"p-values must be numbers in [0, 1], found {list(p_values)}")
    return p
