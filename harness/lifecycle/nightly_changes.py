"""Changes of a night: of the answers of a candidate and of the base, averaged over each cluster.

A change is (candidate − reference) minus that of the control arm. Metrics without bounds are not judged.
"""

from collections.abc import Iterable, Mapping, Sequence
from math import isfinite
from operator import attrgetter
from statistics import fmean
from typing import NamedTuple

import numpy as np

from harness import stats
from harness.analysis import comparison
from harness.analysis.control_arm_drift import aa_rate
from harness.analysis.people_labels import Labels, answer_digest
from harness.lifecycle.nightly_state import BaseNight, JudgedChange, SeriesNight
from harness.lifecycle.nightly_watchlist import Cluster, Item
from harness.metrics import Metric, is_flipped
from harness.records import SampleResult

_MOVED_P = 0.01

RowsByItem = dict[Item, SampleResult]


class NightArms(NamedTuple):
    """Rows of candidate and base, tonight and in (makings of) the reference; None without a control arm."""

    now: RowsByItem
    then: Sequence[RowsByItem]
    base_now: RowsByItem | None
    base_then: RowsByItem | None


def compare_series(
    arms: NightArms,
    anchors: Sequence[Cluster],
    fresh: Sequence[Cluster],
    metrics: Mapping[str, Metric],
    max_errors: float = 0.01,
) -> SeriesNight:
    """Compare a series: Δ = (now − then) − (base now − base then), averaged over each cluster.

    Changes are keyed by the first item of a cluster, as shares of the metric's range. The result is not valid
    if a larger share of answers failed than `max_errors`; one failure is allowed unless `max_errors` is 0.
    """
    changes, anchor_changes = dict[str, float](), dict[str, float]()
    lost, left_out, unbounded = list[str](), 0, set[str]()
    for clusters, by_cluster in ((fresh, changes), (anchors, anchor_changes)):
        for cluster in clusters:
            of_items = {item: _change(arms, item, metrics[item[0]]) for item in cluster}
            deltas = {item: change for item, change in of_items.items() if change is not None}
            left_out += len(cluster) - len(deltas)
            lost += (name(item) for item, change in deltas.items() if change < -stats.TIE)
            bounded = [item for item in cluster if isfinite(_range(metrics, item))]
            unbounded |= {item[0] for item in cluster} - {item[0] for item in bounded}
            if shares := [deltas[item] / _range(metrics, item) for item in bounded if item in deltas]:
                by_cluster[name(bounded[0])] = round(fmean(shares), 9)
    evaluated = [item for cluster in (*fresh, *anchors) for item in cluster if item in arms.now]
    errors = 0
    for item in evaluated:
        metric, now, then = metrics[item[0]], arms.now.get(item), [rows.get(item) for rows in arms.then]
        base_now, base_then = ((rows or {}).get(item) for rows in (arms.base_now, arms.base_then))
        is_incomplete = any(row and row.status == "incomplete" for row in (now, base_now))
        has_failed = _is_failed(now, then, metric) or _is_failed(base_now, [base_then], metric)
        errors += is_incomplete or has_failed
    return SeriesNight(
        changes,
        anchor_changes,
        tuple(lost),
        left_out,
        adjusted=arms.base_now is not None and arms.base_then is not None,
        unbounded=tuple(sorted(unbounded)),
        errors=errors,
        n_asked=len(evaluated),
        # One failure of 80 is not a rate, and scored worst it can only raise an alarm, never hide a loss.
        valid=errors <= max(max_errors * len(evaluated), float(max_errors > 0)),
    )


def compare_base(
    now: RowsByItem,
    then: RowsByItem,
    fresh: Iterable[Cluster],
    last: RowsByItem,
    metrics: Mapping[str, Metric],
) -> BaseNight:
    """Compare the base with the reference, and its anchors with the last night."""
    rotating = {item for cluster in fresh for item in cluster}
    shared = [item for item in now if item in then and is_same_item(now[item], then[item])]
    flips = {name(i): is_flipped(then[i], now[i], metrics[i[0]]) for i in shared if i in rotating}
    answer = attrgetter("prompt_digest", "text", "status")
    differing = [name(i) for i, row in last.items() if i in now and answer(now[i]) != answer(row)]
    reworded = [name(i) for i in shared if now[i].prompt_digest != then[i].prompt_digest]
    return BaseNight(flips, tuple(reworded), tuple(differing))


def has_moved(now: RowsByItem, then: RowsByItem, metrics: Mapping[str, Metric]) -> bool:
    """Tell whether more answers changed than rounding explains, by the binomial test at bf16's A/A rate."""
    shared = [item for item in now if item in then and is_same_item(now[item], then[item])]
    moved = sum(is_flipped(then[item], now[item], metrics[item[0]]) for item in shared)
    return bool(shared) and stats.binomial_p(moved, len(shared), aa_rate("bf16")) < _MOVED_P


def name(item: Item) -> str:
    """Return an item's name: task/item."""
    return f"{item[0]}/{item[1]}"


def is_same_item(now: SampleResult, then: SampleResult) -> bool:
    """Tell whether two rows have the same question and references."""
    return (now.prompt, now.references) == (then.prompt, then.references)


def score(row: SampleResult, metric: Metric) -> float | None:
    """Return an answer's score, oriented so that larger is better; None if it could not be scored."""
    parts = row.parts.get(metric.name)
    if parts is None:
        return None
    value = float(metric.aggregate(np.array([parts]), np.ones(1)))
    return metric.unit.sign * value if np.isfinite(value) else None


def _range(metrics: Mapping[str, Metric], item: Item) -> float:
    low, high = metrics[item[0]].bounds
    return high - low


def _change(arms: NightArms, item: Item, metric: Metric) -> float | None:
    """Return an item's change minus the base's; None if an answer is missing or of another item."""
    now, then = arms.now.get(item), [rows.get(item) for rows in arms.then]
    worst = min(metric.unit.sign * bound for bound in metric.bounds)
    has_worst = isfinite(worst) and _is_failed(now, then, metric)
    change = _difference(now, then, metric, worst if has_worst else None)
    if change is None or arms.base_now is None or arms.base_then is None:
        return change
    base = _difference(arms.base_now.get(item), [arms.base_then.get(item)], metric)
    return None if base is None else change - base


def _difference(
    now: SampleResult | None, then: Sequence[SampleResult | None], metric: Metric, failed: float | None = None
) -> float | None:
    """Return an answer's score minus the mean of the earlier ones; `failed` is that of failed answers."""
    rows = [row for row in then if row is not None]
    if now is None or len(rows) < len(then) or any(row.references != now.references for row in rows):
        return None
    new, old = failed if failed is not None else score(now, metric), [score(row, metric) for row in rows]
    scores = [value for value in old if value is not None]
    return None if new is None or len(scores) < len(old) else new - fmean(scores)


def _is_failed(now: SampleResult | None, then: Sequence[SampleResult | None], metric: Metric) -> bool:
    """Tell whether an answer failed in the gate's sense: an error, or no score where there was one."""
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
    """Compare tonight's graded answers with the whole reference; None if none was graded in both."""
    answered = {row.example_id: row for row in now}
    old = [row for row in then if row.example_id in answered]
    new = [answered[row.example_id] for row in old]
    by_judge, by_people = (
        comparison.compare_on_target(metric, old, new, item_labels, max_errors)
        for item_labels in ({}, labels)
    )
    if by_judge is None or by_people is None:
        return None
    pairs = [(row, before) for row, before in zip(new, old, strict=True) if row.status != "error"]
    changed = [row for row, before in pairs if row.text != before.text]
    return JudgedChange(
        metric=metric.name,
        n_changed=len(changed),
        n_unlabelled=sum(answer_digest(metric.name, row) not in labels for row in changed),
        delta=by_judge.delta,
        corrected=(by_people.delta, by_people.low, by_people.high) if by_people.estimator == "ppi" else None,
    )
