"""Means of items that may share clusters: errors, intervals, design effects, averages of tasks.

Invariant: clusters are the units; an SE that one cluster leaves unknown is None, never 0.
"""

from collections.abc import Sequence
from math import sqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from harness.stats.intervals import TIE, Array, Interval, finite, t_quantile


class Mean(NamedTuple):
    """A mean with its standard error; `se` is None where one cluster leaves it unknown."""

    mean: float
    se: float | None
    df: int
    n: int
    n_clusters: int


def clustered_mean(values: ArrayLike, clusters: ArrayLike) -> Mean:
    """Estimate a mean whose items (n,) may share a cluster (n,).

    SE² = n⁻² Σ_c (Σ_{i∈c} (x_i − x̄))² · G/(G − 1), df = G − 1; with clusters of one item
    each it is the usual s²/n with ddof 1. Not for binary scores with few items that differ
    (the SE shrinks to 0 there: `tango_interval`), and below some 25 clusters only roughly right.

    Raises:
        ValueError: there are no values, one is NaN, or the lengths differ.

    Source: Miller 2024, arXiv:2411.00640.
    """
    x, codes, n_clusters = _with_codes(values, clusters)
    mean, n = float(x.mean()), len(x)
    if n_clusters < 2:
        return Mean(mean, None, 0, n, n_clusters)
    sums = np.bincount(codes, x - mean)  # (g,)
    variance = float(sums @ sums) / n**2 * n_clusters / (n_clusters - 1)
    return Mean(mean, sqrt(variance), n_clusters - 1, n, n_clusters)


def paired_delta(base: ArrayLike, new: ArrayLike, clusters: ArrayLike | None = None) -> Mean:
    """Estimate mean(new − base) over the same items (n,), by the CLT or by clusters.

    Without `clusters` each item is its own. Not for metrics that are no mean of items
    (`bootstrap`), and see `clustered_mean` for binary scores.

    Raises:
        ValueError: the arms differ in length, are empty, or hold NaN.

    Source: Miller 2024, arXiv:2411.00640.
    """
    old, now = np.asarray(base, float), np.asarray(new, float)
    if old.shape != now.shape:
        raise ValueError(f"the arms must hold the same items: {old.shape} and {now.shape}")
    return clustered_mean(now - old, np.arange(len(old)) if clusters is None else clusters)


def t_interval(mean: Mean, alpha: float = 0.05) -> Interval:
    """Return mean ± t_{1−α/2, df} · SE, in the unit of the values.

    Not where the SE is 0 because nothing differs.

    Raises:
        ValueError: the SE is unknown (fewer than two clusters).

    Source: Student 1908.
    """
    if mean.se is None:
        raise ValueError("one cluster has no standard error: at least two are needed")
    half = t_quantile(1 - alpha / 2, mean.df) * mean.se
    return Interval(mean.mean - half, mean.mean + half)


def design_effect(values: ArrayLike, clusters: ArrayLike) -> float:
    """Return by how much clusters inflate the variance of a mean: at least 1.

    1 + (m − 1) ρ, with m the size-weighted mean cluster size Σm_c²/n and ρ from
    the ratio of the clustered to the plain variance, shrunk as if one more cluster had been
    seen that differs as a whole: ρ = (c ρ̂ + 1)/(c + 1), c the clusters that hold a value
    other than the median. So ρ is 1 where nothing differs (n/m items' worth of evidence),
    and the data's own where many clusters differ. The shrinkage is ours: with few differing
    items the plain ratio is close to 1 by construction, and proves nothing.

    Not for unequal inclusion weights.

    Raises:
        ValueError: there are no values, one is NaN, or the lengths differ.

    Source: Kish 1965, section 5.4, for 1 + (m − 1) ρ.
    """
    x, codes, _ = _with_codes(values, clusters)
    sizes = np.bincount(codes)
    m = float(sizes @ sizes) / len(x)
    if m == 1:
        return 1.0
    differing = differing_clusters(x, codes)
    return 1 + (m - 1) * (differing * _correlation(x, codes, m) + 1) / (differing + 1)


def differing_clusters(values: ArrayLike, clusters: ArrayLike) -> int:
    """Count the clusters that hold a value other than the median.

    Differences below 1e-12 are rounding. Not a measure of how much they differ.

    Raises:
        ValueError: there are no values, one is NaN, or the lengths differ.

    Source: ours, for `design_effect`.
    """
    x, codes, _ = _with_codes(values, clusters)
    return len(np.unique(codes[np.abs(x - np.median(x)) > TIE]))


def mover_mean(estimates: Sequence[float], intervals: Sequence[Interval]) -> tuple[float, Interval]:
    """Average independent estimates with equal weight, and combine their intervals.

    L = θ̄ − √(Σ w²(θ̂_i − l_i)²), U = θ̄ + √(Σ w²(u_i − θ̂_i)²), w = 1/k: each task's own
    asymmetry and width near 0 are kept, and the level is that of the intervals given (for a
    one-sided bound give one-sided bounds). Not for tasks that share items.

    Raises:
        ValueError: there are no estimates, or not as many intervals.

    Source: Zou & Donner 2008; Zou, Huang & Zhang 2009 (method of variance estimates recovery).
    """
    if not estimates or len(estimates) != len(intervals):
        raise ValueError(f"found {len(estimates)} estimates and {len(intervals)} intervals")
    theta, ends = np.array(estimates), np.array(intervals)  # (k,), (k, 2)
    half = np.sqrt(((ends - theta[:, None]) ** 2).sum(axis=0)) / len(theta)
    mean = float(theta.mean())
    return mean, Interval(mean - float(half[0]), mean + float(half[1]))


def _correlation(x: Array, codes: NDArray[np.intp], m: float) -> float:
    clustered, plain = clustered_mean(x, codes).se, clustered_mean(x, np.arange(len(x))).se
    if clustered is None or not plain:
        return 1.0
    return min(max((clustered**2 / plain**2 - 1) / (m - 1), 0.0), 1.0)


def _with_codes(values: ArrayLike, clusters: ArrayLike) -> tuple[Array, NDArray[np.intp], int]:
    x, labels = np.asarray(values, float), np.asarray(clusters)
    if not len(x) or x.shape != labels.shape:
        raise ValueError(f"values and clusters must be as many, and some: {x.shape} and {labels.shape}")
    finite(x)
    names, codes = np.unique(labels, return_inverse=True)
    return x, codes, len(names)
