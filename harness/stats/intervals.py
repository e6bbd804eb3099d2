"""Quantiles, and intervals of one rate.

Invariant: `alpha` is two-sided for intervals and one-sided for bounds and tests of a margin; the interval of
a rate is never a point, whatever the count.
"""

from math import sqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

Array = NDArray[np.float64]
TIE = 1e-12  # differences below this are rounding


class Interval(NamedTuple):
    """The ends of a confidence interval, in the unit of the estimate."""

    low: float
    high: float


def z_quantile(p: float) -> float:
    """Return the standard normal quantile of a probability in (0, 1).

    Raises:
        ValueError: the probability is 0 or 1 or outside.

    Source: definition; `scipy.special.ndtri`.
    """
    _check_probability(p)
    return float(special.ndtri(p))


def t_quantile(p: float, df: float) -> float:
    """Return Student's t quantile of a probability in (0, 1).

    Raises:
        ValueError: the probability is 0 or 1 or outside.

    Source: definition; `scipy.special.stdtrit`.
    """
    _check_probability(p)
    return float(special.stdtrit(df, p))


def finite(values: ArrayLike, what: str = "values", least: int = 1) -> Array:
    """Return the values as an array, (n,) or of more axes, if they are enough and all finite.

    Raises:
        ValueError: there are fewer than `least`, or one is NaN or infinite.
    """
    x = np.asarray(values, float)
    if len(x) < least:
        raise ValueError(f"{what}: found {len(x)}, at least {least} are needed")
    if not np.isfinite(x).all():
        raise ValueError(f"{what}: found {int((~np.isfinite(x)).sum())} that are NaN or infinite")
    return x


def _check_probability(p: float) -> None:
    if not 0 < p < 1:
        raise ValueError(f"expected a probability between 0 and 1, found {p}")


def wilson(successes: float, n: float, alpha: float = 0.05) -> Interval:
    """Return Wilson's score interval of a rate; counts may be effective (divided by a design effect).

    (p + z²/2n ± z √(p(1−p)/n + z²/4n²)) / (1 + z²/n). Not where coverage must be guaranteed
    (`clopper_pearson`), nor for differences of rates.

    Raises:
        ValueError: not 0 ≤ successes ≤ n, or n is 0.

    Source: Wilson 1927.
    """
    _check_count(successes, n)
    z, p = z_quantile(1 - alpha / 2), successes / n
    half = z * sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    centre, scale = p + z**2 / (2 * n), 1 + z**2 / n
    # Exactly 0 and 1 at the extremes, where rounding would miss them.
    low = 0.0 if successes == 0 else max((centre - half) / scale, 0.0)
    high = 1.0 if successes == n else min((centre + half) / scale, 1.0)
    return Interval(low, high)


def clopper_pearson(successes: float, n: float, alpha: float = 0.05) -> Interval:
    """Return the exact interval of a rate; each end alone is a one-sided 1 − α/2 bound.

    Quantiles of Beta(x, n − x + 1) and Beta(x + 1, n − x), which also take effective counts (Korn & Graubard
    1998). Not for estimates shown in tables: it is wider than necessary.

    Raises:
        ValueError: not 0 ≤ successes ≤ n, or n is 0.

    Source: Clopper & Pearson 1934.
    """
    _check_count(successes, n)
    rest = n - successes
    low = 0.0 if successes == 0 else float(special.betaincinv(successes, rest + 1, alpha / 2))
    high = 1.0 if rest == 0 else float(special.betaincinv(successes + 1, rest, 1 - alpha / 2))
    return Interval(low, high)


def binomial_p(successes: int, n: int, rate: float) -> float:
    """Return the chance of at least this many successes among n independent items of one rate.

    I_p(k, n − k + 1), the regularised incomplete beta function. Not for clustered items.

    Raises:
        ValueError: the rate is not in (0, 1), or not 0 ≤ successes ≤ n.

    Source: the exact binomial test, one-sided; Abramowitz & Stegun 26.5.24.
    """
    _check_count(successes, n)
    if not 0 < rate < 1:
        raise ValueError(f"expected a rate in (0, 1), found {rate}")
    return 1.0 if successes == 0 else float(special.betainc(successes, n - successes + 1, rate))


def _check_count(successes: float, n: float) -> None:
    if not 0 <= successes <= n or n == 0:
        raise ValueError(f"expected 0 <= successes <= n and n > 0, found {successes} of {n}")
