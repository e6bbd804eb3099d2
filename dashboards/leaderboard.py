"""Leaderboard: every run with its score, forgetting, cost and verdict.

Scores of reported runs are the report's own; those of other runs are estimated from their stored rows.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import TYPE_CHECKING, Any, NamedTuple

import streamlit as st

from harness.analysis.candidate_facts import best_untrained, facts_of_run
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
from parts.safe_text import COLOURS
from parts.scores import AT_ONCE

if TYPE_CHECKING:
    from pandas.io.formats.style import Styler  # type: ignore[import-untyped]


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


class Board(NamedTuple):
    """The lines, the best first; `unread` lists the row sets not yet scored, by metric."""

    task: str
    lines: list[Line]
    unread: dict[str, list[str]]

    @property
    def n_unread(self) -> int:
        """Number of scores not estimated yet."""
        return sum(map(len, self.unread.values()))

    def read(self) -> Iterator[float]:
        """Estimate the missing scores; yields the share done."""
        done = 0
        for metric, digests in self.unread.items():
            for n in scores.estimate_all(digests, self.task, metric):
                done += n
                yield done / self.n_unread


def add_reported(runs: Sequence[Run], report: ExperimentReport | None) -> list[Run]:
    """Add the report's runs that are not on this machine, with the fields that the report has."""
    if report is None:
        return list(runs)
    stored = {run.run_id for run in runs}
    absent = [
        Run(
            f.run_id, report.experiment, f.name, f.method, f.prompting, f.answer, f.seed, report.base_model,
            weights_digest="", base_digest="", state=f.state, created="", rows={}, recipe={},
        )
        for f in report.facts
        if f.run_id not in stored
    ]  # fmt: skip
    return [*absent, *runs]


def target(report: ExperimentReport | None) -> tuple[str, str]:
    """Return the task and metric that rank the runs: the report's, else those in harness.yaml, else empty."""
    if report is not None and report.task:
        return report.task, report.metric
    loaded = project.experiment()
    return (loaded.experiment.target.name, loaded.experiment.target.primary_metric) if loaded else ("", "")


def make_board(runs: Sequence[Run], report: ExperimentReport | None, metrics: Sequence[str] = ()) -> Board:
    """Join each run's stored results with the report's, also for other metrics of the target."""
    task, metric = target(report)
    lines = _report_lines(runs, report, task, metric)
    unread: dict[str, list[str]] = {}
    waiting = [line for line in reversed(lines) if not line.is_reported and line.run.state == "done"]
    estimates = _estimates(waiting, task, metric, unread)
    for i, line in enumerate(lines):
        if not line.is_reported:
            lines[i] = replace(line, facts=replace(line.facts, target=estimates.get(line.rows)))
    lines.sort(key=lambda line: -e.unit.sign * e.score if (e := line.facts.target) else inf)
    others = {name: _estimates(lines, task, name, unread) for name in metrics}
    for i, line in enumerate(lines):
        lines[i] = replace(line, others={name: scored.get(line.rows) for name, scored in others.items()})
    return Board(task, _rank_lines(lines, task, metric), unread)


def _report_lines(runs: Sequence[Run], report: ExperimentReport | None, task: str, metric: str) -> list[Line]:
    """Make a line for each run from the chosen report, or else from the latest report that has it."""
    kept = [*([] if report is None else [report]), *project.reports().values()]
    with_best = ((each, best_untrained(each.facts)) for each in reversed(kept))
    reported = {f.run_id: (f, each, f.name == best) for each, best in with_best for f in each.facts}
    champions = project.champion_ids()
    lines = []
    for run in runs:
        is_champion = run.run_id in champions
        if run.run_id in reported:
            f, source, is_best = reported[run.run_id]
            line = Line(facts=f, run=run, task=source.task, metric=source.metric, is_champion=is_champion)
            lines.append(replace(line, is_reported=True, is_reference=is_best))
        else:
            facts = facts_of_run(run)
            lines.append(Line(facts=facts, run=run, task=task, metric=metric, is_champion=is_champion))
    return lines


def _estimates(
    lines: Sequence[Line], task: str, metric: str, unread: dict[str, list[str]]
) -> dict[str, Estimate | None]:
    """Estimate the scores of row sets of the task, and add the unread ones to `unread`."""
    digests = [line.rows for line in lines if line.task == task and line.rows]
    estimates = scores.estimates(digests, task, metric)
    if left := [digest for digest in dict.fromkeys(digests) if digest not in estimates]:
        unread[metric] = left
    return estimates


def _rank_lines(lines: Sequence[Line], task: str, metric: str) -> list[Line]:
    same_score = [line for line in lines if (line.task, line.metric) == (task, metric)]
    ranked = [line for line in same_score if line.facts.target and line.rows]
    if not ranked:
        return list(lines)
    ranks = scores.ranks({line.run.run_id: line.rows for line in ranked[:AT_ONCE]}, task, metric)
    return [replace(line, rank=ranks.get(line.run.run_id)) for line in lines]


_FACETS: dict[str, Callable[[Run], str]] = {
    "experiment": lambda run: run.experiment,
    "model": lambda run: run.base_model,
    "method": lambda run: run.method,
    "seed": lambda run: str(run.seed),
}
_VERDICTS = {word: COLOURS[class_] for word, class_ in CLASSES.items()} | {UNKNOWN: "#77808a"}
_WIDTHS = {"interval": 160, "number": 80, "text": None}  # pixels; the longest is −0.123 [−0.145, −0.101]
_PINNED = {"rank": 50, "champion": 34, "candidate": None}


def choose_runs(runs: Sequence[Run], report: ExperimentReport | None) -> list[Run]:
    """Draw the filters; without a filter the report's runs are shown."""
    reported = {f.run_id for f in report.facts} if report is not None else set()
    shown = controls.runs_of(report, runs)
    with st.expander("Filters"):
        everything = st.toggle(
            "All stored runs, not only the report's", value=not shown, key="all_runs", bind="query-params"
        )
        pool = [run for run in runs if everything or report is None or run.run_id in reported]
        columns = st.columns(5)
        for column, (title, pick) in zip(columns, _FACETS.items(), strict=False):
            options = sorted({pick(run) for run in pool})
            key = f"filter_{title}"
            picked = column.multiselect(title, options, key=key, format_func=clean, bind="query-params")
            pool = [run for run in pool if not picked or pick(run) in picked]
        since = columns[-1].text_input(
            "created since", placeholder="2026-01-31", key="filter_since", bind="query-params"
        )
        return [run for run in pool if run.created >= since]


class Printed(float):
    """A number with its printed form."""

    text: str

    @classmethod
    def of(cls, x: float | None, text: str) -> "Printed | None":
        """Join a number and its text; None without a number."""
        if x is None:
            return None
        printed = cls(x)
        printed.text = text
        return printed


def configure_columns(metrics: Sequence[str]) -> dict[str, Any]:
    """Return the heading and width of each column, in the order of the table."""
    configured: dict[str, Any] = {}
    for column in leaderboard_columns(metrics):
        make = st.column_config.TextColumn if column.kind == "text" else st.column_config.NumberColumn
        title = heading(column).replace("\n", " ")
        width, is_pinned = _PINNED.get(column.name, _WIDTHS[column.kind]), column.name in _PINNED
        meaning = f"{column.meaning[0].upper()}{column.meaning[1:]}."
        configured[column.name] = make(title, width=width, pinned=is_pinned or None, help=meaning)
    words, colours = list(_VERDICTS), list(_VERDICTS.values())
    verdict = st.column_config.MultiselectColumn("verdict", width=96, options=words, color=colours)
    return configured | {"verdict": verdict}


def style_table(lines: Sequence[Line], metrics: Sequence[str]) -> "Styler":
    """Format the lines as a table."""
    from pandas import DataFrame  # type: ignore[import-untyped]

    shown = leaderboard_columns(metrics)
    rows = [{column.name: _cell(column, line) for column in shown} for line in lines]
    frame = DataFrame(rows, columns=[column.name for column in shown], dtype=object)
    printed = [name for name in frame if any(isinstance(cell, Printed) for cell in frame[name])]
    return frame.style.format(lambda cell: cell.text if cell is not None else UNKNOWN, subset=printed)


def _cell(column: Column[Any], line: Line) -> Any:
    text, value = column.text(line, False), column.value(line)
    if column.kind == "text":
        return [text] if column.name == "verdict" else clean(text)
    if column.kind == "interval" and value is not None:
        value = value.unit.scale * (value.score if isinstance(value, Estimate) else value.delta)
    return Printed.of(value, text)


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
    runs = choose_runs(add_reported(stored, report), report)
    if not runs:
        st.info("No run matches these filters.")
        return
    metrics = _choose_more_metrics(report) if stored else []
    board = make_board(runs, report, metrics)
    _table(board.lines, metrics, report, stored)
    _unread(board)


def _choose_more_metrics(report: ExperimentReport | None) -> list[str]:
    name, primary = target(report)
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
    config = configure_columns(metrics)
    picked = st.dataframe(
        style_table(lines, metrics),
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
        address = {"compare": ",".join(controls.names_in_links(chosen, report, stored))}
        experiment = {"experiment": report.file_name} if report is not None else {}
        st.switch_page("compare.py", query_params=experiment | address)


def _unread(board: Board) -> None:
    """Say how many scores are missing, and estimate them on request."""
    if board.n_unread == 0:
        return
    st.caption(f"Not estimated yet: {count(board.n_unread)} scores; the page opens with {scores.AT_ONCE}.")
    if st.button("Estimate all", key="estimate"):
        bar = st.progress(0.0)
        for share in board.read():
            bar.progress(share)
        st.rerun()


page()
