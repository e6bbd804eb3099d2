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
    """Mean and variance of the effect that items of each group (t,) share, predicted from earlier groups."""

    mean: Array
    variance: Array


def betting_mixture(
    groups: Sequence[Array], largest: ArrayLike, shared: SharedEffects | None = None, mean: float = 0.0
) -> Array:
    """Return the log-wealth (t, b) after each of t groups of b bets against H0: the mean change is ≥ `mean`.

    ∏ (1 − λ (d − mean)) over the items of the groups so far, for b fixed bets λ; `log_mean_wealth` joins them
    to the e-process, which rejects at 1/α at any time. `largest` bounds |d| by group (t,) and must be known
    before the changes are. The effect that items of a group share is taken to be normal: its expected product
    exp(−λ n m + λ² n² v/2) is divided out. On single items that got better, worse or stayed this is the
    one-sided sign process with a uniform prior. Not for items of a cluster, unless the cluster's mean is one
    change.

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
    log_gains = np.log1p((mean - d)[:, None] * np.repeat(bets, n, axis=0))  # (n, b)
    log_wealth = np.add.reduceat(log_gains, starts, axis=0)
    if shared is not None:
        total_bets = bets * n[:, None]
        log_wealth += total_bets * shared.mean[:, None] - total_bets**2 * shared.variance[:, None] / 2
    return np.asarray(np.cumsum(log_wealth, axis=0))


def log_mean_wealth(log_wealth: ArrayLike) -> Array:
    """Return the log of the mean wealth over all bets, (…, b) → (…): an e-process, as each bet's wealth is.

    Not for bets that were chosen by their results.

    Source: Robbins 1970, the mixture over the bet.
    """
    wealth = np.asarray(log_wealth, float)
    return np.asarray(np.logaddexp.reduce(wealth, axis=-1) - np.log(wealth.shape[-1]))


class _TrainingChanges(NamedTuple):
    """Changes seen so far of the model of one training."""

    name: str = ""
    total: float = 0.0
    n: int = 0


def seed_effects(
    groups: Sequence[Array], makings: Sequence[str], sd: float, n_references: int = 1, mean: float = 0.0
) -> SharedEffects:
    """Predict by how much training seeds shift each group's mean change, from the groups before it.

    `makings` names the training behind each group. Every training has a normal effect with standard deviation
    `sd`; the reference, which all groups share, has the mean of `n_references` such effects; `mean` is the
    true mean change. The prediction is at most 0, so that a past gain allows no later loss. Groups with an
    empty name come from the reference's own weights, and nothing shifts them. A training that comes again
    after another counts as a new one. Not where seeds move single items independently of each other.

    Raises:
        ValueError: there are not as many makings as groups.

    Source: Henderson 1975, best linear unbiased prediction; the noise of items from the groups before.
    """
    effects = SharedEffects(np.zeros(len(groups)), np.zeros(len(groups)))
    if sd <= 0:
        return effects
    precision, weighted, making = n_references / sd**2, 0.0, _TrainingChanges()  # of the reference's effect
    square_sum, n_seen = _PRIOR_SQUARE * _PRIOR_N, _PRIOR_N
    sizes = [len(group) for group in groups]
    sums = [float(group.sum()) - mean * n for group, n in zip(groups, sizes, strict=True)]
    squares = [float(((group - mean) ** 2).sum()) for group in groups]
    for i, name in enumerate(makings):
        noise = square_sum / n_seen
        if name and name != making.name:
            info = _precision(making, noise, sd)
            precision, weighted = precision + info, weighted + info * making.total / max(making.n, 1)
            making = _TrainingChanges(name)
        if name:
            effects.mean[i], effects.variance[i] = _predict_shift(precision, weighted, making, noise, sd)
            making = _TrainingChanges(name, making.total + sums[i], making.n + sizes[i])
        square_sum, n_seen = square_sum + squares[i], n_seen + sizes[i]
    return effects


def _precision(making: _TrainingChanges, noise: float, sd: float) -> float:
    """Return the information of a training's mean about the reference's effect: its inverse variance."""
    return 1 / (sd**2 + noise / making.n) if making.n else 0.0


def _predict_shift(
    precision: float, weighted: float, making: _TrainingChanges, noise: float, sd: float
) -> tuple[float, float]:
    """Return mean and variance of the sum of the reference's effect and a training's own."""
    observed, info = making.total / max(making.n, 1), _precision(making, noise, sd)
    reference_effect = (weighted + info * observed) / (precision + info)
    shrinkage = making.n / (making.n + noise / sd**2)
    shift = reference_effect + shrinkage * (observed - reference_effect)
    variance = (1 - shrinkage) ** 2 / (precision + info) + (1 - shrinkage) * sd**2
    return min(shift, 0.0), variance


class Cusum(NamedTuple):
    """Both sums of the chart after each value (n,), and whether one of them exceeds the limit."""

    high: Array
    low: Array
    alarm: NDArray[np.bool_]


def cusum(values: ArrayLike, target: float, slack: float, limit: float) -> Cusum:
    """Chart a series against its target: S⁺ = max(0, S⁺ + x − target − slack), S⁻ likewise below.

    The alarm is on where a sum exceeds `limit`; all are in the unit of the values. A slack of half the shift
    to detect and a limit of 4 to 5 standard deviations are usual. Not for correlated values, nor without a
    fixed reference.

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
    """Return the cumulative sum of the steps, held at 0 or above: the walk less its lowest point so far."""
    walk = np.cumsum(steps)
    return np.asarray(walk - np.minimum(np.minimum.accumulate(walk), 0.0))
