"""Difference in differences by cluster: candidate against reference, less the control arm against its own.

Invariant: pure. An item counts only where question and references are those of the reference, and
only where all answers could be scored; what cannot be compared is counted. An answer of the candidate that
failed scores worst.
"""

from collections.abc import Iterable, Mapping, Sequence
from math import isfinite
from operator import attrgetter
from statistics import fmean
from typing import NamedTuple

import numpy as np

from harness import comparison, gating, stats
from harness.comparison import Labels, answer_digest, compare_on_target, correct_estimate, labels_missing
from harness.metrics import Metric, is_flipped
from harness.nightly.reevaluate import Cluster, Item, Rows
from harness.nightly.state import BaseNight, JudgedChange, SeriesNight
from harness.records import SampleResult

_MOVED_P = 0.01


class NightArms(NamedTuple):
    """Rows of the four arms by item: the candidate now and then, and the base now and then.

    `then` holds one or more makings of the reference, whose mean counts. The base's are None where
    nobody stands beside a candidate on these items.
    """

    now: Rows
    then: Sequence[Rows]
    base_now: Rows | None
    base_then: Rows | None


def compare_series(
    arms: NightArms,
    anchors: Sequence[Cluster],
    fresh: Sequence[Cluster],
    metrics: Mapping[str, Metric],
    max_errors: float = 0.01,
) -> SeriesNight:
    """Compare a series: Δ = (now − then) − (base now − base then), averaged over each cluster.

    In shares of the metric's range where it has one. Not valid where more answers failed than a share of
    `max_errors` allows, be it the candidate's or the base's; one failed answer is allowed in any case, unless
    none is.
    """
    new, fixed = (_cluster_changes(arms, clusters, metrics) for clusters in (fresh, anchors))
    evaluated = [item for cluster in (*fresh, *anchors) for item in cluster if item in arms.now]
    errors = sum(_is_error(arms, item, metrics[item[0]]) for item in evaluated)
    return SeriesNight(
        new.changes,
        fixed.changes,
        (*new.lost, *fixed.lost),
        new.left_out + fixed.left_out,
        adjusted=arms.base_now is not None and arms.base_then is not None,
        unbounded=new.unbounded,
        errors=errors,
        n_asked=len(evaluated),
        # One failure of 80 is no rate yet, and scored worst it can only raise the alarm, never hide a loss.
        valid=errors <= max(max_errors * len(evaluated), float(max_errors > 0)),
    )


def compare_base(
    now: Rows, then: Rows, fresh: Iterable[Cluster], last: Rows, metrics: Mapping[str, Metric]
) -> BaseNight:
    """Say what moved of the base since the reference, and on anchors since the last night."""
    rotating = {item for cluster in fresh for item in cluster}
    shared = [item for item in now if item in then and is_same_item(now[item], then[item])]
    flips = {
        name(item): is_flipped(then[item], now[item], metrics[item[0]]) for item in shared if item in rotating
    }
    answer = attrgetter("prompt_digest", "text", "status")
    differing = [name(i) for i, row in last.items() if i in now and answer(now[i]) != answer(row)]
    reworded = [name(i) for i in shared if now[i].prompt_digest != then[i].prompt_digest]
    return BaseNight(flips, tuple(reworded), tuple(differing))


def has_moved(now: Rows, then: Rows, metrics: Mapping[str, Metric]) -> bool:
    """Tell whether more answers score otherwise than the rounding of one model explains.

    Source: the exact binomial test, one-sided, at the A/A rate of bf16.
    """
    shared = [item for item in now if item in then and is_same_item(now[item], then[item])]
    moved = sum(is_flipped(then[item], now[item], metrics[item[0]]) for item in shared)
    return bool(shared) and stats.binomial_p(moved, len(shared), gating.aa_rate("bf16")) < _MOVED_P


def name(item: Item) -> str:
    """Name an item as elsewhere: task/item."""
    return f"{item[0]}/{item[1]}"


def is_same_item(now: SampleResult, then: SampleResult) -> bool:
    """Tell whether two rows answer the same question with the same references."""
    return (now.prompt, now.references) == (then.prompt, then.references)


def score(row: SampleResult, metric: Metric) -> float | None:
    """Return one answer's score, so that the larger is the better; None where it could not be scored."""
    parts = row.parts.get(metric.name)
    if parts is None:
        return None
    value = float(metric.aggregate(np.array([parts]), np.ones(1)))
    return metric.unit.sign * value if np.isfinite(value) else None


class _ClusterChanges(NamedTuple):
    """Changes by the first item of a cluster, items that got worse, and how many could not be compared.

    Changes are shares of the metric's range; those of metrics without one stand by task in `unbounded`.
    """

    changes: dict[str, float]
    unbounded: dict[str, dict[str, float]]
    lost: list[str]
    left_out: int


def _cluster_changes(
    arms: NightArms, clusters: Iterable[Cluster], metrics: Mapping[str, Metric]
) -> _ClusterChanges:
    found = _ClusterChanges({}, {}, [], 0)
    for cluster in clusters:
        all_of = {item: _change(arms, item, metrics[item[0]]) for item in cluster}
        known = {item: d for item, d in all_of.items() if d is not None}
        found = found._replace(left_out=found.left_out + len(all_of) - len(known))
        found.lost.extend(name(item) for item, d in known.items() if d < -stats.TIE)
        for task, of in _parts(cluster, metrics).items():
            changes = found.unbounded.setdefault(task, {}) if task else found.changes
            if own := [
                known[item] / (1.0 if task else _range(metrics, item)) for item in of if item in known
            ]:
                changes[name(of[0])] = round(fmean(own), 9)
    return found


def _parts(cluster: Cluster, metrics: Mapping[str, Metric]) -> dict[str, list[Item]]:
    """Part a cluster's items into those of metrics with a range, under "", and the others by task."""
    out: dict[str, list[Item]] = {}
    for item in cluster:
        out.setdefault("" if isfinite(_range(metrics, item)) else item[0], []).append(item)
    return out


def _range(metrics: Mapping[str, Metric], item: Item) -> float:
    low, high = metrics[item[0]].bounds
    return high - low


def _change(arms: NightArms, item: Item, metric: Metric) -> float | None:
    """Return an item's change, less the base's; None where an answer is missing or another item's."""
    now, then = arms.now.get(item), [rows.get(item) for rows in arms.then]
    worst = min(metric.unit.sign * bound for bound in metric.bounds)
    has_worst = isfinite(worst) and _is_failed(now, then, metric)
    own = _difference(now, then, metric, worst if has_worst else None)
    if own is None or arms.base_now is None or arms.base_then is None:
        return own
    base = _difference(arms.base_now.get(item), [arms.base_then.get(item)], metric)
    return None if base is None else own - base


def _difference(
    now: SampleResult | None, then: Sequence[SampleResult | None], metric: Metric, failed: float | None = None
) -> float | None:
    """Return how much better an answer is than the mean of those then; `failed` scores one that failed."""
    there = [row for row in then if row is not None]
    if now is None or len(there) < len(then) or any(row.references != now.references for row in there):
        return None
    new, old = failed if failed is not None else score(now, metric), [score(row, metric) for row in there]
    known = [value for value in old if value is not None]
    return None if new is None or len(known) < len(old) else new - fmean(known)


def _is_error(arms: NightArms, item: Item, metric: Metric) -> bool:
    base_now, base_then = ((rows or {}).get(item) for rows in (arms.base_now, arms.base_then))
    then = [rows.get(item) for rows in arms.then]
    if any(row and row.status == "incomplete" for row in (arms.now.get(item), base_now)):
        return True
    return _is_failed(arms.now.get(item), then, metric) or _is_failed(base_now, [base_then], metric)


def _is_failed(now: SampleResult | None, then: Sequence[SampleResult | None], metric: Metric) -> bool:
    """Tell whether an answer failed, as the gate counts: an error, or without a score where it had one."""
    if now is None:
        return False
    was_scored = any(row is not None and row.parts.get(metric.name) is not None for row in then)
    return now.status == "error" or (now.parts.get(metric.name) is None and was_scored)


def compare_judged_answers(
    metric: Metric,
    now: Sequence[SampleResult],
    then: Sequence[SampleResult],
    labels: Labels,
    max_errors: float,
) -> JudgedChange | None:
    """Put tonight's answers beside those of the whole reference; None where none was graded in both."""
    answered = {row.example_id: row for row in now}
    old = [row for row in then if row.example_id in answered]
    new = [answered[row.example_id] for row in old]
    by_judge, by_people = (compare_on_target(metric, old, new, of, max_errors) for of in ({}, labels))
    if by_judge is None or by_people is None:
        return None
    pairs = [(row, before) for row, before in zip(new, old, strict=True) if row.status != "error"]
    changed = [row for row, before in pairs if row.text != before.text]
    reference = comparison.estimate(metric, then)
    n_missing = labels_missing(metric.name, labels, then)
    own = correct_estimate(metric, reference, then, labels)
    return JudgedChange(
        metric=metric.name,
        n=len(new),
        n_changed=len(changed),
        n_unlabelled=sum(answer_digest(metric.name, row) not in labels for row in changed),
        delta=by_judge.delta,
        score=reference.score,
        n_missing=n_missing,
        corrected=(by_people.delta, by_people.low, by_people.high) if by_people.estimator == "ppi" else None,
        corrected_score=None if n_missing else own[:3],
    )
