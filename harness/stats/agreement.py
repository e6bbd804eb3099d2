"""Agreement of a judge's grades with people's labels, and rates corrected for the judge's errors.

Invariant: the interval of a rate is never a point. Where all labels of one rater are the same, agreement is
None and never perfect: chance alone would reach it.
"""

from math import sqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from harness.stats.bootstrap import bca_interval, bootstrap
from harness.stats.intervals import TIE, Array, finite, z_quantile


class Kappa(NamedTuple):
    """Agreement beyond chance, 1 complete and 0 as by chance, with its interval."""

    kappa: float
    low: float
    high: float


class CorrectedRate(NamedTuple):
    """A rate corrected for a judge's false passes and false fails, with its interval in [0, 1]."""

    rate: float
    low: float
    high: float


def cohen_kappa(
    first: ArrayLike, second: ArrayLike, clusters: ArrayLike | None = None, *, seed: int = 0
) -> Kappa | None:
    """Return how far two raters of the same items (n,) agree beyond chance, with a 95 % interval.

    κ = 1 − mean((x − y)²)/(Var x + Var y + (x̄ − ȳ)²): Cohen's kappa for labels 0 and 1, and kappa with
    quadratic weights for graded ones. The interval is BCa over items, or over `clusters`. None if all
    labels of one rater are the same (chance would agree as well) or nothing can be resampled. Not for labels
    without an order (`krippendorff_alpha`), nor for comparing tasks when one has few items of a kind.

    Raises:
        ValueError: there is no label, one is NaN, or the lengths differ.

    Source: Cohen 1960 and 1968; Fleiss & Cohen 1973 for the quadratic weights.
    """
    x, y = _pair(first, second)
    codes = np.arange(len(x)) if clusters is None else np.unique(clusters, return_inverse=True)[1]
    parts = np.column_stack([x, y, x * x, y * y, x * y])  # (n, 5)
    if min(np.ptp(x), np.ptp(y)) <= TIE or codes.max() < 1:
        return None
    boot = bootstrap(lambda weights: _kappa(weights @ parts / weights.sum(axis=1)[:, None]), codes, seed=seed)
    low, high = bca_interval(boot[0])
    return Kappa(boot[0].estimate, max(low, -1.0), min(high, 1.0))


def rogan_gladen(
    rate: float, n: int, specificity: float, n_negative: int, sensitivity: float, n_positive: int
) -> CorrectedRate | None:
    """Correct the `rate` of n answers that a judge passed for the judge's errors, with a 95 % interval.

    θ = (p + q₀ − 1)/(q₀ + q₁ − 1), cut to [0, 1]; q₀ is the judge's specificity on `n_negative` answers that
    people failed, q₁ its sensitivity on `n_positive` that they passed. The interval adds two items to each
    kind of labelled answers and z² to all answers, and covers the errors of all three rates. None if q₀ +
    q₁ ≤ 1: the judge is no better than chance. Not for graded scores, nor for labels drawn from other answers
    than those of the rate (`prediction_powered_mean`).

    Raises:
        ValueError: a rate is outside [0, 1], or a number of answers is not positive.

    Source: Rogan & Gladen 1978; the interval: Lee, Zeng, Lee & Jones 2025, https://arxiv.org/abs/2511.21140
    """
    if not all(0 <= x <= 1 for x in (rate, specificity, sensitivity)) or min(n, n_negative, n_positive) < 1:
        raise ValueError(
            f"expected rates in [0, 1] of at least one answer: {rate} of {n}, {specificity} of {n_negative}, "
            f"{sensitivity} of {n_positive}"
        )
    z = z_quantile(0.975)
    p, n_all = (n * rate + z * z / 2) / (n + z * z), n + z * z
    (q0, m0), (q1, m1) = (
        ((m * q + 1) / (m + 2), m + 2) for q, m in ((specificity, n_negative), (sensitivity, n_positive))
    )
    youden_adjusted, youden = q0 + q1 - 1, specificity + sensitivity - 1
    if min(youden_adjusted, youden) <= TIE:
        return None
    theta = (p + q0 - 1) / youden_adjusted
    variance_negative, variance_positive = q0 * (1 - q0) / m0, q1 * (1 - q1) / m1
    centre = theta + 2 * z * z * (theta * variance_positive - (1 - theta) * variance_negative)
    spread = p * (1 - p) / n_all + (1 - theta) ** 2 * variance_negative + theta**2 * variance_positive
    half_width = z * sqrt(spread) / youden_adjusted
    rates = (rate + specificity - 1) / youden, centre - half_width, centre + half_width
    return CorrectedRate(*(min(max(x, 0.0), 1.0) for x in rates))


def _pair(first: ArrayLike, second: ArrayLike) -> tuple[Array, Array]:
    x, y = finite(first, "labels"), finite(second, "labels")
    if len(x) != len(y):
        raise ValueError(f"both raters must have labelled the same items: {len(x)} and {len(y)}")
    return x, y


def _estimate_by_chance(means: Array) -> Array:
    """Return the mean squared difference of labels assigned by chance; means (d, 5) → (d,)."""
    x, y, xx, yy, _ = means.T
    chance: Array = (xx - x * x) + (yy - y * y) + (x - y) ** 2
    return chance


def _kappa(means: Array) -> Array:
    """Return kappa from the means of x, y, x², y² and xy, (d, 5) → (d,); 0 if all labels are the same."""
    _, _, xx, yy, xy = means.T
    chance = _estimate_by_chance(means)
    kappa: Array = 1 - (xx + yy - 2 * xy) / np.maximum(chance, TIE)
    return np.asarray(np.where(chance > TIE, kappa, 0.0))
