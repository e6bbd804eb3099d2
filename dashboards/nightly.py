"""Nightly: the change of every watched candidate against its reference by night, and the alarms."""

from dataclasses import replace
from typing import Any

import streamlit as st

from harness import provenance, store
from harness.formatting import UNKNOWN, count, percent, plain, points
from harness.lifecycle.nightly_alarm import NightReport, build_report, list_missed_nights
from harness.lifecycle.nightly_state import Night, State, home, read_nights, read_state
from harness.spec import NightlyPolicy
from parts import charts, controls, project, safe_text

SHOWN = 40  # nights


@st.cache_resource(show_spinner=False, max_entries=4)
def _rebuild_reports(
    stamp: Any, _name: str, _policy: NightlyPolicy, _nights: list[Night], _state: State
) -> list[NightReport]:
    """Rebuild the report of each of the last nights from what was known then."""
    reports = []
    for n in range(max(1, len(_nights) - SHOWN + 1), len(_nights) + 1):
        night = _nights[n - 1].night
        alarms = tuple(
            replace(a, acknowledged=a.acknowledged if a.acknowledged < night else "")
            for a in _state.alarms
            if a.night <= night
        )
        reports.append(build_report(_name, _policy, _nights[:n], replace(_state, alarms=alarms)))
    return reports


def changes(nights: list[Night]) -> list[tuple[str, str]]:
    """List the nights whose code or libraries differ from the night before, with the differences."""
    rows = []
    for before, now in zip([None, *nights[:-1]], nights, strict=True):
        changed = [f"commit {now.commit[:7]}"] if before is None or before.commit != now.commit else []
        if before is not None and before.environment != now.environment:
            keys, runs_store = (before.environment, now.environment), project.runs_store()
            old, new = (store.read_environment(runs_store, key) for key in keys)
            # Such as `numpy 2.3 → 2.4`.
            changed.append(provenance.changes(old, new) if old and new else "other libraries")
        if changed:
            rows.append((now.night, ", ".join(changed)))
    return rows[-12:]


def page() -> None:
    """Draw the page."""
    controls.heading(
        "Nightly", "Change against the pinned reference, minus the change of the base (the control arm)."
    )
    loaded = project.experiment()
    if problems := project.list_problems():
        st.error("The experiment's file cannot be used, so its nights cannot be shown:")
        safe_text.say_all(problems)
        return
    folder = home(project.runs_store(), loaded.experiment.name) if loaded else None
    stored_nights = read_nights(folder) if folder else []
    if loaded is None or folder is None or not stored_nights:
        st.info(
            "No night yet. Next: `harness nightly run`; `harness nightly install` makes it run by itself."
        )
        return
    state = read_state(folder)
    policy = loaded.experiment.nightly
    inputs = (tuple((n.night, n.finished) for n in stored_nights), repr(policy), repr(state.alarms))
    stamp = (str(project.written_file()), inputs)
    reports = _rebuild_reports(stamp, loaded.experiment.name, policy, stored_nights, state)
    last, shown_nights = reports[-1], {night.night for night in reports}
    alarms = [(a.night, f"{a.about}: {a.verdict}") for a in state.alarms if a.night in shown_nights]
    marks = (changes(stored_nights), alarms, list_missed_nights(stored_nights))
    safe_text.badge(last.verdict)
    safe_text.say(last.sentence, "lead")
    for key in dict.fromkeys(key for line in last.lines for key in line.series):
        st.subheader(safe_text.label(f"{key[0].upper()}{key[1:]}"), anchor=False)
        series: dict[str, list[charts.Bar]] = {}  # each candidate's change by night, in points
        for night in reports:
            for line in night.lines:
                e = line.series.get(key)
                if e is not None and e.delta is not None and e.low is not None and e.high is not None:
                    evidence = f"evidence {plain(e.e_value)} of {plain(e.needed)}"
                    text = f"{points(e.delta, e.low, e.high)} pp, {evidence}"
                    bar = charts.Bar(night.night, 100 * e.delta, 100 * e.low, 100 * e.high, text)
                    series.setdefault(line.name, []).append(bar)
        charts.draw(charts.nights(series, *marks), key)
    st.caption(
        "Band: a confidence sequence, which restarts with each pass through the pool; entirely below 0 is an "
        "alarm. Dotted: other code or libraries. Grey: a missed night."
    )
    tested = (f"{line.name} tests {'; '.join(line.tests)}" for line in last.lines if line.tests)
    safe_text.say_all([*(line.sentence for line in last.lines), *tested, *last.pool])
    st.subheader("Alarms", anchor=False)
    rows = [
        {"night": a.night, "about": a.about, "verdict": a.verdict}
        | {"sent by webhook": a.told or UNKNOWN, "acknowledged": a.acknowledged or "open"}
        for a in reversed(state.alarms)
    ]
    if rows:
        st.dataframe(rows, hide_index=True)
        safe_text.say_all(f"{a.night}: {a.sentence}" for a in reversed(state.alarms))
        st.caption("`harness nightly ack` closes them; evidence then starts from zero.")
    else:
        st.text("None so far.")
    st.subheader("Control arm", anchor=False)
    control_rows = [
        {"night": night.night, "base": base[:12], "items": count(n := len(control.flips))}
        | {"scores that moved, %": percent(sum(control.flips.values()) / n) if n else UNKNOWN}
        | {"prompts with other tokens": len(control.reworded), "anchors that differ": len(control.differing)}
        | {"commit": night.commit[:7], "precision": night.precision}
        for night in reversed(stored_nights[-SHOWN:])
        for base, control in night.bases.items()
    ]
    controls.show_rows(control_rows, most=320)
    figures = ("delta", "low", "high", "n", "e_value", "needed")
    unrounded = [
        {"night": night.night, "candidate": line.name, "series": key, "verdict": line.verdict}
        | {name: getattr(e, name) for name in figures}
        for night in reports
        for line in night.lines
        for key, e in line.series.items()
    ]
    controls.offer_csv(lambda: unrounded, "nightly")


page()
