"""Stratified samples of a known pool of items: allocation, weights, and the interval of their flips.

Invariant: with the whole pool scored nothing is uncertain about the pool; the caller says whether the pool
itself or the population behind it is meant.
"""

from collections.abc import Mapping, Sequence
from math import sqrt
from typing import NamedTuple

from harness.stats.intervals import Interval
from harness.stats.paired import tango_interval


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

    Raises:
        ValueError: a stratum is empty or over-drawn, or its counts are impossible.

    Source: distances added by MOVER (Zou & Donner 2008), Tango 1998; the two phases of the variance after
    Cochran 1977, section 12.
    """
    total = sum(s.pool for s in strata)
    gains, losses = (sum(s.pool * x / s.n for s, x in zip(strata, xs, strict=True)) for xs in _flips(strata))
    delta = (gains - losses) / total
    whole = tango_interval(gains, losses, total, alpha)
    below, above = (delta - whole.low) ** 2, (whole.high - delta) ** 2
    for s in strata:
        unsampled = _finite_population_factor(s.n, s.pool)
        own_delta, ends = (s.gains - s.losses) / s.n, tango_interval(s.gains, s.losses, s.n, alpha)
        below += (s.pool / total) ** 2 * unsampled * (own_delta - ends.low) ** 2
        above += (s.pool / total) ** 2 * unsampled * (ends.high - own_delta) ** 2
    return Interval(delta - sqrt(below), delta + sqrt(above))


def _flips(strata: Sequence[StratumFlips]) -> tuple[list[float], list[float]]:
    for s in strata:
        _finite_population_factor(s.n, s.pool)
    return [s.gains for s in strata], [s.losses for s in strata]


def neyman_allocation(
    pool: Mapping[str, int], spread: Mapping[str, float], n: int, least: int = 2
) -> dict[str, int]:
    """Allocate n items to strata in proportion to N_h s_h, at least `least` and at most N_h each.

    Most items go where the change varies most; the minimum covers strata whose guessed spread is too low.
    Rounded by largest remainder, so that they add up to n. `inclusion_weights` corrects the uneven chances.
    Not without a guess of s_h from the base's results alone.

    Raises:
        ValueError: n is less than the strata need, or more than the pool.

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

    Raises:
        ValueError: a stratum is unknown.

    Source: Horvitz & Thompson 1952.
    """
    if unknown := set(strata) - set(pool):
        raise ValueError(f"strata that the pool lacks: {sorted(unknown)}")
    drawn = {name: strata.count(name) for name in set(strata)}
    return [pool[name] / drawn[name] for name in strata]


def _finite_population_factor(n: int, pool: int) -> float:
    if not 0 < n <= pool:
        raise ValueError(f"a sample of {n} out of a pool of {pool}")
    return 1 - n / pool
