"""Leaderboard: every run with its score, what it forgot, what it costs, and the gate's verdict.

Invariant: the page filters and lays out; its numbers come from `parts.leaderboard_rows`.
"""

from collections.abc import Sequence

import streamlit as st

from harness.formatting import count, errors, score
from harness.records import Run
from harness.report import ExperimentReport, describe_unread, last_line
from parts import charts, controls, leaderboard_rows, project, safe_text, scores
from parts.leaderboard_rows import Board, Line


def page() -> None:
    """Draw the page."""
    controls.heading("Leaderboard", "Candidates on the same items, the best on test first.")
    report, stored = controls.report_if_any(), project.runs()
    if not stored and report is None:
        controls.show_empty("No runs yet.")
        return
    if report is not None:
        safe_text.say(last_line(report), "lead")
    controls.say_absent(report, stored)
    runs = leaderboard_rows.choose_runs(leaderboard_rows.add_reported(stored, report), report)
    if not runs:
        st.info("No run fits these filters.")
        return
    metrics = _choose_more_metrics(report) if stored else []
    found = leaderboard_rows.make_board(runs, report, metrics)
    _table(found.lines, metrics, report, stored)
    _unread(found)
    _picture(found.lines)


def _choose_more_metrics(report: ExperimentReport | None) -> list[str]:
    name, primary = leaderboard_rows.target(report)
    written = project.task(name)
    others = [metric for metric in written.metrics if metric != primary] if written else []
    if not others:
        return []
    return st.columns([2, 3])[0].multiselect(
        "More metrics of the target", others, key="metrics", bind="query-params",
        format_func=lambda metric: metric.replace("_", " "),
    )  # fmt: skip


def _table(
    lines: Sequence[Line], metrics: Sequence[str], report: ExperimentReport | None, stored: Sequence[Run]
) -> None:
    columns = leaderboard_rows.columns(metrics)
    picked = st.dataframe(
        leaderboard_rows.style_table(lines, metrics),
        column_config=columns,
        column_order=list(columns),
        hide_index=True,
        placeholder="–",
        key="board",
        on_select="rerun",
        selection_mode="multi-row",
        height=controls.table_height(len(lines), 640),
    )
    safe_text.say_all(describe_unread([line.facts for line in lines], report.metric if report else ""))
    left, right = st.columns([1, 5])
    with left:
        controls.offer_csv(lambda: [leaderboard_rows.make_row(line) for line in lines], "leaderboard")
    chosen = [lines[i].run for i in picked.selection.rows if lines[i].run.rows]
    if len(chosen) < 2:
        able = sum(bool(line.run.rows) for line in lines) > 1
        right.caption("Select rows to compare them. " * able + "Click a head to sort.")
    elif right.button(f"Compare {count(len(chosen))} candidates", type="primary"):
        address = {"compare": ",".join(controls.names_in_links(chosen, report, stored))}
        at = {"experiment": report.file_name} if report is not None else {}
        st.switch_page("compare.py", query_params=at | address)


def _unread(found: Board) -> None:
    """Say how many scores are not known yet, and estimate them on request."""
    if found.n_unanswered:
        safe_text.say(
            f"Runs without a score, because they did not answer the target: {count(found.n_unanswered)}"
        )
    if found.n_unread == 0:
        return
    st.caption(f"Not estimated yet: {count(found.n_unread)} scores; the page opens with {scores.AT_ONCE}.")
    if st.button("Estimate all", key="estimate"):
        bar = st.progress(0.0)
        for share in found.read():
            bar.progress(share)
        st.rerun()


def _picture(lines: Sequence[Line]) -> None:
    known = [(line, e) for line in lines if (e := line.facts.target) is not None][: scores.AT_ONCE]
    if not known:
        return
    task, metric = known[0][0].task, known[0][0].metric
    alike = [(line.run, e) for line, e in known if (line.task, line.metric) == (task, metric)]
    unit, names = known[0][1].unit, controls.distinct([run for run, _ in alike])
    bars = []
    for name, (_, e) in zip(names, alike, strict=True):
        said = score(e.unit, *e[:3]) + errors(e.n_errors)
        bars.append(charts.Bar(name, unit.scale * e.score, unit.scale * e.low, unit.scale * e.high, said))
    figure = charts.forest(
        {"score": bars}, f"{metric.replace('_', ' ')}{unit.axis}, with 95 % interval", zero=False
    )
    charts.draw(figure, "leaderboard")


page()
