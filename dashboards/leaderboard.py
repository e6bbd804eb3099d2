"""Leaderboard: every run with its score, what it forgot, what it costs, and the gate's verdict.

Invariant: scores of reported runs are the report's own; those of other runs are estimated from their stored
rows, the newest first. Runs that the items cannot tell apart share a rank.
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
from harness.report.wording import answered_text
from parts import charts, controls, project, safe_text, scores
from parts.safe_text import COLOURS
from parts.scores import AT_ONCE

if TYPE_CHECKING:
    from pandas.io.formats.style import Styler  # type: ignore[import-untyped]


@dataclass(frozen=True, kw_only=True)
class Line(Result):
    """One run on a target; without a report its facts hold what is stored of it."""

    run: Run
    task: str
    is_reported: bool = False

    @property
    def rows(self) -> str:
        """Name the row set of the target; empty where the run did not answer it."""
        return self.run.rows.get(f"{self.task}/test", "")


class Board(NamedTuple):
    """The lines, the best first; `unread` lists by metric the row sets whose scores are not known yet."""

    task: str
    lines: list[Line]
    unread: dict[str, list[str]]

    @property
    def n_unread(self) -> int:
        """Count the scores that are not known yet."""
        return sum(map(len, self.unread.values()))

    @property
    def n_unanswered(self) -> int:
        """Count the finished runs that hold no answers to the target."""
        return sum(
            line.run.state == "done" and line.facts.target is None and not line.rows for line in self.lines
        )

    def read(self) -> Iterator[float]:
        """Estimate what is not known yet; yields the share that is done."""
        done = 0
        for metric, digests in self.unread.items():
            for n in scores.estimate_all(digests, self.task, metric):
                done += n
                yield done / self.n_unread


def add_reported(runs: Sequence[Run], report: ExperimentReport | None) -> list[Run]:
    """Add the report's runs that are not on this machine, as far as the report knows them."""
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
    """Name the task that runs are ranked on and its metric: the report's, else as written; or nothing."""
    if report is not None and report.task:
        return report.task, report.metric
    loaded = project.experiment()
    return (loaded.experiment.target.name, loaded.experiment.target.primary_metric) if loaded else ("", "")


def make_board(runs: Sequence[Run], report: ExperimentReport | None, metrics: Sequence[str] = ()) -> Board:
    """Join what is stored of each run with what was reported of it, also by other metrics of the target."""
    task, metric = target(report)
    lines = _report_lines(runs, report, task, metric)
    unread: dict[str, list[str]] = {}
    waiting = [line for line in reversed(lines) if not line.is_reported and line.run.state == "done"]
    own = _estimates(waiting, task, metric, unread)
    for i, line in enumerate(lines):
        if not line.is_reported:
            lines[i] = replace(line, facts=replace(line.facts, target=own.get(line.rows)))
    lines.sort(key=lambda line: -e.unit.sign * e.score if (e := line.facts.target) else inf)
    others = {name: _estimates(lines, task, name, unread) for name in metrics}
    for i, line in enumerate(lines):
        lines[i] = replace(line, others={name: found.get(line.rows) for name, found in others.items()})
    return Board(task, _rank_lines(lines, task, metric), unread)


def _report_lines(runs: Sequence[Run], report: ExperimentReport | None, task: str, metric: str) -> list[Line]:
    """Begin a line for each run with what the chosen report says of it, or else the latest one."""
    kept = [*([] if report is None else [report]), *project.reports().values()]
    best = ((one, best_untrained(one.facts)) for one in reversed(kept))
    said = {f.run_id: (f, one, f.name == name) for one, name in best for f in one.facts}
    champions = project.champion_ids()
    lines = []
    for run in runs:
        is_champion = run.run_id in champions
        if run.run_id in said:
            f, one, is_best = said[run.run_id]
            line = Line(facts=f, run=run, task=one.task, metric=one.metric, is_champion=is_champion)
            lines.append(replace(line, is_reported=True, is_reference=is_best))
        else:
            facts = facts_of_run(run)
            lines.append(Line(facts=facts, run=run, task=task, metric=metric, is_champion=is_champion))
    return lines


def _estimates(
    lines: Sequence[Line], task: str, metric: str, unread: dict[str, list[str]]
) -> dict[str, Estimate | None]:
    """Estimate the scores of row sets that answered the task, and note those that were not read."""
    digests = [line.rows for line in lines if line.task == task and line.rows]
    found = scores.estimates(digests, task, metric)
    if left := [digest for digest in dict.fromkeys(digests) if digest not in found]:
        unread[metric] = left
    return found


def _rank_lines(lines: Sequence[Line], task: str, metric: str) -> list[Line]:
    alike = [
        one for one in lines if (one.task, one.metric) == (task, metric) and one.facts.target and one.rows
    ]
    if not alike:
        return list(lines)
    ranks = scores.ranks({one.run.run_id: one.rows for one in alike[:AT_ONCE]}, task, metric)
    return [replace(line, rank=ranks.get(line.run.run_id)) for line in lines]


_FACETS: dict[str, Callable[[Run], str]] = {
    "experiment": lambda run: run.experiment,
    "model": lambda run: run.base_model,
    "method": lambda run: run.method,
    "seed": lambda run: str(run.seed),
}
_VERDICTS = {word: COLOURS[class_] for word, class_ in CLASSES.items()} | {UNKNOWN: "#77808a"}
_WIDTHS = {"interval": 160, "number": 80, "text": None}  # pixels, for the longest: −0.123 [−0.145, −0.101]
_PINNED = {"rank": 50, "champion": 34, "candidate": None}


def choose_runs(runs: Sequence[Run], report: ExperimentReport | None) -> list[Run]:
    """Let runs be filtered; without a filter the report's are shown."""
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
    """A number that carries how it is printed."""

    text: str

    @classmethod
    def of(cls, x: float | None, text: str) -> "Printed | None":
        """Join a number and its text; None where there is no number."""
        if x is None:
            return None
        made = cls(x)
        made.text = text
        return made


def configure_columns(metrics: Sequence[str]) -> dict[str, Any]:
    """Say how each column is headed and how wide it is, in the order of the table."""
    found: dict[str, Any] = {}
    for column in leaderboard_columns(metrics):
        make = st.column_config.TextColumn if column.kind == "text" else st.column_config.NumberColumn
        named = heading(column).replace("\n", " ")
        width, is_pinned = _PINNED.get(column.name, _WIDTHS[column.kind]), column.name in _PINNED
        meaning = f"{column.meaning[0].upper()}{column.meaning[1:]}."
        found[column.name] = make(named, width=width, pinned=is_pinned or None, help=meaning)
    words, colours = list(_VERDICTS), list(_VERDICTS.values())
    verdict = st.column_config.MultiselectColumn("verdict", width=96, options=words, color=colours)
    return found | {"verdict": verdict}


def style_table(lines: Sequence[Line], metrics: Sequence[str]) -> "Styler":
    """Print the lines."""
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
        st.info("No run fits these filters.")
        return
    metrics = _choose_more_metrics(report) if stored else []
    found = make_board(runs, report, metrics)
    _table(found.lines, metrics, report, stored)
    _unread(found)
    known = [(line, e) for line in found.lines if (e := line.facts.target) is not None][: scores.AT_ONCE]
    if not known:
        return
    task, metric = known[0][0].task, known[0][0].metric
    alike = [(line.run, e) for line, e in known if (line.task, line.metric) == (task, metric)]
    unit, names = known[0][1].unit, controls.distinct([run for run, _ in alike])
    bars = []
    for name, (_, e) in zip(names, alike, strict=True):
        value, low, high = (unit.scale * x for x in e[:3])
        bars.append(charts.Bar(name, value, low, high, answered_text(e)))
    figure = charts.forest(
        {"score": bars}, f"{metric.replace('_', ' ')}{unit.axis}, with 95 % interval", zero=False
    )
    charts.draw(figure, "leaderboard")


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


page()
