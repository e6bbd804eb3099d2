"""Difference of the means of two groups of items that may share clusters within and across the groups.

Invariant: a cluster counts with all its items in both groups. Few clusters in one group give few degrees of
freedom; too few leave the error unknown.
"""

from math import sqrt

import numpy as np
from numpy.typing import ArrayLike, NDArray

from harness.stats.intervals import TIE, Array, finite
from harness.stats.means import Mean, has_few_clusters


def clustered_contrast(values: ArrayLike, group: ArrayLike, clusters: ArrayLike) -> Mean:
    """Estimate mean(values of the group) − mean(values of the rest), of items (n,) in clusters (n,).

    The least-squares slope on the group's indicator with CR2: each cluster's residuals in a group, divided by
    √(1 − its share of the group), are added up with their weights and squared. The degrees of freedom are
    Bell and McCaffrey's, the smaller of those for independent items and for items that are alike within their
    cluster. The SE is None if the items of either group share fewer than four effective clusters. Not for
    binary values where few items differ: the SE shrinks to 0.

    Raises:
        ValueError: a value is NaN, the lengths differ, or one of the groups is empty.

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
    return Mean(delta, sqrt(variance), _contrast_df(counts, weights), len(x), n_clusters)


def _contrast_df(counts: Array, weights: Array) -> float:
    """Return tr(M)²/tr(M²) of the quadratic form M behind the SE², the smaller of two models of the items.

    `counts` and `weights` (2, g) are those of the groups in the clusters. M is a diagonal plus W·K·Wᵀ of low
    rank: once for independent items, once for items that are alike within their cluster.
    """
    totals = counts.sum(1, keepdims=True)
    independent = _effective_df(
        (weights**2 * counts).sum(0), (weights * counts / np.sqrt(totals)).T, -np.eye(2)
    )
    summed = (weights * counts).sum(0)  # (g,)
    shares, zeros = (weights * counts / totals).T, np.zeros((2, 2))  # (g, 2)
    crossed = np.block([[counts @ counts.T, -np.eye(2)], [-np.eye(2), zeros]])
    alike = _effective_df(summed**2, np.hstack([shares, summed[:, None] * counts.T]), crossed)
    return min(independent, alike)


def _effective_df(diagonal: Array, low_rank: NDArray[np.float64], inner: NDArray[np.float64]) -> float:
    """Return tr(M)²/tr(M²) of M = diag + W·K·Wᵀ; infinite if M is 0."""
    squared = inner @ (low_rank.T @ low_rank)
    trace = float(diagonal.sum() + np.trace(squared))
    trace_of_square = float(diagonal @ diagonal) + float(
        2 * np.trace(inner @ (low_rank.T * diagonal) @ low_rank) + np.trace(squared @ squared)
    )
    return trace**2 / trace_of_square if trace > TIE else float("inf")
