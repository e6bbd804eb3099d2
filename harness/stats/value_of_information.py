"""Value of information before one of two options is taken: perfect and sample information.

Invariant: in the unit of the difference between the options; more information is never worth
less, and never more than perfect information.
"""

from math import exp, pi, sqrt

from scipy import special


def perfect_information(mean: float, sd: float) -> float:
    """Return EVPI = s φ(μ/s) − |μ| Φ(−|μ|/s): the loss expected from taking the better-looking option now.

    `mean` and `sd` describe what is believed of the difference between two options, normal; the
    value is in their unit. 0 where nothing is uncertain. Not for more than two options, nor where
    the options' costs of being wrong differ by more than this difference.

    Raises:
        ValueError: the sd is negative.

    Source: Raiffa & Schlaifer 1961, section 5.
    """
    if sd < 0:
        raise ValueError(f"expected sd >= 0, found {sd}")
    if sd == 0:
        return 0.0
    z = abs(mean) / sd
    return sd * exp(-z * z / 2) / sqrt(2 * pi) - abs(mean) * float(special.ndtr(-z))


def sample_information(mean: float, sd: float, item_sd: float, n: float) -> float:
    """Return EVSI, what n more items are worth: `perfect_information` with s² / √(s² + σ²/n) for s.

    `item_sd` is the standard deviation σ of one item's difference, in the unit of the mean, as the
    value is. Not the net worth: subtract what the items cost.

    Raises:
        ValueError: an sd is negative, or n is not positive.

    Source: Raiffa & Schlaifer 1961, section 5.5.
    """
    if min(sd, item_sd) < 0 or n <= 0:
        raise ValueError(f"expected sds >= 0 and n > 0, found {sd}, {item_sd}, {n}")
    if sd == 0:
        return 0.0
    return perfect_information(mean, sd**2 / sqrt(sd**2 + item_sd**2 / n))
