"""Nightly: how every watched candidate stands against its reference, night after night, and what alarmed.

Invariant: each night is shown as `harness nightly run` told it, from the nights up to then; the band is a
confidence sequence, so it may be looked at every morning.
"""

from dataclasses import replace
from typing import Any

import streamlit as st

from harness.nightly.files import Night, State, home, read_nights, read_state
from harness.nightly.judging import NightReport, missed, report_of
from harness.numbers import count, percent, plain, points
from harness.spec import NightlyPolicy
from parts import charts, controls, project, texts

_SHOWN = 60  # nights


def page() -> None:
    """Draw the page."""
    controls.heading(
        "Nightly", "Change against the pinned reference, less that of the base, the control arm."
    )
    loaded = project.experiment()
    folder = home(project.project().store, loaded.experiment.name) if loaded else None
    nights = read_nights(folder) if folder else []
    if loaded is None or folder is None or not nights:
        st.info(
            "No night yet. Next: `harness nightly run`; `harness nightly install` makes it run by itself."
        )
        return
    state = read_state(folder)
    told = _told(loaded.experiment.name, loaded.experiment.nightly, nights, state)
    last = told[-1]
    st.html(texts.badge(last.verdict))
    texts.say(last.sentence, "lead")
    absent = missed(nights)
    for key in dict.fromkeys(key for line in last.lines for key in line.series):
        st.subheader(f"{key[0].upper()}{key[1:]}", anchor=False)
        charts.draw(charts.nights(_trends(told, key), _changes(nights), _alarms(state, told), absent), key)
    texts.say_all([*(line.sentence for line in last.lines), *last.pool])
    _control(nights)
    st.subheader("Alarms", anchor=False)
    rows = [
        {"about": a.about, "verdict": a.verdict, "night": a.night, "said": a.sentence}
        | {"told": a.told or "–", "acknowledged": a.acknowledged or "open"}
        for a in reversed(state.alarms)
    ]
    if rows:
        st.dataframe(rows, hide_index=True)
        st.caption("`harness nightly ack` closes them; evidence then begins anew.")
    else:
        st.text("None so far.")
    controls.offer_csv(_numbers(told), "nightly")


def _told(name: str, policy: NightlyPolicy, nights: list[Night], state: State) -> list[NightReport]:
    """Tell each of the last nights again from what was known then."""
    stamp = (str(project.project().file), tuple((n.night, n.finished) for n in nights), repr(state.alarms))
    return _told_once(stamp, name, policy, nights, state)


@st.cache_resource(show_spinner=False, max_entries=4)
def _told_once(
    stamp: Any, _name: str, _policy: NightlyPolicy, _nights: list[Night], _state: State
) -> list[NightReport]:
    out = []
    for n in range(max(1, len(_nights) - _SHOWN + 1), len(_nights) + 1):
        then = _nights[n - 1].night
        alarms = tuple(
            replace(a, acknowledged=a.acknowledged if a.acknowledged < then else "")
            for a in _state.alarms
            if a.night <= then
        )
        out.append(report_of(_name, _policy, _nights[:n], replace(_state, alarms=alarms)))
    return out


def _trends(told: list[NightReport], key: str) -> dict[str, list[charts.Bar]]:
    """Collect each candidate's change by night, in points."""
    series: dict[str, list[charts.Bar]] = {}
    for night in told:
        for line in night.lines:
            e = line.series.get(key)
            if e is None or e.delta is None or e.low is None or e.high is None:
                continue
            said = f"{points(e.delta, e.low, e.high)} pp, evidence {plain(e.e_value)} of {plain(e.needed)}"
            bar = charts.Bar(night.night, 100 * e.delta, 100 * e.low, 100 * e.high, said)
            series.setdefault(line.name, []).append(bar)
    return series


def _changes(nights: list[Night]) -> dict[str, str]:
    """Name the nights on which the code or the libraries were others than the night before."""
    out = {}
    for before, now in zip([None, *nights[:-1]], nights, strict=True):
        what = [f"commit {now.commit[:7]}"] if before is None or before.commit != now.commit else []
        what += ["other libraries"] if before is not None and before.environment != now.environment else []
        if what:
            out[now.night] = ", ".join(what)
    return dict(list(out.items())[-12:])


def _alarms(state: State, told: list[NightReport]) -> dict[str, str]:
    shown = {night.night for night in told}
    return {a.night: f"{a.about}: {a.verdict}" for a in state.alarms if a.night in shown}


def _control(nights: list[Night]) -> None:
    """List how the base answered on the last nights."""
    st.subheader("Control arm", anchor=False)
    rows = []
    for night in reversed(nights[-_SHOWN:]):
        for base, found in night.bases.items():
            n, moved = len(found.flips), sum(found.flips.values())
            rows.append(
                {"night": night.night, "base": base[:12], "asked": count(n)}
                | {"scores that moved, %": percent(moved / n) if n else "–"}
                | {
                    "prompts of other tokens": len(found.reworded),
                    "anchors that differ": len(found.differing),
                }
                | {"commit": night.commit[:7], "precision": night.precision}
            )
    st.dataframe(rows, hide_index=True, height=min(320, 38 + 35 * len(rows)))


def _numbers(told: list[NightReport]) -> list[dict[str, Any]]:
    return [
        {"night": night.night, "candidate": line.name, "series": key, "verdict": line.verdict}
        | {"delta": e.delta, "low": e.low, "high": e.high, "n": e.n, "e_value": e.e_value, "needed": e.needed}
        for night in told
        for line in night.lines
        for key, e in line.series.items()
    ]


page()
