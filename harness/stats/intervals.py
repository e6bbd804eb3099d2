"""Both ends of an interval, and the quantiles that every other file here needs.

Invariant: `alpha` is two-sided for intervals and one-sided for bounds and tests of a margin.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

Array = NDArray[np.float64]
TIE = 1e-12  # differences below this are rounding


class Interval(NamedTuple):
    """Both ends of a confidence interval, in the unit of the estimate."""

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
    """Return the values as an array, (n,) or of more axes, if they are as many as needed and all finite.

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
