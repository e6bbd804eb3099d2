"""Changes of a night, and the evidence over all nights of a series: by cluster, e-processes and a chart.

A change is (candidate − reference) minus that of the control arm. However many nights are evaluated, a series
that loses nothing is called a regression with a probability of at most its alpha: a cluster counts once per
pass, by its first answer. Metrics without bounds are not judged. Source: the
betting mixture and the CUSUM of `stats`; a union bound over passes.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from math import exp, isfinite, log, pi
from operator import attrgetter
from statistics import fmean
from typing import Literal, NamedTuple

import numpy as np

from harness import stats
from harness.analysis import comparison
from harness.analysis.control_arm_drift import aa_rate
from harness.analysis.people_labels import Labels, answer_digest
from harness.lifecycle.nightly_state import BaseNight, JudgedChange, SeriesNight
from harness.lifecycle.nightly_watchlist import Cluster, Item
from harness.metrics import Metric, is_flipped
from harness.records import SampleResult
from harness.stats import Array

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


Verdict = Literal["ok", "suspect", "error", "harness-drift", "regression"]

SUSPECT_SHARE = 0.25  # share of the needed evidence that is reported as suspect
SLACK_SD, LIMIT_SD = 0.5, 5.0  # parameters of the chart of nightly means, in standard deviations
_FIRST_PASS = 0.8  # share of alpha
_PRIOR_SQUARE, _PRIOR_N = 0.1, 50.0  # prior: a tenth of the clusters differ
_MOST_NIGHTS = 365
_MOST_LOG = 700.0
_STEP = 1e-4  # precision of an interval's ends: a hundredth of a point


class NightChanges(NamedTuple):
    """Changes of one night by cluster, as shares of the range, and digests of what answered."""

    changes: Mapping[str, float]
    tested: str
    making: str = ""
    largest: float = 2.0


class Seeds(NamedTuple):
    """Standard deviation between makings of a recipe, and the number of makings in the reference."""

    sd: float = 0.0
    n_references: int = 1


NO_SEEDS = Seeds()


class Evidence(NamedTuple):
    """Evidence of the nights of one series in one pass through its items.

    `delta` is the mean change with the ends of a confidence sequence. `more_nights` at the current rate would
    settle a suspicion; None without one.
    """

    verdict: Verdict
    n_nights: int
    n: int
    gains: int
    losses: int
    delta: float | None
    low: float | None
    high: float | None
    e_value: float
    needed: float
    more_nights: int | None = None
    n_pass: int = 1


class _MakingGroup(NamedTuple):
    changes: Array
    making: str
    largest: float


class _Pass(NamedTuple):
    """One pass through the items: log-wealth (t, b) after each night, and the wealth needed for an alarm."""

    number: int
    groups: list[_MakingGroup]
    log_wealth: Array
    needed: float

    @property
    def log_e(self) -> Array:
        return stats.log_mean_wealth(self.log_wealth)


def judge(
    nights: Sequence[NightChanges], alpha: float, n_series: int = 1, seeds: Seeds = NO_SEEDS
) -> Evidence:
    """Judge the nights of one series of a candidate, with its share of alpha.

    Tests that the mean change is at least 0; if weights are trained again, beyond the variation between
    seeds.
    """
    # Changes belong to passes by how often their cluster was counted; repeated answers are skipped.
    digests_of, groups_of = defaultdict[str, set[str]](set), defaultdict[int, list[_MakingGroup]](list)
    for night in nights:
        new = defaultdict[int, list[float]](list)
        for cluster, change in night.changes.items():
            if night.tested not in (digests := digests_of[cluster]):
                digests.add(night.tested)
                new[len(digests)].append(change)
        for number, changes in new.items():
            groups_of[number].append(_MakingGroup(np.array(changes), night.making, night.largest))
    passes = [
        _Pass(k, groups_of[k], _log_wealth(groups_of[k], seeds), n_series / pass_alpha(k, alpha))
        for k in sorted(groups_of)
    ]
    if not passes:
        return Evidence("ok", 0, 0, 0, 0, None, None, None, 1.0, n_series / pass_alpha(1, alpha))
    crossed = [p for p in passes if p.log_e.max() >= log(p.needed)]
    likely = [p for p in passes[-2:] if p.log_e[-1] >= log(p.needed * SUSPECT_SHARE)]
    nearest = sorted(likely, key=lambda p: log(p.needed) - float(p.log_e[-1]))  # closest to an alarm
    pass_ = [*crossed, *nearest, passes[-1]][0]
    is_suspect = bool(likely) or _chart(nights, seeds) > LIMIT_SD
    verdict: Verdict = "regression" if crossed else "suspect" if is_suspect else "ok"
    d = np.concatenate([g.changes for g in pass_.groups])
    gains, losses = int((d > stats.TIE).sum()), int((d < -stats.TIE).sum())
    e_value = exp(min(float(pass_.log_e[-1]), _MOST_LOG))
    low, high = -_upper_end(pass_, seeds, -1), _upper_end(pass_, seeds, 1)
    more = None
    if verdict == "suspect":  # number of similar nights after which the evidence would suffice
        further = np.arange(1, _MOST_NIGHTS + 1)
        grown = pass_.log_wealth[-1] * (1 + further / len(pass_.groups))[:, None]  # (nights, bets)
        enough = stats.log_mean_wealth(grown) >= log(pass_.needed)
        more = int(further[enough.argmax()]) if enough.any() else None
    return Evidence(
        verdict, len(pass_.groups), len(d), gains, losses, float(d.mean()), low, high,
        e_value, pass_.needed, more, pass_.number,
    )  # fmt: skip


def pass_alpha(number: int, alpha: float) -> float:
    """Return the share of alpha for a pass through the items; all passes together use alpha."""
    if number == 1:
        return _FIRST_PASS * alpha
    return (1 - _FIRST_PASS) * alpha * 6 / (pi * (number - 1)) ** 2


def _log_wealth(groups: Sequence[_MakingGroup], seeds: Seeds, mean: float = 0.0, sign: int = 1) -> Array:
    """Return the log-wealth (t, b) of bets that the mean change is lower (sign −1: higher)."""
    changes = [sign * g.changes for g in groups]
    shared = stats.seed_effects(changes, [g.making for g in groups], seeds.sd, seeds.n_references, mean)
    return stats.betting_mixture(changes, [g.largest for g in groups], shared, mean)


def _upper_end(pass_: _Pass, seeds: Seeds, sign: int) -> float:
    """Return the smallest mean change that the bets refute, by inverting the alarm's test."""
    from scipy import optimize

    largest = max(g.largest for g in pass_.groups)

    def excess(mean: float) -> float:
        log_wealth = _log_wealth(pass_.groups, seeds, mean, sign)
        return float(stats.log_mean_wealth(log_wealth[-1])) - log(pass_.needed)

    if excess(largest) <= 0:
        return largest
    return float(optimize.brentq(excess, -largest, largest, xtol=_STEP))


def _chart(nights: Iterable[NightChanges], seeds: Seeds) -> float:
    # Later answers count here: each is charted against the mean of its cluster's earlier answers, so that
    # random luck of the reference is not charted again in each pass.
    before = defaultdict[str, set[str]](set)  # digests of what has answered the cluster
    total = defaultdict[str, float](float)  # sum of the cluster's changes
    groups, makings = [], []
    for night in nights:
        changes = []
        for cluster, change in night.changes.items():
            if night.tested not in (earlier := before[cluster]):
                changes.append(change - total[cluster] / (len(earlier) or 1))
                earlier.add(night.tested)
                total[cluster] += change
        if changes:
            groups.append(np.array(changes))
            makings.append(night.making)
    if not groups:
        return 0.0
    n = np.array([len(g) for g in groups])
    square = (sum(float((g**2).sum()) for g in groups) + _PRIOR_SQUARE * _PRIOR_N) / (n.sum() + _PRIOR_N)
    shared = stats.seed_effects(groups, makings, seeds.sd, seeds.n_references)
    means = np.array([g.mean() for g in groups])
    z = (means - shared.mean) / np.sqrt(square / n + shared.variance)
    return float(stats.cusum(z, 0.0, SLACK_SD, LIMIT_SD).low[-1])
