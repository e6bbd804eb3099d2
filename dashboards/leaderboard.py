"""Leaderboard: every run with its score, forgetting, cost and verdict.

Scores of reported runs are the report's own; those of other runs are estimated from their stored rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Any

import streamlit as st

from harness.analysis.candidate_facts import best_untrained, facts_without_rows
from harness.analysis.estimators import Estimate
from harness.formatting import UNKNOWN, count
from harness.records import Run
from harness.report import CLASSES, ExperimentReport, describe_unread, last_line
from harness.report.columns import (
    CANDIDATE_COLUMNS,
    Column,
    Result,
    heading,
    leaderboard_columns,
    map_values,
    metric_column,
)
from harness.report.escape import clean
from parts import controls, project, safe_text, scores
from parts.scores import AT_ONCE

_FACETS = {"experiment": "experiment", "model": "base_model", "method": "method", "seed": "seed"}
_VERDICTS = {word: safe_text.COLOURS[class_] for word, class_ in CLASSES.items()} | {UNKNOWN: "#77808a"}
_WIDTHS = {"interval": 160, "number": 80, "text": None}  # pixels; the longest is −0.123 [−0.145, −0.101]
_PINNED = {"rank": 50, "champion": 34, "candidate": None}


@dataclass(frozen=True, kw_only=True)
class Line(Result):
    """One run on a target; without a report its facts come from the stored run."""

    run: Run
    task: str
    is_reported: bool = False

    @property
    def rows(self) -> str:
        """Digest of the row set of the target; empty if the run did not answer it."""
        return self.run.rows.get(f"{self.task}/test", "")


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
    # The report's runs that are not on this machine come with the fields that the report has.
    ids = {run.run_id for run in stored}
    absent = [
        Run(
            f.run_id, report.experiment, f.name, f.method, f.prompting, f.answer, f.seed, report.base_model,
            weights_digest="", base_digest="", state=f.state, created="", rows={}, recipe={},
        )
        for f in (report.facts if report else ())
        if report and f.run_id not in ids
    ]  # fmt: skip
    if not (runs := choose_runs([*absent, *stored], report)):
        st.info("No run matches these filters.")
        return
    # The report's task and metric rank the runs, else those in harness.yaml.
    loaded, (task, metric) = project.experiment(), ("", "")
    if report is not None and report.task:
        task, metric = report.task, report.metric
    elif loaded:
        task, metric = loaded.experiment.target.name, loaded.experiment.target.primary_metric
    metrics: list[str] = []
    written = project.task(task) if stored else None
    if other_metrics := [name for name in written.metrics if name != metric] if written else []:
        metrics = st.columns([2, 3])[0].multiselect(
            "More metrics of the target", other_metrics, key="metrics", bind="query-params",
            format_func=lambda name: name.replace("_", " "),
        )  # fmt: skip
    lines, unread = make_board(runs, report, (task, metric), metrics)
    _table(lines, metrics, report, stored)
    n_unread = sum(map(len, unread.values()))
    if n_unread == 0:
        return
    st.caption(f"Not estimated yet: {count(n_unread)} scores; the page opens with {AT_ONCE}.")
    if st.button("Estimate all", key="estimate"):
        bar, n_estimated = st.progress(0.0), 0
        for name, digests in unread.items():
            for start in range(0, len(digests), AT_ONCE):
                n_estimated += len(scores.estimates(digests[start : start + AT_ONCE], task, name))
                bar.progress(n_estimated / n_unread)
        st.rerun()


def choose_runs(runs: Sequence[Run], report: ExperimentReport | None) -> list[Run]:
    """Draw the filters; without a filter the report's runs are shown."""
    reported = {f.run_id for f in report.facts} if report is not None else set()
    by_label = controls.runs_of(report, runs)
    with st.expander("Filters"):
        everything = st.toggle(
            "All stored runs, not only the report's", value=not by_label, key="all_runs", bind="query-params"
        )
        pool = [run for run in runs if everything or report is None or run.run_id in reported]
        columns = st.columns(5)
        for column, (title, name) in zip(columns, _FACETS.items(), strict=False):
            options = sorted({str(getattr(run, name)) for run in pool})
            key = f"filter_{title}"
            picked = column.multiselect(title, options, key=key, format_func=clean, bind="query-params")
            pool = [run for run in pool if not picked or str(getattr(run, name)) in picked]
        since = columns[-1].text_input(
            "created since", placeholder="2026-01-31", key="filter_since", bind="query-params"
        )
        return [run for run in pool if run.created >= since]


def make_board(
    runs: Sequence[Run], report: ExperimentReport | None, target: tuple[str, str], metrics: Sequence[str]
) -> tuple[list[Line], dict[str, list[str]]]:
    """Join stored results with those of reports, the best first; and list the row sets not yet scored."""
    task, metric = target
    unread: dict[str, list[str]] = {}

    def estimate(lines: Sequence[Line], name: str) -> dict[str, Estimate | None]:
        digests = [line.rows for line in lines if line.task == task and line.rows]
        estimates = scores.estimates(digests, task, name)
        if unscored := [digest for digest in dict.fromkeys(digests) if digest not in estimates]:
            unread[name] = unscored
        return estimates

    # Each run's result is the chosen report's, or else that of the latest report that has it.
    known_reports = [*([] if report is None else [report]), *project.reports().values()]
    with_best = ((r, best_untrained(r.facts)) for r in reversed(known_reports))
    reported = {f.run_id: (f, r, f.name == best) for r, best in with_best for f in r.facts}
    champions, lines = project.champion_ids(), list[Line]()
    for run in runs:
        is_champion = run.run_id in champions
        if run.run_id in reported:
            f, source, is_best = reported[run.run_id]
            line = Line(facts=f, run=run, task=source.task, metric=source.metric, is_champion=is_champion)
            lines.append(replace(line, is_reported=True, is_reference=is_best))
        else:
            facts = facts_without_rows(run)
            lines.append(Line(facts=facts, run=run, task=task, metric=metric, is_champion=is_champion))
    waiting = [line for line in reversed(lines) if not line.is_reported and line.run.state == "done"]
    targets = estimate(waiting, metric)
    lines = [
        line if line.is_reported else replace(line, facts=replace(line.facts, target=targets.get(line.rows)))
        for line in lines
    ]
    lines.sort(key=lambda line: -e.unit.sign * e.score if (e := line.facts.target) else inf)
    other_scores = {name: estimate(lines, name) for name in metrics}
    ranked = [x for x in lines if (x.task, x.metric) == target and x.facts.target and x.rows][:AT_ONCE]
    ranks = scores.ranks({line.run.run_id: line.rows for line in ranked}, task, metric) if ranked else {}
    board = [
        replace(
            line,
            others={name: scored.get(line.rows) for name, scored in other_scores.items()},
            rank=ranks.get(line.run.run_id),
        )
        for line in lines
    ]
    return board, unread


class Printed(float):
    """A number with its printed form."""

    text: str


def _cell(column: Column[Any], line: Line) -> Any:
    text, value = column.text(line, False), column.value(line)
    if column.kind == "text":
        return [text] if column.name == "verdict" else clean(text)
    if column.kind == "interval" and value is not None:
        value = value.unit.scale * (value.score if isinstance(value, Estimate) else value.delta)
    if value is None:
        return None
    printed = Printed(value)
    printed.text = text
    return printed


def _table(
    lines: Sequence[Line], metrics: Sequence[str], report: ExperimentReport | None, stored: Sequence[Run]
) -> None:
    from pandas import DataFrame  # type: ignore[import-untyped]

    columns, config = leaderboard_columns(metrics), dict[str, Any]()
    for column in columns:  # heading and width, in the order of the table
        column_class = st.column_config.TextColumn if column.kind == "text" else st.column_config.NumberColumn
        title = heading(column).replace("\n", " ")
        width, is_pinned = _PINNED.get(column.name, _WIDTHS[column.kind]), column.name in _PINNED
        meaning = f"{column.meaning[0].upper()}{column.meaning[1:]}."
        config[column.name] = column_class(title, width=width, pinned=is_pinned or None, help=meaning)
    words, colours = list(_VERDICTS), list(_VERDICTS.values())
    config["verdict"] = st.column_config.MultiselectColumn("verdict", width=96, options=words, color=colours)
    rows = [{column.name: _cell(column, line) for column in columns} for line in lines]
    frame = DataFrame(rows, columns=[column.name for column in columns], dtype=object)
    printed = [name for name in frame if any(isinstance(cell, Printed) for cell in frame[name])]
    picked = st.dataframe(
        frame.style.format(lambda cell: cell.text if cell is not None else UNKNOWN, subset=printed),
        column_config=config,
        column_order=list(config),
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
        controls.offer_csv(
            lambda: [
                map_values([*CANDIDATE_COLUMNS.values(), *map(metric_column, line.others)], line)
                for line in lines
            ],
            "leaderboard",
        )
    chosen = [lines[i].run for i in picked.selection.rows if lines[i].run.rows]
    if len(chosen) < 2:
        comparable = sum(bool(line.run.rows) for line in lines) > 1
        right.caption("Select rows to compare them. " * comparable + "Click a heading to sort.")
    elif right.button(f"Compare {count(len(chosen))} candidates", type="primary"):
        # A run is named by its label if that identifies it, else by its id.
        by_label = {name: run.run_id for name, run in controls.runs_of(report, stored).items()}
        names = (run.label if by_label.get(run.label) == run.run_id else run.run_id for run in chosen)
        experiment = {"experiment": report.file_name} if report is not None else {}
        st.switch_page("compare.py", query_params=experiment | {"compare": ",".join(names)})


page()
