"""Comparison of a metric with people's labels of the same answers: agreement, errors, corrected scores.

Invariant: a label belongs to an answer with its prompt and references. In the order of the draw, a run's
labels count up to the point where nearly all of its answers have one. Several raters' labels are averaged;
only a rater's latest label counts. Only metrics that are the mean of one number per item, in [0, 1], are
corrected. Source: `stats.prediction_powered_mean` (PPI++), `stats.rogan_gladen`, `stats.cohen_kappa`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import log2
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness import stats
from harness.analysis.estimators import Estimate
from harness.analysis.judge_correction import (
    MIN_LABELS,
    CorrectedEstimate,
    GradedArm,
    LengthFavour,
    correct_difference,
    correct_score,
    count_more_labels,
    estimate_error,
    estimate_length_favour,
    estimate_share,
)
from harness.metrics import Metric
from harness.records import LabelSet, SampleResult, digest
from harness.stats import Array

ENOUGH_LABELS = 100  # labels of an arm's answers that are needed before a judge may decide
_SPREAD = log2(1.5)  # smallest spread of log lengths within an arm for which length bias is estimated
_DRAWN = 0.95  # labels and ratings count up to the last item at which this share of drawn items has one

_SPLIT = 0.5  # share of raters at which an answer is split

Labels = Mapping[str, float]  # by answer digest


class Confusion(NamedTuple):
    """Numbers of answers passed by judge and people, by the judge only, by people only, by neither."""

    both: int
    judge_alone: int
    people_alone: int
    neither: int


@dataclass(frozen=True, slots=True)
class ArmCalibration:
    """Metric of one run on n items, compared with the labels of some of them.

    `error` is the mean of grade − label. `corrected` combines labels and grades, `labels_alone` is the
    labels' mean; both are None with fewer than ten labels. `agreement`, `confusion`, `sensitivity`,
    `specificity` and `rogan_gladen` are for labels and grades that are all 0 or 1; the majority of several
    raters counts, and the `n_split` tied answers are left out.
    """

    name: str
    n: int
    n_labels: int
    score: Estimate
    corrected: Estimate | None = None
    labels_alone: Estimate | None = None
    rogan_gladen: Estimate | None = None
    power: float | None = None
    kappa: Estimate | None = None
    agreement: Estimate | None = None
    confusion: Confusion | None = None
    sensitivity: Estimate | None = None
    specificity: Estimate | None = None
    error: Estimate | None = None
    n_split: int = 0


@dataclass(frozen=True, slots=True)
class PairCalibration:
    """Paired difference new − base on n items; `n_labels` of them have a label in both arms.

    `favour` is how much more the metric overrates the new arm than the base. `more_labels` is the number
    of labels that would probably settle which is better: 0 if that is settled, None if no number would.
    `longer` is the metric's bias for the longer answer.
    """

    new: str
    base: str
    n: int
    n_labels: int
    delta: Estimate
    corrected: Estimate | None = None
    labels_alone: Estimate | None = None
    favour: Estimate | None = None
    more_labels: int | None = None
    longer: LengthFavour | None = None


@dataclass(frozen=True, slots=True)
class MetricCalibration:
    """Metric of a task compared with people's labels of its answers; `kappa` is over all labelled answers.

    `length` is the rise of its error (grade − label) per doubling of an answer's length, `raters_alpha` the
    raters' agreement. `own` names the arms whose weights derive from the judge's.
    """

    task: str
    metric: str
    raters: tuple[str, ...]
    raters_alpha: float | None
    arms: tuple[ArmCalibration, ...]
    pairs: tuple[PairCalibration, ...]
    kappa: Estimate | None = None
    length: Estimate | None = None
    own: tuple[str, ...] = ()

    @property
    def is_near_chance(self) -> bool:
        """Whether the metric is not shown to agree with people more than by chance."""
        return self.kappa is None or self.kappa.low <= 0


def answer_digest(metric: str, row: SampleResult) -> str:
    """Return the digest that ties a label to an answer, its question and a metric."""
    question = [row.task, row.split, row.example_id, row.prompt, list(row.references)]
    return digest([metric, *question, row.text])


def is_correctable(metric: Metric, *arms: Iterable[SampleResult]) -> bool:
    """Tell whether a metric is the mean of one number per item, in [0, 1], with answers not from folds."""
    if len(metric.parts) != 1 or not (0 <= metric.bounds[0] < metric.bounds[1] <= 1):
        return False
    if any(row.fold for rows in arms for row in rows):
        return False
    parts, weights = np.linspace(*metric.bounds, 5)[:, None], np.arange(1.0, 6.0)
    return bool(np.isclose(metric.aggregate(parts, weights), np.average(parts[:, 0], weights=weights)))


def latest_labels(label_sets: Iterable[LabelSet], metric: str) -> Labels:
    """Map answers to their label for a metric: the mean over raters of each one's latest label."""
    return {
        answer: sum(by_rater.values()) / len(by_rater)
        for answer, by_rater in _group_by_rater(label_sets, metric).items()
    }


def draw_items(ids: Iterable[str], task: str, metric: str) -> list[str]:
    """Return items in the random order of their digests, in which all raters label answers."""
    return sorted(ids, key=lambda item: digest([task, metric, item]))


def select_scored(metric: str, rows: Iterable[SampleResult]) -> dict[str, SampleResult]:
    """Map items to the rows that a metric scored, sorted by id; failed answers have no text."""
    scored = {row.example_id: row for row in rows if row.parts[metric] is not None and row.status != "error"}
    return dict(sorted(scored.items()))


def count_enough_labels(n_items: int) -> int:
    """Return how many of n items need a label before a judge may decide: a hundred, or all."""
    return min(ENOUGH_LABELS, n_items)


def count_drawn(labelled: NDArray[np.bool_], eligible: NDArray[np.bool_]) -> int:
    """Count the drawn items, masks (n,), up to the last at which 95 % of the eligible ones are labelled."""
    enough = np.flatnonzero(labelled & (np.cumsum(labelled) >= _DRAWN * np.cumsum(eligible)))
    return int(enough[-1]) + 1 if len(enough) else 0


def select_labels(metric: str, rows: Sequence[SampleResult], labels: Labels) -> dict[str, float]:
    """Map items to counted labels: up to where 95 % of the drawn answers have one; failed ones count too."""
    by_id = {row.example_id: row for row in rows}
    drawn_items = draw_items(by_id, rows[0].task, metric) if rows else []
    drawn_labels = [labels.get(answer_digest(metric, by_id[item])) for item in drawn_items]
    failed = np.array([by_id[item].status == "error" for item in drawn_items], bool)
    n_counted = count_drawn(np.array([label is not None for label in drawn_labels], bool) & ~failed, ~failed)
    counted = dict[str, float]()
    for item, label in zip(drawn_items[:n_counted], drawn_labels[:n_counted], strict=True):
        parts = by_id[item].parts[metric]  # a failed answer has the worst ones, if any
        value = (parts[0] if parts else None) if by_id[item].status == "error" else label
        if value is not None:
            counted[item] = value
    return counted


def calibrate(
    metric: Metric,
    arms: Mapping[str, Sequence[SampleResult]],
    pairs: Iterable[tuple[str, str]],
    label_sets: Sequence[LabelSet],
) -> MetricCalibration | None:
    """Compare scores of arms with people's labels; `pairs` are (new, base). None without usable labels."""
    labels = latest_labels(label_sets, metric.name)
    if not labels or not is_correctable(metric, *arms.values()):
        return None
    scored = {name: select_scored(metric.name, rows) for name, rows in arms.items()}
    units = _group_by_rater(label_sets, metric.name)
    passes = all(label in (0, 1) for by_rater in units.values() for label in by_rater.values())
    calibrated = (
        _arm(metric, name, [*rows.values()], labels, passes) for name, rows in scored.items() if rows
    )
    labelled_arms = [arm for arm in calibrated if arm.n_labels]
    if not labelled_arms:
        return None
    compared_pairs = [_pair(metric, new, base, scored[new], scored[base], labels) for new, base in pairs]
    task = next(row.task for rows in scored.values() for row in rows.values())
    # Kappa and the effect of length on the error, over the labelled answers of all arms. Answers to one item
    # are one cluster; an answer that two arms gave counts once. Lengths and errors are relative to their
    # arm's mean, so that a bias for one arm is not taken for one for length.
    labelled_rows, people, lengths, errors = list[SampleResult](), list[float](), list[Array](), list[Array]()
    seen_answers = set[str]()
    for arm_rows in scored.values():
        counted = select_labels(metric.name, [*arm_rows.values()], labels)
        by_answer = {answer_digest(metric.name, arm_rows[item]): arm_rows[item] for item in counted}
        unseen_rows = [row for answer, row in by_answer.items() if answer not in seen_answers]
        seen_answers |= by_answer.keys()
        if unseen_rows:
            given_labels = np.array([counted[row.example_id] for row in unseen_rows])
            error = _select_own_grades(metric, unseen_rows) - given_labels
            length = np.log2([max(len(row.text), 1) for row in unseen_rows])
            labelled_rows, people = [*labelled_rows, *unseen_rows], [*people, *given_labels]
            errors.append(error - error.mean())
            lengths.append(length - length.mean())
    kappa = slope = None
    if len(labelled_rows) >= MIN_LABELS:
        clusters = np.unique([row.cluster or row.example_id for row in labelled_rows], return_inverse=True)[1]
        kappa = _kappa(_select_own_grades(metric, labelled_rows), np.array(people), clusters)
        length, error = np.concatenate(lengths), np.concatenate(errors)
        varies = min(np.ptp(length), np.ptp(error)) > stats.TIE
        if varies and np.subtract(*np.quantile(length, (0.9, 0.1))) >= _SPREAD:
            found_slope = stats.clustered_slope(length, error, clusters)
            if found_slope.se is not None:
                ends = stats.t_interval(found_slope)
                slope = Estimate(found_slope.mean, *ends, found_slope.n, metric.unit)
    return MetricCalibration(
        task,
        metric.name,
        tuple(sorted({rater for unit in units.values() for rater in unit})),
        stats.krippendorff_alpha(units.values(), graded=True),
        tuple(labelled_arms),
        tuple(pair for pair in compared_pairs if pair and pair.n_labels),
        kappa,
        slope,
    )


def grade_arm(metric: Metric, rows: Sequence[SampleResult], labels: Labels) -> GradedArm:
    """Return grades and labels of rows, each label moved to the mean grade of an item's sampled answers."""
    arm = _label_arm(metric, rows, labels)
    moved = arm.labels + arm.grades - _select_own_grades(metric, rows)
    mask = arm.has_label
    return arm._replace(labels=moved) if mask.any() and 0 <= moved[mask].mean() <= 1 else arm


def _label_arm(metric: Metric, rows: Sequence[SampleResult], labels: Labels) -> GradedArm:
    clusters = np.unique([row.cluster or row.example_id for row in rows], return_inverse=True)[1]
    grades = np.array([(row.parts[metric.name] or (np.nan,))[0] for row in rows], float)
    counted = select_labels(metric.name, rows, labels)
    row_labels = [counted.get(row.example_id, np.nan) for row in rows]
    return GradedArm(grades, np.array(row_labels, float), clusters)


def _select_own_grades(metric: Metric, rows: Iterable[SampleResult]) -> Array:
    """Return the grade (n,) of the answer in each row, among several that were sampled."""
    grades = []
    for row in rows:
        same = (sample.parts.get(metric.name) for sample in row.samples if sample.text == row.text)
        grades.append((next(filter(None, same), None) or row.parts[metric.name] or (np.nan,))[0])
    return np.array(grades, float)


def estimate_of(metric: Metric, corrected: CorrectedEstimate | None, n: int | None = None) -> Estimate | None:
    """Return a corrected value as an estimate, over n items or over the labels."""
    if corrected is None:
        return None
    return Estimate(corrected.score, corrected.low, corrected.high, n or corrected.n_labels, metric.unit)


def _arm(
    metric: Metric, name: str, rows: Sequence[SampleResult], labels: Labels, passes: bool
) -> ArmCalibration:
    """Compare one arm with its labels; `passes` says that all raters gave 0 or 1."""
    arm, raw_arm = grade_arm(metric, rows, labels), _label_arm(metric, rows, labels)
    mask = arm.has_label
    n, graded_alone = len(arm.grades), correct_score(arm._replace(labels=arm.grades))
    judged_score = estimate_of(metric, graded_alone, n)
    judged_score = judged_score or Estimate(float(arm.grades.mean()), *metric.bounds, n, metric.unit)
    if mask.sum() < MIN_LABELS:
        return ArmCalibration(name, len(rows), int(mask.sum()), judged_score)
    grades, people, clusters = (
        _select_own_grades(metric, rows)[mask],
        raw_arm.labels[mask],
        arm.clusters[mask],
    )
    corrected = correct_score(arm)
    decided = people != _SPLIT
    binary = passes and bool(np.isin(grades, (0, 1)).all() and decided.any())
    graded, voted, groups = grades[decided], (people[decided] > _SPLIT).astype(float), clusters[decided]
    cells = (int(((graded == g) & (voted == p)).sum()) for g, p in ((1, 1), (1, 0), (0, 1), (0, 0)))
    table = Confusion(*cells) if binary else None

    def share_right(label: float) -> Estimate | None:
        hits, subset = (graded == label).astype(float), voted == label
        return estimate_share(hits[subset], groups[subset], metric.unit) if table and subset.any() else None

    rogan_gladen = None  # the rate corrected by sensitivity and specificity, for unclustered items
    if table and arm.clusters.max() + 1 == n:
        positive, negative = table.both + table.people_alone, table.judge_alone + table.neither
        if positive and negative:
            specificity, sensitivity = table.neither / negative, table.both / positive
            mean = float(arm.grades.mean())
            rate = stats.rogan_gladen(mean, n, specificity, negative, sensitivity, positive)
            rogan_gladen = Estimate(*rate, n, metric.unit) if rate else None
    return ArmCalibration(
        name=name,
        n=len(rows),
        n_labels=int(mask.sum()),
        score=judged_score,
        corrected=estimate_of(metric, corrected, len(rows)),
        labels_alone=estimate_of(metric, correct_score(raw_arm, power=0.0)),
        rogan_gladen=rogan_gladen,
        power=corrected.power if corrected else None,
        kappa=_kappa(grades, people, clusters),
        agreement=estimate_share((graded == voted).astype(float), groups, metric.unit) if binary else None,
        confusion=table,
        sensitivity=share_right(1.0),
        specificity=share_right(0.0),
        error=estimate_error(grades - people, clusters, metric.unit),
        n_split=int((~decided).sum()) if binary else 0,
    )


def _pair(
    metric: Metric,
    new: str,
    base: str,
    new_rows: Mapping[str, SampleResult],
    base_rows: Mapping[str, SampleResult],
    labels: Labels,
) -> PairCalibration | None:
    """Compare two arms on the items that both answered; None if there are none."""
    ids = [item for item in new_rows if item in base_rows]
    if not ids:
        return None
    paired_rows = [[by_id[item] for item in ids] for by_id in (base_rows, new_rows)]
    old, now = (grade_arm(metric, rows, labels) for rows in paired_rows)
    base_labelled, new_labelled = (_label_arm(metric, rows, labels) for rows in paired_rows)
    mask = old.has_label & now.has_label
    delta = estimate_error(now.grades - old.grades, now.clusters, metric.unit)
    corrected = correct_difference(old, now) if mask.sum() >= MIN_LABELS else None
    if delta is None:
        return None
    if corrected is None:
        return PairCalibration(new, base, len(ids), int(mask.sum()), delta)
    errors = (now.grades - now.labels - old.grades + old.labels)[mask]
    labelled = [item for item, counts in zip(ids, mask, strict=True) if counts]
    lengths = tuple([len(by_id[item].text) for item in labelled] for by_id in (base_rows, new_rows))
    return PairCalibration(
        new,
        base,
        len(ids),
        int(mask.sum()),
        delta,
        corrected=estimate_of(metric, corrected, len(ids)),
        labels_alone=estimate_of(metric, correct_difference(base_labelled, new_labelled, power=0.0)),
        favour=estimate_error(errors, now.clusters[mask], metric.unit, cap=2.0),
        more_labels=count_more_labels(old, now, corrected),
        longer=estimate_length_favour(errors, lengths, now.clusters[mask], metric.unit, cap=2.0),
    )


def _kappa(grades: Array, people: Array, clusters: np.ndarray) -> Estimate | None:
    kappa = stats.cohen_kappa(grades, people, clusters)
    return None if kappa is None else Estimate(*kappa, len(grades))


def _group_by_rater(label_sets: Iterable[LabelSet], metric: str) -> dict[str, dict[str, float]]:
    """Map answers to each rater's latest label; the label sets are given in order of time."""
    by_answer: dict[str, dict[str, float]] = {}
    for label_set in label_sets:
        if label_set.metric == metric:
            for label in label_set.labels:
                by_answer.setdefault(label.answer, {})[label_set.rater] = label.label
    return by_answer
