"""Forgetting: losses and gains of every fine-tune on the capability suite, by task."""

from collections.abc import Mapping

import streamlit as st

from harness import store
from harness.formatting import percent
from harness.records import Run
from harness.report.columns import COMPARISON_FILE, map_values
from harness.report.pictures import heat
from parts import controls, project, safe_text

_UNWANTED = ("unparsable", "truncated", "refused", "incomplete", "error")


def page() -> None:
    """Draw the page."""
    controls.heading("Forgetting", "The same capability tasks before and after, paired, with 95 % interval.")
    report = controls.shown_report()
    if report is None:
        return
    heat_map = heat(report)
    if not heat_map.rows:
        st.info("No fine-tune was measured on a capability suite. Next: `suites: [general]` in harness.yaml.")
        return
    safe_text.heat(heat_map)
    st.caption(
        "Points, or the unit in brackets, with 95 % intervals. Blue gained, vermilion lost; bold: without 0."
    )
    changes = [
        {"candidate": label, **map_values(COMPARISON_FILE, c)}
        for label, comparisons in report.comparisons.items()
        for c in comparisons
    ]
    controls.offer_csv(lambda: changes, "forgetting")
    stored_runs = controls.runs_of(report, project.runs())
    if runs := {name: stored_runs[name] for name in heat_map.labels if name in stored_runs}:
        _show_statuses(runs)
        controls.offer_answers(list(runs))


def _show_statuses(runs: Mapping[str, Run]) -> None:
    """Count unparsable, truncated and refused answers, next to the base's."""
    st.subheader("Answers without a result", anchor=False)
    runs_store, rows = project.runs_store(), list[dict[str, str]]()
    for key in sorted({key for run in runs.values() for key in run.rows if key.endswith("/test")}):
        bases = (store.digest_of_base(runs_store, run, key) for run in runs.values())
        arms = {"base": next(filter(None, bases), None)}
        arms |= {name: run.rows.get(key) for name, run in runs.items()}
        counts = store.count_statuses(runs_store, sorted({d for d in arms.values() if d}))
        for status in _UNWANTED:
            shares = {}
            for name, digest in arms.items():
                statuses = counts.get(digest or "", {})
                n = sum(statuses.values())
                shares[name] = percent(statuses.get(status, 0) / n) if n else ""
            if any(text not in ("", percent(0.0)) for text in shares.values()):
                rows.append({"task": key.removesuffix("/test"), "answers": status, **shares})
    if rows:
        controls.show_rows(rows, most=420)
        st.caption(
            "Percent of a task's answers: cut at the token limit, unparsable, refused or failed; incomplete "
            "if some of several answers failed. Rows of zeros are left out; in some tasks a refusal is right."
        )
    else:
        st.info("Every answer of every run could be read.")


page()
