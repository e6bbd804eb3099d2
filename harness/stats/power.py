"""Power of paired comparisons.

Invariant: normal approximations, one-sided.
"""

from math import sqrt

from scipy import special

from harness.stats.intervals import z_quantile


def paired_se(disagreement: float, n: float, delta: float = 0.0, effect: float = 1.0) -> float:
    """Return the expected standard error of a paired delta of binary scores.

    √(effect · (d − δ²)/n), d the share of items that differ (never less than |δ|), `effect` the design
    effect. Not for graded scores, whose differences are smaller than 1.

    Raises:
        ValueError: the disagreement or the effect is negative, or n is not positive.

    Source: Miller 2024, arXiv:2411.00640 (its variance for single binary answers).
    """
    if min(disagreement, effect) < 0 or n <= 0:
        raise ValueError(f"expected disagreement and effect >= 0 and n > 0: {disagreement}, {effect}, {n}")
    return sqrt(effect * (max(disagreement, abs(delta)) - delta**2) / n)


def noninferiority_power(delta: float, margin: float, se: float, alpha: float = 0.05) -> float:
    """Return the chance to show delta > −margin (one-sided α) for a true delta.

    Φ((δ + m)/SE − z_{1−α}); for a δ at or beyond −m this is the chance to miss the loss. A normal
    approximation: not below some five differing items.

    Raises:
        ValueError: the SE is not positive.

    Source: Chow, Shao & Wang 2008.
    """
    return _power((delta + margin) / _positive(se), alpha)


def regression_power(delta: float, margin: float, se: float, alpha: float = 0.05) -> float:
    """Return the chance to show delta < −margin (one-sided α) for a true delta.

    Φ(−(δ + m)/SE − z_{1−α}); a veto misses the rest. Under Holm over k tasks pass α/k, its hardest step. A
    normal approximation: not below some five differing items.

    Raises:
        ValueError: the SE is not positive.

    Source: Chow, Shao & Wang 2008.
    """
    return _power(-(delta + margin) / _positive(se), alpha)


def _power(distance: float, alpha: float) -> float:
    return float(special.ndtr(distance - z_quantile(1 - alpha)))


def _positive(se: float) -> float:
    if se <= 0:
        raise ValueError("a standard error of 0 says nothing about power: use a score interval's width")
    return se
