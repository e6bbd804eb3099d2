"""Compare: two or more candidates, paired on the same items."""

from typing import Any

import streamlit as st

from harness.analysis.estimators import Comparison, orient
from harness.formatting import count
from harness.report.columns import COMPARE_PAGE, heading
from harness.report.wording import change_text
from parts import charts, controls, project, safe_text, scores

_HEADINGS = {"base": "reference"}  # the first of the candidates
_MOST = 4  # candidates next to the first one


def page() -> None:
    """Draw the page."""
    controls.heading("Compare", "Paired differences on the same items; delta = candidate − the first one.")
    runs = project.runs()
    report = controls.report_if_any()
    controls.say_absent(report, runs)
    if not runs:
        if report is None:
            controls.show_empty("No runs yet.")
        return
    by_label = controls.name_runs("compare", report, runs)
    default = controls.order_candidates(report, list(by_label))[:2]
    chosen = controls.choose_candidates(
        "compare", list(by_label), default, title="Candidates, the reference first"
    )
    if len(chosen) < 2:
        st.info("Choose two candidates or more.")
        return
    if unseen := chosen[_MOST + 1 :]:
        safe_text.say(f"Not shown, because at most {count(_MOST + 1)} candidates fit: {', '.join(unseen)}")
    base, other_runs = by_label[chosen[0]], {name: by_label[name] for name in chosen[1 : _MOST + 1]}
    comparisons = {name: scores.compare_on_every_task(base, run, report) for name, run in other_runs.items()}
    rows: list[dict[str, Any]] = []
    series: dict[str, list[charts.Bar]] = {}
    margins, undrawn = report.margins if report else {}, dict[str, None]()
    for name, tasks in comparisons.items():
        for task, c in tasks.items():
            if isinstance(c, str):
                continue
            rows.append(_row(name, c))
            if c.unit.is_rate:
                oriented, margin = orient(c), margins.get(task)
                points = (100 * oriented.delta, 100 * oriented.low, 100 * oriented.high)
                bar = charts.Bar(task, *points, change_text(c), 100 * margin if margin else None)
                series.setdefault(name, []).append(bar)
            else:
                undrawn[f"{task} ({c.unit.name})"] = None
    if series:
        title = f"change against {charts.plain(chosen[0])}, points; above 0 is better"
        charts.draw(charts.forest(series, title), "compare")
        st.caption("Shaded: beyond the margin of the gate. An interval that contains 0 shows no difference.")
    if undrawn:
        safe_text.say(f"Not measured in points, so only in the table: {', '.join(undrawn)}.")
    if rows:
        wide = {name: st.column_config.TextColumn(width=150) for name in ("reference", "new", "change")}
        controls.show_rows(rows, "compare", 560, column_config=wide)
    compared = [c for tasks in comparisons.values() for c in tasks.values()]
    safe_text.say_all(dict.fromkeys(c for c in compared if isinstance(c, str)))
    controls.offer_answers(chosen[: _MOST + 1])


def _row(name: str, c: Comparison) -> dict[str, Any]:
    """Format a comparison; counts stay numbers, so that the table can sort by them."""
    cells: dict[str, Any] = {}
    for column in COMPARE_PAGE:
        cell = column.value(c) if column.kind == "number" else column.text(c, True)
        cells[_HEADINGS.get(column.name) or heading(column)] = cell
    return {"candidate": name, **cells}


page()
