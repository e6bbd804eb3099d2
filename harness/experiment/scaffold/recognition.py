"""Recognition of rows: layout, question and answer columns, kind of task, and form of answers.

Invariant: only rows decide, and the user's options override every guess; nothing is written.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from harness.data import column_roles, formats, readers
from harness.data.examples import Notes
from harness.data.examples import examples as read_examples
from harness.data.formats import Layout
from harness.data.guessed_columns import MOST_LABELS, SQL, add_contexts, guess_columns, label_set
from harness.data.row_forms import CHOICE_QUESTIONS, find_column, settle_forms
from harness.data.text_files import Row
from harness.data.turns import find_fields
from harness.errors import UserError, refuse
from harness.formatting import pluralize
from harness.models.hub import NAMES as EMBEDDED
from harness.records import Example, has_closed_labels, list_labels, match_label, parse_json, pieces
from harness.spec import HUB, Task

Kind = Literal["labels", "choice", "question", "preference", "text"]


class Request(NamedTuple):
    """Request of the user: the folder, the rows, and options on them.

    `prompt` and `reference` are columns or templates, `kind` is the kind of task; None means to guess.
    `minutes` bounds the time of a comparison; `instruction` replaces the drafted system text.
    """

    folder: Path
    data: str
    base_model: str = EMBEDDED[0]
    pairs: str | None = None
    documents: str | None = None
    prompt: str | None = None
    reference: str | None = None
    kind: Kind | None = None
    minutes: float | None = None
    instruction: str | None = None


AnswerForm = Literal[
    "choice", "labels", "calls", "spans", "json", "reasoned", "joined labels", "sql", "number", "short",
    "long",
]  # fmt: skip


class Answers(NamedTuple):
    """Form of the answers of rows, with their labels, and the separator of several labels in one answer."""

    form: AnswerForm
    labels: tuple[str, ...] = ()
    separator: str = ""


class RecognizedRows(NamedTuple):
    """Rows, their layout, templates, kind of task and form of answers; `thumbs_down` counts rejected ones."""

    shown: str
    rows: list[Row]
    layout: Layout | None
    fields: dict[str, str]
    kind: Kind
    answers: Answers
    thumbs_down: int = 0


def look(request: Request, content: readers.Rows) -> RecognizedRows:
    """Recognise rows; refuse those without clear columns, or of another kind than requested."""
    refuse(column_roles.find_missing_header(content, is_named=bool(request.prompt or request.reference)))
    layout = formats.recognise(content.rows)
    fields = _fields(request, content, layout)
    if layout and layout.name == "multiple choice":
        forms = settle_forms(content.rows)
        refuse(forms.problems)
        fields |= {"answers_are": forms.numbers[0]} if forms.has_numbers else {}
    task = Task.model_validate({"name": "seen", "data": {"invalid_rows": "drop"}, "fields": fields})
    examples = [sourced.example for sourced in examples_of(task, content)]
    column = column_roles.name_in(column_roles.answer_column(task, layout, content.names)).rpartition(".")[2]
    kind = request.kind or _kind(layout, examples, column)
    form, misfit = layout.name if layout else "prompt and reference", ""
    if kind == "labels":
        references = list_references(examples)
        if len(references) < 2 or any(len(e.references) > 1 for e in examples):
            misfit = f"{pluralize(len(references), 'different reference')}, or several a row"
    elif kind == "choice" and not _has_choices(examples):
        misfit = f"{form} rows without choices of their own"
    elif kind == "question" and not any(row.fields.get("context") for row in content.rows):
        misfit = f"{form} rows without a context"
    elif kind == "preference" and form not in formats.PAIRED:
        misfit = f"{form} rows"
    if misfit:
        step = "leave --task out, or name another kind"
        raise UserError(f"{content.shown}, --task {kind}", misfit, NEEDS[kind], step)
    thumbs = sum(formats.has_thumb_down(row, layout) for row in content.rows)
    answers = _recognise_answers(kind, examples, column)
    return RecognizedRows(content.shown, content.rows, layout, fields, kind, answers, thumbs)


def _kind(layout: Layout | None, examples: Sequence[Example], column: str) -> Kind:
    if layout is not None and layout.name in formats.PAIRED:
        return "preference"
    if _has_choices(examples):
        return "choice"
    labels = tuple(list_references(examples))
    is_code = are_calls(labels) or _are_json(labels) or all(map(SQL.match, labels))
    if is_code or len(labels) > MOST_LABELS or any(len(e.references) != 1 for e in examples):
        return "text"
    answers = [match_label(e.references[0], labels) or "" for e in examples]
    is_set = label_set(answers, column, (e.prompt for e in examples))
    return "labels" if is_set and not _find_joined_labels(answers, column) else "text"


def _recognise_answers(kind: Kind, examples: Sequence[Example], column: str) -> Answers:
    if kind == "choice":
        return Answers("choice")
    if kind == "labels":
        return Answers("labels", tuple(list_references(examples)))
    references = [max(example.references, key=len) for example in examples if example.references]
    if not references:
        return Answers("long")
    # JSON lists, or objects of lists, of spans of the prompt.
    lists: list[tuple[str, Any]] = [
        (example.prompt.casefold(), spans)
        for example in examples
        for value in map(_read_json, example.references)
        for spans in (value.values() if isinstance(value, dict) else [value])
    ]
    are_lists = any(spans for _, spans in lists) and all(isinstance(spans, list) for _, spans in lists)
    if are_lists and all(_is_span(span, text) for text, spans in lists for span in spans):
        return Answers("spans")
    if are_calls(references):
        return Answers("calls")
    if _are_json(references):
        return Answers("json")
    if all(map(_FINAL.search, references)):
        return Answers("reasoned")
    if joined := _find_joined_labels(references, column):
        return joined
    if all(map(SQL.match, references)):
        return Answers("sql")
    n_words = sorted(len(pieces(reference)) for reference in references)
    if n_words[int(0.9 * (len(n_words) - 1))] > 8 or any("\n" in text.strip() for text in references):
        return Answers("long")
    are_numbers = kind == "text" and all(map(_BEGINS_WITH_NUMBER.match, references))
    return Answers("number" if are_numbers else "short")


def examples_of(task: Task, content: readers.Rows) -> list[Any]:
    """Read rows as examples of a task, each with its location."""
    return read_examples(task, content, Notes([], []))


def _fields(request: Request, content: readers.Rows, layout: Layout | None) -> dict[str, str]:
    options, names = (("prompt", request.prompt), ("reference", request.reference)), content.names
    templates = {key: text.replace("\\n", "\n") for key, text in options if text}
    for key, text in templates.items():
        known_columns = names | {column_roles.MESSAGES} if layout else names
        for column in column_roles.columns_of(text, names) if text not in names else ():
            column_roles.require_column(content.shown, known_columns, column, f"--{key}")
    fields = {key: text if "{" in text else f"{{{text}}}" for key, text in templates.items()}
    filled = column_roles.find_filled_columns(content.rows)
    formed = {name for row in content.rows for name in find_fields(row)}
    is_asked, answers = filled & formed & {"prompt", "messages"}, {"reference", "references", "constraints"}
    if layout is None and not (is_asked and filled & answers):
        fields = guess_columns(content, filled, fields)
    if layout and layout.name in ("question", "multiple choice") and "prompt" not in fields:
        asking = f"{{{find_column(dict.fromkeys(filled, ''), CHOICE_QUESTIONS)}}}"
        whole = add_contexts(asking, "", content.rows)
        is_nested = any(isinstance(row.fields.get("context"), dict) for row in content.rows)
        by_layout = f"{{context}}\n\n{asking}" if layout.name == "question" and not is_nested else asking
        fields |= {} if whole in (asking, by_layout) else {"prompt": whole}
    for group in column_roles.GROUPS if "cluster" not in filled else ():
        # A field that groups rows: filled everywhere, with several values that repeat.
        values = [row.fields.get(group) for row in content.rows]
        is_filled = all(isinstance(value, str | int) and value != "" for value in values)
        if is_filled and 5 <= len(set(values)) <= 0.8 * len(values):
            fields |= {"cluster": f"{{{group}}}"} if f"{{{group}}}" not in fields.values() else {}
            break
    return fields


def _has_choices(examples: Sequence[Example]) -> bool:
    """Tell whether each row has choices of its own; the same choices in all rows would be labels."""
    return bool(examples) and all(e.choices for e in examples) and not has_closed_labels(examples)


NEEDS: dict[Kind, str] = {
    "labels": "one label a row, of two different ones at least",
    "choice": "rows with a question, choices of their own, and the right one",
    "question": "question rows with a context",
    "preference": "rows with a chosen and a rejected answer",
    "text": "rows with a reference",
}


def list_references(examples: Sequence[Example]) -> list[str]:
    """List every reference once, sorted; spellings that are one label to metrics become the commonest."""
    return list_labels(reference for example in examples for reference in example.references)


def absolute(path: str) -> str:
    """Return a user's path as an absolute path; names of hub sets stay unchanged."""
    return path if path.startswith(HUB) else str(Path(path).expanduser().resolve())


_FINAL = re.compile(r"^####\s|\\boxed\{", re.MULTILINE)
_BEGINS_WITH_NUMBER = re.compile(r"\W*\d")
_KINDS = {"type", "label", "tag", "kind", "category", "class", "entity_type", "entity_group"}
_SEPARATORS = (";", "|", ",")


def are_calls(texts: Sequence[str]) -> bool:
    """Tell whether texts are tool calls: one JSON call per line, or an empty list for none."""
    parsed = ([_read_json(line) for line in text.splitlines()] for text in texts)
    with_calls = [values for values in parsed if values != [[]]]
    calls = [call for values in with_calls for call in values]
    are_alike = all(isinstance(call, dict) and call.keys() == {"name", "arguments"} for call in calls)
    return bool(with_calls) and all(with_calls) and are_alike


def _are_json(texts: Sequence[str]) -> bool:
    return all(isinstance(_read_json(text), dict | list) for text in texts)


def _is_span(value: object, text: str) -> bool:
    """Tell whether an entry is a span of a text, or an object with its offsets, or with its text and kind."""
    if isinstance(value, dict):
        has_text = any(_is_span(inner, text) for inner in value.values() if isinstance(inner, str))
        return {"start", "end"} <= value.keys() or (has_text and bool(value.keys() & _KINDS))
    return isinstance(value, str) and value.casefold() in text


def _find_joined_labels(texts: Sequence[str], column: str) -> Answers | None:
    """Find labels joined in answers, as in `billing; delivery`: fewer than distinct answers, some alone."""
    values = {text.strip() for text in texts}
    for separator in _SEPARATORS[:2] if all(map(_BEGINS_WITH_NUMBER.match, texts)) else _SEPARATORS:
        parts = [part.strip() for text in texts for part in text.split(separator) if part.strip()]
        labels = label_set(parts, column)
        if len(values) > len(labels) and values & {*labels}:
            return Answers("joined labels", labels, separator)
    return None


def _read_json(text: str) -> object:
    try:
        return parse_json(text)
    except ValueError:
        return None
