"""Columns of a file of rows, and parts of a set of them, that nothing reads though the task hangs on them.

Invariant: only columns outside the templates count; nothing is refused but choices that nobody is shown.
"""

import json
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from harness.data import readers
from harness.data.columns import ANSWERS, column_options, find_head
from harness.data.examples import FIELD, Notes, examples
from harness.data.unused import Unused, find_unused
from harness.errors import Problem
from harness.experiment.scaffold.recognition import RecognizedRows, Request, absolute
from harness.formatting import count, pluralize
from harness.spec import HUB, Task

_CHOICE = re.compile(r"(?:(?:option|opt|choice)[ _-]?)?[a-h1-8]")
_SPLITS = ("split", "subset", "partition", "set", "dataset_split")
_PARTS = {"train", "training", "validation", "valid", "val", "dev", "test", "testing", "eval"}
_THUMBS = ("kto_tag", "label", "thumb", "thumbs_up")


def find_hidden_choices(seen: RecognizedRows, request: Request) -> Iterator[Problem]:
    """Phrase columns of choices that no template shows, where every answer names one of them.

    An answer names a choice by the letter or number of its column, by its place from 0, or by its text.
    """
    found = [c for c in _list_unread(seen) if _CHOICE.fullmatch(c.lower())]
    answers = [str(value).strip() for value in _read_column(seen, _answer_column(seen))]
    is_read = seen.layout is not None and seen.layout.name == "multiple choice"
    if is_read or len(found) < 2 or not answers:
        return
    marks = _name_choices(found, answers)
    texts = [{str(row.fields.get(column, "")).strip() for column in found} for row in seen.rows]
    if not {*answers} <= {*marks} and not all(a in of for a, of in zip(answers, texts, strict=True)):
        return
    prompt = seen.fields.get("prompt", "{question}")
    template = " ".join(
        [prompt, *(f"{mark}: {{{column}}}" for mark, column in zip(marks, found, strict=True))]
    )
    yield Problem(
        seen.shown,
        f"columns {', '.join(found)}, which {prompt} does not show: nobody could know the right answer",
        "choices in the question, or as a list in a column 'choices'",
        f"show them: {shlex.join(column_options(template, request.reference))}",
    )


def list_unused(task: Task, seen: RecognizedRows) -> Unused:
    """Find what a proposed task does not read of the rows."""
    content = readers.Rows(seen.shown, "row", seen.rows)
    return find_unused(task, content, examples(task, content, Notes([], []), problems=[]).examples)


def warn_of_unread(seen: RecognizedRows, request: Request) -> Iterator[str]:
    """Warn of columns that hold other answers, names of labels, thumbs, or the parts of a split."""
    unread = _list_unread(seen)
    if seen.layout is None and "reference" in seen.fields and request.reference is None:
        yield from [*_names_of_labels(seen, unread)] or _other_answers(seen, unread)
    yield from _thumbs(seen, unread)
    yield from _parts(seen, unread)
    yield from _parts_of_set(request)


def _list_unread(seen: RecognizedRows) -> list[str]:
    """List the columns that no template names, in their order."""
    read = {column for template in seen.fields.values() for column in FIELD.findall(template)}
    names = dict.fromkeys(name for row in seen.rows for name in row.fields)
    return [name for name in names if name not in read]


def _answer_column(seen: RecognizedRows) -> str:
    template = seen.fields.get("reference", "{answer}")
    return template[1:-1] if FIELD.fullmatch(template) else ""


def _read_column(seen: RecognizedRows, column: str) -> list[Any]:
    """Return the values of a column; empty where a row has none."""
    values = [row.fields.get(column) for row in seen.rows]
    return [] if any(value in (None, "") for value in values) else values


def _name_choices(columns: Sequence[str], answers: Sequence[str]) -> list[str]:
    """Return what answers call each choice: letters in their case, numbers from 0 where an answer is 0."""
    marks = [column[-1] for column in columns]
    if "0" in answers and all(map(str.isdecimal, marks)):
        return [str(int(mark) - 1) for mark in marks]
    is_upper = all(answer.upper() == answer for answer in answers)
    return [mark.upper() if is_upper else mark.lower() for mark in marks]


def _other_answers(seen: RecognizedRows, unread: Sequence[str]) -> Iterator[str]:
    others = [c for c in unread if find_head(c) in ANSWERS and _read_column(seen, c)]
    if others:
        named = " or ".join(map(repr, others))
        yield (
            f"the answer is taken from {_answer_column(seen)!r}, and {named} may hold it as well; next: "
            f"where it does, --reference {shlex.quote(others[0])}"
        )


def _names_of_labels(seen: RecognizedRows, unread: Sequence[str]) -> Iterator[str]:
    """Warn of labels that are codes, numbers from 0 on, which tell a prompt nothing."""
    values = [str(value) for value in _read_column(seen, _answer_column(seen))]
    labels = {*values}
    if seen.kind != "labels" or "0" not in labels or not all(map(str.isdecimal, labels)):
        return
    named = "the labels are numbers, which tell a prompt nothing of what they mean"
    for column in unread:
        texts = [str(value) for value in _read_column(seen, column)]
        is_one_to_one = len({*zip(values, texts, strict=False)}) == len(labels) == len({*texts})
        if is_one_to_one and not any(map(str.isdecimal, texts)):
            yield f"{named}; next: --reference {shlex.quote(column)}, which names them"
            return
    yield f"{named}; next: write names in their place, or say in system: of the suite what they mean"


def _thumbs(seen: RecognizedRows, unread: Sequence[str]) -> Iterator[str]:
    for column in unread if not seen.thumbs_down else ():
        values = [str(value).lower() for value in _read_column(seen, column)]
        if column.lower() in _THUMBS and {*values} == {"true", "false"}:
            n = f"{count(values.count('false'))} of {pluralize(len(values), 'row')}"
            yield (
                f"{column!r} is false in {n}, whose answers are taken for right ones; next: where these are "
                "thumbs, name the columns prompt, completion and label"
            )


def _parts(seen: RecognizedRows, unread: Sequence[str]) -> Iterator[str]:
    for column in unread:
        values = _read_column(seen, column)
        parts = list(dict.fromkeys(map(str, values)))
        if column.lower() in _SPLITS and len(parts) > 1 and {part.lower() for part in parts} <= _PARTS:
            named = ", ".join(f"{part} ({count(values.count(part))})" for part in parts)
            yield (
                f"the column {column!r} parts the rows into {named}, and is not read: they are split again; "
                "next: to keep these parts, write each to a file, and name these as train, validation and "
                "test under data: of the suite"
            )


def _parts_of_set(request: Request) -> Iterator[str]:
    """Warn of the parts of a folder or of a hub set beside the one that is split."""
    if not (request.data.startswith(HUB) or Path(request.data).expanduser().is_dir()):
        return
    others = [part for part in readers.list_parts(absolute(request.data)) if part in ("validation", "test")]
    if others:
        named = ", ".join(f"{part}: {json.dumps(absolute(request.data))}" for part in ("train", *others))
        yield (
            f"{request.data}: its {' and '.join(others)} rows are not read, train is split again; next: to "
            f"keep these parts, write data: {{{named}}} in the suite"
        )
