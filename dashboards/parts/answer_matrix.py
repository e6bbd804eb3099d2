"""The matrix of answers: one column per row set of a task, one row per item, and its filters."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import streamlit as st

from harness import store
from harness.metrics import Metric, flips_of_scores, item_scores
from harness.records import Run
from harness.report import RIGHT, WRONG, mark_answer
from harness.report.escape import clean, shorten
from harness.store import AnsweredItem, ItemFilter, Store
from parts import project, scores

if TYPE_CHECKING:
    from pandas.io.formats.style import Styler  # type: ignore[import-untyped]

STATUSES = {
    "cut": "truncated", "unparsable": "unparsable", "refused": "refused", "failed": "error",
    "some failed": "incomplete",
}  # fmt: skip
OUTCOMES = ("all", "disagreement", "lost", "gained", "all right", "none right", *STATUSES)
_WORDS = {status: word for word, status in STATUSES.items()}
_GROUNDS = {RIGHT: "rgba(0,114,178,0.16)", WRONG: "rgba(213,94,0,0.16)"}
_SHOWN = 120  # characters of a cell


class Column(NamedTuple):
    """A row set with the names of its candidates, and one of their runs."""

    name: str
    digest: str
    run: Run


class Matrix(NamedTuple):
    """The columns of a task and the metric that decides what is right."""

    task: str
    metric: Metric
    columns: tuple[Column, ...]

    @property
    def digests(self) -> list[str]:
        """The row sets, in the order of the columns."""
        return [column.digest for column in self.columns]


def columns_of(task: str, runs: Mapping[str, Run]) -> tuple[Column, ...]:
    """Return a column for each row set of a task; if all are fine-tunes, the base's column comes first."""
    key, names, run_of = f"{task}/test", dict[str, list[str]](), dict[str, Run]()
    for name, run in runs.items():
        if digest := run.rows.get(key):
            names.setdefault(digest, []).append(name)
            run_of.setdefault(digest, run)
    has_base = any(run.weights_digest == run.base_digest for run in run_of.values())
    tuned = {} if has_base else run_of
    bases = {
        base: run for run in tuned.values() if (base := store.digest_of_base(project.runs_store(), run, key))
    }
    first = [Column("base", *base) for base in bases.items()][:1]
    return (*first, *(Column(", ".join(of_set), digest, run_of[digest]) for digest, of_set in names.items()))


def find_items(matrix: Matrix, outcome: str, slice_: str, text: str) -> ItemFilter:
    """Return the filter for an outcome; lost and gained are relative to the first column."""
    if outcome == "all" or outcome in STATUSES:
        return ItemFilter(text, slice_, STATUSES.get(outcome, ""), None)
    metric, digests = matrix.metric, matrix.digests
    key = (matrix.task, metric.name, tuple(digests), project.row_set_times(*digests))
    ids, by_column = _score_items(str(project.runs_store().folder), key, metric)
    if outcome in ("all right", "none right"):
        right = np.isclose(by_column, metric.bounds[int(metric.higher_is_better)])
        chosen = right.all(axis=0) if outcome == "all right" else ~right.any(axis=0)
    else:
        flips = [flips_of_scores(metric, by_column[0], scored) for scored in by_column[1:]]
        sides = {"lost": lambda by: by < 0, "gained": lambda by: by > 0, "disagreement": lambda by: by != 0}
        moved = [flipped & sides[outcome](improvements) for improvements, flipped in flips]
        chosen = np.any(moved, axis=0) if moved else np.zeros(len(ids), bool)
    return ItemFilter(text, slice_, "", [item for item, wanted in zip(ids, chosen, strict=True) if wanted])


@st.cache_resource(show_spinner=False, max_entries=16)
def _score_items(folder: str, key: tuple[str, str, tuple[str, ...], Any], _metric: Metric) -> Any:
    """Return ids and scores (columns, items) of the items in all columns; failed answers score worst."""
    parts_by_column = scores.read_parts(key[2], key[0], _metric.name)
    worst = _metric.bounds[int(not _metric.higher_is_better)]
    by_column = []
    for columns in parts_by_column:
        rows = [(i, parts) for i, parts in zip(columns.ids, columns.parts, strict=True) if parts is not None]
        values: Any = item_scores(_metric, np.array([parts for _, parts in rows], float)) if rows else []
        scored = {item: score for (item, _), score in zip(rows, values, strict=True)}
        failed = dict(zip(columns.ids, columns.failed, strict=True))
        by_column.append({i: scored.get(i, worst if failed[i] else np.nan) for i in columns.ids})
    ids = [item for item in by_column[0] if all(item in each for each in by_column)] if by_column else []
    return ids, np.array([[each[item] for item in ids] for each in by_column], float)


def style(matrix: Matrix, items: Sequence[AnsweredItem]) -> "Styler":
    """Format a page of items, with a background colour for right and wrong answers."""
    from pandas import DataFrame  # type: ignore[import-untyped]

    rows = [
        {
            "item": clean(item.id),
            "question": _cut(item.question),
            "reference": _cut(" | ".join(item.references[:3])),
            **{column.name: _cell(matrix.metric, item, column.digest) for column in matrix.columns},
        }
        for item in items
    ]
    names = [column.name for column in matrix.columns]
    frame = DataFrame(rows, columns=["item", "question", "reference", *names])
    return frame.style.map(
        lambda text: f"background-color:{_GROUNDS.get(text[:1], 'transparent')}", subset=names
    )


def _cut(text: str) -> str:
    return shorten(clean(" ".join(text[: 4 * _SHOWN].split())), _SHOWN)


def _cell(metric: Metric, item: AnsweredItem, digest: str) -> str:
    answer = item.answers.get(digest)
    if answer is None:
        return ""
    status = f"{_WORDS[answer.status]}: " if answer.status in _WORDS else ""
    return f"{mark_answer(metric, answer.parts)} {status}{_cut(answer.text)}"


def csv_rows(folder: Path, matrix: Matrix, wanted: ItemFilter) -> Iterator[dict[str, Any]]:
    """Yield the filtered items with the full answer, status and score of each column."""
    metric = matrix.metric
    _, items = store.read_answers(Store(folder), matrix.digests, metric.name, wanted)
    for item in items:
        row = {"item": item.id, "slice": item.slice, "question": item.question}
        row["references"] = " | ".join(item.references)
        for column in matrix.columns:
            answer = item.answers.get(column.digest)
            parts = None if answer is None or answer.parts is None else np.array([answer.parts], float)
            row |= {
                f"{column.name}: answer": answer.text if answer else "",
                f"{column.name}: status": answer.status if answer else "",
                f"{column.name}: {metric.name}": "" if parts is None else item_scores(metric, parts)[0],
            }
        yield row
