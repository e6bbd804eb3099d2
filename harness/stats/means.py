"""Means of items that may share clusters: standard errors, intervals, design effects, averages, contrasts.

Invariant: clusters are the units; if they are too few the SE is None, never 0.
"""

from collections.abc import Sequence
from math import sqrt
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from harness.stats.intervals import TIE, Array, Interval, finite, t_quantile

MIN_CLUSTERS = 4  # effective clusters


class Mean(NamedTuple):
    """A mean with its standard error; `se` is None if too few clusters leave it unknown."""

    mean: float
    se: float | None
    df: float
    n: int
    n_clusters: int


def clustered_mean(values: ArrayLike, clusters: ArrayLike) -> Mean:
    """Estimate a mean whose items (n,) may share a cluster (n,).

    CR2: SE² = n⁻² Σ_c (Σ_{i∈c} (x_i − x̄))² / (1 − n_c/n) on `cluster_df`. For clusters of equal size this is
    the usual Σ·G/(G − 1), and for clusters of one item s²/n with ddof 1. The SE is None if items share
    fewer than four effective clusters (`effective_clusters`). Not for binary scores where few items differ
    (the SE shrinks to 0: `tango_interval`). Where few clusters hold most items and their means are skewed, a
    bound errs about twice as often as it says.
    Source: Bell & McCaffrey 2002; Pustejovsky & Tipton 2018, arXiv:1601.01981.
    """
    x, codes = _add_codes(values, clusters)
    mean, n, sizes = float(x.mean()), len(x), np.bincount(codes)
    n_clusters = len(sizes)
    if n_clusters < 2 or _are_few(sizes):
        return Mean(mean, None, 0, n, n_clusters)
    sums = np.bincount(codes, x - mean)  # (g,)
    variance = float((sums**2 / (1 - sizes / n)).sum()) / n**2
    return Mean(mean, sqrt(variance), _df(sizes), n, n_clusters)


def clustered_slope(x: ArrayLike, y: ArrayLike, clusters: ArrayLike) -> Mean:
    """Estimate by least squares how much y (n,) rises with x (n,), for items in clusters (n,).

    The slope is the mean of each item's part in it, b + n·(x − x̄)·(y − ȳ − b(x − x̄))/Σ(x − x̄)², so its
    error is that of `clustered_mean`. Not where y is not linear in x.
    Source: White 1980 and Bell & McCaffrey 2002, for the error of a slope by its influence function.
    """
    x_values, y_values = finite(x, "x"), finite(y, "y")
    centred = x_values - x_values.mean()
    spread = float(centred @ centred)
    if len(x_values) != len(y_values) or spread <= TIE:
        raise ValueError(f"expected x that varies, as many as y: {len(x_values)} and {len(y_values)}")
    slope = float(centred @ y_values) / spread
    return clustered_mean(
        slope + len(x_values) * centred * (y_values - y_values.mean() - slope * centred) / spread, clusters
    )


def cluster_df(clusters: ArrayLike) -> float:
    """Return the degrees of freedom of a mean over the clusters of the items (n,), from the cluster sizes.

    Bell and McCaffrey's tr(M)²/tr(M²) for items that are all alike within their cluster, at most G_eff − 1: M
    = P'DP is the quadratic form of CR2's SE² in the clusters' means, P = I − 1w', D = diag(w²/(1 − w)), w the
    clusters' shares of the items. G − 1 if all have one size. Not for items known to be independent within
    their clusters: it is too small there.
    Source: Bell & McCaffrey 2002; Imbens & Kolesár 2016.
    """
    sizes = _count_sizes(clusters)
    if len(sizes) < 2:
        raise ValueError(f"found {len(sizes)} clusters; at least two are needed")
    return _df(sizes)


def _df(sizes: NDArray[np.intp]) -> float:
    if np.ptp(sizes) == 0:
        return len(sizes) - 1.0
    w = sizes / sizes.sum()
    d, q = w**2 / (1 - w), float(w @ w)
    d0, d1, d2 = float(d.sum()), float(d @ w), float(d @ w**2)
    trace = float(d @ (1 - 2 * w + q))
    pairs = q**2 * d0**2 - 4 * q * d0 * d1 + 2 * d0 * d2 + 2 * d1**2  # Σ d_g d_h (q − w_g − w_h)²
    squared = pairs + float(d**2 @ (1 - 4 * w + 2 * q))
    return min(trace**2 / squared, 1 / q - 1)


def effective_clusters(clusters: ArrayLike) -> float:
    """Return how many clusters of equal size weigh as much as the clusters of the items (n,): n² / Σ n_c².

    Not a count of the clusters in which anything differs (`count_differing_clusters`).
    Source: Kish 1965, effective sample size of weights.
    """
    return _effective(_count_sizes(clusters))


def _effective(sizes: NDArray[np.intp]) -> float:
    return float(sizes.sum()) ** 2 / float(sizes @ sizes)


def has_few_clusters(clusters: ArrayLike) -> bool:
    """Tell whether items (n,) share so few clusters, or so unequal ones, that no spread is known.

    That is below four effective clusters. Not for items that are each their own cluster (always False).
    Source: ours, by simulation of one-sided bounds (tests/slow/test_calibration.py).
    """
    return _are_few(_count_sizes(clusters))


def _are_few(sizes: NDArray[np.intp]) -> bool:
    return _effective(sizes) < MIN_CLUSTERS and len(sizes) < sizes.sum()


def paired_delta(base: ArrayLike, new: ArrayLike, clusters: ArrayLike | None = None) -> Mean:
    """Estimate mean(new − base) over the same items (n,), by the CLT or by clusters.

    Without `clusters` each item is its own cluster. Not for metrics that are not means of items
    (`bootstrap`); for binary scores see `clustered_mean`.
    Source: Miller 2024, arXiv:2411.00640.
    """
    before, after = np.asarray(base, float), np.asarray(new, float)
    if before.shape != after.shape:
        raise ValueError(f"the arms must hold the same items: {before.shape} and {after.shape}")
    return clustered_mean(after - before, np.arange(len(before)) if clusters is None else clusters)


def t_interval(mean: Mean, alpha: float = 0.05) -> Interval:
    """Return mean ± t_{1−α/2, df} · SE, in the unit of the values.

    Not where the SE is 0 because nothing differs.
    Source: Student 1908.
    """
    if mean.se is None:
        raise ValueError(f"too few clusters for a standard error; at least {MIN_CLUSTERS} are needed")
    half = t_quantile(1 - alpha / 2, mean.df) * mean.se
    return Interval(mean.mean - half, mean.mean + half)


def design_effect(values: ArrayLike, clusters: ArrayLike) -> float:
    """Return the factor, at least 1, by which clusters inflate the variance of a mean.

    1 + (m − 1) ρ, with m the size-weighted mean cluster size Σm_c²/n and ρ from the ratio of the clustered to
    the plain variance, shrunk as if one more cluster that differs as a whole had been seen: ρ = (c ρ̂ + 1)/(c
    + 1), c the clusters that hold a value other than the median; ρ̂ is 1 if too few clusters leave the
    spread unknown. So ρ is 1 if nothing differs (n/m items' worth of evidence), and the data's own where
    many clusters differ. The shrinkage is ours: with few differing items the plain ratio is close to 1 by
    construction, and proves nothing.

    Not for unequal inclusion weights.
    Source: Kish 1965, section 5.4, for 1 + (m − 1) ρ.
    """
    x, codes = _add_codes(values, clusters)
    sizes = np.bincount(codes)
    m = float(sizes @ sizes) / len(x)
    if m == 1:
        return 1.0
    differing = count_differing_clusters(x, codes)
    return 1 + (m - 1) * (differing * _correlation(x, codes, m) + 1) / (differing + 1)


def count_differing_clusters(values: ArrayLike, clusters: ArrayLike, *, effective: bool = False) -> float:
    """Count the clusters that hold a value other than the median.

    Differences below 1e-12 are rounding. Not a measure of how much they differ. The `effective` count is
    scaled to clusters of equal size (`effective_clusters`), so that many small differing clusters do not make
    up for a few large ones that do not differ.
    Source: ours, for `design_effect`.
    """
    x, codes = _add_codes(values, clusters)
    n_differing = int(np.count_nonzero(np.bincount(codes[np.abs(x - np.median(x)) > TIE])))
    if not effective:
        return n_differing
    sizes = np.bincount(codes)
    return n_differing * _effective(sizes) / len(sizes)


def mover_mean(
    estimates: Sequence[float],
    intervals: Sequence[Interval],
    weights: Sequence[float] | None = None,
    correlations: Array | None = None,
) -> tuple[float, Interval]:
    """Average estimates and combine their intervals; weights are equal and estimates independent by default.

    L = θ̄ − √(Σ_i w_i²(θ̂_i − l_i)² + 2 Σ_{i<j} w_i w_j ρ_ij (θ̂_i − l_i)(θ̂_j − l_j)), U likewise, with
    weights that add up to 1. Each task keeps its own asymmetry and its width near 0, and the level is that of
    the given intervals (for a one-sided bound pass one-sided bounds). `correlations` is (k, k), its elements
    in [0, 1]. Not for a negative correlation, which would narrow the interval.
    Source: Zou & Donner 2008; Zou, Huang & Zhang 2009 (method of variance estimates recovery); with
    correlations Zou 2008.
    """
    k = len(estimates)
    if not k or k != len(intervals) or k != len(weights or estimates):
        raise ValueError(f"found {k} estimates, {len(intervals)} intervals and weights {weights}")
    theta, ends = np.array(estimates), np.array(intervals)  # (k,), (k, 2)
    share = np.full(k, 1 / k) if weights is None else np.array(weights) / np.sum(weights)
    mean = float(share @ theta)
    low, high = (quadrature(share * np.abs(end - theta), correlations) for end in ends.T)
    return mean, Interval(mean - low, mean + high)


def quadrature(widths: ArrayLike, correlations: Array | None = None) -> float:
    """Add widths (k,) as standard errors are added: √(Σ_ij ρ_ij x_i x_j), independent by default.

    Infinite if a width is. Not for differences, whose covariances are subtracted.
    Source: definition of the variance of a sum.
    """
    x = np.asarray(widths, float)
    if correlations is None or not np.isfinite(x).all():
        return float(np.sqrt((x**2).sum()))
    return float(np.sqrt(x @ correlations @ x))


def _correlation(x: Array, codes: NDArray[np.intp], m: float) -> float:
    clustered, plain = clustered_mean(x, codes).se, clustered_mean(x, np.arange(len(x))).se
    if clustered is None or not plain:
        return 1.0
    return min(max((clustered**2 / plain**2 - 1) / (m - 1), 0.0), 1.0)


def _add_codes(values: ArrayLike, clusters: ArrayLike) -> tuple[Array, NDArray[np.intp]]:
    x, labels = np.asarray(values, float), np.asarray(clusters)
    if not len(x) or x.shape != labels.shape:
        raise ValueError(f"values and clusters must be as many, and some: {x.shape} and {labels.shape}")
    finite(x)
    return x, _number(labels)


def _count_sizes(clusters: ArrayLike) -> NDArray[np.intp]:
    labels = np.asarray(clusters)
    if not len(labels):
        raise ValueError("there are no items")
    return np.bincount(_number(labels))


def _number(labels: NDArray[Any]) -> NDArray[np.intp]:
    """Number the clusters of items (n,) from 0; labels that already are such numbers stay as they are."""
    is_numbered = labels.dtype == np.intp and labels.min() == 0 and labels.max() < len(labels)
    if is_numbered and np.bincount(labels).all():
        return labels
    return np.unique(labels, return_inverse=True)[1]


def clustered_contrast(values: ArrayLike, group: ArrayLike, clusters: ArrayLike) -> Mean:
    """Estimate mean(values of the group) − mean(values of the rest), of items (n,) in clusters (n,).

    The least-squares slope on the group's indicator with CR2: each cluster's residuals in a group, divided by
    √(1 − its share of the group), are added up with their weights and squared. The degrees of freedom are
    Bell and McCaffrey's, the smaller of those for independent items and for items that are alike within their
    cluster. The SE is None if the items of either group share fewer than four effective clusters. Not for
    binary values where few items differ: the SE shrinks to 0.
    Source: Bell & McCaffrey 2002; Imbens & Kolesár 2016; Pustejovsky & Tipton 2018, arXiv:1601.01981.
    """
    x, inside = finite(values, "values"), np.asarray(group, bool)
    if not len(x) == len(inside) == len(np.asarray(clusters)) or inside.all() or not inside.any():
        raise ValueError(f"expected two groups, as many as values: {len(x)} values, {inside.sum()} in one")
    names, codes = np.unique(clusters, return_inverse=True)
    parts = (inside, ~inside)
    means = [float(x[part].mean()) for part in parts]
    delta, n_clusters = means[0] - means[1], len(names)
    if any(has_few_clusters(codes[part]) for part in parts) or min(part.sum() for part in parts) < 2:
        return Mean(delta, None, 0, len(x), n_clusters)
    counts = np.array([np.bincount(codes[part], minlength=n_clusters) for part in parts], float)  # (2, g)
    sums = [
        np.bincount(codes[part], x[part] - mean, n_clusters) for part, mean in zip(parts, means, strict=True)
    ]
    totals = counts.sum(1, keepdims=True)
    weights = np.array([[1.0], [-1.0]]) / totals / np.sqrt(1 - counts / totals)  # (2, g)
    variance = float(((weights * np.array(sums)).sum(0) ** 2).sum())
    # The quadratic form M behind the SE² is a diagonal plus W·K·Wᵀ of low rank: once for independent items,
    # once for items that are alike within their cluster.
    independent = _effective_df(
        (weights**2 * counts).sum(0), (weights * counts / np.sqrt(totals)).T, -np.eye(2)
    )
    summed = (weights * counts).sum(0)  # (g,)
    shares, zeros = (weights * counts / totals).T, np.zeros((2, 2))  # (g, 2)
    crossed = np.block([[counts @ counts.T, -np.eye(2)], [-np.eye(2), zeros]])
    alike = _effective_df(summed**2, np.hstack([shares, summed[:, None] * counts.T]), crossed)
    return Mean(delta, sqrt(variance), min(independent, alike), len(x), n_clusters)


def _effective_df(diagonal: Array, low_rank: NDArray[np.float64], inner: NDArray[np.float64]) -> float:
    """Return tr(M)²/tr(M²) of M = diag + W·K·Wᵀ; infinite if M is 0."""
    squared = inner @ (low_rank.T @ low_rank)
    trace = float(diagonal.sum() + np.trace(squared))
    trace_of_square = float(diagonal @ diagonal) + float(
        2 * np.trace(inner @ (low_rank.T * diagonal) @ low_rank) + np.trace(squared @ squared)
    )
    return trace**2 / trace_of_square if trace > TIE else float("inf")
