"""Columns of a file of rows, and parts of a set of them, that nothing reads though the task hangs on them.

Invariant: only columns outside the templates count; nothing is refused but choices that nobody is shown.
"""

import json
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from harness.data import readers
from harness.data.columns import CONTEXTS, columns_of, find_head, find_reading_roles, is_id
from harness.data.examples import FIELD, Notes, examples
from harness.data.multiple_choice import list_choice_columns
from harness.data.unused import Unused, find_unused
from harness.experiment.scaffold.recognition import RecognizedRows, Request, absolute
from harness.formatting import count, pluralize
from harness.spec import HUB, Task

_SPLITS = ("split", "subset", "partition", "set", "dataset_split")
_PARTS = {"train", "training", "validation", "valid", "val", "dev", "test", "testing", "eval"}
_THUMBS = ("kto_tag", "label", "thumb", "thumbs_up")


def list_unused(task: Task, seen: RecognizedRows) -> Unused:
    """Find what a proposed task does not read of the rows."""
    content = readers.Rows(seen.shown, "row", seen.rows)
    return find_unused(task, content, examples(task, content, Notes([], []), problems=[]).examples)


def describe_columns(task: Task, seen: RecognizedRows, unused: Unused) -> str:
    """Name every column with what becomes of it."""
    names = list(dict.fromkeys(name for row in seen.rows for name in row.fields))
    roles = find_reading_roles(task, seen.layout, names)
    has_choices = seen.layout is not None and seen.layout.name == "multiple choice"
    choices = (
        {name for row in seen.rows for name in list_choice_columns(row.fields)} if has_choices else set()
    )
    groups = columns_of(task.fields.cluster or "{cluster}", names)
    asks_more = len({*roles.questions} & {*names}) > 1
    unread = {*unused.columns, *unused.media, *(context.name for context in unused.contexts)}
    tells: dict[str, Callable[[str], bool]] = {
        "question and answer": lambda name: name in roles.answers and name in roles.questions,
        "label" if seen.answers.form == "labels" else "answer": lambda name: name in roles.answers,
        "choice": lambda name: name in choices,
        "context": lambda name: name in roles.questions and asks_more and find_head(name) in CONTEXTS,
        "question": lambda name: name in roles.questions,
        "group, for the split": lambda name: name in groups,
        "not used": lambda name: name in unread,
        "id": is_id,
        "empty": lambda name: all(row.fields.get(name) in (None, "", [], {}) for row in seen.rows),
    }
    found: dict[str, list[str]] = {}
    for name in names:
        role = next((role for role, tells_so in tells.items() if tells_so(name)), "read as the layout says")
        found.setdefault(role, []).append(name)
    found.setdefault("not used", []).extend(_list_unread_parts(task, seen))
    found = {role: of for role, of in found.items() if of}
    return "columns: " + "; ".join(f"{', '.join(of)} → {role}" for role, of in found.items())


def _list_unread_parts(task: Task, seen: RecognizedRows) -> list[str]:
    """List the parts of objects next to those that a template names: `qa.id` next to `qa.question`."""
    named = FIELD.findall(f"{task.fields.prompt} {task.fields.reference}")
    columns = dict.fromkeys(name.partition(".")[0] for name in named if "." in name)
    held = [(c, value) for c in columns for row in seen.rows if isinstance(value := row.fields.get(c), dict)]
    parts = dict.fromkeys(f"{column}.{part}" for column, value in held for part in value)
    return [part for part in parts if part not in named]


def warn_of_unread(seen: RecognizedRows, task: Task, request: Request, unused: Unused) -> Iterator[str]:
    """Warn of columns that may ask or answer too, names of labels, thumbs, or the parts of a split."""
    unread = list(unused.columns)
    is_guessed = seen.layout is None and "reference" in seen.fields and request.reference is None
    named = _names_of_labels(seen, task, unread) if is_guessed and not request.instruction else ()
    others = (other for other in unused.others if getattr(request, other.option) is None)
    yield from [*named] or (f"{other.said}; next: where it does, {other.options}" for other in others)
    yield from _thumbs(seen, unread)
    yield from _parts(seen, unread)
    yield from _parts_of_set(request)


def _read_column(seen: RecognizedRows, column: str) -> list[Any]:
    """Return the values of a column; empty where a row has none."""
    values = [row.fields.get(column) for row in seen.rows]
    return [] if any(value in (None, "") for value in values) else values


def _names_of_labels(seen: RecognizedRows, task: Task, unread: Sequence[str]) -> Iterator[str]:
    """Warn of labels that are numbers and no known rating, or signs, which tell a prompt nothing."""
    values = [str(value) for value in _read_column(seen, seen.answer_column)]
    for sign in (label for label in seen.answers.labels if not any(map(str.isalnum, label))):
        yield (
            f"the label {sign!r} of {pluralize(values.count(sign), 'row')} means nothing; next: "
            "delete these rows where it stands for no label, or say what it means: --instruction TEXT"
        )
    labels = {*seen.answers.labels} - {"none"}
    are_numbers = all(re.fullmatch(r"-?\d+(\.\d+)?", label) for label in labels)
    if not labels or not are_numbers or "within_one" in task.metrics:
        return
    named = (
        "the labels are numbers, codes or steps of a rating, which tell a prompt nothing of what they mean"
    )
    for column in unread:
        texts = [str(value) for value in _read_column(seen, column)]
        is_one_to_one = len({*zip(values, texts, strict=False)}) == len(labels) == len({*texts})
        if is_one_to_one and not any(map(str.isdecimal, texts)):
            yield f"{named}; next: --reference {shlex.quote(column)}, which names them"
            return
    yield f"{named}; next: write names in their place, or say what they mean: --instruction TEXT"


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
