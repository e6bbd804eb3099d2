"""Columns and keys of turns that a task does not read, and columns that may hold a question's context.

Invariant: a column is read, or holds ids, or is named; a possible context is recognised by its content, not
its name, and offered with the line that reads it.
"""

import json
import shlex
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from statistics import median
from typing import NamedTuple

from harness.data import column_roles, turns
from harness.data.column_roles import TELLING, Roles, is_id, option_text
from harness.data.examples import FIELD, SourcedExample
from harness.data.formats import Layout, layout_of, recognise
from harness.data.guessed_columns import may_answer, may_ask
from harness.data.row_forms import list_choice_columns
from harness.data.splits import ORIGIN, SOURCE, is_augmented
from harness.data.text_files import Row, Rows, is_plain
from harness.formatting import count, percent, pluralize
from harness.records import FEEDBACK_ORIGIN, Example
from harness.spec import Fields, Task

THOUGHTS = {"reasoning_content", "reasoning", "thinking", "redacted_thinking", "thought", "thoughts"}
_FIRST = 2_000  # rows by which a context is recognised
_LONG = 40  # characters of a text that is more than a name
_NAMED = 30  # columns that are named one by one
_FEWEST = 3  # rows
_HELD = 0.3  # share of rows whose answer is in the column, beyond chance


class ContextColumn(NamedTuple):
    """A column that may hold a question's context, its number of rows, and the reasons."""

    name: str
    n_rows: int
    why: str
    explains: bool


class OtherColumns(NamedTuple):
    """Columns that may ask or answer as well as the `taken` one; `option` is prompt or reference."""

    option: str
    taken: str
    names: Sequence[str]

    @property
    def sentence(self) -> str:
        """Sentence on the column that was taken and the others."""
        role = "question" if self.option == "prompt" else "answer"
        quoted_names = " or ".join(map(repr, self.names))
        return f"the {role} is taken from {self.taken!r}, and {quoted_names} may hold it as well"

    @property
    def options(self) -> str:
        """Option that takes the first of the others."""
        return shlex.join([f"--{self.option}", self.names[0]])


class Unused(NamedTuple):
    """Unread parts of `n_rows` rows: columns by the rows that fill them, keys of turns by their turns.

    `media` are columns of pictures or sounds. `contexts` may hold the question's context, and `template`
    names them before the prompt. `others` may ask or answer as well as the guessed columns.
    """

    n_rows: int
    columns: Mapping[str, int]
    keys: Mapping[str, int]
    contexts: Sequence[ContextColumn]
    media: Sequence[str]
    template: tuple[str, ...]
    fields: Mapping[str, str]
    others: Sequence[OtherColumns]

    def line(self) -> str:
        """Return the line of a suite with which a task reads the contexts."""
        fields = {**self.fields, "prompt": "\n\n".join(self.template)}
        order = sorted(fields, key=[*Fields.model_fields].index)
        fields_text = ", ".join(f"{key}: {json.dumps(fields[key], ensure_ascii=False)}" for key in order)
        return f"fields: {{{fields_text}}}"

    def options(self) -> str:
        """Return the options with which a command reads the contexts."""
        reference = option_text(self.fields.get("reference", Fields().reference), Fields().reference)
        return shlex.join(column_roles.column_options(" ".join(self.template), reference))


class _Read(NamedTuple):
    fields: Mapping[str, object]
    question: str
    answer: str


@dataclass
class UnusedCounter:
    """Counts of the parts that a task does not read, row by row; the first rows are kept."""

    task: Task
    layout: Layout | None
    n: int = 0
    filled: Counter[str] = field(default_factory=Counter)
    shown: Counter[str] = field(default_factory=Counter)
    keys: Counter[str] = field(default_factory=Counter)
    first: list[_Read] = field(default_factory=list)
    read_by_form: dict[tuple[object, ...], set[str]] = field(default_factory=dict)

    def add(self, row: Row, example: Example | None) -> None:
        """Add a row, with its example if it can be used."""
        self.n += 1
        augmented_columns = {SOURCE, ORIGIN} if is_augmented(row) else ()
        self.filled.update(name for name in turns.drop_empty(row.fields) if name not in augmented_columns)
        self.keys.update(turns.count_unused_keys(row.fields))
        if example and len(self.first) < _FIRST:
            question = "\n".join(turn["content"] for turn in example.messages if turn["role"] == "user")
            self.first.append(_Read(row.fields, question, "".join(example.references[:1])))
        form = tuple((name, type(value), bool(value)) for name, value in row.fields.items())
        is_settled = turns.HISTORY not in row.fields and not isinstance(row.fields.get("messages"), str)
        if form not in self.read_by_form or not is_settled:
            self.read_by_form[form] = self._list_read_columns(row)
        self.shown.update(self.read_by_form[form])

    def _list_read_columns(self, row: Row) -> set[str]:
        # Depends on the names, types and emptiness of values, but for a history and messages as text.
        names, fields, layout, task = row.fields, self.task.fields, self.layout, self.task
        roles = column_roles.find_reading_roles(task, layout, names)
        read_columns = {*roles.questions}
        asks_by_layout = fields.prompt == Fields().prompt or "{messages}" in fields.prompt
        if layout is None and asks_by_layout and {"prompt", "messages"} <= names.keys():
            read_columns -= {"messages" if is_plain(names["messages"]) else "prompt"}
        if roles.answers == column_roles.PAIRS.answers:
            read_columns -= {*column_roles.PAIRS.questions}
            turn_column = next((n for n in ("messages", "prompt", "conversations") if names.get(n)), None)
            if turn_column and not isinstance(names.get("input"), dict):
                read_columns |= {turn_column}
            else:
                question = "question" if names.get("question") else "instruction"
                read_columns |= {question, "input", "preferred_output", "non_preferred_output"}
        read_columns |= {*roles.answers, *turns.TOOL_FIELDS}
        if layout is not None and asks_by_layout:
            read_columns |= {*turns.SYSTEMS} | ({turns.HISTORY} if turns.list_history(row) else set())
        elif task.kind != "bits_per_byte":
            read_columns |= {*turns.list_systems(fields.prompt)}
        if layout is None:
            read_columns |= {"choices"}
        elif layout.name == "prompt and completion":
            read_columns |= {"label"}
        elif layout.name == "multiple choice":
            read_columns |= {*list_choice_columns(names)}
        if names.keys() >= {*FEEDBACK_ORIGIN}:
            read_columns |= {*FEEDBACK_ORIGIN, "marked_by"}
        return read_columns | ({"documents"} if task.data.documents else set())

    def find(self) -> Unused:
        """Return the parts of the rows that are not read."""
        hidden = {name: n for name, n in self.filled.items() if not self.shown[name]}
        spec, layout, rows = self.task.fields, self.layout, self.first
        templates = (spec.id or "{id}", spec.cluster or "{cluster}", spec.slice or "{slice}")
        reserved = {column for template in templates for column in column_roles.columns_of(template, hidden)}
        reserved |= {"outdated", "constraints"} | ({"category"} if layout else set())
        unread = {name: n for name, n in hidden.items() if name not in reserved and not is_id(name)}
        media: list[str] = []
        for name in hidden:
            values = [row.fields.get(name) for row in rows]
            cells = [c for value in values for c in (value.values() if isinstance(value, dict) else [value])]
            is_named = name.lower() in turns.MEDIA and any(v not in (None, "", [], {}) for v in values)
            media += [name] if is_named or any(isinstance(cell, bytes) for cell in cells) else []
        to_test = [name for name in hidden if name not in ("id", "slice", *media) and not is_id(name)]
        contexts = [] if self.task.kind == "bits_per_byte" else list(_find_contexts(rows, to_test, hidden))
        names = [f"{{{context.name}}}" for context in contexts if FIELD.fullmatch(f"{{{context.name}}}")]
        # The template of the prompt; `{messages}` stands for several columns of a layout.
        prompt = spec.prompt
        roles = column_roles.find_reading_roles(self.task, layout, [*self.filled])
        if prompt == Fields().prompt and layout is None:
            prompt = "{messages}" if "messages" in self.filled else prompt
        elif prompt == Fields().prompt and layout is not None:
            filled = {name for row in rows for name, value in row.fields.items() if value not in (None, "")}
            questions = [name for name in roles.questions if name in filled]
            is_one = len(questions) == 1 and layout.is_text and not {*turns.SYSTEMS, turns.HISTORY} & filled
            is_one = is_one and all(isinstance(row.fields.get(questions[0]), str) for row in rows)
            prompt = f"{{{questions[0]}}}" if is_one else "{messages}"
        context_names = {*media, *(context.name for context in contexts)}
        free_columns = [name for name, n in unread.items() if n == self.n and name not in context_names]
        others: list[OtherColumns] = []
        if layout is None or layout.name == "question":
            varying = {c for c in free_columns if 2 * len({str(row.fields[c]) for row in rows}) > len(rows)}
            questions = [c for c in free_columns if may_ask(c) and c in varying]
            answers = [c for c in free_columns if may_answer(c) and c not in questions]
            by_option = (("prompt", roles.questions, questions), ("reference", roles.answers, answers))
            for option, role_columns, other_names in by_option:
                read_columns = [c for c in role_columns if c in self.filled]
                read_columns.sort(key=lambda c: column_roles.find_head(c) in column_roles.QUESTIONS)
                if other_names and read_columns:
                    others.append(OtherColumns(option, read_columns[-1], other_names))
        fields = spec.model_dump(exclude_defaults=True)
        return Unused(self.n, unread, self.keys, contexts, media, (*names, prompt), fields, others)


def find_unused(task: Task, content: Rows, sourced_rows: Sequence[SourcedExample]) -> Unused:
    """Find the parts of a file that a task does not read."""
    counter = UnusedCounter(task, layout_of(task, content))
    examples = {sourced.where: sourced.example for sourced in sourced_rows}
    for row in content.rows:
        counter.add(row, examples.get(row.where))
    return counter.find()


def find_unread_contexts(content: Rows, roles: Roles, prompt: str | None, reference: str | None) -> Unused:
    """Find the parts that an edit of rows does not read; the user named `prompt` and `reference`."""
    layout = None if prompt and reference else recognise(content.rows)
    by_role = {"prompt": (prompt, roles.questions), "reference": (reference, roles.answers)}
    is_guessed = layout is None and not {"prompt", "messages"} & {*roles.questions}
    texts = {key: text or (role[0] if is_guessed and role else None) for key, (text, role) in by_role.items()}
    fields = {key: text if "{" in text else f"{{{text}}}" for key, text in texts.items() if text}
    task = Task.model_validate({"name": "rows", "data": {"invalid_rows": "drop"}, "fields": fields})
    counter = UnusedCounter(task, layout)
    for row in content.rows[:_FIRST]:
        qa = column_roles.read_question_and_answers(row, roles)
        counter.add(row, Example(row.where, ({"role": "user", "content": qa.whole},), tuple(qa.answers)))
    return counter.find()


def offer_contexts(unused: Unused) -> str:
    """Name the columns that may be the context, with the line that reads them; "" without any."""
    if not unused.contexts:
        return ""
    return f"{name_contexts(unused)}; next: {OFFER}, write {unused.line()} in the suite"


OFFER = "where they are known when the question is asked"


def name_contexts(unused: Unused) -> str:
    """Name the columns that may hold a question's context, and the reasons."""
    described = [f"{c.name!r} ({c.why}{_in_rows(c.n_rows, unused.n_rows)})" for c in unused.contexts]
    return f"{' and '.join(described)} may hold what the question is about, and no prompt shows it"


def name_media(unused: Unused) -> str:
    """Name the columns of pictures and sounds; "" without any."""
    quoted = " and ".join(map(repr, unused.media))
    return f"{quoted} may hold what the question is about, and only text is read" if quoted else ""


def name_columns(unused: Unused) -> str:
    """Name the other columns that are not read; "" without any."""
    elsewhere = {*unused.media, *(context.name for context in unused.contexts)}
    others = ((name, n) for name, n in unused.columns.items() if name not in elsewhere)
    quoted = [f"{name!r}{_in_rows(n, unused.n_rows)}" for name, n in others]
    more_note = f" and {count(len(quoted) - _NAMED)} more" if len(quoted) > _NAMED else ""
    return f"columns that are not read: {', '.join(quoted[:_NAMED])}{more_note}" if quoted else ""


def name_keys(unused: Unused) -> str:
    """Name the keys of turns that are not used; "" without any."""
    if not unused.keys:
        return ""
    ranked = sorted(unused.keys.items(), key=lambda pair: -pair[1])
    quoted = ", ".join(f"{key!r} ({pluralize(n, 'turn')})" for key, n in ranked)
    thoughts = "; thoughts are neither shown nor trained on: to train on them, write them into the content"
    return f"keys of turns that are not used: {quoted}" + (thoughts if THOUGHTS & unused.keys.keys() else "")


def _in_rows(n: int, n_rows: int) -> str:
    return "" if n == n_rows else f", in {count(n)} of {pluralize(n_rows, 'row')}"


def _find_contexts(
    rows: Sequence[_Read], names: Sequence[str], filled: Mapping[str, int]
) -> Iterator[ContextColumn]:
    """Find columns that may hold a question's context: long texts, or texts that explain the answers."""
    for name in names:
        nonempty = [row for row in rows if row.fields.get(name) not in (None, "", [], {})]
        texts, head = [turns.text_of(row.fields[name]) for row in nonempty], column_roles.find_head(name)
        if len(nonempty) < _FEWEST or head in TELLING or head.removesuffix("s") in TELLING:
            continue
        pairs = list(zip(texts, nonempty, strict=True))
        # A column that copies the answer, or follows from it as its group does, is not a context.
        by_answer, n_copied, n_asking = defaultdict[str, list[str]](list), 0, 0
        for text, row in pairs:
            by_answer[row.answer].append(text)
            question, folded = _fold(row.question), _fold(text)
            n_copied += folded == _fold(row.answer)
            longest = _fold(max((p for p in row.question.split("\n\n") if p.strip()), key=len, default=""))
            n_asking += folded in question or (bool(longest) and longest in folded)
        groups = [group for group in by_answer.values() if len(group) > 1]
        follows = 2 * sum(map(len, groups)) > len(nonempty) and all(len({*group}) == 1 for group in groups)
        if follows or 2 * max(n_copied, n_asking) > len(nonempty):
            continue
        is_long = median(len(text) for text in texts) >= _LONG and len({*texts}) > 1
        are_words = 2 * sum(" " in text.strip() or not text.isascii() for text in texts) > len(texts)
        # Rows with one question and several answers that the column tells apart.
        answers, with_text = defaultdict[str, set[str]](set), defaultdict[tuple[str, str], set[str]](set)
        for text, row in pairs:
            answers[_fold(row.question)].add(row.answer)
            with_text[_fold(row.question), text].add(row.answer)
        cases = [(text, row) for text, row in pairs if len(answers[_fold(row.question)]) > 1]
        n_told = sum(len(with_text[_fold(row.question), text]) == 1 for text, row in cases)
        is_name = len({*texts}) == len(texts) and not any(" " in text.strip() for text in texts)
        explains = n_told >= _FEWEST and n_told >= 0.8 * len(cases) and not is_name
        # Rows whose answer is in the column and not in the question, beyond chance.
        folded_texts, n_own, n_other = list(map(_fold, texts)), 0, 0
        for i, row in enumerate(nonempty):
            answer = _fold(row.answer)
            if len(answer) > 2 and answer not in _fold(row.question):
                n_own += answer in folded_texts[i]
                n_other += answer in folded_texts[i - 1]
        reasons = ["long texts"] if is_long and are_words else []
        if explains:
            reasons.append(f"it tells apart {pluralize(n_told, 'row')} with one question and several answers")
        if n_own >= _FEWEST and n_own - n_other >= _HELD * len(nonempty):
            reasons.append(f"it holds the answer in {percent(n_own / len(nonempty))} % of rows")
        if reasons:
            yield ContextColumn(name, filled[name], ", ".join(reasons), explains)


@lru_cache(maxsize=4 * _FIRST)
def _fold(text: str) -> str:
    return " ".join(text.casefold().split())
