"""Nights so far → one verdict: ok, suspect or regression; and whether the harness has drifted.

Invariant: pure. However many nights are looked at, a series whose mean change is 0 is called a
regression with a chance of at most its alpha; only clusters that tell something new count.
Source: the sign e-process and the CUSUM of `stats`; the e-detector of Shin, Ramdas & Rinaldo 2022.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from harness import stats

Verdict = Literal["ok", "suspect", "regression", "harness-drift", "error"]
ORDER: tuple[Verdict, ...] = ("ok", "suspect", "error", "harness-drift", "regression")

SUSPECT_E = 10.0  # evidence that is worth a word, but no alarm
SLACK_SD, LIMIT_SD = 0.5, 5.0  # of the chart of nightly means, in their standard deviations
DRIFT_E = 1000.0  # on average at most one false alarm in so many nights
_PRIOR_SQUARE, _PRIOR_N = 0.1, 50.0  # a tenth of the clusters differ, before anything is seen
_MOST_NIGHTS = 365


class Tally(NamedTuple):
    """One night of a series: clusters that got better, worse, and all that were new that night.

    `total` is the sum of the changes of the n clusters, `square` that of their squares.
    """

    gains: int
    losses: int
    n: int
    total: float
    square: float


class Evidence(NamedTuple):
    """What the nights of one series show.

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


def tally(changes: Sequence[float]) -> Tally:
    """Count one night's changes, each the mean of a cluster."""
    d = np.asarray(changes, float)
    gains, losses = int((d > stats.TIE).sum()), int((d < -stats.TIE).sum())
    return Tally(gains, losses, len(d), float(d.sum()), float((d**2).sum()))


def judge(nights: Sequence[Tally], alpha: float, n_series: int = 1) -> Evidence:
    """Judge the nights of one of a candidate's series, which share its alpha; changes lie in [−2, 2]."""
    needed = n_series / alpha
    gains, losses = (np.cumsum([getattr(t, name) for t in nights]) for name in ("gains", "losses"))
    looks = [
        (stats.sign_e_value(int(g), int(lost)) if lost > g else 0.0)
        for g, lost in zip(gains, losses, strict=True)
    ]
    seen, n = [t for t in nights if t.n], sum(t.n for t in nights)
    chart = _chart(seen)
    e_value = looks[-1] if looks else 1.0
    delta = sum(t.total for t in nights) / n if n else None
    low, high = _ends(nights, n, alpha / n_series)
    verdict: Verdict = "ok"
    if any(e >= needed for e in looks):
        verdict = "regression"
    elif e_value >= min(SUSPECT_E, needed) or chart > LIMIT_SD:
        verdict = "suspect"
    more = _more_nights(nights, needed) if verdict == "suspect" else None
    g, lost = (int(gains[-1]), int(losses[-1])) if looks else (0, 0)
    return Evidence(verdict, len(seen), n, g, lost, delta, low, high, e_value or 1.0, needed, chart, more)


def drift_e(flips: Sequence[tuple[int, int]], rate: float) -> float:
    """Return the evidence that the base's scores move more often than the A/A rate, after all nights.

    max(1, M) times the likelihood ratio of three times the rate (at least five points more): begun
    anew whenever it falls below 1, so a change is found soon however late it comes.
    """
    other = min(max(3 * rate, rate + 0.05), 0.99)
    m = 1.0
    for k, n in flips:
        log_ratio = k * np.log(other / rate) + (n - k) * np.log((1 - other) / (1 - rate))
        m = max(1.0, m) * float(np.exp(min(log_ratio, 500.0)))
    return m


def worst(verdicts: Sequence[Verdict]) -> Verdict:
    """Join verdicts; `ok` where there are none."""
    return max(verdicts, key=ORDER.index, default="ok")


def _chart(nights: Sequence[Tally]) -> float:
    """Return the lower sum of the CUSUM of nightly means, in standard deviations, after the last night."""
    if not nights:
        return 0.0
    square = (sum(t.square for t in nights) + _PRIOR_SQUARE * _PRIOR_N) / (
        sum(t.n for t in nights) + _PRIOR_N
    )
    z = [t.total / t.n / np.sqrt(square / t.n) for t in nights]
    return float(stats.cusum(z, 0.0, SLACK_SD, LIMIT_SD).low[-1])


def _ends(nights: Sequence[Tally], n: int, alpha: float) -> tuple[float | None, float | None]:
    """Return a normal mixture's ends of the mean change, with the variance that was seen.

    Asymptotic: honest from some hundred clusters on, and for looking at, not for the verdict.
    """
    if not n:
        return None, None
    square = sum(t.square for t in nights) + _PRIOR_SQUARE
    mean = sum(t.total for t in nights) / n
    half = float(stats.normal_mixture_radius(square, stats.normal_mixture_rho(25.0, alpha), alpha)) / n
    return max(mean - half, -2.0), min(mean + half, 2.0)


def _more_nights(nights: Sequence[Tally], needed: float) -> int | None:
    """Say after how many nights like those so far the evidence would do; None where not within a year."""
    gains, losses, t = sum(x.gains for x in nights), sum(x.losses for x in nights), len(nights)
    for more in range(1, _MOST_NIGHTS + 1):
        grown = 1 + more / t
        if losses > gains and stats.sign_e_value(round(gains * grown), round(losses * grown)) >= needed:
            return more
    return None
