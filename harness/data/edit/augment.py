"""Augmented rows, each after its original: paraphrases, or new questions with answers.

Invariant: a paraphrase changes only the question and the id. It is left out, with the reason, if it loses a
number or the words of the answer; so is any row that repeats or contradicts another one, or has an evaluated
question.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import count
from typing import Any, NamedTuple

from harness.data.columns import CONTEXT, Roles, read_question_and_answers
from harness.data.edit.changes import Change, EditedRow, PlacedText, put_text
from harness.data.edit.dedup import dedup, stand_on_same
from harness.data.near_duplicates import THRESHOLD, are_alike, near_duplicates
from harness.data.splits import AUGMENTED, ORIGIN, SOURCE, is_augmented, write_origins
from harness.data.text_files import Row
from harness.records import fold_text

_NUMBER = re.compile(r"\d+(?:[.,:]\d+)*")
_USER = ("user", "human", "prompter")
_SAID = ("content", "value", "text")


class WrittenQuestion(NamedTuple):
    """Question that a model wrote for a row; `failure` is why there is none, `of` the row it repeats.

    A paraphrase has the answer of its row. A new question has all its `fields`, and `shown` are the other
    questions that the model saw.
    """

    text: str
    failure: str = ""
    of: str = ""
    fields: Mapping[str, Any] | None = None
    shown: tuple[str, ...] = ()

    def put(self, fields: Mapping[str, Any], original: PlacedText) -> dict[str, Any]:
        """Return the fields of the new row."""
        made: Mapping[str, Any] = self.fields or put_text(fields, original.keys, self.text)
        return {**made}


def find_question(row: Row, roles: Roles) -> PlacedText | None:
    """Find the question of a row: its first question column, the user's last turn, or a tree's root.

    None for an augmented row, and for a row without a question.
    """
    if is_augmented(row):
        return None
    for column in roles.questions:
        value = row.fields.get(column)
        if isinstance(value, str) and value.strip() and column != CONTEXT:
            return PlacedText(value, (column,))
        if isinstance(value, list):
            turns = [(i, turn) for i, turn in enumerate(value) if isinstance(turn, dict)]
            of_user = [(i, turn) for i, turn in turns if {*_USER} & {turn.get("role"), turn.get("from")}]
            place, last = of_user[-1] if of_user else (0, {})
            key = next((name for name in _SAID if isinstance(last.get(name), str)), "")
            return PlacedText(last[key], (column, place, key)) if key and last[key].strip() else None
        if isinstance(value, dict):
            text, replies = value.get("text"), value.get("replies")
            is_question = value.get("role") in _USER and isinstance(replies, list) and replies
            is_asked = is_question and isinstance(text, str) and text.strip()
            return PlacedText(str(text), (column, "text")) if is_asked else None
    return None


def augment(
    rows: Sequence[Row],
    roles: Roles,
    written: Mapping[int, Sequence[WrittenQuestion]],
    *,
    by: str,
    what: str = "a rewording",
    in_columns: bool = False,
) -> list[EditedRow]:
    """Return every row unchanged, followed by the rows made from it; `written` is by the row's index.

    `by` names how they were made. With `in_columns` every row has the new fields, empty in the others.
    """
    made = list(_make_rows(rows, roles, written))
    # A made row may repeat or contradict an earlier one.
    fit = [row._replace(where=f"{row.where}, new") for _, row, why_not, _ in made if not why_not]
    judged = iter(_judge(rows, fit, roles))
    by_row: dict[int, list[EditedRow]] = defaultdict(list)
    for i, row, why_not, repeats in made:
        change = Change(row.where, "dropped", (f"{what} that {why_not}",), repeats)
        if not why_not:
            found = next(judged)
            change = Change(row.where, "added", (f"a row by {by}",))
            if found and found.kind == "dropped":
                change = found._replace(where=row.where, reasons=(f"{what}: {found.reason}",))
        fields = {**dict.fromkeys(rows[i].fields if in_columns else ()), **row.fields}
        added = row._replace(fields=fields) if change.kind == "added" else None
        by_row[i].append(EditedRow(added, change))
    outcomes: list[EditedRow] = []
    new = (*_marks(rows), ORIGIN) if in_columns else ()
    for i, row in enumerate(rows):
        empty = {name: None for name in new if name not in row.fields}
        outcomes += [EditedRow(row._replace(fields=row.fields | empty)), *by_row[i]]
    return outcomes


def _judge(rows: Sequence[Row], fit: Sequence[Row], roles: Roles) -> list[Change | None]:
    """Judge made rows by `dedup`, and by other answers to nearly the same question."""
    # Without their origins: originals stay here even if another row repeats them.
    every = [*rows, *(row._replace(fields=row.fields | {ORIGIN: ""}) for row in fit)]
    read = [read_question_and_answers(row, roles) for row in every]

    def same(i: int, j: int) -> bool:
        return stand_on_same(read[i], read[j])

    changes = [outcome.change for outcome in dedup(every, roles, conflicts="drop")]
    for kept, others in near_duplicates([qa.question for qa in read], same=same):
        for i, similarity in others:
            if changes[i] is None:
                reason = ("another answer to nearly the same question",)
                changes[i] = Change(every[i].where, "dropped", reason, every[kept].where, similarity)
    return changes[len(rows) :]


def _make_rows(
    rows: Sequence[Row], roles: Roles, written: Mapping[int, Sequence[WrittenQuestion]]
) -> Iterator[tuple[int, Row, str, str]]:
    """Yield the index of an original, a row made from it, its problem if any, and the row it repeats."""
    known, marks = {row.fields.get("id") for row in rows}, _marks(rows)
    read = [read_question_and_answers(row, roles) for row in rows]
    answers = [set(filter(None, map(fold_text, qa.answers))) for qa in read]
    times = Counter(answer for row_answers in answers for answer in row_answers)
    labels = {answer for answer, n in times.items() if n > 1}
    for i, questions in written.items():
        row = rows[i]
        if (original := find_question(row, roles)) is None:
            continue
        for question in questions:
            fields = question.put(row.fields, original)
            fields |= {**marks, ORIGIN: write_origins([original.text, *question.shown])}
            ident = row.fields.get("id")
            if isinstance(ident, int):  # a new id of the same type
                fields["id"] = 1 + max(number for number in known if isinstance(number, int))
            elif ident is not None:
                names = (f"{ident}-augmented-{k}" for k in count(1))
                fields["id"] = next(name for name in names if name not in known)
            known.add(fields.get("id"))
            why_not = question.failure
            if question.fields is None and not why_not:
                why_not = _unfit(question.text, original.text, answers[i] - labels)
            yield i, Row(row.where, fields), why_not, question.of


def _marks(rows: Sequence[Row]) -> dict[str, str]:
    """Return the source columns of an augmented row; none if rows have such a column already."""
    taken = any(SOURCE in row.fields for row in rows if not is_augmented(row))
    return {} if taken else {SOURCE: AUGMENTED}


def _unfit(text: str, original: str, spans: Collection[str]) -> str:
    """Return why a paraphrase may not have its original's answer; "" if it may."""
    if not text.strip():
        return "is empty"
    if fold_text(text) == fold_text(original) or are_alike(text, original, THRESHOLD):
        return "repeats its original"
    if _numbers(text) != _numbers(original):
        return "has other numbers than its original"
    lost = any(_holds(original, span) and not _holds(text, span) for span in spans)
    return "lacks the answer, which its original holds" if lost else ""


def _holds(text: str, span: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(span)}(?!\w)", fold_text(text)) is not None


def _numbers(text: str) -> Counter[str]:
    return Counter(_NUMBER.findall(text))
