"""Paired scores: McNemar's test, Tango's score interval, power, and stratified samples of a pool of items.

Invariant: only the items that differ carry evidence; an interval stays valid if none do.
"""

from collections.abc import Callable, Mapping, Sequence
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
    Source: Fagerland, Lydersen & Laake 2013.
    """
    if min(gains, losses) < 0:
        raise ValueError(f"counts must not be negative: {gains}, {losses}")
    total, fewer = gains + losses, min(gains, losses)
    at_most = float(special.bdtr(fewer, total, 0.5))
    below = float(special.bdtr(fewer - 1, total, 0.5)) if fewer else 0.0
    midp = at_most + below
    if 0 < gains == losses:
        midp = 1 - (at_most - below) / 2
    return McNemar(min(2 * at_most, 1.0), midp)


def tango_interval(gains: float, losses: float, n: float, alpha: float = 0.05) -> Interval:
    """Return the score interval of (gains − losses)/n; valid even where no item differs.

    The deltas at which Tango's |z| = z_{1−α/2}. Each end alone is a one-sided 1 − α/2 bound. Not for
    clustered items unless all three counts are divided by the design effect.
    Source: Tango 1998.
    """
    _check_counts(gains, losses, n)
    z, estimate = z_quantile(1 - alpha / 2), (gains - losses) / n
    low = _crossing(lambda d: _tango_z(gains, losses, n, d) > z, -1.0, estimate)
    high = _crossing(lambda d: _tango_z(gains, losses, n, d) > -z, estimate, 1.0)
    return Interval(low, high)


def tango_regression_p(gains: float, losses: float, n: float, margin: float) -> float:
    """Return the one-sided p of H0: delta ≥ −margin; a small p shows a loss beyond the margin.

    Φ(Tango's z at −margin). Not for clustered items unless the counts are effective.
    Source: Tango 1998.
    """
    _check_counts(gains, losses, n)
    if not -1 <= margin <= 1:
        raise ValueError(f"expected a margin of at most 1, found {abs(margin):g}")
    return float(special.ndtr(_tango_z(gains, losses, n, -margin)))


def _check_counts(gains: float, losses: float, n: float) -> None:
    if min(gains, losses) < 0 or gains + losses > n * (1 + TIE) or n <= 0:
        raise ValueError(f"expected gains + losses <= n and n > 0, found {gains} + {losses} of {n}")


def _tango_z(b: float, c: float, n: float, delta: float) -> float:
    """Return Tango's score statistic of b gains and c losses for a true delta in [−1, 1].

    z = (b − c − nΔ)/√(n (2p̃ + Δ(1 − Δ))), p̃ = (√(B² − 4AC) − B)/2A the likeliest loss rate at Δ, A = 2n,
    B = −b − c + (2n − b + c)Δ, C = −cΔ(1 − Δ).
    """
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


def paired_se(disagreement: float, n: float, delta: float = 0.0, effect: float = 1.0) -> float:
    """Return the expected standard error of a paired delta of binary scores.

    √(effect · (d − δ²)/n), d the share of items that differ (never less than |δ|), `effect` the design
    effect. Not for graded scores, whose differences are smaller than 1.
    Source: Miller 2024, arXiv:2411.00640 (its variance for single binary answers).
    """
    if min(disagreement, effect) < 0 or n <= 0:
        raise ValueError(f"expected disagreement and effect >= 0 and n > 0: {disagreement}, {effect}, {n}")
    return sqrt(effect * (max(disagreement, abs(delta)) - delta**2) / n)


def noninferiority_power(delta: float, margin: float, se: float, alpha: float = 0.05) -> float:
    """Return the chance to show delta > −margin (one-sided α) for a true delta.

    Φ((δ + m)/SE − z_{1−α}); for a δ at or beyond −m this is the chance to miss the loss, and with the signs
    of δ and m turned the chance to show it. A normal approximation: not below some five differing items.
    Source: Chow, Shao & Wang 2008.
    """
    if se <= 0:
        raise ValueError("a standard error of 0 says nothing about power: use a score interval's width")
    return float(special.ndtr((delta + margin) / se - z_quantile(1 - alpha)))


class StratumFlips(NamedTuple):
    """Gains and losses among the n items drawn from a stratum of `pool` items; n = pool if all were drawn."""

    gains: float
    losses: float
    n: int
    pool: int


def stratified_flips_interval(strata: Sequence[StratumFlips], alpha: float = 0.05) -> Interval:
    """Return the score interval of a delta of 0/1 scores from items drawn at random within strata.

    For the population behind the pool: the squared distances of Tango's ends at the counts that the whole
    pool would have, plus those of each stratum times W_h² (1 − n_h/N_h). So it equals Tango's interval of the
    pool where every item was drawn, and stays valid where nothing differs. Each end alone is a one-sided 1 −
    α/2 bound. Not for clustered items.
    Source: distances added by MOVER (Zou & Donner 2008), Tango 1998; the two phases of the variance after
    Cochran 1977, section 12.
    """
    for s in strata:
        if not 0 < s.n <= s.pool:
            raise ValueError(f"a sample of {s.n} out of a pool of {s.pool}")
    total, unsampled = sum(s.pool for s in strata), [1 - s.n / s.pool for s in strata]
    gains, losses = (sum(s.pool * s[i] / s.n for s in strata) for i in (0, 1))
    delta = (gains - losses) / total
    whole = tango_interval(gains, losses, total, alpha)
    below, above = (delta - whole.low) ** 2, (whole.high - delta) ** 2
    for s, factor in zip(strata, unsampled, strict=True):
        own_delta, ends = (s.gains - s.losses) / s.n, tango_interval(s.gains, s.losses, s.n, alpha)
        below += (s.pool / total) ** 2 * factor * (own_delta - ends.low) ** 2
        above += (s.pool / total) ** 2 * factor * (ends.high - own_delta) ** 2
    return Interval(delta - sqrt(below), delta + sqrt(above))


def neyman_allocation(
    pool: Mapping[str, int], spread: Mapping[str, float], n: int, least: int = 2
) -> dict[str, int]:
    """Allocate n items to strata in proportion to N_h s_h, at least `least` and at most N_h each.

    Most items go where the change varies most; the minimum covers strata whose guessed spread is too low.
    Rounded by largest remainder, so that they add up to n. `inclusion_weights` corrects the uneven chances.
    Not without a guess of s_h from the base's results alone.
    Source: Neyman 1934; Cochran 1977, section 5.5.
    """
    low = {name: min(least, size) for name, size in pool.items()}
    if not sum(low.values()) <= n <= sum(pool.values()):
        raise ValueError(f"n = {n} is not between {sum(low.values())} and {sum(pool.values())}")
    allocated = dict(low)
    while (remaining := n - sum(allocated.values())) > 0:
        open_ = {name: pool[name] * max(spread[name], 0.0) for name in pool if allocated[name] < pool[name]}
        if not sum(open_.values()):
            open_ = {name: float(pool[name]) for name in open_}
        ideal = {name: remaining * weight / sum(open_.values()) for name, weight in open_.items()}
        whole = {name: min(int(share), pool[name] - allocated[name]) for name, share in ideal.items()}
        if not any(whole.values()):
            for name in sorted(ideal, key=lambda k: -ideal[k])[:remaining]:
                whole[name] = 1
        for name, n_added in whole.items():
            allocated[name] += n_added
    return allocated


def inclusion_weights(strata: Sequence[str], pool: Mapping[str, int]) -> list[float]:
    """Return each drawn item's weight N_h/n_h, the inverse of its chance to be drawn.

    The weights add up to the pool where every stratum has an item. Not for items that were chosen rather than
    drawn.
    Source: Horvitz & Thompson 1952.
    """
    if unknown := set(strata) - set(pool):
        raise ValueError(f"strata that the pool lacks: {sorted(unknown)}")
    n_drawn = {name: strata.count(name) for name in set(strata)}
    return [pool[name] / n_drawn[name] for name in strata]
