"""Paired scores of 0 and 1: McNemar's test, and Tango's score interval and tests.

Invariant: only the items that differ carry evidence; an interval stays valid where none do.
"""

from collections.abc import Callable
from math import inf, sqrt
from typing import NamedTuple

from scipy import special

from harness.stats.intervals import TIE, Interval, z_quantile


class McNemar(NamedTuple):
    """Two-sided p-values of McNemar's test."""

    exact: float
    midp: float


def mcnemar(gains: int, losses: int) -> McNemar:
    """Test that gains and losses are equally likely among the items that differ.

    exact = min(1, 2 P(X ≤ min)), mid-p = P(X ≤ min) + P(X < min), that is the exact p less P(X = min), with X
    ~ Binomial(gains + losses, ½); with as many gains as losses 1 − P(X = min)/2, and 1 if nothing differs.
    Not for non-inferiority (a large p does not show equality), nor for clustered items.

    Raises:
        ValueError: a count is negative.

    Source: Fagerland, Lydersen & Laake 2013.
    """
    if min(gains, losses) < 0:
        raise ValueError(f"counts must not be negative: {gains}, {losses}")
    total, least = gains + losses, min(gains, losses)
    at_most = float(special.bdtr(least, total, 0.5))
    below = float(special.bdtr(least - 1, total, 0.5)) if least else 0.0
    midp = at_most + below
    if 0 < gains == losses:
        midp = 1 - (at_most - below) / 2
    return McNemar(min(2 * at_most, 1.0), midp)


def tango_z(gains: float, losses: float, n: float, delta: float) -> float:
    """Return Tango's score statistic for a true delta in [−1, 1]; of scores that are 0 or 1.

    z = (b − c − nΔ)/√(n (2p̃ + Δ(1 − Δ))), p̃ = (√(B² − 4AC) − B)/2A the likeliest loss rate at
    Δ, A = 2n, B = −b − c + (2n − b + c)Δ, C = −cΔ(1 − Δ); b gains, c losses. Counts may be
    effective ones. Not for graded scores.

    Raises:
        ValueError: the counts are negative or more than n, n is 0, or the delta lies outside of [−1, 1].

    Source: Tango 1998.
    """
    _check_counts(gains, losses, n)
    if not -1 <= delta <= 1:
        raise ValueError(f"expected a delta (or a margin) of at most 1, found {abs(delta):g}")
    return _tango_z(gains, losses, n, delta)


def tango_interval(gains: float, losses: float, n: float, alpha: float = 0.05) -> Interval:
    """Return the score interval of (gains − losses)/n; valid even where no item differs.

    The deltas at which |`tango_z`| = z_{1−α/2}. Each end alone is a one-sided 1 − α/2 bound. Not for
    clustered items unless all three counts are divided by the design effect.

    Raises:
        ValueError: the counts are negative or more than n, or n is 0.

    Source: Tango 1998.
    """
    _check_counts(gains, losses, n)
    z, estimate = z_quantile(1 - alpha / 2), (gains - losses) / n
    low = _crossing(lambda d: _tango_z(gains, losses, n, d) > z, -1.0, estimate)
    high = _crossing(lambda d: _tango_z(gains, losses, n, d) > -z, estimate, 1.0)
    return Interval(low, high)


def tango_regression_p(gains: float, losses: float, n: float, margin: float) -> float:
    """Return the one-sided p of H0: delta ≥ −margin; a small p shows a loss beyond the margin.

    Φ(`tango_z` at −margin). Not for clustered items unless the counts are effective.

    Raises:
        ValueError: the counts are negative or more than n, or n is 0.

    Source: Tango 1998.
    """
    return float(special.ndtr(tango_z(gains, losses, n, -margin)))


def _check_counts(gains: float, losses: float, n: float) -> None:
    if min(gains, losses) < 0 or gains + losses > n * (1 + TIE) or n <= 0:
        raise ValueError(f"expected gains + losses <= n and n > 0, found {gains} + {losses} of {n}")


def _tango_z(b: float, c: float, n: float, delta: float) -> float:
    a2, c2 = 2 * n, -c * delta * (1 - delta)
    b2 = -b - c + (2 * n - b + c) * delta
    loss_rate = (sqrt(max(b2 * b2 - 4 * a2 * c2, 0.0)) - b2) / (2 * a2)
    variance = n * (2 * loss_rate + delta * (1 - delta))
    distance = b - c - n * delta
    if variance <= TIE:
        return 0.0 if abs(distance) <= TIE else distance * inf
    return distance / sqrt(variance)


def _crossing(above: Callable[[float], bool], low: float, high: float) -> float:
    """Bisect for the point where a falling function stops being above its level."""
    while high - low > 1e-13:
        middle = (low + high) / 2
        low, high = (middle, high) if above(middle) else (low, middle)
    return (low + high) / 2
