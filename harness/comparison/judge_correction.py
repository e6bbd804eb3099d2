"""Judge correction: a judge's mean grade and its paired difference, corrected by people's labels.

Invariant: grades and labels are numbers in [0, 1]; labels are those of a random sample of the items, drawn by
item for both arms, and the judge's errors are those of each arm by itself. An interval is never narrower than
few labels that differ from their grades allow: a judge of whom no error was seen may well have some.
Source: Angelopoulos, Duchi & Zrnic 2023 (PPI++); Zou & Donner 2008 for joining distances (MOVER).
"""

from collections.abc import Sequence
from math import sqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness import stats
from harness.stats import Array, Interval

FEW = 10  # labels that differ from their grade, below which their spread alone is not trusted
MIN_LABELS = 10  # below which nothing is corrected
SETTLED = 0.8  # chance with which the labels that are required would settle a difference


class GradedArm(NamedTuple):
    """Answers of one arm: grades of the judge, labels of people (NaN where there is none), clusters; (n,)."""

    grades: Array
    labels: Array
    clusters: NDArray[np.intp]

    @property
    def has_label(self) -> NDArray[np.bool_]:
        """Mark the items with a label, (n,)."""
        return ~np.isnan(self.labels)


class CorrectedEstimate(NamedTuple):
    """A corrected score or difference with its 95 % interval; `power` is the weight of the judge in it."""

    score: float
    low: float
    high: float
    se: float
    df: float
    n_labels: int
    power: float


def correct_score(
    arm: GradedArm, alpha: float = 0.05, power: float | None = None
) -> CorrectedEstimate | None:
    """Correct the mean grade of an arm by its labels; `power=0` gives the mean of the labels alone.

    PPI++ on t; where fewer than ten labels differ from their grades, never narrower than Tango's interval of
    the errors joined with Wilson's of the score. None with fewer than ten labels, or in too few clusters.
    """
    has = arm.has_label
    found = _estimate_powered(arm.labels, arm.grades, arm.clusters, has, power)
    if found is None:
        return None
    n, n_labels, mean = len(has), int(has.sum()), found.mean.mean
    errors, labels = (arm.labels - arm.grades)[has], arm.labels[has]
    few = stats.count_differing_clusters(errors, arm.clusters[has]) < FEW
    share = min(max(mean, 0.0), 1.0)
    if found.power and few:
        effect = stats.design_effect(arm.grades, arm.clusters)
        own = _distances(share, stats.wilson(share * n / effect, n / effect, alpha))
        guard = _join([_error_distances(arm, has, alpha), own])
    elif stats.count_differing_clusters(labels, arm.clusters[has]) < FEW:
        effect = stats.design_effect(labels, arm.clusters[has])
        at = float(labels.mean())
        guard = _distances(at, stats.wilson(at * n_labels / effect, n_labels / effect, alpha))
    else:
        guard = (0.0, 0.0)
    return _add_interval(found, guard, alpha, Interval(0.0, 1.0))


def correct_difference(
    base: GradedArm, new: GradedArm, alpha: float = 0.05, power: float | None = None
) -> CorrectedEstimate | None:
    """Correct the mean paired difference new − base, of items that people labelled in both arms.

    As `correct_score`; the errors of both arms are joined where few of them differ.
    """
    has = base.has_label & new.has_label
    labels, grades = new.labels - base.labels, new.grades - base.grades
    found = _estimate_powered(labels, grades, new.clusters, has, power)
    if found is None:
        return None
    few = stats.count_differing_clusters((labels - grades)[has], new.clusters[has]) < FEW
    if found.power and few:
        (low_new, high_new), (low_base, high_base) = (_error_distances(a, has, alpha) for a in (new, base))
        own = _tango_distances(grades, new.clusters, alpha)
        guard = _join([(low_new, high_new), (high_base, low_base), own])
    elif stats.count_differing_clusters(labels[has], new.clusters[has]) < FEW:
        guard = _tango_distances(labels[has], new.clusters[has], alpha)
    else:
        guard = (0.0, 0.0)
    return _add_interval(found, guard, alpha, Interval(-1.0, 1.0))


def count_more_labels(base: GradedArm, new: GradedArm, found: CorrectedEstimate) -> int | None:
    """Count the labels of an item's two answers that would probably settle which arm is better.

    0 where that is settled; None where labels of all items would not do. Planned at a chance of 80 %.
    """
    if found.low > 0 or found.high < 0:
        return 0
    has = base.has_label & new.has_label
    labels, grades = (new.labels - base.labels)[has], (new.grades - base.grades)[has]
    se = abs(found.score) / (stats.z_quantile(0.975) + stats.z_quantile(SETTLED))
    needed = None if se <= 0 else stats.labels_needed(labels, grades, len(has), se)
    return None if needed is None else max(needed - int(has.sum()), 1)


def _estimate_powered(
    labels: Array, grades: Array, clusters: NDArray[np.intp], has: NDArray[np.bool_], power: float | None
) -> stats.PoweredMean | None:
    if has.sum() < MIN_LABELS:
        return None
    found = stats.prediction_powered_mean(
        labels[has],
        grades[has],
        grades[~has],
        clusters=clusters[has],
        rest_clusters=clusters[~has],
        power=power,
    )
    return None if found.mean.se is None else found


def _error_distances(arm: GradedArm, has: NDArray[np.bool_], alpha: float) -> tuple[float, float]:
    """Return how far the mean error of the items without a label may lie below and above what is shown."""
    low, high = _tango_distances((arm.labels - arm.grades)[has], arm.clusters[has], alpha)
    unlabelled = sqrt(1 - float(has.mean()))
    return unlabelled * low, unlabelled * high


def _tango_distances(changes: Array, clusters: NDArray[np.intp], alpha: float) -> tuple[float, float]:
    effect = stats.design_effect(changes, np.unique(clusters, return_inverse=True)[1])
    gains, losses = (float(np.clip(sign * changes, 0, None).sum()) / effect for sign in (1, -1))
    n = len(changes) / effect
    return _distances((gains - losses) / n, stats.tango_interval(gains, losses, n, alpha))


def _distances(at: float, ends: Interval) -> tuple[float, float]:
    return at - ends.low, ends.high - at


def _join(distances: Sequence[tuple[float, float]]) -> tuple[float, float]:
    lows, highs = zip(*distances, strict=True)
    return stats.quadrature(lows), stats.quadrature(highs)


def _add_interval(
    found: stats.PoweredMean, guard: tuple[float, float], alpha: float, bounds: Interval
) -> CorrectedEstimate:
    mean = found.mean
    assert mean.se is not None
    plain = stats.t_interval(mean, alpha)
    low, high = min(plain.low, mean.mean - guard[0]), max(plain.high, mean.mean + guard[1])
    score = min(max(mean.mean, bounds.low), bounds.high)
    ends = (min(max(low, bounds.low), score), max(min(high, bounds.high), score))
    return CorrectedEstimate(score, *ends, mean.se, mean.df, mean.n, found.power)
