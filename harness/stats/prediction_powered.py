"""Means of people's labels, of which few items have one, joined with a judge's grades of all items.

Invariant: the estimate is unbiased whatever the judge's errors are, because people's labels of a random
sample correct it; a judge that says nothing has a power of 0, which leaves the mean of the labels alone.
Source: Angelopoulos, Bates, Fannjiang, Jordan & Zrnic 2023, Prediction-powered inference,
https://arxiv.org/abs/2301.09633; Angelopoulos, Duchi & Zrnic 2023, PPI++, https://arxiv.org/abs/2311.01453
"""

from math import ceil, sqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from harness.stats.intervals import TIE, Array, finite
from harness.stats.means import Mean, cluster_df, has_few_clusters

_FEWEST = 2  # labels, below which nothing is known of their spread


class PoweredMean(NamedTuple):
    """A mean of labels and grades; `power` in [0, 1] is the weight of the judge, 0 the labels alone."""

    mean: Mean
    power: float


def prediction_powered_mean(
    labels: ArrayLike,
    grades: ArrayLike,
    rest: ArrayLike,
    *,
    clusters: ArrayLike | None = None,
    rest_clusters: ArrayLike | None = None,
    power: float | None = None,
) -> PoweredMean:
    """Estimate the mean label of a population of which (n,) items have a label and (m,) others only a grade.

    θ = λ·mean(rest) + mean(labels − λ·grades), SE² = Var(labels − λ·grades)/n + λ²·Var(rest)/m with variances
    that divide by n and m, as published; λ = Cov(labels, grades)/((1 + n/m) Var(all grades)), cut to [0, 1],
    is the best there is unless `power` gives it: 0 is the mean of the labels alone, 1 the plain PPI. With
    `clusters` the sums of a cluster's terms are squared, times G/(G − 1) of the labelled clusters; the
    degrees of freedom are those of the labelled items. Of a paired difference give the differences by item.
    Not where the labelled items are no random sample of all, nor where fewer than some ten labels differ from
    their grades (the spread of what was hardly seen is no spread).

    Raises:
        ValueError: there are fewer than two labels, a value is NaN, or the lengths differ.

    Source: Angelopoulos, Duchi & Zrnic 2023, equations 4 and 6 (PPI++).
    """
    y, f = finite(labels, "labels", _FEWEST), finite(grades, "grades", _FEWEST)
    other = finite(rest, "grades without a label", 0)
    if len(y) != len(f):
        raise ValueError(f"labels and grades must be as many: {len(y)} and {len(f)}")
    weight = _best_power(y, f, other) if power is None else power
    if not len(other):
        weight = 0.0
    errors = y - weight * f
    mean = float(errors.mean()) + (weight * float(other.mean()) if weight else 0.0)
    terms = np.concatenate([(errors - errors.mean()) / len(y), weight * _center(other)])
    codes, n_labelled = _codes(len(y), len(other), clusters, rest_clusters)
    labelled = codes[: len(y)]
    if has_few_clusters(labelled):
        return PoweredMean(Mean(mean, None, 0, len(y), n_labelled), weight)
    sums = np.bincount(codes, terms)
    shared = n_labelled < len(y)
    variance = float(sums @ sums) * (n_labelled / (n_labelled - 1) if shared else 1.0)
    return PoweredMean(Mean(mean, sqrt(variance), cluster_df(labelled), len(y), n_labelled), weight)


def labels_needed(labels: ArrayLike, grades: ArrayLike, n_items: int, se: float) -> int | None:
    """Return how many labels, those at hand among them, give so small a standard error on so many items.

    σ²(1 − ρ²)/(SE² − ρ²σ²/N), ρ the correlation of labels and grades, σ² the variance of the labels: what
    `prediction_powered_mean` reaches with its best power. None where labels on all N items would not do.
    Not for an estimate of which few labels differ from their grades.

    Raises:
        ValueError: there are fewer than two labels, a value is NaN, the lengths differ, or the SE is not
            positive.

    Source: Cochran 1977, section 12.6 (the regression estimator in double sampling).
    """
    y, f = finite(labels, "labels", _FEWEST), finite(grades, "grades", _FEWEST)
    if len(y) != len(f) or se <= 0:
        raise ValueError(f"expected as many labels as grades and an SE > 0: {len(y)}, {len(f)}, {se}")
    spread = float(y.var())
    known = 0.0 if f.var() <= TIE else min(float(_covariance(y, f)) ** 2 / float(f.var()), spread)
    left = se**2 - known / n_items
    if left <= 0 or (needed := ceil((spread - known) / left - TIE)) > n_items:
        return None
    return max(needed, _FEWEST)


def _best_power(labels: Array, grades: Array, rest: Array) -> float:
    """Return the weight of the grades that makes the variance smallest."""
    spread = float(np.concatenate([grades, rest]).var())
    if spread <= TIE or not len(rest):
        return 0.0
    best = _covariance(labels, grades) / ((1 + len(labels) / len(rest)) * spread)
    return float(min(max(best, 0.0), 1.0))


def _covariance(x: Array, y: Array) -> float:
    return float(((x - x.mean()) * (y - y.mean())).mean())


def _center(values: Array) -> Array:
    """Return each value's part in the deviation of the mean, (m,)."""
    return (values - values.mean()) / len(values) if len(values) else values


def _codes(
    n: int, m: int, clusters: ArrayLike | None, rest_clusters: ArrayLike | None
) -> tuple[NDArray[np.intp], int]:
    """Number the clusters of labelled and other items alike (n + m,), and count those of the labelled."""
    if clusters is None or rest_clusters is None:
        return np.arange(n + m), n
    names = np.concatenate([np.asarray(clusters), np.asarray(rest_clusters)]) if m else np.asarray(clusters)
    if len(names) != n + m:
        raise ValueError(f"clusters and items must be as many: {len(names)} and {n + m}")
    codes = np.unique(names, return_inverse=True)[1]
    return codes, len(np.unique(codes[:n]))
