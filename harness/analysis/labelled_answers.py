"""Comparison of a metric with people's labels of the same answers: agreement, errors, corrected scores.

Invariant: a label belongs to an answer with its prompt and references. Labels count for a run as far as, in
the order of the draw, nearly all of its answers have one. Several raters' labels are averaged; of one rater
the latest counts. Only metrics that are the mean of one number per item, in [0, 1], are corrected. Source:
`stats.prediction_powered_mean` (PPI++), `stats.rogan_gladen`, `stats.cohen_kappa`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import log2
from typing import NamedTuple

import numpy as np

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
_DRAWN = 0.95  # labels count up to the item at which this share of the drawn answers is labelled

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
    raters counts, without the `n_split` answers that tie.
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
    """Paired difference new − base on n items, of which `n_labels` have a label in both arms.

    `favour` is how much more the metric overrates the new arm than the base. `more_labels` would probably
    settle which is better: 0 if that is settled, None if no number would. `longer` is its bias for the longer
    answer.
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


def latest_labels(found: Iterable[LabelSet], metric: str) -> Labels:
    """Map answers to their label for a metric: the mean over raters of each one's latest label."""
    return {answer: sum(of.values()) / len(of) for answer, of in _group_by_rater(found, metric).items()}


def draw_items(ids: Iterable[str], task: str, metric: str) -> list[str]:
    """Return items in the random order of their digests, in which everybody labels answers."""
    return sorted(ids, key=lambda item: digest([task, metric, item]))


def select_scored(metric: str, rows: Iterable[SampleResult]) -> dict[str, SampleResult]:
    """Map items to the rows that a metric scored, sorted by id; failed answers have no text."""
    scored = {row.example_id: row for row in rows if row.parts[metric] is not None and row.status != "error"}
    return dict(sorted(scored.items()))


def count_enough_labels(n_items: int) -> int:
    """Return how many of n items need a label before a judge may decide: a hundred, or all."""
    return min(ENOUGH_LABELS, n_items)


def select_labels(metric: str, rows: Sequence[SampleResult], labels: Labels) -> dict[str, float]:
    """Map the items of an arm to the labels that count: up to where 95 % of its drawn answers have one.

    Failed answers that were scored with the metric's worst value get it as their label, too.
    """
    by_id = {row.example_id: row for row in rows}
    drawn = draw_items(by_id, rows[0].task, metric) if rows else []
    found = [labels.get(answer_digest(metric, by_id[item])) for item in drawn]
    failed = np.array([by_id[item].status == "error" for item in drawn], bool)
    has = np.array([label is not None for label in found], bool) & ~failed
    enough = np.flatnonzero(has & (np.cumsum(has) >= _DRAWN * np.cumsum(~failed)))
    last = int(enough[-1]) + 1 if len(enough) else 0
    counted = dict[str, float]()
    for item, label in zip(drawn[:last], found[:last], strict=True):
        parts = by_id[item].parts[metric]  # a failed answer has the worst ones, if any
        value = (parts[0] if parts else None) if by_id[item].status == "error" else label
        if value is not None:
            counted[item] = value
    return counted


def calibrate(
    metric: Metric,
    arms: Mapping[str, Sequence[SampleResult]],
    pairs: Iterable[tuple[str, str]],
    found: Sequence[LabelSet],
) -> MetricCalibration | None:
    """Compare a metric's scores of several arms with people's labels; `pairs` are (new, base) by name.

    None if no answer has a label, or the metric cannot be corrected, as in folds.
    """
    labels = latest_labels(found, metric.name)
    if not labels or not is_correctable(metric, *arms.values()):
        return None
    scored = {name: select_scored(metric.name, rows) for name, rows in arms.items()}
    units = _group_by_rater(found, metric.name)
    passes = all(label in (0, 1) for of in units.values() for label in of.values())
    calibrated = (
        _arm(metric, name, [*rows.values()], labels, passes) for name, rows in scored.items() if rows
    )
    labelled = [arm for arm in calibrated if arm.n_labels]
    if not labelled:
        return None
    compared = [_pair(metric, new, base, scored[new], scored[base], labels) for new, base in pairs]
    task = next(row.task for rows in scored.values() for row in rows.values())
    return MetricCalibration(
        task,
        metric.name,
        tuple(sorted({rater for unit in units.values() for rater in unit})),
        stats.krippendorff_alpha(units.values(), graded=True),
        tuple(labelled),
        tuple(pair for pair in compared if pair and pair.n_labels),
        *_agreement_and_length(metric, [list(rows.values()) for rows in scored.values()], labels),
    )


def grade_arm(metric: Metric, rows: Sequence[SampleResult], labels: Labels) -> GradedArm:
    """Return the grades and labels of rows, with numbered clusters.

    If several answers to an item were sampled, the difference between their mean grade and the labelled
    answer's is added to the label.
    """
    arm = _label_arm(metric, rows, labels)
    moved = arm.labels + arm.grades - _select_own_grades(metric, rows)
    has = arm.has_label
    if has.any() and 0 <= moved[has].mean() <= 1:
        return arm._replace(labels=moved)
    return arm


def _label_arm(metric: Metric, rows: Sequence[SampleResult], labels: Labels) -> GradedArm:
    clusters = np.unique([row.cluster or row.example_id for row in rows], return_inverse=True)[1]
    grades = np.array([(row.parts[metric.name] or (np.nan,))[0] for row in rows], float)
    counted = select_labels(metric.name, rows, labels)
    found = [counted.get(row.example_id, np.nan) for row in rows]
    return GradedArm(grades, np.array(found, float), clusters)


def _select_own_grades(metric: Metric, rows: Iterable[SampleResult]) -> Array:
    """Return the grade (n,) of the answer in each row, among several that were sampled."""
    grades = []
    for row in rows:
        same = (one.parts.get(metric.name) for one in row.samples if one.text == row.text)
        grades.append((next(filter(None, same), None) or row.parts[metric.name] or (np.nan,))[0])
    return np.array(grades, float)


def estimate_of(metric: Metric, found: CorrectedEstimate | None, n: int | None = None) -> Estimate | None:
    """Return a corrected value as an estimate, over n items or over the labels."""
    if found is None:
        return None
    return Estimate(found.score, found.low, found.high, n or found.n_labels, metric.unit)


def _arm(
    metric: Metric, name: str, rows: Sequence[SampleResult], labels: Labels, passes: bool
) -> ArmCalibration:
    """Compare one arm with its labels; `passes` says that all raters gave 0 or 1."""
    arm, given = grade_arm(metric, rows, labels), _label_arm(metric, rows, labels)
    has = arm.has_label
    n, graded_alone = len(arm.grades), correct_score(arm._replace(labels=arm.grades))
    own = estimate_of(metric, graded_alone, n)
    own = own or Estimate(float(arm.grades.mean()), *metric.bounds, n, metric.unit)
    if has.sum() < MIN_LABELS:
        return ArmCalibration(name, len(rows), int(has.sum()), own)
    grades, people, clusters = _select_own_grades(metric, rows)[has], given.labels[has], arm.clusters[has]
    corrected = correct_score(arm)
    told = people != _SPLIT
    binary = passes and bool(np.isin(grades, (0, 1)).all() and told.any())
    graded, voted, groups = grades[told], (people[told] > _SPLIT).astype(float), clusters[told]
    cells = (int(((graded == g) & (voted == p)).sum()) for g, p in ((1, 1), (1, 0), (0, 1), (0, 0)))
    table = Confusion(*cells) if binary else None
    return ArmCalibration(
        name=name,
        n=len(rows),
        n_labels=int(has.sum()),
        score=own,
        corrected=estimate_of(metric, corrected, len(rows)),
        labels_alone=estimate_of(metric, correct_score(given, power=0.0)),
        rogan_gladen=_rogan_gladen(metric, arm, table) if table else None,
        power=corrected.power if corrected else None,
        kappa=_kappa(grades, people, clusters),
        agreement=estimate_share((graded == voted).astype(float), groups, metric.unit) if binary else None,
        confusion=table,
        sensitivity=_share_right(metric, graded, voted, groups, 1.0) if table else None,
        specificity=_share_right(metric, graded, voted, groups, 0.0) if table else None,
        error=estimate_error(grades - people, clusters, metric.unit),
        n_split=int((~told).sum()) if binary else 0,
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
    both = [[of[item] for item in ids] for of in (base_rows, new_rows)]
    old, now = (grade_arm(metric, rows, labels) for rows in both)
    base_given, new_given = (_label_arm(metric, rows, labels) for rows in both)
    has = old.has_label & now.has_label
    delta = estimate_error(now.grades - old.grades, now.clusters, metric.unit)
    found = correct_difference(old, now) if has.sum() >= MIN_LABELS else None
    if delta is None:
        return None
    if found is None:
        return PairCalibration(new, base, len(ids), int(has.sum()), delta)
    errors = (now.grades - now.labels - old.grades + old.labels)[has]
    labelled = [item for item, counts in zip(ids, has, strict=True) if counts]
    lengths = tuple([len(of[item].text) for item in labelled] for of in (base_rows, new_rows))
    return PairCalibration(
        new,
        base,
        len(ids),
        int(has.sum()),
        delta,
        corrected=estimate_of(metric, found, len(ids)),
        labels_alone=estimate_of(metric, correct_difference(base_given, new_given, power=0.0)),
        favour=estimate_error(errors, now.clusters[has], metric.unit, most=2.0),
        more_labels=count_more_labels(old, now, found),
        longer=estimate_length_favour(errors, lengths, now.clusters[has], metric.unit, most=2.0),
    )


def _kappa(grades: Array, people: Array, clusters: np.ndarray) -> Estimate | None:
    found = stats.cohen_kappa(grades, people, clusters)
    return None if found is None else Estimate(*found, len(grades))


def _agreement_and_length(
    metric: Metric, arms: Iterable[Sequence[SampleResult]], labels: Labels
) -> tuple[Estimate | None, Estimate | None]:
    """Estimate kappa and the effect of length on the error, over the labelled answers of all arms.

    Answers to one item are one cluster; an answer that two arms gave counts once. Lengths and errors are
    relative to their arm's mean, so that a bias for one arm is not one for its length.
    """
    kept, people, lengths, errors = list[SampleResult](), list[float](), list[Array](), list[Array]()
    seen = set[str]()
    for rows in arms:
        counted = select_labels(metric.name, rows, labels)
        by_answer = {answer_digest(metric.name, row): row for row in rows if row.example_id in counted}
        own = [row for answer, row in by_answer.items() if answer not in seen]
        seen |= by_answer.keys()
        if own:
            kept += own
            people += [counted[row.example_id] for row in own]
            errors.append(_center(np.subtract(_select_own_grades(metric, own), people[-len(own) :])))
            lengths.append(_center([log2(max(len(row.text), 1)) for row in own]))
    if len(kept) < MIN_LABELS:
        return None, None
    clusters = np.unique([row.cluster or row.example_id for row in kept], return_inverse=True)[1]
    grades, length = _select_own_grades(metric, kept), np.concatenate(lengths)
    slope, error = None, np.concatenate(errors)
    varies = min(np.ptp(length), np.ptp(error)) > stats.TIE
    if varies and np.subtract(*np.quantile(length, (0.9, 0.1))) >= _SPREAD:
        found = stats.clustered_slope(length, error, clusters)
        if found.se is not None:
            slope = Estimate(found.mean, *stats.t_interval(found), found.n, metric.unit)
    return _kappa(grades, np.array(people), clusters), slope


def _center(values: Sequence[float] | Array) -> Array:
    mean = sum(values) / len(values)
    return np.array([value - mean for value in values], float)


def _share_right(
    metric: Metric, grades: Array, people: Array, clusters: np.ndarray, label: float
) -> Estimate | None:
    own = people == label
    hits = (grades[own] == label).astype(float)
    return estimate_share(hits, clusters[own], metric.unit) if own.any() else None


def _rogan_gladen(metric: Metric, arm: GradedArm, table: Confusion) -> Estimate | None:
    """Correct a rate by sensitivity and specificity, for unclustered items."""
    positive, negative = table.both + table.people_alone, table.judge_alone + table.neither
    n = len(arm.grades)
    if not positive or not negative or arm.clusters.max() + 1 < n:
        return None
    found = stats.rogan_gladen(
        float(arm.grades.mean()), n, table.neither / negative, negative, table.both / positive, positive
    )
    return None if found is None else Estimate(*found, n, metric.unit)


def _group_by_rater(found: Iterable[LabelSet], metric: str) -> dict[str, dict[str, float]]:
    """Map answers to each rater's latest label; the label sets are given in order of time."""
    out: dict[str, dict[str, float]] = {}
    for of in found:
        if of.metric == metric:
            for one in of.labels:
                out.setdefault(one.answer, {})[of.rater] = one.label
    return out
