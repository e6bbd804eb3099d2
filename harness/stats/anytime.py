"""Anytime-valid tests of a series of groups of items, and a CUSUM chart for a series of runs.

Invariant: an e-process starts at 1 and exceeds 1/α at any time with a chance of at most α
while its null hypothesis holds; a bet on a group never looks at that group.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from harness.stats.intervals import Array, finite

BETS = (np.arange(10) + 0.5) / 10  # shares of the largest bet, evenly spread
_PRIOR_SQUARE, _PRIOR_N = 0.1, 50.0  # a tenth of the items differ, before anything is seen


class SharedEffects(NamedTuple):
    """Mean and variance of what the items of each group (t,) share, as the groups before it predict."""

    mean: Array
    variance: Array


def betting_mixture(
    groups: Sequence[Array], largest: ArrayLike, shared: SharedEffects | None = None, mean: float = 0.0
) -> Array:
    """Return the log-wealth (t, b) after each of t groups of b bets against H0: the mean change is ≥ `mean`.

    ∏ (1 − λ (d − mean)) over the items of the groups so far, for b bets λ that stay; `log_mean_wealth`
    joins them to the e-process, to be rejected at 1/α at any time. `largest` bounds |d| by group (t,),
    known before its changes are. What items of a group share is taken to be normal: its expected product
    exp(−λ n m + λ² n² v/2) is divided out. On single items that got better, worse or stayed
    this is the one-sided sign process with a uniform prior.
    Not for items of a cluster, unless the cluster's mean is one change.

    Raises:
        ValueError: a group is empty, or a change is NaN or larger than `largest`.

    Source: Waudby-Smith & Ramdas 2024, arXiv:2010.09686, with Robbins' 1970 mixture over the bet.
    """
    n, d = np.array([len(group) for group in groups]), finite(np.concatenate(groups), "changes")
    bounds = np.broadcast_to(np.asarray(largest, float), n.shape)
    if not n.all() or (np.abs(d) > np.repeat(bounds, n) + 1e-6).any():
        raise ValueError(f"expected groups of changes of at most {bounds.max():g}, found {np.abs(d).max():g}")
    bets = BETS / (bounds + max(-mean, 0.0))[:, None]  # (t, b), so that no wealth falls to 0
    starts = np.concatenate([[0], np.cumsum(n)[:-1]])
    gained = np.log1p((mean - d)[:, None] * np.repeat(bets, n, axis=0))  # (n, b)
    log_wealth = np.add.reduceat(gained, starts, axis=0)
    if shared is not None:
        placed = bets * n[:, None]
        log_wealth += placed * shared.mean[:, None] - placed**2 * shared.variance[:, None] / 2
    return np.asarray(np.cumsum(log_wealth, axis=0))


def log_mean_wealth(log_wealth: ArrayLike) -> Array:
    """Return the log of the mean wealth of all bets: (…, b) → (…), which is an e-process as each of them is.

    Not for bets that were chosen by how they did.

    Source: Robbins 1970, the mixture over the bet.
    """
    wealth = np.asarray(log_wealth, float)
    return np.asarray(np.logaddexp.reduce(wealth, axis=-1) - np.log(wealth.shape[-1]))


class _TrainingChanges(NamedTuple):
    """Changes seen so far of what one training made."""

    name: str = ""
    total: float = 0.0
    n: int = 0


def seed_effects(
    groups: Sequence[Array], makings: Sequence[str], sd: float, n_references: int = 1, mean: float = 0.0
) -> SharedEffects:
    """Predict by how much training seeds shift each group's mean change, from the groups before it.

    Every making has a normal effect with standard deviation `sd`, and the reference the mean of
    `n_references` such, which all groups share; `mean` is the true mean change. At most 0, so that what was
    gained allows no later loss. Groups of an empty making answer by the reference's own weights: nothing
    shifts them. A making that comes again after another counts as a new one. Not where seeds move items by
    themselves, and not all of them together.

    Raises:
        ValueError: there are not as many makings as groups.

    Source: Henderson 1975, best linear unbiased prediction; the noise of items from the groups before.
    """
    out = SharedEffects(np.zeros(len(groups)), np.zeros(len(groups)))
    if sd <= 0:
        return out
    precision, weighted, making = n_references / sd**2, 0.0, _TrainingChanges()  # of the reference's effect
    square, n_seen = _PRIOR_SQUARE * _PRIOR_N, _PRIOR_N
    sizes = [len(group) for group in groups]
    sums = [float(group.sum()) - mean * n for group, n in zip(groups, sizes, strict=True)]
    squares = [float(((group - mean) ** 2).sum()) for group in groups]
    for at, name in enumerate(makings):
        noise = square / n_seen
        if name and name != making.name:
            seen = _precision(making, noise, sd)
            precision, weighted = precision + seen, weighted + seen * making.total / max(making.n, 1)
            making = _TrainingChanges(name)
        if name:
            out.mean[at], out.variance[at] = _predict_shift(precision, weighted, making, noise, sd)
            making = _TrainingChanges(name, making.total + sums[at], making.n + sizes[at])
        square, n_seen = square + squares[at], n_seen + sizes[at]
    return out


def _precision(making: _TrainingChanges, noise: float, sd: float) -> float:
    """Return what a making's mean tells of the reference's effect: the inverse of its variance."""
    return 1 / (sd**2 + noise / making.n) if making.n else 0.0


def _predict_shift(
    precision: float, weighted: float, making: _TrainingChanges, noise: float, sd: float
) -> tuple[float, float]:
    """Return mean and variance of the reference's effect and a making's own together."""
    observed, seen = making.total / max(making.n, 1), _precision(making, noise, sd)
    of_reference = (weighted + seen * observed) / (precision + seen)
    shrinkage = making.n / (making.n + noise / sd**2)
    shift = of_reference + shrinkage * (observed - of_reference)
    variance = (1 - shrinkage) ** 2 / (precision + seen) + (1 - shrinkage) * sd**2
    return min(shift, 0.0), variance


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
    high, low = _walk_one_sided(x - target - slack), _walk_one_sided(target - slack - x)
    return Cusum(high, low, (high > limit) | (low > limit))


def _walk_one_sided(steps: Array) -> Array:
    """Add steps up, never falling below 0: the walk less its lowest point so far."""
    walk = np.cumsum(steps)
    return np.asarray(walk - np.minimum(np.minimum.accumulate(walk), 0.0))
