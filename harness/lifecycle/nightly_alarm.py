"""Alarms and report of a night: verdicts on candidates, document, webhook message, issue.

Invariant: nights with harness drift or too many failed answers are not evidence on a candidate. An alarm is
sent once, and again the next night if sending failed. Source: the e-detector of Shin, Ramdas & Rinaldo 2022.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path
from statistics import fmean
from typing import Any
from urllib.error import URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import numpy as np

from harness import formatting, report
from harness.analysis.control_arm_drift import aa_rate
from harness.config import CommandLine
from harness.errors import UserError
from harness.lifecycle import nightly_state
from harness.lifecycle.nightly_state import Alarm, JudgedChange, Night, NightCandidate, State
from harness.lifecycle.nightly_verdicts import Evidence, NightChanges, Seeds, Verdict, judge
from harness.report import ResultDocument, Section
from harness.report.escape import clean
from harness.spec import NightlyPolicy

ORDER: tuple[Verdict, ...] = ("ok", "suspect", "error", "harness-drift", "regression")

DRIFT_E = 1000.0  # on average at most one false alarm in this many nights


def drift_e(flips: Sequence[tuple[int, int]], rate: float) -> float:
    """Return the evidence that the base's scores change more often than the A/A rate, after all nights.

    max(1, M) times the likelihood ratio for three times the rate (at least five points more), so late changes
    are found quickly, too.
    """
    drift_rate = min(max(3 * rate, rate + 0.05), 0.99)
    m = 1.0
    for k, n in flips:
        log_ratio = k * np.log(drift_rate / rate) + (n - k) * np.log((1 - drift_rate) / (1 - rate))
        m = max(1.0, m) * float(np.exp(min(log_ratio, 500.0)))
    return m


_HERE = CommandLine()  # commands for the project's folder, as on the dashboard
HARNESS = "harness"
HARNESS_DRIFT = (HARNESS, "harness-drift")
EXIT: dict[Verdict, int] = {"ok": 0, "suspect": 4, "harness-drift": 4, "regression": 3, "error": 1}


@dataclass(frozen=True, slots=True)
class CandidateVerdict:
    """Verdict on one candidate; `anchors` is the mean change of the items that every night evaluates."""

    name: str
    verdict: Verdict
    sentence: str
    tests: tuple[str, ...] = ()
    series: dict[str, Evidence] = field(default_factory=dict)
    anchors: dict[str, float] = field(default_factory=dict)
    lost: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class NightReport:
    """Report of one night: worst verdict, candidates, alarms, and what is left of the item pool."""

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
    production: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """0 ok, 3 regression, 4 suspect or harness-drift, 1 if a candidate failed and nothing is worse."""
        return EXIT[self.verdict]


def build_report(
    experiment: str, policy: NightlyPolicy, nights: Sequence[Night], state: State, typed: CommandLine = _HERE
) -> NightReport:
    """Report on the last of the finished nights; the alarms that it raises are not yet in the state."""
    last, drifts = nights[-1], _find_drifts(nights, state)
    sound_nights = [n for n in nights if n.night not in drifts]
    recent = nightly_state.nights_since_ack(state, *HARNESS_DRIFT, nights)
    harness = drifts.get(last.night, "") if last in recent else ""
    lines = [_judge_candidate(policy, c, sound_nights, state, harness, typed) for c in last.candidates]
    verdict: Verdict = max((line.verdict for line in lines), key=ORDER.index, default="ok")
    worse = [line for line in lines if line.verdict == "regression"]
    raised = [Alarm(line.name, "regression", last.night, line.sentence) for line in worse]
    if harness:
        raised.append(Alarm(*HARNESS_DRIFT, last.night, harness))
    open_alarms = nightly_state.open_alarms(state)
    open_keys = {(a.about, a.verdict) for a in open_alarms}
    new = tuple(a for a in raised if (a.about, a.verdict) not in open_keys)
    names = ", ".join(line.name for line in lines if line.verdict == verdict)
    detail = f" ({names})" if verdict != "ok" else f", {formatting.count(len(lines))} watched"
    detail = f": {harness}" if verdict == "harness-drift" else detail
    return NightReport(
        experiment=experiment,
        night=last.night,
        verdict=verdict,
        sentence=f"{experiment}, night of {last.night}: {verdict}{detail}",
        harness=harness or "the base answers as in the reference",
        lines=tuple(lines),
        new=new,
        open=tuple(open_alarms),
        missed=tuple(list_missed_nights(nights)),
        pool=tuple(_describe_pool(key, last.taken[key], n_left) for key, n_left in last.left.items()),
        commit=last.commit,
        environment=last.environment,
        precision=last.precision,
        production=last.production,
    )


def _find_drifts(nights: Sequence[Night], state: State) -> dict[str, str]:
    """Map the nights with drift of the harness to its strongest sign; evidence restarts once acknowledged."""
    drifts: dict[str, str] = {}
    acks = [a.acknowledged for a in state.alarms if (a.about, a.verdict) == HARNESS_DRIFT and a.acknowledged]
    counted: set[tuple[str, str, str]] = set()
    flips: dict[tuple[str, int], list[tuple[int, int]]] = {}
    for night in nights:
        n_acks = sum(ack < night.night for ack in acks)
        rate = night.aa_rate or aa_rate(night.precision)
        for base, control in night.bases.items():
            source = (base, night.environment)
            fresh = {i: flip for i, flip in control.flips.items() if (*source, i) not in counted}
            counted |= {(*source, item) for item in fresh}
            base_flips = flips.setdefault((base, n_acks), [])
            base_flips.append((sum(fresh.values()), len(fresh)))
            otherwise = "anchors of the base came back otherwise than before in the same environment"
            signs = [
                f"{formatting.count(len(items))} {sign} ({', '.join(items[:3])} …)"
                for items, sign in (
                    (control.reworded, "prompts of the base are other tokens than in the reference"),
                    (control.differing, otherwise),
                )
                if items
            ]
            if (e_value := drift_e(base_flips, rate)) >= DRIFT_E:
                origin = "measured on this device" if night.aa_rate else f"expected in {night.precision}"
                allowed = f"the A/A rate of {formatting.percent(rate)} %, {origin}, allows"
                strength = f"evidence {_strength(e_value)}"
                signs.append(f"the base's scores move more often than {allowed} ({strength})")
            if signs:
                drifts[night.night] = signs[0]  # the strongest sign
    return drifts


def _describe_pool(key: str, n_taken: int, n_left: int) -> str:
    if n_left:
        return f"{key}: {formatting.count(n_taken)} clusters evaluated, {formatting.count(n_left)} never yet"
    return (
        f"{key}: the pool is used up ({formatting.count(n_taken)} clusters evaluated): weights that do not"
        " change answer nothing new from here on, and to show a loss by others takes more each time round;"
        " add items"
    )


def list_missed_nights(nights: Sequence[Night], today: str = "") -> list[str]:
    """List the dates without a finished night, from the first night to the day before `today`."""
    finished_dates = [date.fromisoformat(n.night) for n in nights]
    if not finished_dates:
        return []
    end = date.fromisoformat(today) if today else finished_dates[-1]
    days = (finished_dates[0] + timedelta(days=i) for i in range((end - finished_dates[0]).days))
    return [day.isoformat() for day in days if day not in finished_dates]


def _judge_candidate(
    policy: NightlyPolicy,
    candidate: NightCandidate,
    sound_nights: Sequence[Night],
    state: State,
    harness: str,
    typed: CommandLine,
) -> CandidateVerdict:
    if candidate.error:
        failed = typed.complete(f"{candidate.name}: failed: {candidate.error}")
        return CandidateVerdict(candidate.name, "error", failed, candidate.tests)
    nights = nightly_state.nights_since_ack(state, candidate.name, "regression", sound_nights)
    series: dict[str, Evidence] = {}
    for key in candidate.series:
        changes = []
        for night in nights:
            entry = next((w for w in night.candidates if w.name == candidate.name and not w.error), None)
            then = entry.series.get(key) if entry and entry.reference == candidate.reference else None
            if entry and then and then.valid:
                largest = 2.0 if then.adjusted else 1.0  # both arms can change by the metric's whole range
                changes.append(NightChanges(then.changes, entry.tested, entry.making, largest))
        seeds = Seeds(policy.seed_sd, candidate.n_references)
        series[key] = judge(changes, policy.alpha, len(candidate.series), seeds)
    anchors = {key: fmean(s.anchors.values()) for key, s in candidate.series.items() if s.anchors and s.valid}
    lost = tuple(item for s in candidate.series.values() for item in s.lost)
    judged = [evidence.verdict for evidence in series.values()]
    judged += ["error" for s in candidate.series.values() if not s.valid]
    verdict: Verdict = "harness-drift" if harness else max(judged, key=ORDER.index, default="ok")
    texts = {key: "; ".join(_describe_series(key, e, candidate)) for key, e in series.items()}
    descriptions = (text or f"{key}: no new items were evaluated" for key, text in texts.items())
    reason = f"{harness}; {candidate.name} is not judged" if harness else "; ".join(descriptions)
    sentence = typed.complete(f"{candidate.name}: {verdict}: {reason}")
    if candidate.judged and (judged_text := describe_judged_change(candidate.judged)):
        sentence += f"; {judged_text}"
    if candidate.unwatched:
        ack = typed._replace(overrides=()).command("nightly", "ack", candidate.name, "--new-reference")
        pin = typed.command("promote") if candidate.name.startswith("champion ") else ack
        missing_targets = f"{', '.join(candidate.unwatched)}, which the reference holds no rows of"
        sentence += f"; not watched: {missing_targets}; next: {typed.command('compare')}, then {pin}"
    return CandidateVerdict(candidate.name, verdict, sentence, candidate.tests, series, anchors, lost)


def _describe_series(key: str, e: Evidence, candidate: NightCandidate) -> Iterator[str]:
    series = candidate.series[key]
    if series.errors:
        share = formatting.percent(series.errors / series.n_asked)
        failed = f"{formatting.count(series.errors)} of {formatting.count(series.n_asked)} answers failed"
        counted = ": the candidate's count as the worst there is, the base's are left out"
        invalid = ", more than gate.max_errors allows: the night is not evidence"
        yield f"{key}: {failed} tonight ({share} %){counted if series.valid else invalid}"
    if series.unbounded:
        yield (
            f"{key}: scores of {', '.join(series.unbounded)} have no bounds and are not judged; "
            "bounds: of the task declares them"
        )
    if not e.n:
        return
    change = formatting.points(e.delta, e.low, e.high)
    over = f"{formatting.count(e.n)} clusters in {formatting.pluralize(e.n_nights, 'night')}"
    flips = f"{formatting.count(e.gains)} better, {formatting.count(e.losses)} worse"
    evidence = f"evidence {_strength(e.e_value)} of {_strength(e.needed)}"
    pass_text = f", pass {e.n_pass} of the items" if e.n_pass > 1 else ""
    # One training of a recipe says little about the next.
    reference = "the pinned checkpoint" if candidate.making else "the reference"
    if candidate.making and candidate.n_references > 1:
        reference = f"the mean of {formatting.pluralize(candidate.n_references, 'making')}"
    base = f"{key} {change} pp against {reference} over {over}{pass_text} ({flips}, {evidence})"
    if e.verdict == "suspect":
        nights = formatting.pluralize(e.more_nights, "night") if e.more_nights else ""
        settle = f"{nights} more like these would settle it" if nights else "watch it"
        base += f": {settle}; a comparison and a gate on all items say more"
    yield base


def _strength(e_value: float) -> str:
    if e_value >= 1e6:
        return f"over {formatting.count(1e6)}"
    return formatting.count(e_value) if e_value >= 10 else f"{e_value:.1f}"


def describe_judged_change(change: JudgedChange) -> str:
    """Describe changes by a judge's grades, and as corrected by people's labels; empty if none."""
    if not change.n_changed:
        return ""
    if change.corrected:
        by_judge = formatting.points(change.delta)
        correction = f"people's labels correct tonight's {by_judge} pp of {change.metric} to"
        return f"{correction} {formatting.points(*change.corrected)} pp"
    share = f"{formatting.count(change.n_unlabelled)} of the {formatting.count(change.n_changed)} answers"
    why = f"{share} that differ from the reference have no label from people (harness rate export)"
    return f"{change.metric} grades it, uncorrected: {why}"


_TIMEOUT_S = 10
_LOST_SHOWN = 20
_NO_GATE = "a night asks some items and compares them with the reference; harness gate judges all of them"


def night_document(night: NightReport) -> ResultDocument:
    """Return the document of a night: a row per candidate, then evidence, lost items and alarms."""
    rows = []
    for line in night.lines:
        anchors = [f"{key} {formatting.points(change)}" for key, change in line.anchors.items()]
        rows.append([line.name, line.verdict, ", ".join(anchors) or "–"])
    lost = []
    for line in (line for line in night.lines if line.lost and line.verdict != "ok"):
        n_more = len(line.lost) - _LOST_SHOWN
        more = f" and {formatting.count(n_more)} more" if n_more > 0 else ""
        lost.append(f"{line.name}, lost tonight: {', '.join(line.lost[:_LOST_SHOWN])}{more}")
    new = [f"NEW ALARM: {a.about}: {a.verdict}" for a in night.new]
    known_alarms = [
        f"known alarm since {a.night}: {a.about}: {a.verdict}; harness nightly ack closes it"
        for a in night.open
    ]
    commit = f"commit {night.commit[:10]}, " if night.commit else ""
    facts = [
        *(f"{line.name} tests {'; '.join(line.tests)}" for line in night.lines if line.tests),
        f"{commit}environment {night.environment}, {night.precision}",
        f"control arm: {night.harness}",
        *night.pool,
        *([f"missed: {', '.join(night.missed)}"] if night.missed else []),
        _NO_GATE,
        *(line.sentence for line in night.lines),
    ]
    columns = ("candidate", "verdict", "fixed items, pp")
    sections = [
        Section("candidates", columns=columns, rows=rows, notes=facts),
        Section("lost", notes=lost, detail=True),
        Section("alarms", notes=[*new, *known_alarms]),
        Section("production", notes=night.production),
    ]
    title = f"{night.experiment}: night of {night.night}: {night.verdict}"
    return ResultDocument(title, sections, night.sentence)


def issue(night: NightReport) -> str:
    """Return the text of an issue about new alarms, its title in the first line; empty if none."""
    if not night.new:
        return ""
    names = ", ".join(dict.fromkeys(f"{a.about}: {a.verdict}" for a in night.new))
    title = clean(f"Nightly {night.experiment}, {night.night}: {names}")
    step = "`harness nightly ack` closes the alarm; evidence then starts again."
    return f"{title}\n\n{report.markdown(night_document(night))}\n{step}\n"


def slack(alarms: Sequence[Alarm], experiment: str) -> dict[str, str]:
    """Return the message for a webhook in Slack's format."""
    lines = [f"harness nightly, {experiment}: {a.verdict} ({a.night}): {a.sentence}" for a in alarms]
    text = "\n".join(clean(line) for line in lines)
    return {"text": text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")}


def refuse_webhook(webhook: str) -> None:
    """Refuse an unusable webhook address."""
    if urlsplit(webhook).scheme not in ("http", "https"):
        found, expected = f"{webhook[:12]}…", "an address that begins with https://"
        step = "copy it from the settings of the chat's incoming webhooks"
        raise UserError("--webhook", found, expected, step)


def tell(alarms: Sequence[Alarm], experiment: str, webhook: str) -> str:
    """Send alarms to a webhook; return the error, if any."""
    refuse_webhook(webhook)
    body = json.dumps(slack(alarms, experiment)).encode()
    try:
        with urlopen(Request(webhook, body, {"Content-Type": "application/json"}), timeout=_TIMEOUT_S):
            return ""
    except (URLError, OSError, ValueError) as error:
        return f"the webhook did not take it ({type(error).__name__}); the next night sends it again"


def to_json(night: NightReport) -> dict[str, Any]:
    """Return a night as plain types, with its exit code."""
    plain: dict[str, Any] = report.to_plain(night)
    return {**plain, "exit_code": night.exit_code}


def write(night: NightReport, folder: Path) -> list[Path]:
    """Write the page and, for new alarms, the text of an issue, which stays until it is removed."""
    page, text = report.markdown(night_document(night)), issue(night)
    forms = {".md": page, ".json": json.dumps(to_json(night), indent=2) + "\n"}
    forms |= {".issue.md": text} if text else {}
    return report.write_forms(folder, f"{night.experiment}.nightly", forms)
