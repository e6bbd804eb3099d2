"""Evidence of one series of nights: an e-process for each pass through the items, an interval, and a chart.

Invariant: pure. However many nights are evaluated, a series that loses nothing against its reference is
called a regression with a chance of at most its alpha. A cluster counts once a pass, by its first answer,
and no increment is ever revised. What has no bounds is charted, and never a regression.
Source: the betting mixture and the CUSUM of `stats`; a union bound over passes.
"""

from collections.abc import Iterable, Mapping, Sequence
from math import exp, log, pi
from typing import Literal, NamedTuple

import numpy as np

from harness import stats
from harness.stats import Array

Verdict = Literal["ok", "suspect", "error", "harness-drift", "regression"]

SUSPECT_SHARE = 0.25  # of the evidence needed: worth a word, but no alarm
SLACK_SD, LIMIT_SD = 0.5, 5.0  # of the chart of nightly means, in their standard deviations
_FIRST_PASS = 0.8  # share of alpha
_PRIOR_SQUARE, _PRIOR_N = 0.1, 50.0  # a tenth of the clusters differ, before anything is seen
_MOST_NIGHTS = 365
_MOST_LOG = 700.0
_STEP = 1e-4  # a hundredth of a point, to which an interval's ends are found


class NightChanges(NamedTuple):
    """Changes of one night by cluster, in shares of the metric's range; none can be larger than `largest`.

    `unbounded` maps tasks without a range to their clusters' changes. `tested` digests what answered;
    `making` the weights, where they are others than the reference's.
    """

    changes: Mapping[str, float]
    tested: str
    making: str = ""
    largest: float = 2.0
    unbounded: Mapping[str, Mapping[str, float]] = {}


class Seeds(NamedTuple):
    """Standard deviation between makings of one recipe, and how many of them the reference is the mean of."""

    sd: float = 0.0
    n_references: int = 1


NO_SEEDS = Seeds()


class Evidence(NamedTuple):
    """Evidence of the nights of one series, in one pass through its items.

    `delta` is the mean change with a confidence sequence's ends, where there are any clusters.
    `more_nights` at the rate so far would settle a suspicion; None where nothing is suspected.
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
    chart_sd: float
    more_nights: int | None = None
    n_pass: int = 1


class _MakingGroup(NamedTuple):
    """Changes that one night adds to a pass, by one making, and the largest there could be."""

    changes: Array
    making: str
    largest: float


class _Pass(NamedTuple):
    """One pass through the items: the log-wealth (t, b) after each of its nights, and what an alarm needs."""

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
    """Judge the nights of one of a candidate's series, which share its alpha.

    Tests that the mean change is at least 0; where weights are trained again, but for what seeds explain.
    """
    passes = [
        _Pass(k, groups, _log_wealth(groups, seeds), n_series / pass_alpha(k, alpha))
        for k, groups in _sort_by_pass(nights).items()
    ]
    chart = max(_chart(nights, seeds), _find_unbounded_chart(nights))
    if not passes:
        verdict: Verdict = "suspect" if chart > LIMIT_SD else "ok"
        return Evidence(verdict, 0, 0, 0, 0, None, None, None, 1.0, n_series / pass_alpha(1, alpha), chart)
    crossed = [one for one in passes if one.log_e.max() >= log(one.needed)]
    likely = [one for one in passes[-2:] if one.log_e[-1] >= log(one.needed * SUSPECT_SHARE)]
    nearest = sorted(likely, key=lambda one: log(one.needed) - float(one.log_e[-1]))  # to an alarm
    shown = [*crossed, *nearest, passes[-1]][0]
    verdict = "regression" if crossed else "suspect" if likely or chart > LIMIT_SD else "ok"
    return _evidence(shown, verdict, seeds, chart)


def pass_alpha(number: int, alpha: float) -> float:
    """Return the share of alpha that a pass through the items may use: all passes together use all of it."""
    if number == 1:
        return _FIRST_PASS * alpha
    return (1 - _FIRST_PASS) * alpha * 6 / (pi * (number - 1)) ** 2


def _sort_by_pass(nights: Iterable[NightChanges]) -> dict[int, list[_MakingGroup]]:
    """Sort changes by how often their cluster was counted before; the same answers again tell nothing new."""
    seen: dict[str, set[str]] = {}
    passes: dict[int, list[_MakingGroup]] = {}
    for night in nights:
        new: dict[int, list[float]] = {}
        for cluster, change in night.changes.items():
            known = seen.get(cluster)
            if known is None:
                known = seen[cluster] = set()
            if night.tested not in known:
                known.add(night.tested)
                new.setdefault(len(known), []).append(change)
        for number, changes in new.items():
            group = _MakingGroup(np.array(changes), night.making, night.largest)
            passes.setdefault(number, []).append(group)
    return dict(sorted(passes.items()))


def _log_wealth(groups: Sequence[_MakingGroup], seeds: Seeds, mean: float = 0.0, sign: int = 1) -> Array:
    """Return the log-wealth (t, b) of bets that the mean change is lower; with sign −1 that it is higher."""
    changes = [sign * g.changes for g in groups]
    shared = stats.seed_effects(changes, [g.making for g in groups], seeds.sd, seeds.n_references, mean)
    return stats.betting_mixture(changes, [g.largest for g in groups], shared, mean)


def _evidence(shown: _Pass, verdict: Verdict, seeds: Seeds, chart: float) -> Evidence:
    d = np.concatenate([g.changes for g in shown.groups])
    gains, losses = int((d > stats.TIE).sum()), int((d < -stats.TIE).sum())
    e_value = exp(min(float(shown.log_e[-1]), _MOST_LOG))
    low, high = -_upper_end(shown, seeds, -1), _upper_end(shown, seeds, 1)
    more = None
    if verdict == "suspect":  # after how many nights like those so far would the evidence do?
        nights = np.arange(1, _MOST_NIGHTS + 1)
        grown = shown.log_wealth[-1] * (1 + nights / len(shown.groups))[:, None]  # (nights, bets)
        enough = stats.log_mean_wealth(grown) >= log(shown.needed)
        more = int(nights[enough.argmax()]) if enough.any() else None
    return Evidence(
        verdict, len(shown.groups), len(d), gains, losses, float(d.mean()), low, high,
        e_value, shown.needed, chart, more, shown.number,
    )  # fmt: skip


def _upper_end(shown: _Pass, seeds: Seeds, sign: int) -> float:
    """Return the smallest mean change that the bets refute: the alarm's test, turned into an interval."""
    from scipy import optimize

    most = max(g.largest for g in shown.groups)

    def excess(mean: float) -> float:
        log_wealth = _log_wealth(shown.groups, seeds, mean, sign)
        return float(stats.log_mean_wealth(log_wealth[-1])) - log(shown.needed)

    if excess(most) <= 0:
        return most
    return float(optimize.brentq(excess, -most, most, xtol=_STEP))


def _chart(nights: Iterable[NightChanges], seeds: Seeds) -> float:
    """Return the lower sum of the CUSUM of nightly means, in standard deviations, after the last night."""
    # Later answers count here: each is charted against the mean of its cluster's earlier ones, so that what
    # the reference had by luck is not charted again in each pass.
    before: dict[str, set[str]] = {}  # what answered the cluster so far
    total: dict[str, float] = {}  # of its changes by these
    groups, makings = [], []
    for night in nights:
        changes = []
        for cluster, change in night.changes.items():
            earlier = before.get(cluster)
            if earlier is None:
                earlier, total[cluster] = before.setdefault(cluster, set()), 0.0
            if night.tested not in earlier:
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
    return _lower_sum((means - shared.mean) / np.sqrt(square / n + shared.variance))


def _find_unbounded_chart(nights: Sequence[NightChanges]) -> float:
    """Return the highest chart of the tasks without bounds, each in its own standard deviations."""
    charts = [0.0]
    for task in dict.fromkeys(task for night in nights for task in night.unbounded):
        seen: set[tuple[str, str]] = set()
        groups = []
        for night in nights:
            changes = night.unbounded.get(task, {})
            new = {c: d for c, d in changes.items() if (night.tested, c) not in seen}
            seen |= {(night.tested, c) for c in new}
            groups += [np.array(list(new.values()))] if new else []
        square = float((np.concatenate(groups) ** 2).mean()) if groups else 0.0
        if square:
            charts.append(_lower_sum(np.array([g.mean() * np.sqrt(len(g) / square) for g in groups])))
    return max(charts)


def _lower_sum(z: Array) -> float:
    return float(stats.cusum(z, 0.0, SLACK_SD, LIMIT_SD).low[-1])
