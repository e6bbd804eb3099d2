"""All nights so far → what the last one says: a verdict and a sentence for the harness and each candidate.

Invariant: pure. A night in which the harness drifted is no evidence on a candidate, and neither is an
answer of the same weights, prompting and environment to an item that they had answered before.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, timedelta
from statistics import fmean

from harness import formatting, gating
from harness.nightly import alarm
from harness.nightly.alarm import Evidence, Tally, Verdict
from harness.nightly.state import Alarm, BaseNight, Night, State, Watched, open_alarms, since_ack
from harness.spec import NightlyPolicy

HARNESS = "harness"
_DRIFT = (HARNESS, "harness-drift")
EXIT: dict[Verdict, int] = {"ok": 0, "suspect": 4, "harness-drift": 4, "regression": 3, "error": 1}


@dataclass(frozen=True, slots=True)
class Line:
    """What is said of one candidate; `anchors` is the mean change of the items asked every night."""

    name: str
    verdict: Verdict
    sentence: str
    tests: tuple[str, ...] = ()
    series: dict[str, Evidence] = field(default_factory=dict)
    anchors: dict[str, float] = field(default_factory=dict)
    lost: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class NightReport:
    """One night as it is told: its worst verdict, every candidate, alarms, and what is left of the pool."""

    experiment: str
    night: str
    verdict: Verdict
    sentence: str
    harness: str
    lines: tuple[Line, ...]
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


def report_of(experiment: str, policy: NightlyPolicy, nights: Sequence[Night], state: State) -> NightReport:
    """Say what the last of some finished nights shows; alarms that it raises are not in the state yet."""
    last = nights[-1]
    drifts = _drifts(nights, state)
    sound = [n for n in nights if n.night not in drifts]
    harness = drifts.get(last.night, "") if last in since_ack(state, *_DRIFT, nights) else ""
    lines = tuple(_line(policy, one, sound, state, harness) for one in last.candidates)
    verdict = alarm.worst([line.verdict for line in lines])
    raised = [Alarm(line.name, "regression", last.night, line.sentence) for line in lines if _shows(line)]
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
        missed=tuple(missed(nights)),
        pool=tuple(_pool(last)),
        commit=last.commit,
        environment=last.environment,
        precision=last.precision,
    )


def with_alarms(state: State, report: NightReport) -> State:
    """Keep the alarms that a report raises."""
    return replace(state, alarms=(*state.alarms, *report.new))


def missed(nights: Sequence[Night], today: str = "") -> list[str]:
    """List the dates without a finished night, between the first and the last, and up to before `today`."""
    done = [date.fromisoformat(n.night) for n in nights]
    if not done:
        return []
    end = date.fromisoformat(today) if today else done[-1]
    days = (done[0] + timedelta(days=i) for i in range((end - done[0]).days))
    return [day.isoformat() for day in days if day not in done]


def _shows(line: Line) -> bool:
    return line.verdict == "regression"


def _drifts(nights: Sequence[Night], state: State) -> dict[str, str]:
    """Map the nights in which the harness had moved to how that shows; evidence begins anew after an ack."""
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
            if said := _moved(found, alarm.drift_e(moved, rate), rate):
                out[night.night] = said
    return out


def _moved(base: BaseNight, e_value: float, rate: float) -> str:
    """Say what moved of the base, the surest sign first; empty where nothing did."""
    for items, what in (
        (base.reworded, "prompts of the base are other tokens than in the reference"),
        (base.differing, "anchors of the base came back otherwise than before in the same environment"),
    ):
        if items:
            return f"{formatting.count(len(items))} {what} ({', '.join(items[:3])} …)"
    if e_value < alarm.DRIFT_E:
        return ""
    allowed = f"the A/A rate of {formatting.percent(rate)} % allows"
    return f"the base's scores move more often than {allowed} (evidence {_strength(e_value)})"


def _line(policy: NightlyPolicy, one: Watched, sound: Sequence[Night], state: State, harness: str) -> Line:
    if one.error:
        return Line(one.name, "error", f"{one.name}: failed: {one.error}", one.tests)
    kept = since_ack(state, one.name, "regression", sound)
    series = {key: _evidence(policy, one, key, kept) for key in one.series}
    anchors = {key: fmean(s.anchors.values()) for key, s in one.series.items() if s.anchors}
    lost = tuple(item for s in one.series.values() for item in s.lost)
    if harness:
        said = f"{one.name}: harness-drift: {harness}; nothing is said of {one.name}"
        return Line(one.name, "harness-drift", said, one.tests, series, anchors, lost)
    verdict = alarm.worst([found.verdict for found in series.values()])
    said = f"{one.name}: {verdict}: {'; '.join(_said(key, found) for key, found in series.items())}"
    return Line(one.name, verdict, said, one.tests, series, anchors, lost)


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
        tallies.append(alarm.tally(list(new.values())))
    return alarm.judge(tallies, policy.alpha, len(one.series))


def _said(key: str, e: Evidence) -> str:
    if not e.n:
        return f"{key}: nothing new was asked"
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


def _sentence(experiment: str, last: Night, verdict: Verdict, lines: Sequence[Line], harness: str) -> str:
    if verdict == "harness-drift":
        return f"{experiment}, night of {last.night}: harness-drift: {harness}"
    named = [line.name for line in lines if line.verdict == verdict]
    who = f" ({', '.join(named)})" if verdict != "ok" else f", {formatting.count(len(lines))} watched"
    return f"{experiment}, night of {last.night}: {verdict}{who}"


def _pool(night: Night) -> Iterable[str]:
    for key, left in night.left.items():
        taken = formatting.count(night.taken[key])
        if left:
            yield f"{key}: {taken} clusters asked, {formatting.count(left)} never yet"
        else:
            yield (
                f"{key}: the pool is used up ({taken} clusters asked): weights that do not change answer "
                "nothing new from here on; add items"
            )
