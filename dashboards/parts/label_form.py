"""How good one answer is: answers to randomly drawn items, one at a time, without knowing whose they are.

Invariant: items come in the order in which `harness rate export` draws them, so that labels of both are one
random sample; a label is a file of its own before the next answer is shown.
"""

import uuid
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import streamlit as st

from harness import store
from harness.comparison import answer_digest, draw_items, is_correctable, select_scored
from harness.config import current_labels, digest_question, rubric_of
from harness.errors import HarnessError
from harness.formatting import count, plain
from harness.records import AnswerLabel, LabelSet, SampleResult
from harness.store import Store
from parts import controls, project, safe_text
from parts.paired_runs import Pair

_TWO = {"Bad": 0.0, "Good": 1.0}
_FIVE = {"Bad": 0.0, "Rather bad": 0.25, "In between": 0.5, "Rather good": 0.75, "Good": 1.0}


def show(pair: Pair, metric: str, rater: str) -> None:
    """Show the next answer that the rater has not labelled, with its question, and take the label."""
    if not is_correctable(project.metric(pair.task, metric)):
        controls.show_empty(f"Labels can correct metrics that are means in [0, 1], and {metric} is not one.")
        return
    order, is_binary = _answers(
        str(project.project().store.folder), metric, pair, project.row_set_times(pair.base, pair.new)
    )
    written, given = project.task(pair.task), store.list_labels(project.project().store, pair.task)
    given = current_labels(given, written) if written is not None else given
    done = {one.answer for of in given if (of.rater, of.metric) == (rater, metric) for one in of.labels}
    n_done = sum(answer in done for answer, _ in order)
    st.progress(n_done / max(1, len(order)), f"{count(n_done)} of {count(len(order))} answers")
    following = next((row for answer, row in order if answer not in done), None)
    if following is None:
        st.success("You have labelled every answer of this pair.")
        return
    _say_criteria(pair.task, metric)
    safe_text.block("question", following[0])
    safe_text.block("answer", following[1].text)
    choices = _TWO if is_binary else _FIVE
    for at, (column, (title, label)) in enumerate(
        zip(st.columns(len(choices)), choices.items(), strict=True), 1
    ):
        column.button(
            f"{title} ({plain(label).rstrip('0').rstrip('.')})", key=f"label_{at}", shortcut=str(at),
            width="stretch", on_click=_save, args=(metric, rater, following[1], label),
        )  # fmt: skip
    if following[1].references:
        with st.expander("Reference"):
            safe_text.block("reference", " | ".join(following[1].references[:5]))


@st.cache_data(show_spinner=False, max_entries=8)
def _answers(
    folder: str, metric: str, pair: Pair, changed: tuple[int, ...]
) -> tuple[list[tuple[str, tuple[str, SampleResult]]], bool]:
    """List the answers by digest with their question, in the order of items; and whether all are 0 or 1."""
    at = Store(Path(folder))
    arms = [select_scored(metric, store.read_rows(at, digest)) for digest in (pair.base, pair.new)]
    found: dict[str, tuple[str, SampleResult]] = {}
    for item in draw_items(set(arms[0]) | set(arms[1]), pair.task, metric):
        rows = [arm[item] for arm in arms if item in arm]
        question = min((row.prompt for row in rows), key=len)
        found |= {answer: (question, row) for answer, row in _sort_by_digest(metric, rows)}
    grades = {row.parts[metric] for arm in arms for row in arm.values()}
    return list(found.items()), grades <= {(0.0,), (1.0,)}


def _say_criteria(task: str, metric: str) -> None:
    """Show what the judge goes by, where the metric is one's."""
    written = project.task(task)
    with suppress(HarnessError):
        if written is not None and (rubric := rubric_of(written, metric)):
            safe_text.block("criteria", rubric.criteria.strip())


def _sort_by_digest(metric: str, rows: Sequence[SampleResult]) -> list[tuple[str, SampleResult]]:
    """Sort both answers of an item by their digest, which tells nobody whose one is."""
    return sorted(((answer_digest(metric, row), row) for row in rows), key=lambda pair: pair[0])


def _save(metric: str, rater: str, row: SampleResult, label: float) -> None:
    now = datetime.now(UTC).isoformat(timespec="microseconds")
    one = AnswerLabel(answer_digest(metric, row), row.example_id, label)
    written = project.task(row.task)
    rubric = digest_question(written, metric) if written is not None else ""
    given = LabelSet(uuid.uuid4().hex, now, row.task, row.split, metric, rater, (one,), rubric)
    store.save_labels(project.project().store, given)
