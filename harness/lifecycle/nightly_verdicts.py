"""Verdicts on the nights of one series so far: by cluster, e-processes over passes and a chart of means.

However many nights are evaluated, a series that loses nothing is called a regression with a probability of at
most its alpha: a cluster counts once per pass, by its first answer. Source: the betting mixture and the CUSUM
of `stats`; a union bound over passes.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from math import exp, log, pi
from typing import Literal, NamedTuple

import numpy as np

from harness import stats
from harness.stats import Array

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
