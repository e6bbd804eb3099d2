"""Forgetting: losses and gains of every fine-tune on the capability suite, by task."""

from collections.abc import Mapping

import streamlit as st

from harness import store
from harness.formatting import Unit, percent, score
from harness.records import Run
from harness.report.columns import COMPARISON_FILE, map_values
from harness.report.pictures import heat
from harness.report.wording import change_text
from parts import charts, controls, project, safe_text

_UNWANTED = ("unparsable", "truncated", "refused", "incomplete", "error")


def page() -> None:
    """Draw the page."""
    controls.heading(
        "Forgetting", "The same capability tasks before and after; points, paired, with 95 % interval."
    )
    report = controls.shown_report()
    if report is None:
        return
    heat_map = heat(report)
    if not heat_map.rows:
        st.info("No fine-tune was measured on a capability suite. Next: `suites: [general]` in harness.yaml.")
        return
    safe_text.heat(heat_map)
    st.caption("Points with 95 % intervals. Blue gained, vermilion lost; bold: the interval excludes 0.")
    changes = [
        {"candidate": label, **map_values(COMPARISON_FILE, c)}
        for label, comparisons in report.comparisons.items()
        for c in comparisons
    ]
    controls.offer_csv(lambda: changes, "forgetting")
    # The change on tasks without a rate, such as held-out text in bits per byte.
    rates = {c.task for tasks in report.comparisons.values() for c in tasks if c.unit.is_rate}
    by_unit: dict[Unit, dict[str, list[charts.Bar]]] = {}
    for label in heat_map.labels:
        for c in report.comparisons[label]:
            if c.task not in rates:
                text = f"{change_text(c)} ({score(c.unit, c.new)} now)"
                bar = charts.Bar(c.task, c.delta, c.low, c.high, text)
                by_unit.setdefault(c.unit, {}).setdefault(label, []).append(bar)
    for unit, series in by_unit.items():
        is_text = unit.name == "bits per byte"
        st.subheader("Drift on held-out text" if is_text else f"Change in {unit.name}", anchor=False)
        above = "better" if unit.higher_is_better else "worse"
        charts.draw(charts.forest(series, f"change in {unit.name}; above 0 is {above}"), f"drift {unit.name}")
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
