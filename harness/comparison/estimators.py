"""The paired difference of two runs on one task: its numbers, its sign, its p-values.

Invariant: delta = new − base in the metric's unit; a p-value belongs to the interval beside it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from scipy import special

from harness import stats
from harness.formatting import RATE, Unit

Estimator = Literal["tango", "cluster-t", "bca", "stratified", "identical"]


class Estimate(NamedTuple):
    """A score or a delta with its 95 % interval, over n items."""

    score: float
    low: float
    high: float
    n: int
    unit: Unit = RATE


@dataclass(frozen=True, slots=True)
class Comparison:
    """The paired difference of two runs on one task and metric, in the metric's unit; delta = new − base.

    `low` and `high` are the two-sided 1 − alpha interval (95 %), cut to what the metric's
    bounds allow; `lower` and `upper` are the one-sided 1 − alpha bounds that the gate uses,
    uncut. `se` is the uncut interval's half width over its quantile, so it is not 0 where
    nothing differed. `disagreement` is the share of items whose score differs, `lost` and
    `gained` name those that flipped for the worse and the better. The `_valid` figures are None where no item
    is valid in both arms. `base_passed` counts the items with the better score in the base
    where all scores are 0 or 1.
    """

    task: str
    metric: str
    slice: str
    n: int
    n_clusters: int
    base: float
    base_low: float
    base_high: float
    new: float
    new_low: float
    new_high: float
    delta: float
    low: float
    high: float
    se: float
    disagreement: float
    lost: tuple[str, ...]
    gained: tuple[str, ...]
    n_valid: int
    delta_valid: float | None
    low_valid: float | None
    high_valid: float | None
    estimator: Estimator
    lower: float
    upper: float
    alpha: float = 0.05
    design_effect: float = 1.0
    base_passed: int | None = None
    unit: Unit = RATE


def mean_change(comparisons: Sequence[Comparison]) -> Estimate:
    """Average the deltas of tasks, their intervals combined by MOVER, over the items of all of them.

    Raises:
        ValueError: there is no comparison.
    """
    ends = [stats.Interval(c.low, c.high) for c in comparisons]
    delta, (low, high) = stats.mover_mean([c.delta for c in comparisons], ends)
    return Estimate(delta, low, high, sum(c.n for c in comparisons))


def oriented(comparison: Comparison) -> Comparison:
    """Return the comparison with the sign turned so that a negative delta is a loss."""
    c = comparison
    if c.unit.higher_is_better:
        return c
    better = replace(c.unit, higher_is_better=True)
    return replace(c, delta=-c.delta, low=-c.high, high=-c.low, lower=-c.upper, upper=-c.lower, unit=better)


def regression_p(comparison: Comparison, margin: float) -> float:
    """Return the one-sided p of H0 "the loss is at most the margin"; small shows a regression.

    Tango's for single binary items; else from the one-sided bound, as the t or normal
    distribution that has it at alpha: p < alpha where the bound is beyond the margin.
    """
    c = oriented(comparison)
    if c.estimator == "tango":
        return stats.tango_regression_p(len(c.gained), len(c.lost), c.n, margin)
    distance = c.delta + margin
    se = (c.upper - c.delta) / quantile(c.estimator, c.n_clusters, 1 - c.alpha)
    if se <= 0:
        return float(distance >= 0)
    if c.estimator == "cluster-t" and c.n_clusters > 1:
        return float(special.stdtr(c.n_clusters - 1, distance / se))
    return float(special.ndtr(distance / se))


def quantile(estimator: str, n_clusters: int, p: float) -> float:
    """Return the quantile that an estimator's intervals are made with."""
    is_t = estimator == "cluster-t" and n_clusters > 1
    return stats.t_quantile(p, n_clusters - 1) if is_t else stats.z_quantile(p)


def difference_p(comparison: Comparison) -> float:
    """Return the two-sided p of H0 "no difference".

    McNemar's mid-p for single binary items; else from the interval's own distribution. 1 for
    equal weights, by identity.
    """
    c = comparison
    if c.estimator == "identical":
        return 1.0
    if c.estimator == "tango":
        return stats.mcnemar(len(c.gained), len(c.lost)).midp
    if c.se <= 0:
        return float(c.delta == 0)
    z = -abs(c.delta) / c.se
    is_t = c.estimator == "cluster-t" and c.n_clusters > 1
    return float(2 * (special.stdtr(c.n_clusters - 1, z) if is_t else special.ndtr(z)))
