"""What the Nightly page draws, made of stored nights.

Invariant: each night is told as `harness nightly run` told it, from the nights up to then.
"""

from dataclasses import replace
from typing import Any

import streamlit as st

from harness import provenance, store
from harness.formatting import plain, points
from harness.nightly import Night, State
from harness.nightly.alarm import NightReport, build_report
from harness.nightly.remarks import add_remarks
from harness.spec import NightlyPolicy
from parts import charts, project

SHOWN = 40  # nights


def tell(name: str, policy: NightlyPolicy, nights: list[Night], state: State) -> list[NightReport]:
    """Tell each of the last nights again from what was known then."""
    told_from = (tuple((n.night, n.finished) for n in nights), repr(policy), repr(state.alarms))
    return _read_nights((str(project.project().file), told_from), name, policy, nights, state)


@st.cache_resource(show_spinner=False, max_entries=4)
def _read_nights(
    stamp: Any, _name: str, _policy: NightlyPolicy, _nights: list[Night], _state: State
) -> list[NightReport]:
    out = []
    for n in range(max(1, len(_nights) - SHOWN + 1), len(_nights) + 1):
        then = _nights[n - 1].night
        alarms = tuple(
            replace(a, acknowledged=a.acknowledged if a.acknowledged < then else "")
            for a in _state.alarms
            if a.night <= then
        )
        report = build_report(_name, _policy, _nights[:n], replace(_state, alarms=alarms))
        out.append(add_remarks(report, _nights[n - 1]))
    return out


def trends(told: list[NightReport], key: str) -> dict[str, list[charts.Bar]]:
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


def changes(nights: list[Night]) -> list[tuple[str, str]]:
    """Name the nights on which the code or the libraries were others than the night before."""
    out = []
    for before, now in zip([None, *nights[:-1]], nights, strict=True):
        what = [f"commit {now.commit[:7]}"] if before is None or before.commit != now.commit else []
        if before is not None and before.environment != now.environment:
            what.append(_upgrade(before.environment, now.environment))
        if what:
            out.append((now.night, ", ".join(what)))
    return out[-12:]


def _upgrade(before: str, now: str) -> str:
    """Name what is another in an environment: `numpy 2.3 → 2.4`."""
    at = project.project().store
    then, since = (store.read_environment(at, key) for key in (before, now))
    return provenance.changes(then, since) if then and since else "other libraries"


def alarms(state: State, told: list[NightReport]) -> list[tuple[str, str]]:
    """Name what alarmed on the nights that are shown."""
    shown = {night.night for night in told}
    return [(a.night, f"{a.about}: {a.verdict}") for a in state.alarms if a.night in shown]


def rows_of(told: list[NightReport]) -> list[dict[str, Any]]:
    """List what each night showed of each candidate, unrounded."""
    return [
        {"night": night.night, "candidate": line.name, "series": key, "verdict": line.verdict}
        | {"delta": e.delta, "low": e.low, "high": e.high, "n": e.n, "e_value": e.e_value, "needed": e.needed}
        for night in told
        for line in night.lines
        for key, e in line.series.items()
    ]
