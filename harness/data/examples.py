"""Rows to examples, pairs and documents, each checked field by field.

Invariant: every example has an id, and a reference among its choices if it has any.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal, NamedTuple, TypeVar

from harness.data import formats, text_files, turns
from harness.data.formats import Layout
from harness.data.row_forms import misfit, name_question, read_pair
from harness.data.turns import TOOL_FIELDS, add_tools
from harness.errors import Problem, UserError, as_argument, did_you_mean, refuse
from harness.records import Document, Example, Message, compose_letters, match_label
from harness.spec import Fields, Task

FIELD = re.compile(r"\{(\w[\w .\-()/#%?&]*)\}")
_NAMEABLE = "a name of letters, digits, spaces and . - ( ) / # % ? &"
_DEFAULT = Fields()
_FILL_OR_DROP = "fill it in, or set invalid_rows: drop in data: of the task"


class SourceText(NamedTuple):
    """A text that an augmented row was made from, and the places of the rows that hold it."""

    text: str
    places: tuple[str, ...]


class SourcedExample(NamedTuple):
    """An example, its place, and for an augmented row the texts that it was made from."""

    example: Example
    where: str
    origins: tuple[SourceText, ...] = ()


SourcedRows = Sequence[SourcedExample]
_Made = TypeVar("_Made", SourcedExample, Document)


class Notes(NamedTuple):
    """Sentences on files: how they were read, and which rows were left out and why."""

    read_as: list[str]
    removed: list[str]


def examples(
    task: Task,
    content: text_files.Rows,
    notes: Notes,
    documents: Sequence[Document] = (),
    problems: list[Problem] | None = None,
    all_rows: Sequence[text_files.Row] | None = None,
) -> list[SourcedExample]:
    """Make the examples of a split, without those of unknown labels if the task drops them.

    With `documents` a question's context is left to retrieval. `all_rows` of the task show whether numbers of
    choices count from 0 or 1. Problems are added to `problems`, or else raised as a UserError.
    """
    refuse(unusable_templates(task.fields, content))
    layout, document_ids = formats.layout_of(task, content), {document.id for document in documents}
    layout = formats.settle_answers(task, layout, all_rows or content.rows)
    if layout:
        contexts = "; contexts are left to retrieval" if documents and layout.name == "question" else ""
        notes.read_as.append(f"{content.shown}: read as {layout.name} rows ({layout.form}){contexts}")

    def read_example(row: text_files.Row, name: str) -> SourcedExample:
        example = _example(task, formats.read(row, layout, bool(documents)), name)
        context = turns.text_of(row.fields.get("context") or "")
        ident = formats.context_id(context) if context else ""
        if ident in document_ids and not example.documents:
            example = replace(example, documents=(ident,))
        return SourcedExample(example, row.where)

    answer_match = FIELD.fullmatch(task.fields.reference)
    answer_column = answer_match[1] if answer_match else ""
    content = content._replace(rows=[*text_files.write_empty_lists(answer_column, content.rows)])
    row_problems: list[Problem] = []
    sourced_rows = _read_each(content, read_example, task.data.invalid_rows, notes.removed, row_problems)
    kept_rows: list[SourcedExample] = []
    mislabelled_rows: list[SourcedExample] = []
    for sourced in sourced_rows:
        choices, references = sourced.example.choices, sourced.example.references
        (kept_rows if not choices or set(references) <= set(choices) else mislabelled_rows).append(sourced)
    if task.data.unknown_labels == "error" or not task.labels:
        label_problems: list[Problem] = []
        for example, where, _ in mislabelled_rows:
            wrong_label = next(text for text in example.references if text not in example.choices)
            hint = did_you_mean(wrong_label, example.choices)
            hint = hint if "did you mean" in hint else "correct the row, or set data.unknown_labels: drop"
            expected = f"one of the {len(example.choices)} choices"
            label_problems.append(Problem(where, f"reference {wrong_label!r}", expected, hint))
        row_problems += text_files.cap_problems(label_problems, content.shown, "rows of other labels")
    if not kept_rows and not row_problems:
        expected = f"at least one with one of the {len(task.labels)} labels"
        row_problems.append(Problem(content.shown, "no row left", expected, "correct labels: of the task"))
    if row_problems and problems is None:
        raise UserError(row_problems)
    if problems is not None:
        problems += row_problems
    if mislabelled_rows:
        dropped = f"{len(mislabelled_rows):,} of {len(content.rows):,} rows dropped"
        notes.removed.append(f"{content.shown}: {dropped}, label not among the {len(task.labels)}")
    return kept_rows


def read_example(task: Task, layout: Layout | None, row: text_files.Row) -> Example:
    """Make the example of one row; its place is its id if it has none. An unusable row is refused."""
    return _example(task, formats.read(row, layout), row.where)


def unusable_templates(fields: Fields, content: text_files.Rows) -> Iterator[Problem]:
    """Refuse a column's name in place of a template, and a column that no template can name."""
    columns = content.rows[0].fields
    unnameable = [column for column in columns if column and not FIELD.fullmatch(f"{{{column}}}")]
    for key, template in fields:
        if template is None or key == "answers_are":
            continue
        where = f"{content.shown}, fields: {{{key}: {template}}}"
        column = next((c for c in unnameable if template == c or f"{{{c}}}" in template), None)
        if column is not None:
            found = f"the column {column!r}, which no template can name"
            yield Problem(where, found, _NAMEABLE, "rename the column")
        elif template in columns:
            found, expected = f"the column {template!r} by its name", "a template over columns"
            yield Problem(where, found, expected, f'write "{{{template}}}"')


def pairs(task: Task, content: text_files.Rows, notes: Notes) -> list[SourcedExample]:
    """Make examples of pairs and of thumbs: `references` has the chosen answer, `rejected` the other one."""
    return _read_each(content, partial(_pair, task), task.data.invalid_rows, notes.removed)


def prompts(task: Task, content: text_files.Rows, notes: Notes) -> list[SourcedExample]:
    """Make examples of rows with a question; answers are not read. A UserError names the unusable rows."""

    def read_question(row: text_files.Row, name: str) -> SourcedExample:
        ident = _fill_own(row, task.fields.id, "id") or name
        messages = _messages(row, task.fields.prompt)
        return SourcedExample(Example(ident, messages, choices=task.labels, cluster=ident), row.where)

    return _read_each(content, read_question, task.data.invalid_rows, notes.removed)


def documents(content: text_files.Rows) -> list[Document]:
    """Make the documents of a knowledge base; for rows with questions, one for every context."""
    if all("text" not in row.fields and row.fields.get("context") for row in content.rows):
        contexts = {turns.text_of(row.fields["context"]): formats.title(row) for row in content.rows}
        return [Document(formats.context_id(text), title, text) for text, title in contexts.items()]

    def read_document(row: text_files.Row, name: str) -> Document:
        text = _fill(row, "{text}")
        if not text.strip():
            raise UserError(row.where, "an empty document", "a text", "fill it in or remove the row")
        return Document(_fill_own(row, None, "id") or name, _fill_own(row, None, "title"), text)

    return _read_each(content, read_document)


def _read_each(
    content: text_files.Rows,
    read_row: Callable[[text_files.Row, str], _Made],
    invalid_rows: Literal["error", "drop"] = "error",
    notes: list[str] | None = None,
    problems: list[Problem] | None = None,
) -> list[_Made]:
    """Convert every row; ids must differ, and default to the file's stem and the row's index."""
    items: list[_Made] = []
    placed_ids: list[tuple[str, str]] = []
    row_problems: list[Problem] = []
    for index, row in enumerate(content.rows):
        try:
            item = read_row(row, f"{content.stem}-{index}")
        except UserError as error:
            row_problems += error.problems
            continue
        items.append(item)
        placed_ids.append((item.example.id if isinstance(item, SourcedExample) else item.id, row.where))
    if row_problems and (invalid_rows == "error" or not items):
        row_problems = text_files.cap_problems(row_problems, content.shown, "rows that cannot be used")
        if problems is None:
            raise UserError(row_problems)
        problems += row_problems
    elif row_problems and notes is not None:
        n_rows = len({problem.where for problem in row_problems})
        kinds = Counter(problem.found for problem in row_problems)
        reasons = ", ".join(f"{kind} ({count})" for kind, count in kinds.most_common(3))
        ellipsis = ", …" if len(kinds) > 3 else ""
        first_place = row_problems[0].where.removeprefix(content.shown).lstrip(": ")
        notes.append(
            f"{content.shown}: {n_rows:,} of {len(content.rows):,} rows dropped, invalid: "
            f"{reasons}{ellipsis}; the first is {first_place}"
        )
    places, repeats = dict[str, str](), list[Problem]()
    step = f"harness data clean {as_argument(content.shown)} --new-ids --out NEW gives such rows new ids"
    for ident, where in placed_ids:
        if ident in places:
            repeats.append(Problem(where, f"id {ident!r}, as in {places[ident]}", "every id once", step))
        places.setdefault(ident, where)
    repeats = text_files.cap_problems(repeats, content.shown, "repeated ids")
    if problems is None:
        refuse(repeats)
    else:
        problems += repeats
    return items


def _example(task: Task, row: text_files.Row, name: str) -> Example:
    is_text = task.kind != "choice" and text_files.is_plain(row.fields.get("choices"))
    choices = () if is_text else _texts(row, "choices")
    if repeats := [t for t, n in Counter(map(compose_letters, map(str.strip, choices))).items() if n > 1]:
        found, expected = f"the choice {repeats[0]!r} twice", "choices that differ"
        raise UserError(row.where, found, expected, turns.FIX_ROW)
    ident = _fill_own(row, task.fields.id, "id") or name
    if task.kind == "choice" and not choices and not task.labels:
        expected = "the field 'choices', or labels: of the task"
        raise UserError(row.where, "no choices", expected, "write labels: [A, B] at the task")
    only_read = task.kind == "bits_per_byte"
    references = _references(row, task.fields.reference, only_read=only_read)
    if task.labels and not choices:
        references = tuple(match_label(text, task.labels) or text for text in references)
    # Objects in the field are documents themselves, not their ids.
    holds_texts = not task.data.documents and text_files.is_object(row.fields.get("documents"))
    return Example(
        id=ident,
        messages=() if only_read else _messages(row, task.fields.prompt, may_be_empty=task.kind == "choice"),
        references=references,
        choices=choices or task.labels,
        cluster=_fill_own(row, task.fields.cluster, "cluster") or ident,
        slice=_fill_own(row, task.fields.slice, "slice"),
        documents=() if holds_texts else _texts(row, "documents"),
        constraints=tuple(row.fields.get("constraints") or ()),
    )


def _pair(task: Task, raw_row: text_files.Row, name: str) -> SourcedExample:
    filled = text_files.find_known_fields(raw_row)
    if {"completion", "label"} <= filled and not {"chosen", "rejected"} <= filled:  # a thumb, in TRL's form
        label, answer = raw_row.fields["label"], raw_row.fields["completion"]
        if (is_up := text_files.read_flag(label)) is None:
            raise misfit(raw_row, f"the label {label!r}", "true or false, a thumb")
        if isinstance(answer, list):
            answer_turns = turns.read_turns(raw_row, "completion")
            if len(answer_turns) != 1 or answer_turns[0]["role"] != "assistant":
                raise misfit(raw_row, "a completion of another form", "one turn of the assistant")
            answer = answer_turns[0]["content"]
        fields = {**raw_row.fields, "completion": answer, "label": is_up}
        row = name_question(raw_row._replace(fields=fields))
        answer = turns.read_text(row, "completion")
        chosen, rejected = ((answer,), "") if is_up else ((), answer)
    else:
        row = read_pair(raw_row)
        chosen, rejected = (_fill(row, "{chosen}"),), _fill(row, "{rejected}")
    # Pairs need not have the columns of the items' prompt.
    prompt_values = [_value(row, field) for field in FIELD.findall(task.fields.prompt)]
    lacks_columns = row.fields.keys() & {"prompt", "messages"} and None in prompt_values
    prompt = _DEFAULT.prompt if lacks_columns else task.fields.prompt
    ident = _fill_own(row, None, "id") or name
    cluster = task.fields.cluster
    if any(_value(row, field) is None for field in FIELD.findall(cluster or "")):
        cluster = None
    messages, slice_name = _messages(row, prompt), _fill_own(row, None, "slice")
    cluster = _fill_own(row, cluster, "cluster") or ident
    example = Example(ident, messages, chosen, rejected=rejected, cluster=cluster, slice=slice_name)
    return SourcedExample(example, row.where)


def _messages(row: text_files.Row, template: str, may_be_empty: bool = False) -> tuple[Message, ...]:
    """Return the messages of a row, with the tools that it defines unless the template writes them."""
    question = _question(row, template, may_be_empty)
    media = next((name for name in turns.MEDIA if row.fields.get(name)), None)
    if media and any(turns.SHOWS_MEDIA.search(turn["content"]) for turn in question):
        found = f"{media} in a column, which the text refers to"
        raise UserError(row.where, found, turns.ONLY_TEXT, turns.WITHOUT_PARTS)
    return question if {*TOOL_FIELDS} & {*FIELD.findall(template)} else add_tools(question, row)


def _question(row: text_files.Row, template: str, may_be_empty: bool) -> tuple[Message, ...]:
    is_text = "prompt" in row.fields and text_files.is_plain(row.fields.get("messages"))
    if template == _DEFAULT.prompt and "messages" in row.fields and not is_text:
        return _turns(row)
    if "{messages}" in template and isinstance(row.fields.get("messages"), list):
        *earlier_turns, last_turn = _turns(row)
        row = row._replace(fields={**row.fields, "messages": last_turn["content"]})
        return (*earlier_turns, {"role": "user", "content": _fill_shown(row, template)})
    prompt = _fill(row, template) if template == _DEFAULT.prompt else _fill_shown(row, template)
    if not prompt.strip() and not may_be_empty:
        raise UserError(row.where, "an empty prompt", "a question", "fill it in or remove the row")
    return tuple(turns.add_system([{"role": "user", "content": prompt}], row, template))


def _turns(row: text_files.Row) -> tuple[Message, ...]:
    value = row.fields["messages"]
    expected = "a list of {role, content}, the last one of the user"
    if not isinstance(value, list) or not value or not all(isinstance(turn, dict) for turn in value):
        step = 'such as [{"role": "user", "content": "…"}]'
        raise UserError(row.where, "messages of another form", expected, step)
    messages = turns.add_system(turns.read_turns(row, "messages"), row)
    if messages[-1]["role"] != "user":
        found = f"messages that end with the {messages[-1]['role']}"
        raise UserError(row.where, found, expected, "put the answer into the field reference")
    return tuple(messages)


def _references(row: text_files.Row, template: str, *, only_read: bool) -> tuple[str, ...]:
    """Return one reference, or every text of a list; an object, or a list of objects, is its JSON."""
    if only_read:
        full_text = _fill(row, "{text}" if template == _DEFAULT.reference else template)
        if not full_text.strip():
            raise UserError(row.where, "an empty text", "text to read", "remove the row")
        return (full_text,)
    if template == _DEFAULT.reference and "references" in row.fields:
        template = "{references}"
    elif template == _DEFAULT.reference and row.fields.get("constraints") and "reference" not in row.fields:
        return ()
    field = FIELD.fullmatch(template)
    if field and text_files.is_object(value := _value(row, field[1])):
        return (text_files.write_json(value),)
    if field and isinstance(value, list) and text_files.names_labels(field[1]):
        labels = [text for label in value if (text := text_files.text_of_cell(label)) is not None]
        if len(labels) < len(value) or any(";" in text for text in labels):
            found = f"{field[1]!r} of another form, or a label with a semicolon"
            raise UserError(row.where, found, "a list of labels", f'such as "{field[1]}": ["…"]')
        return ("; ".join(labels) or "none",)
    if field and isinstance(value, list):
        accepted_answers = _texts(row, field[1])
        if not accepted_answers:
            found, expected = f"no entry in {field[1]!r}", "at least one accepted answer"
            raise UserError(row.where, found, expected, _FILL_OR_DROP)
        return accepted_answers
    reference = _fill(row, template)
    if not reference.strip():
        raise UserError(row.where, "an empty reference", "the right answer", _FILL_OR_DROP)
    return (reference,)


def _fill_own(row: text_files.Row, template: str | None, field: str) -> str:
    if template is None and row.fields.get(field) is None:
        return ""
    return _fill(row, template or f"{{{field}}}")


def _fill(row: text_files.Row, template: str) -> str:
    return FIELD.sub(lambda field: _scalar(row, field[1]), template)


def _fill_shown(row: text_files.Row, template: str) -> str:

    def show(field: re.Match[str]) -> str:
        value = _value(row, field[1])
        return turns.text_of(value) if isinstance(value, list | dict) and value else _scalar(row, field[1])

    return FIELD.sub(show, template)


def _value(row: text_files.Row, field: str) -> Any:
    """Return a field of the row, or as `answers.text` a field within it."""
    value: Any = row.fields.get(field)
    if value is None and "." in field:
        value = row.fields
        for name in field.split("."):
            value = value.get(name) if isinstance(value, dict) else None
    return value


def _scalar(row: text_files.Row, field: str) -> str:
    value = _value(row, field)
    if isinstance(value, str):
        return value
    if field in row.fields and value is None:
        raise UserError(row.where, f"no value in {field!r}", "text or a number", _FILL_OR_DROP)
    if value is None:
        field_names = ", ".join(sorted(row.fields))
        hint = f"its fields are {field_names}; name another one under fields: of the task"
        raise UserError(row.where, f"no field {field!r}", f"a value for {field!r}", hint)
    if isinstance(value, bool):
        return str(value).lower()
    if (text := text_files.text_of_cell(value)) is not None:
        return text
    found = f"a {type(value).__name__} in {field!r}"
    step = "write it as text, or name another field under fields: of the task"
    raise UserError(row.where, found, "text or a number", step)


def _texts(row: text_files.Row, field: str) -> tuple[str, ...]:
    value = _value(row, field)
    if value is None:
        return ()
    if isinstance(value, list) and all(isinstance(entry, str) for entry in value):
        return tuple(value)
    found, step = f"{field!r} of another form", f'such as "{field}": ["…", "…"]'
    raise UserError(row.where, found, "a list of texts", step)
