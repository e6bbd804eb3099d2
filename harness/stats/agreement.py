"""Agreement of a judge's grades with people's labels, and what its errors leave of a rate.

Invariant: an interval of a rate is never a point; what chance alone would reach (all labels of one rater the
same) is None and never perfect agreement.
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
    """A rate from which a judge's two kinds of error were taken out, with its interval in [0, 1]."""

    rate: float
    low: float
    high: float


def cohen_kappa(
    first: ArrayLike, second: ArrayLike, clusters: ArrayLike | None = None, *, seed: int = 0
) -> Kappa | None:
    """Return how far two raters of the same items (n,) agree beyond chance, with a 95 % interval.

    κ = 1 − mean((x − y)²)/(Var x + Var y + (x̄ − ȳ)²): Cohen's kappa of two labels 0 and 1, and of graded ones
    that with quadratic weights. BCa over items, or over `clusters`. None where all labels of one of them are
    the same, which agree as by chance whatever the other says, or where nothing can be resampled. Not for
    labels without an order (`krippendorff_alpha`), nor to be compared between tasks of which one has few
    items of a kind.

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
    """Take a judge's errors out of the `rate` of its n answers that it passed, with a 95 % interval.

    θ = (p + q₀ − 1)/(q₀ + q₁ − 1), cut to [0, 1]; q₀ is the judge's specificity on `n_negative` answers that
    people failed, q₁ its sensitivity on `n_positive` that they passed. The interval adds two items to each
    kind of labelled answers and z² to all, and holds the errors of all three rates. None where q₀ + q₁ ≤ 1:
    the judge is no better than chance, and nothing can be taken out. Not for graded scores, nor for labels
    drawn from other answers than those the rate is of (`prediction_powered_mean`).

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
    better, shown = q0 + q1 - 1, specificity + sensitivity - 1
    if min(better, shown) <= TIE:
        return None
    theta = (p + q0 - 1) / better
    of_negative, of_positive = q0 * (1 - q0) / m0, q1 * (1 - q1) / m1
    centre = theta + 2 * z * z * (theta * of_positive - (1 - theta) * of_negative)
    spread = p * (1 - p) / n_all + (1 - theta) ** 2 * of_negative + theta**2 * of_positive
    half = z * sqrt(spread) / better
    rates = (rate + specificity - 1) / shown, centre - half, centre + half
    return CorrectedRate(*(min(max(x, 0.0), 1.0) for x in rates))


def _pair(first: ArrayLike, second: ArrayLike) -> tuple[Array, Array]:
    x, y = finite(first, "labels"), finite(second, "labels")
    if len(x) != len(y):
        raise ValueError(f"both raters must have labelled the same items: {len(x)} and {len(y)}")
    return x, y


def _estimate_by_chance(means: Array) -> Array:
    """Return the mean squared difference of labels that were dealt out by chance; means (d, 5) → (d,)."""
    x, y, xx, yy, _ = means.T
    chance: Array = (xx - x * x) + (yy - y * y) + (x - y) ** 2
    return chance


def _kappa(means: Array) -> Array:
    """Return kappa of the means of x, y, x², y² and xy, (d, 5) → (d,); 0 where all labels are the same."""
    _, _, xx, yy, xy = means.T
    chance = _estimate_by_chance(means)
    found: Array = 1 - (xx + yy - 2 * xy) / np.maximum(chance, TIE)
    return np.asarray(np.where(chance > TIE, found, 0.0))
