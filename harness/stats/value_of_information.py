"""Value of information before one of two options is chosen: perfect and sample information.

Invariant: values are in the unit of the difference between the options; more information is never worth less,
and never more than perfect information.
"""

from math import exp, inf, lgamma, log, log1p, pi, sqrt

from scipy import special


def perfect_information(mean: float, sd: float, df: float | None = None) -> float:
    """Return EVPI, the expected loss from choosing the better-looking option now.

    s g(z) − |μ| F(−z), z = |μ|/s. `mean` and `sd` describe the belief about the difference between two
    options: normal or, with `df`, Student's t around the mean with that scale. F is its distribution
    function, and g(z) = φ(z), or f(z) (ν + z²)/(ν − 1) for the t, inf on one degree of freedom or fewer. The
    value is in their unit; 0 if nothing is uncertain. Not for more than two options, nor where the cost of
    a wrong choice is not this difference.

    Raises:
        ValueError: the sd is negative.

    Source: Raiffa & Schlaifer 1961, section 5.
    """
    if sd < 0:
        raise ValueError(f"expected sd >= 0, found {sd}")
    if sd == 0:
        return 0.0
    z = abs(mean) / sd
    if df is None:
        return sd * exp(-z * z / 2) / sqrt(2 * pi) - abs(mean) * float(special.ndtr(-z))
    if df <= 1:
        return inf
    density = exp(lgamma((df + 1) / 2) - lgamma(df / 2) - log(df * pi) / 2 - (df + 1) / 2 * log1p(z * z / df))
    return sd * density * (df + z * z) / (df - 1) - abs(mean) * float(special.stdtr(df, -z))


def sample_information(mean: float, sd: float, item_sd: float, n: float, df: float | None = None) -> float:
    """Return EVSI, the value of n more items: `perfect_information` with s² / √(s² + σ²/n) for s.

    `sd` is the part of the uncertainty that items could resolve, without the part that needs more seeds.
    `item_sd` is the standard deviation σ of one item's difference, in the unit of the mean, as the value is;
    `df` as for `perfect_information`. Not the net value: subtract what the items cost.

    Raises:
        ValueError: an sd is negative, or n is not positive.

    Source: Raiffa & Schlaifer 1961, section 5.5.
    """
    if min(sd, item_sd) < 0 or n <= 0:
        raise ValueError(f"expected sds >= 0 and n > 0, found {sd}, {item_sd}, {n}")
    if sd == 0:
        return 0.0
    return perfect_information(mean, sd**2 / sqrt(sd**2 + item_sd**2 / n), df)
