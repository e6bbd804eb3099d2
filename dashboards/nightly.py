"""Nightly: how every watched candidate stands against its reference, night after night, and what alarmed.

Invariant: each night is shown as `harness nightly run` told it, from the nights up to then; the band is a
confidence sequence, so it may be looked at every morning.
"""

import streamlit as st

from harness.formatting import UNKNOWN, count, percent
from harness.nightly import Alarm, Night, home, read_nights, read_state
from harness.nightly.alarm import list_missed_nights
from parts import charts, controls, nightly_charts, project, safe_text


def page() -> None:
    """Draw the page."""
    controls.heading(
        "Nightly", "Change against the pinned reference, minus the change of the base (the control arm)."
    )
    loaded = project.experiment()
    if problems := project.list_problems():
        st.error("The experiment's file cannot be used, so its nights cannot be told:")
        safe_text.say_all(problems)
        return
    folder = home(project.project().store, loaded.experiment.name) if loaded else None
    stored = read_nights(folder) if folder else []
    if loaded is None or folder is None or not stored:
        st.info(
            "No night yet. Next: `harness nightly run`; `harness nightly install` makes it run by itself."
        )
        return
    state = read_state(folder)
    told = nightly_charts.tell(loaded.experiment.name, loaded.experiment.nightly, stored, state)
    last, marks = (
        told[-1],
        (nightly_charts.changes(stored), nightly_charts.alarms(state, told), list_missed_nights(stored)),
    )
    st.html(safe_text.badge(last.verdict))
    safe_text.say(last.sentence, "lead")
    for key in dict.fromkeys(key for line in last.lines for key in line.series):
        st.subheader(safe_text.label(f"{key[0].upper()}{key[1:]}"), anchor=False)
        charts.draw(charts.nights(nightly_charts.trends(told, key), *marks), key)
    st.caption(
        "Band: a confidence sequence, which begins again each time the pool goes round; below 0 is an alarm. "
        "Dotted: other code or libraries. Grey: a missed night."
    )
    tested = (f"{line.name} tests {'; '.join(line.tests)}" for line in last.lines if line.tests)
    safe_text.say_all([*(line.sentence for line in last.lines), *tested, *last.pool])
    _alarms(state.alarms)
    _control(stored)
    controls.offer_csv(lambda: nightly_charts.rows_of(told), "nightly")


def _alarms(alarms: tuple[Alarm, ...]) -> None:
    """List what alarmed so far, the last one first."""
    st.subheader("Alarms", anchor=False)
    rows = [
        {"night": a.night, "about": a.about, "verdict": a.verdict}
        | {"told by webhook": a.told or UNKNOWN, "acknowledged": a.acknowledged or "open"}
        for a in reversed(alarms)
    ]
    if rows:
        st.dataframe(rows, hide_index=True)
        safe_text.say_all(f"{a.night}: {a.sentence}" for a in reversed(alarms))
        st.caption("`harness nightly ack` closes them; evidence is then collected afresh.")
    else:
        st.text("None so far.")


def _control(stored: list[Night]) -> None:
    """List how the base answered on the last nights."""
    st.subheader("Control arm", anchor=False)
    rows = [
        {"night": night.night, "base": base[:12], "items": count(len(found.flips))}
        | {"scores that moved, %": _share(sum(found.flips.values()), len(found.flips))}
        | {"prompts with other tokens": len(found.reworded), "anchors that differ": len(found.differing)}
        | {"commit": night.commit[:7], "precision": night.precision}
        for night in reversed(stored[-nightly_charts.SHOWN :])
        for base, found in night.bases.items()
    ]
    controls.show_rows(rows, most=320)


def _share(n: int, of: int) -> str:
    return percent(n / of) if of else UNKNOWN


page()
