"""Judges' errors measured by people's labels: corrected grades and differences, length and position bias.

Invariant: grades and labels are in [0, 1]. Labels are of a random sample of the items, the same for both
arms. An interval is never narrower than a few different errors allow. Items on which either candidate's
answer is longer count equally, so that a bias for a candidate is not taken for one for length. Source:
Angelopoulos, Duchi & Zrnic 2023 (PPI++); Zou & Donner 2008 for combining distances (MOVER).
"""

from collections.abc import Mapping, Sequence
from math import exp, sqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness import stats
from harness.analysis.estimators import Estimate, tango_ends
from harness.formatting import RATE, Unit
from harness.stats import Array, Interval

FEW = 10  # with fewer labels that differ from their grade, their spread alone is not trusted
MIN_LABELS = 10  # with fewer labels nothing is corrected
SETTLED = 0.8  # power with which the required labels would settle a difference


class GradedArm(NamedTuple):
    """Answers of one arm, (n,) each: the judge's grades, people's labels (NaN if missing), clusters."""

    grades: Array
    labels: Array
    clusters: NDArray[np.intp]

    @property
    def has_label(self) -> NDArray[np.bool_]:
        """Return a mask (n,) of the labelled items."""
        return ~np.isnan(self.labels)


class CorrectedEstimate(NamedTuple):
    """Corrected score or difference with its 95 % interval; `power` is the judge's weight in it."""

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

    PPI++ with t; if fewer than ten labels differ from their grades, never narrower than Tango's interval of
    the errors combined with Wilson's of the score. None with fewer than ten labels, or with too few clusters.
    """
    mask = arm.has_label
    powered = _estimate_powered(arm.labels, arm.grades, arm.clusters, mask, power)
    if powered is None:
        return None
    n, n_labels, mean = len(mask), int(mask.sum()), powered.mean.mean
    errors, labels = (arm.labels - arm.grades)[mask], arm.labels[mask]
    few = stats.count_differing_clusters(errors, arm.clusters[mask]) < FEW
    share = min(max(mean, 0.0), 1.0)
    if powered.power and few:
        effect = stats.design_effect(arm.grades, arm.clusters)
        score_distances = _distances(share, stats.wilson(share * n / effect, n / effect, alpha))
        guard = _join([_error_distances(arm, mask, alpha), score_distances])
    elif stats.count_differing_clusters(labels, arm.clusters[mask]) < FEW:
        effect = stats.design_effect(labels, arm.clusters[mask])
        label_mean = float(labels.mean())
        guard = _distances(label_mean, stats.wilson(label_mean * n_labels / effect, n_labels / effect, alpha))
    else:
        guard = (0.0, 0.0)
    return _add_interval(powered, guard, alpha, Interval(0.0, 1.0))


def correct_difference(
    base: GradedArm, new: GradedArm, alpha: float = 0.05, power: float | None = None
) -> CorrectedEstimate | None:
    """Correct the mean paired difference new − base by items labelled in both arms, like `correct_score`."""
    mask = base.has_label & new.has_label
    labels, grades = new.labels - base.labels, new.grades - base.grades
    powered = _estimate_powered(labels, grades, new.clusters, mask, power)
    if powered is None:
        return None
    few = stats.count_differing_clusters((labels - grades)[mask], new.clusters[mask]) < FEW
    if powered.power and few:
        (low_new, high_new), (low_base, high_base) = (_error_distances(a, mask, alpha) for a in (new, base))
        grade_distances = _tango_distances(grades, new.clusters, alpha)
        guard = _join([(low_new, high_new), (high_base, low_base), grade_distances])
    elif stats.count_differing_clusters(labels[mask], new.clusters[mask]) < FEW:
        guard = _tango_distances(labels[mask], new.clusters[mask], alpha)
    else:
        guard = (0.0, 0.0)
    return _add_interval(powered, guard, alpha, Interval(-1.0, 1.0))


def count_more_labels(base: GradedArm, new: GradedArm, corrected: CorrectedEstimate) -> int | None:
    """Count the labels, in both arms, that would settle which is better at 80 % power; None if none would."""
    if corrected.low > 0 or corrected.high < 0:
        return 0
    mask = base.has_label & new.has_label
    labels, grades = (new.labels - base.labels)[mask], (new.grades - base.grades)[mask]
    se = abs(corrected.score) / (stats.z_quantile(0.975) + stats.z_quantile(SETTLED))
    needed = None if se <= 0 else stats.labels_needed(labels, grades, len(mask), se)
    return None if needed is None else max(needed - int(mask.sum()), 1)


def _estimate_powered(
    labels: Array, grades: Array, clusters: NDArray[np.intp], mask: NDArray[np.bool_], power: float | None
) -> stats.PoweredMean | None:
    if mask.sum() < MIN_LABELS:
        return None
    powered = stats.prediction_powered_mean(
        labels[mask],
        grades[mask],
        grades[~mask],
        clusters=clusters[mask],
        rest_clusters=clusters[~mask],
        power=power,
    )
    return None if powered.mean.se is None else powered


def _error_distances(arm: GradedArm, mask: NDArray[np.bool_], alpha: float) -> tuple[float, float]:
    """Return how far the mean error of unlabelled items may be below and above the observed one."""
    low, high = _tango_distances((arm.labels - arm.grades)[mask], arm.clusters[mask], alpha)
    unlabelled = sqrt(1 - float(mask.mean()))
    return unlabelled * low, unlabelled * high


def _tango_distances(changes: Array, clusters: NDArray[np.intp], alpha: float) -> tuple[float, float]:
    return _distances(float(changes.mean()), tango_ends(changes, clusters)(alpha))


def _distances(estimate: float, ends: Interval) -> tuple[float, float]:
    return estimate - ends.low, ends.high - estimate


def _join(distances: Sequence[tuple[float, float]]) -> tuple[float, float]:
    lows, highs = zip(*distances, strict=True)
    return stats.quadrature(lows), stats.quadrature(highs)


def _add_interval(
    powered: stats.PoweredMean, guard: tuple[float, float], alpha: float, bounds: Interval
) -> CorrectedEstimate:
    mean = powered.mean
    assert mean.se is not None
    plain = stats.t_interval(mean, alpha)
    low, high = min(plain.low, mean.mean - guard[0]), max(plain.high, mean.mean + guard[1])
    score = min(max(mean.mean, bounds.low), bounds.high)
    ends = (min(max(low, bounds.low), score), max(min(high, bounds.high), score))
    return CorrectedEstimate(score, *ends, mean.se, mean.df, mean.n, powered.power)


def error_interval(
    mean: stats.Mean, groups: Sequence[Array], clusters: Sequence[NDArray[np.intp]], cap: float
) -> Interval:
    """Return the t interval of a mean error, or Tango's if errors are few and that is wider.

    It is clipped to [−cap, cap], or to the largest observed error. The mean is over the means of the
    groups, given by their errors (n,) and clusters (n,); the guards of groups in which errors differ in fewer
    than ten clusters are added in quadrature.
    """
    plain = stats.t_interval(mean)
    cap = max(cap, *(float(np.abs(x).max()) for x in groups))
    guards = [
        _tango_distances(x / cap, codes, 0.05)
        if stats.count_differing_clusters(x / cap, codes) < FEW
        else (0.0, 0.0)
        for x, codes in zip(groups, clusters, strict=True)
    ]
    low, high = (cap / len(groups) * stats.quadrature(side) for side in zip(*guards, strict=True))
    ends = min(plain.low, mean.mean - low), max(plain.high, mean.mean + high)
    return Interval(max(ends[0], -cap), min(ends[1], cap))


class LengthFavour(NamedTuple):
    """Bias for the longer of two answers to an item, beyond people's own, in the unit of the metric.

    `ratio` is the geometric mean of the length ratio new : base, `new_longer` the share of unequal items on
    which the new answer is longer. Without `is_length`, the bias may be one for a candidate.
    """

    favour: Estimate
    ratio: float
    new_longer: float
    is_length: bool


def estimate_length_favour(
    errors: Array, lengths: Sequence[Sequence[int]], clusters: NDArray[np.intp], unit: Unit, cap: float = 1.0
) -> LengthFavour | None:
    """Estimate the bias for longer answers from errors (n,): how much more the new answer is overrated.

    `lengths` are those of (base, new), `cap` is the largest possible error. None if fewer than ten items
    have answers of different lengths, or with too few clusters.
    """
    base, new = (np.maximum(np.array(arm_lengths, float), 1.0) for arm_lengths in lengths)
    differs = base != new
    if differs.sum() < MIN_LABELS:
        return None
    longer, biases, groups = (new > base)[differs], errors[differs], clusters[differs]
    is_length = min(longer.sum(), (~longer).sum()) >= MIN_LABELS
    # The mean of the biases on items with a longer and with a shorter new answer.
    mean = stats.clustered_contrast(biases, longer, groups) if is_length else None
    if mean is None or mean.se is None:
        is_length, mean = False, stats.clustered_mean(np.where(longer, biases, -biases), groups)
    else:
        mean = mean._replace(mean=mean.mean / 2, se=mean.se / 2)
    if mean.se is None:
        return None
    parts = [biases[longer], -biases[~longer]] if is_length else [np.where(longer, biases, -biases)]
    codes = [groups[longer], groups[~longer]] if is_length else [groups]
    favour = Estimate(mean.mean, *error_interval(mean, parts, codes, cap), mean.n, unit)
    ratio = exp(float(np.log(new / base).mean()))
    return LengthFavour(favour, ratio, float(longer.mean()), bool(is_length))


class PairBias(NamedTuple):
    """Biases of a judge of pairs, each None if too few pairs show it.

    `first` is the share of comparisons won by the answer shown first, `longer` that won by the longer answer.
    Compared with people, in win rate: the excess for the new candidate (`favour`) and for the longer answer.
    """

    first: Estimate | None = None
    longer: Estimate | None = None
    favour: Estimate | None = None
    longer_beside_people: LengthFavour | None = None


class JudgedPair(NamedTuple):
    """Pair of answers: preference for the new and for the first one, lengths (base, new), people's vote."""

    won: float
    first: float
    lengths: tuple[int, int]
    cluster: str
    vote: float | None = None


def bias_of(pairs: Mapping[str, JudgedPair]) -> PairBias:
    """Estimate a judge's biases from the pairs that it compared, by item."""
    every = list(pairs.values())
    unequal = [pair for pair in every if pair.lengths[0] != pair.lengths[1]]
    rated = [pair for pair in every if pair.vote is not None]
    errors = np.array([pair.won - (pair.vote or 0.0) for pair in rated], float)
    lengths = [[pair.lengths[arm] for pair in rated] for arm in (0, 1)]
    longer_won = [pair.won if pair.lengths[1] > pair.lengths[0] else 1 - pair.won for pair in unequal]
    first, longer, favour, favour_over_people = None, None, None, None
    if len(every) >= MIN_LABELS:
        first = estimate_share(np.array([pair.first for pair in every], float), _codes(every))
    if len(unequal) >= MIN_LABELS:
        longer = estimate_share(np.array(longer_won, float), _codes(unequal))
    if len(rated) >= MIN_LABELS:
        favour = estimate_error(errors, _codes(rated))
        favour_over_people = estimate_length_favour(errors, lengths, _codes(rated), RATE)
    return PairBias(first, longer, favour, favour_over_people)


def _codes(pairs: list[JudgedPair]) -> NDArray[np.intp]:
    return np.unique([pair.cluster for pair in pairs], return_inverse=True)[1]


def estimate_share(values: Array, clusters: NDArray[np.intp], unit: Unit = RATE) -> Estimate:
    """Estimate a share of items (n,) with Wilson's interval for their effective number."""
    effect = stats.design_effect(values, clusters)
    ends = stats.wilson(float(values.sum()) / effect, len(values) / effect)
    return Estimate(float(values.mean()), *ends, len(values), unit)


def estimate_error(
    values: Array, clusters: NDArray[np.intp], unit: Unit = RATE, cap: float = 1.0
) -> Estimate | None:
    """Estimate a mean in [−cap, cap]; None if too few clusters leave its spread unknown."""
    mean = stats.clustered_mean(values, clusters)
    if mean.se is None:
        return None
    return Estimate(mean.mean, *error_interval(mean, [values], [clusters], cap), mean.n, unit)
