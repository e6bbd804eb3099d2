"""Compare: two or more candidates, paired on the same items.

Invariant: the first candidate is what the others are compared with; `?compare=a,b` opens the page so.
"""

from typing import Any

import streamlit as st

from harness.analysis.estimators import Comparison, orient
from harness.formatting import count
from harness.report.columns import COMPARE_PAGE, heading
from harness.report.wording import change_text
from parts import charts, controls, project, safe_text, scores

_HEADINGS = {"base": "reference"}  # the first of the candidates
_MOST = 4  # candidates beside the first one


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
        safe_text.say(f"Not shown, as at most {count(_MOST + 1)} candidates fit: {', '.join(unseen)}")
    base, others = by_label[chosen[0]], {name: by_label[name] for name in chosen[1 : _MOST + 1]}
    found = {name: scores.compare_on_every_task(base, run, report) for name, run in others.items()}
    rows: list[dict[str, Any]] = []
    series: dict[str, list[charts.Bar]] = {}
    margins = report.margins if report else {}
    for name, tasks in found.items():
        for task, (_, c) in tasks.items():
            if isinstance(c, str):
                continue
            rows.append(_row(name, c))
            if c.unit.is_rate:
                o, margin = orient(c), margins.get(task)
                ends = (100 * o.delta, 100 * o.low, 100 * o.high)
                bar = charts.Bar(task, *ends, change_text(c), 100 * margin if margin else None)
                series.setdefault(name, []).append(bar)
    if series:
        title = f"change against {charts.plain(chosen[0])}, points; above 0 is better"
        charts.draw(charts.forest(series, title), "compare")
        st.caption("Shaded: beyond the margin of the gate. An interval that holds 0 shows no difference.")
    if rows:
        wide = {name: st.column_config.TextColumn(width=150) for name in ("reference", "new", "change")}
        controls.show_rows(rows, "compare", 560, column_config=wide)
    safe_text.say_all(dict.fromkeys(c for of in found.values() for _, c in of.values() if isinstance(c, str)))
    controls.offer_answers(chosen[: _MOST + 1])


def _row(name: str, c: Comparison) -> dict[str, Any]:
    """Print a comparison; what is counted stays a number, by which a table sorts."""
    cells = {
        _HEADINGS.get(one.name) or heading(one): one.value(c) if one.kind == "number" else one.text(c, True)
        for one in COMPARE_PAGE
    }
    return {"candidate": name, **cells}


page()
