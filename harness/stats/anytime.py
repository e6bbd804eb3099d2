"""Anytime-valid tests and confidence sequences, and a CUSUM chart for a series of runs.

Invariant: an e-process starts at 1 and exceeds 1/α at any time with a chance of at most α
while its null hypothesis holds; a bet on an item never looks at that item.
"""

from math import e, exp, log
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from harness.stats.intervals import Array, finite

_CAUTION = 0.5  # share of the largest bet that may be placed, so that wealth never reaches 0


def sign_e_value(gains: int, losses: int, prior: float = 0.5) -> float:
    """Return the evidence that gains and losses are not equally likely among the items that differ.

    B(a + l, a + g)/B(a, a) · 2^{l + g}, a mixture over the chance of a loss with a Beta(a, a)
    prior: ½ is Krichevsky-Trofimov's, 1 is uniform. Reject at 1/α, at any time. It is two-sided
    (`sign_alarm`). Not for a margin other than 0: the chance of a gain given that an item
    differs then depends on the unknown disagreement (`betting_process`).

    Raises:
        ValueError: a count is negative, or the prior is not positive.

    Source: Howard, Ramdas, McAuliffe & Sekhon 2021; Robbins 1970.
    """
    if min(gains, losses) < 0 or prior <= 0:
        raise ValueError(f"expected counts >= 0 and prior > 0, found {gains}, {losses}, {prior}")
    ratio = special.betaln(prior + losses, prior + gains) - special.betaln(prior, prior)
    return exp(min(float(ratio) + (gains + losses) * log(2), 700.0))


def sign_alarm(gains: int, losses: int, alpha: float = 0.05, prior: float = 0.5) -> bool:
    """Tell whether a regression is shown: evidence of at least 1/α, and more losses than gains.

    Not for clustered items, nor for a margin other than 0 (`betting_process`).

    Raises:
        ValueError: a count is negative, the prior is not positive, or alpha outside (0, 1).

    Source: Howard, Ramdas, McAuliffe & Sekhon 2021.
    """
    if not 0 < alpha < 1:
        raise ValueError(f"expected alpha in (0, 1), found {alpha}")
    return losses > gains and sign_e_value(gains, losses, prior) >= 1 / alpha


def betting_process(changes: ArrayLike, margin: float) -> Array:
    """Return the wealth (n,) after each change of a bettor against H0: the mean change is at most −margin.

    ∏ (1 + λ_t (d_t + m)) with λ_t in [0, ½/(1 − m)] from the changes before t alone: their mean
    over their second moment, which nearly maximises growth. Reject H0, so show non-inferiority,
    at 1/α at any time. Changes lie in [−1, 1] and come in an order that knows nothing of them.
    Not for clustered items, unless a cluster's mean is one change.

    Raises:
        ValueError: the margin is not in (0, 1), or a change is NaN or outside [−1, 1].

    Source: Waudby-Smith & Ramdas 2024, arXiv:2010.09686.
    """
    d = finite(changes, "changes")
    if not 0 < margin < 1 or np.abs(d).max() > 1:
        raise ValueError(f"expected a margin in (0, 1) and changes in [-1, 1], found {margin} and {d}")
    x = d + margin
    # Before anything is seen the bettor assumes no change, and a spread of a quarter.
    counts = np.arange(1, len(x) + 1)
    mean = np.concatenate([[margin], (margin + np.cumsum(x)) / (counts + 1)])[:-1]
    square = np.concatenate([[0.25], (0.25 + np.cumsum(x**2)) / (counts + 1)])[:-1]
    bets = np.clip(mean / square, 0.0, _CAUTION / (1 - margin))
    return np.asarray(np.exp(np.cumsum(np.log1p(bets * x))))


def normal_mixture_radius(variance: ArrayLike, rho: float, alpha: float = 0.05) -> Array:
    """Return how far a sum may stray from its expectation at any time: √((V + ρ) log((V + ρ)/(α² ρ))).

    `variance` is the intrinsic time V (t σ² for sub-Gaussian terms), `rho` the time at which the
    boundary is tightest (`normal_mixture_rho`). Two-sided, in the unit of the sum. Not for a time
    that is looked at once: the usual interval is narrower there.

    Raises:
        ValueError: rho is not positive, a variance negative, or alpha outside (0, 1).

    Source: Howard, Ramdas, McAuliffe & Sekhon 2021, equation 14.
    """
    v = np.asarray(variance, float)
    if rho <= 0 or (v < 0).any() or not 0 < alpha < 1:
        raise ValueError(f"expected rho > 0, variances >= 0 and alpha in (0, 1): {rho}, {v}, {alpha}")
    return np.asarray(np.sqrt((v + rho) * np.log((v + rho) / (alpha**2 * rho))))


def normal_mixture_rho(variance: float, alpha: float = 0.05) -> float:
    """Return the ρ that makes `normal_mixture_radius` smallest at intrinsic time V.

    V/(−W₋₁(−α²/e) − 1), W₋₁ the lower branch of Lambert's function, in the unit of V. Not to be chosen
    after values were seen.

    Raises:
        ValueError: V is not positive, or alpha outside (0, 1).

    Source: Howard, Ramdas, McAuliffe & Sekhon 2021, proposition 3.
    """
    if variance <= 0 or not 0 < alpha < 1:
        raise ValueError(f"expected a variance > 0 and alpha in (0, 1), found {variance} and {alpha}")
    return variance / (-float(special.lambertw(-(alpha**2) / e, -1).real) - 1)


class ConfidenceSequence(NamedTuple):
    """A confidence sequence: both ends after each item (n,); all of them hold at once."""

    low: Array
    high: Array


def normal_mixture_sequence(
    values: ArrayLike, bounds: tuple[float, float], alpha: float = 0.05, tightest_at: int = 250
) -> ConfidenceSequence:
    """Return the confidence sequence of the mean of bounded values (n,), from Hoeffding's variance.

    x̄_t ± radius(V_t)/t, V_t = t (high − low)²/4, in the unit of the values. Simple, and not for values
    that vary little (`betting_sequence`), nor for clustered items.

    Raises:
        ValueError: a value is NaN or outside the bounds.

    Source: Howard, Ramdas, McAuliffe & Sekhon 2021.
    """
    x = _within(values, bounds)
    t, scale = np.arange(1, len(x) + 1), (bounds[1] - bounds[0]) ** 2 / 4
    half = normal_mixture_radius(t * scale, normal_mixture_rho(tightest_at * scale, alpha), alpha) / t
    return _nested(np.cumsum(x) / t - half, np.cumsum(x) / t + half, bounds)


def betting_sequence(
    values: ArrayLike, bounds: tuple[float, float], alpha: float = 0.05, n_grid: int = 1000
) -> ConfidenceSequence:
    """Return the confidence sequence of the mean of bounded values (n,), by betting against each mean.

    A mean stays in while ½∏(1 + λ_t (x_t − m)) and ½∏(1 − λ_t (x_t − m)) are both below 1/α;
    λ_t = √(2 log(2/α)/(σ̂²_{t−1} t log(1 + t))), cut to half of 1/m and 1/(1 − m), values scaled to
    [0, 1]. It adapts to the variance. The ends lie on a grid, rounded outwards. Not for clustered
    items, unless a cluster's mean is one value.

    Raises:
        ValueError: a value is NaN or outside the bounds.

    Source: Waudby-Smith & Ramdas 2024, arXiv:2010.09686, hedged capital with predictable plug-in.
    """
    low, high = bounds
    x = (_within(values, bounds) - low) / (high - low)  # (n,)
    means = np.linspace(0, 1, n_grid + 1)  # (m,)
    t = np.arange(1, len(x) + 1)
    running = (0.5 + np.cumsum(x)) / (t + 1)
    spread = (0.25 + np.cumsum((x - running) ** 2)) / (t + 1)
    before = np.concatenate([[0.25], spread[:-1]])
    bets = np.sqrt(2 * np.log(2 / alpha) / (before * t * np.log1p(t)))[:, None]  # (n, 1)
    with np.errstate(divide="ignore"):
        up, down = np.minimum(bets, _CAUTION / means), np.minimum(bets, _CAUTION / (1 - means))
    distance = x[:, None] - means  # (n, m)
    wealth = np.maximum(
        np.cumsum(np.log1p(up * distance), axis=0), np.cumsum(np.log1p(-down * distance), axis=0)
    )
    kept = np.maximum.accumulate(wealth, axis=0) < log(2 / alpha)  # once out, out for good
    step = (high - low) / n_grid
    first = np.where(kept.any(axis=1), kept.argmax(axis=1), 0)
    last = np.where(kept.any(axis=1), n_grid - kept[:, ::-1].argmax(axis=1), n_grid)
    return ConfidenceSequence(
        np.maximum(low + step * (first - 1), low), np.minimum(low + step * (last + 1), high)
    )


class Cusum(NamedTuple):
    """Both sums of the chart after each value (n,), and where one of them is beyond the limit."""

    high: Array
    low: Array
    alarm: NDArray[np.bool_]


def cusum(values: ArrayLike, target: float, slack: float, limit: float) -> Cusum:
    """Chart a series against its target: S⁺ = max(0, S⁺ + x − target − slack), S⁻ likewise below.

    An alarm where a sum exceeds `limit`; all in the unit of the values. A slack of half the
    shift to be found and a limit of 4 to 5 standard deviations are usual. Not for correlated
    values, nor without a pinned reference.

    Raises:
        ValueError: a value is NaN, the slack negative, or the limit not positive.

    Source: Page 1954; NIST/SEMATECH handbook, section 6.3.2.3.
    """
    x = finite(values)
    if slack < 0 or limit <= 0:
        raise ValueError(f"expected slack >= 0 and limit > 0, found {slack} and {limit}")
    high, low = _one_sided(x - target - slack), _one_sided(target - slack - x)
    return Cusum(high, low, (high > limit) | (low > limit))


def _one_sided(steps: Array) -> Array:
    """Add steps up, never falling below 0: the walk less its lowest point so far."""
    walk = np.cumsum(steps)
    return np.asarray(walk - np.minimum(np.minimum.accumulate(walk), 0.0))


def _within(values: ArrayLike, bounds: tuple[float, float]) -> Array:
    x = finite(values)
    if bounds[0] >= bounds[1] or x.min() < bounds[0] or x.max() > bounds[1]:
        raise ValueError(f"values from {x.min()} to {x.max()} outside the bounds {bounds}")
    return x


def _nested(low: Array, high: Array, bounds: tuple[float, float]) -> ConfidenceSequence:
    """Intersect the intervals so far, which all hold at once."""
    return ConfidenceSequence(
        np.maximum(np.maximum.accumulate(low), bounds[0]), np.minimum(np.minimum.accumulate(high), bounds[1])
    )
