"""The table of the leaderboard and its filters: the columns of `report.columns`, as Streamlit shows them.

Invariant: cells are printed as reports print them and stay numbers, so that a click on a head sorts by value;
filters stand in the page's address.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import streamlit as st

from harness.comparison import Estimate
from harness.formatting import UNKNOWN
from harness.records import Run
from harness.report import CLASSES, ExperimentReport
from harness.report.columns import (
    CANDIDATE_COLUMNS,
    Column,
    heading,
    leaderboard_columns,
    map_values,
    metric_column,
)
from harness.report.escape import clean
from parts import controls
from parts.leaderboard_rows import Line
from parts.safe_text import COLOURS

if TYPE_CHECKING:
    from pandas.io.formats.style import Styler  # type: ignore[import-untyped]

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


def columns(metrics: Sequence[str]) -> dict[str, Any]:
    """Say how each column is headed and how wide it is, in the order of the table."""
    return {column.name: _configure(column) for column in leaderboard_columns(metrics)}


def _configure(column: Column[Any]) -> Any:
    if column.name == "verdict":
        words, colours = list(_VERDICTS), list(_VERDICTS.values())
        return st.column_config.MultiselectColumn("verdict", width=96, options=words, color=colours)
    make = st.column_config.TextColumn if column.kind == "text" else st.column_config.NumberColumn
    named = heading(column).replace("\n", " ")
    width, is_pinned = _PINNED.get(column.name, _WIDTHS[column.kind]), column.name in _PINNED
    return make(
        named, width=width, pinned=is_pinned or None, help=f"{column.meaning[0].upper()}{column.meaning[1:]}."
    )


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


def make_row(line: Line) -> dict[str, Any]:
    """Return a line unrounded, in the metric's unit, for a spreadsheet."""
    return map_values([*CANDIDATE_COLUMNS.values(), *map(metric_column, line.others)], line)
