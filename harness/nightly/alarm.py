"""Sequential test of the nights so far: ok, suspect or regression, harness drift, and the night's report.

Invariant: pure. However many nights are evaluated, a series whose mean change is 0 is called a regression
with a chance of at most its alpha; only clusters with new evidence count. A night in which the
harness drifted is no evidence on a candidate.
Source: the sign e-process and the CUSUM of `stats`; the e-detector of Shin, Ramdas & Rinaldo 2022.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, timedelta
from statistics import fmean
from typing import Literal, NamedTuple

import numpy as np

from harness import formatting, gating, stats
from harness.nightly.state import Alarm, BaseNight, Night, State, Watched, nights_since_ack, open_alarms
from harness.spec import NightlyPolicy

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
    """Evidence of the nights of one series.

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
    e_values = [
        (stats.sign_e_value(int(g), int(lost)) if lost > g else 0.0)
        for g, lost in zip(gains, losses, strict=True)
    ]
    seen, n = [t for t in nights if t.n], sum(t.n for t in nights)
    chart = _chart(seen)
    e_value = e_values[-1] if e_values else 1.0
    delta = sum(t.total for t in nights) / n if n else None
    low, high = _interval(nights, n, alpha / n_series)
    verdict: Verdict = "ok"
    if any(e >= needed for e in e_values):
        verdict = "regression"
    elif e_value >= min(SUSPECT_E, needed) or chart > LIMIT_SD:
        verdict = "suspect"
    more = _more_nights(nights, needed) if verdict == "suspect" else None
    g, lost = (int(gains[-1]), int(losses[-1])) if e_values else (0, 0)
    return Evidence(verdict, len(seen), n, g, lost, delta, low, high, e_value or 1.0, needed, chart, more)


def drift_e(flips: Sequence[tuple[int, int]], rate: float) -> float:
    """Return the evidence that the base's scores move more often than the A/A rate, after all nights.

    max(1, M) times the likelihood ratio of three times the rate (at least five points more): restarted
    whenever it falls below 1, so a change is found soon however late it comes.
    """
    other = min(max(3 * rate, rate + 0.05), 0.99)
    m = 1.0
    for k, n in flips:
        log_ratio = k * np.log(other / rate) + (n - k) * np.log((1 - other) / (1 - rate))
        m = max(1.0, m) * float(np.exp(min(log_ratio, 500.0)))
    return m


def worst_verdict(verdicts: Sequence[Verdict]) -> Verdict:
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


def _interval(nights: Sequence[Tally], n: int, alpha: float) -> tuple[float | None, float | None]:
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


HARNESS = "harness"
_DRIFT = (HARNESS, "harness-drift")
EXIT: dict[Verdict, int] = {"ok": 0, "suspect": 4, "harness-drift": 4, "regression": 3, "error": 1}


@dataclass(frozen=True, slots=True)
class CandidateVerdict:
    """Verdict on one candidate; `anchors` is the mean change of the items evaluated every night."""

    name: str
    verdict: Verdict
    sentence: str
    tests: tuple[str, ...] = ()
    series: dict[str, Evidence] = field(default_factory=dict)
    anchors: dict[str, float] = field(default_factory=dict)
    lost: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class NightReport:
    """Report of one night: its worst verdict, every candidate, alarms, and what is left of the pool."""

    experiment: str
    night: str
    verdict: Verdict
    sentence: str
    harness: str
    lines: tuple[CandidateVerdict, ...]
    new: tuple[Alarm, ...]
    open: tuple[Alarm, ...]
    missed: tuple[str, ...]
    pool: tuple[str, ...]
    commit: str
    environment: str
    precision: str

    @property
    def exit_code(self) -> int:
        """0 ok, 3 regression, 4 suspect or harness-drift, 1 where a candidate failed and nothing is worse."""
        return EXIT[self.verdict]


def build_report(
    experiment: str, policy: NightlyPolicy, nights: Sequence[Night], state: State
) -> NightReport:
    """Say what the last of some finished nights shows; alarms that it raises are not in the state yet."""
    last = nights[-1]
    drifts = _drifts(nights, state)
    sound = [n for n in nights if n.night not in drifts]
    harness = drifts.get(last.night, "") if last in nights_since_ack(state, *_DRIFT, nights) else ""
    lines = tuple(_judge_candidate(policy, one, sound, state, harness) for one in last.candidates)
    verdict = worst_verdict([line.verdict for line in lines])
    raised = [
        Alarm(line.name, "regression", last.night, line.sentence)
        for line in lines
        if line.verdict == "regression"
    ]
    if harness:
        raised.append(Alarm(*_DRIFT, last.night, harness))
    known = open_alarms(state)
    told = {(a.about, a.verdict) for a in known}
    new = tuple(a for a in raised if (a.about, a.verdict) not in told)
    return NightReport(
        experiment=experiment,
        night=last.night,
        verdict=verdict,
        sentence=_sentence(experiment, last, verdict, lines, harness),
        harness=harness or "the base answers as in the reference",
        lines=lines,
        new=new,
        open=tuple(known),
        missed=tuple(missed_nights(nights)),
        pool=tuple(_pool(last)),
        commit=last.commit,
        environment=last.environment,
        precision=last.precision,
    )


def add_alarms(state: State, report: NightReport) -> State:
    """Keep the alarms that a report raises."""
    return replace(state, alarms=(*state.alarms, *report.new))


def missed_nights(nights: Sequence[Night], today: str = "") -> list[str]:
    """List the dates without a finished night, between the first and the last, and up to before `today`."""
    done = [date.fromisoformat(n.night) for n in nights]
    if not done:
        return []
    end = date.fromisoformat(today) if today else done[-1]
    days = (done[0] + timedelta(days=i) for i in range((end - done[0]).days))
    return [day.isoformat() for day in days if day not in done]


def _drifts(nights: Sequence[Night], state: State) -> dict[str, str]:
    """Map the nights in which the harness had moved to how that shows; evidence starts again after an ack."""
    out: dict[str, str] = {}
    acks = [a.acknowledged for a in state.alarms if (a.about, a.verdict) == _DRIFT and a.acknowledged]
    seen: set[tuple[str, str, str]] = set()
    flips: dict[tuple[str, int], list[tuple[int, int]]] = {}
    for night in nights:
        n_acks = sum(ack < night.night for ack in acks)
        rate = gating.aa_rate(night.precision)
        for base, found in night.bases.items():
            fresh = {i: moved for i, moved in found.flips.items() if (base, night.environment, i) not in seen}
            seen |= {(base, night.environment, item) for item in fresh}
            moved = flips.setdefault((base, n_acks), [])
            moved.append((sum(fresh.values()), len(fresh)))
            if said := _describe_drift(found, drift_e(moved, rate), rate):
                out[night.night] = said
    return out


def _describe_drift(base: BaseNight, e_value: float, rate: float) -> str:
    """Say what moved of the base, the surest sign first; empty where nothing did."""
    for items, what in (
        (base.reworded, "prompts of the base are other tokens than in the reference"),
        (base.differing, "anchors of the base came back otherwise than before in the same environment"),
    ):
        if items:
            return f"{formatting.count(len(items))} {what} ({', '.join(items[:3])} …)"
    if e_value < DRIFT_E:
        return ""
    allowed = f"the A/A rate of {formatting.percent(rate)} % allows"
    return f"the base's scores move more often than {allowed} (evidence {_strength(e_value)})"


def _judge_candidate(
    policy: NightlyPolicy, one: Watched, sound: Sequence[Night], state: State, harness: str
) -> CandidateVerdict:
    if one.error:
        return CandidateVerdict(one.name, "error", f"{one.name}: failed: {one.error}", one.tests)
    kept = nights_since_ack(state, one.name, "regression", sound)
    series = {key: _evidence(policy, one, key, kept) for key in one.series}
    anchors = {key: fmean(s.anchors.values()) for key, s in one.series.items() if s.anchors}
    lost = tuple(item for s in one.series.values() for item in s.lost)
    if harness:
        said = f"{one.name}: harness-drift: {harness}; nothing is said of {one.name}"
        return CandidateVerdict(one.name, "harness-drift", said, one.tests, series, anchors, lost)
    verdict = worst_verdict([found.verdict for found in series.values()])
    said = (
        f"{one.name}: {verdict}: {'; '.join(_series_sentence(key, found) for key, found in series.items())}"
    )
    return CandidateVerdict(one.name, verdict, said, one.tests, series, anchors, lost)


def _evidence(policy: NightlyPolicy, one: Watched, key: str, nights: Iterable[Night]) -> Evidence:
    seen: set[tuple[str, str]] = set()
    tallies: list[Tally] = []
    for night in nights:
        found = next((w for w in night.candidates if w.name == one.name and not w.error), None)
        if found is None or found.reference != one.reference or key not in found.series:
            continue
        changes = found.series[key].changes
        new = {c: d for c, d in changes.items() if (found.tested, c) not in seen}
        seen |= {(found.tested, c) for c in new}
        tallies.append(tally(list(new.values())))
    return judge(tallies, policy.alpha, len(one.series))


def _series_sentence(key: str, e: Evidence) -> str:
    if not e.n:
        return f"{key}: no new items were evaluated"
    change = formatting.points(e.delta, e.low, e.high)
    over = f"{formatting.count(e.n)} clusters in {formatting.counted(e.n_nights, 'night')}"
    flips = f"{formatting.count(e.gains)} better, {formatting.count(e.losses)} worse"
    evidence = f"evidence {_strength(e.e_value)} of {_strength(e.needed)}"
    base = f"{key} {change} pp against the reference over {over} ({flips}, {evidence})"
    if e.verdict != "suspect":
        return base
    nights = formatting.counted(e.more_nights, "night") if e.more_nights else ""
    settle = f"{nights} more like these would settle it" if nights else "watch it"
    return f"{base}: {settle}, or harness compare and harness gate on all items"


def _strength(e_value: float) -> str:
    """Print evidence; beyond a million it is no better known."""
    if e_value >= 1e6:
        return f"over {formatting.count(1e6)}"
    return formatting.count(e_value) if e_value >= 10 else f"{e_value:.1f}"


def _sentence(
    experiment: str, last: Night, verdict: Verdict, lines: Sequence[CandidateVerdict], harness: str
) -> str:
    if verdict == "harness-drift":
        return f"{experiment}, night of {last.night}: harness-drift: {harness}"
    named = [line.name for line in lines if line.verdict == verdict]
    who = f" ({', '.join(named)})" if verdict != "ok" else f", {formatting.count(len(lines))} watched"
    return f"{experiment}, night of {last.night}: {verdict}{who}"


def _pool(night: Night) -> Iterable[str]:
    for key, left in night.left.items():
        taken = formatting.count(night.taken[key])
        if left:
            yield f"{key}: {taken} clusters evaluated, {formatting.count(left)} never yet"
        else:
            yield (
                f"{key}: the pool is used up ({taken} clusters evaluated): weights that do not change answer "
                "nothing new from here on; add items"
            )
