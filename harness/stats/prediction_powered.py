"""Means of people's labels for a few items, combined with a judge's grades of all items.

Invariant: the estimate is unbiased whatever the judge's errors are, because people's labels of a random
sample correct it; an uninformative judge gets power 0, which leaves the mean of the labels.
Source: Angelopoulos, Bates, Fannjiang, Jordan & Zrnic 2023, Prediction-powered inference,
https://arxiv.org/abs/2301.09633; Angelopoulos, Duchi & Zrnic 2023, PPI++, https://arxiv.org/abs/2311.01453
"""

from math import ceil, sqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from harness.stats.intervals import TIE, Array, finite
from harness.stats.means import Mean, cluster_df, has_few_clusters

_FEWEST = 2  # labels needed to know their spread


class PoweredMean(NamedTuple):
    """A mean from labels and grades; `power` in [0, 1] is the weight of the judge, 0 means labels only."""

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
    """Estimate the mean label of a population where (n,) items have a label and (m,) others only a grade.

    θ = λ·mean(rest) + mean(labels − λ·grades), SE² = Var(labels − λ·grades)/n + λ²·Var(rest)/m with variances
    that divide by n and m, as published. λ = Cov(labels, grades)/((1 + n/m) Var(all grades)), cut to [0, 1],
    is optimal; `power` overrides it: 0 is the mean of the labels, 1 the plain PPI. With `clusters` the sums
    of a cluster's terms are squared, times G/(G − 1) of the labelled clusters; the degrees of freedom are
    those of the labelled items. For a paired difference pass the differences by item. Not where the labelled
    items are not a random sample of all, nor where fewer than some ten labels differ from their grades (their
    spread is unknown then).

    Raises:
        ValueError: there are fewer than two labels, a value is NaN, or the lengths differ.

    Source: Angelopoulos, Duchi & Zrnic 2023, equations 4 and 6 (PPI++).
    """
    y, f = finite(labels, "labels", _FEWEST), finite(grades, "grades", _FEWEST)
    rest_grades = finite(rest, "grades without a label", 0)
    if len(y) != len(f):
        raise ValueError(f"labels and grades must be as many: {len(y)} and {len(f)}")
    weight = _best_power(y, f, rest_grades) if power is None else power
    if not len(rest_grades):
        weight = 0.0
    errors = y - weight * f
    mean = float(errors.mean()) + (weight * float(rest_grades.mean()) if weight else 0.0)
    terms = np.concatenate([(errors - errors.mean()) / len(y), weight * _center(rest_grades)])
    codes, n_labelled = _codes(len(y), len(rest_grades), clusters, rest_clusters)
    labelled = codes[: len(y)]
    if has_few_clusters(labelled):
        return PoweredMean(Mean(mean, None, 0, len(y), n_labelled), weight)
    sums = np.bincount(codes, terms)
    is_clustered = n_labelled < len(y)
    variance = float(sums @ sums) * (n_labelled / (n_labelled - 1) if is_clustered else 1.0)
    return PoweredMean(Mean(mean, sqrt(variance), cluster_df(labelled), len(y), n_labelled), weight)


def labels_needed(labels: ArrayLike, grades: ArrayLike, n_items: int, se: float) -> int | None:
    """Return how many labels in total, existing ones included, give this standard error on `n_items` items.

    σ²(1 − ρ²)/(SE² − ρ²σ²/N), ρ the correlation of labels and grades, σ² the variance of the labels: the
    error of `prediction_powered_mean` at its best power. None if labels of all N items would not suffice.
    Not where few labels differ from their grades.

    Raises:
        ValueError: there are fewer than two labels, a value is NaN, the lengths differ, or the SE is not
            positive.

    Source: Cochran 1977, section 12.6 (the regression estimator in double sampling).
    """
    y, f = finite(labels, "labels", _FEWEST), finite(grades, "grades", _FEWEST)
    if len(y) != len(f) or se <= 0:
        raise ValueError(f"expected as many labels as grades and an SE > 0: {len(y)}, {len(f)}, {se}")
    spread = float(y.var())
    explained = 0.0 if f.var() <= TIE else min(float(_covariance(y, f)) ** 2 / float(f.var()), spread)
    remaining_variance = se**2 - explained / n_items
    if remaining_variance <= 0 or (needed := ceil((spread - explained) / remaining_variance - TIE)) > n_items:
        return None
    return max(needed, _FEWEST)


def _best_power(labels: Array, grades: Array, rest: Array) -> float:
    """Return the weight of the grades that minimises the variance."""
    spread = float(np.concatenate([grades, rest]).var())
    if spread <= TIE or not len(rest):
        return 0.0
    best = _covariance(labels, grades) / ((1 + len(labels) / len(rest)) * spread)
    return float(min(max(best, 0.0), 1.0))


def _covariance(x: Array, y: Array) -> float:
    return float(((x - x.mean()) * (y - y.mean())).mean())


def _center(values: Array) -> Array:
    """Return each value's contribution to the deviation of the mean, (m,)."""
    return (values - values.mean()) / len(values) if len(values) else values


def _codes(
    n: int, m: int, clusters: ArrayLike | None, rest_clusters: ArrayLike | None
) -> tuple[NDArray[np.intp], int]:
    """Number the clusters of labelled and other items (n + m,), and count those of the labelled ones."""
    if clusters is None or rest_clusters is None:
        return np.arange(n + m), n
    names = np.concatenate([np.asarray(clusters), np.asarray(rest_clusters)]) if m else np.asarray(clusters)
    if len(names) != n + m:
        raise ValueError(f"clusters and items must be as many: {len(names)} and {n + m}")
    codes = np.unique(names, return_inverse=True)[1]
    return codes, len(np.unique(codes[:n]))
