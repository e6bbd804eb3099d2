"""Augmented rows: each row in other words, beside the row that it was made from, with the same answer.

Invariant: nothing but the text that asks is changed, and an id; a rewording that repeats another row, loses a
number or the words of the answer, contradicts a row or asks what is evaluated is left out, with the reason.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import count
from typing import Any, NamedTuple

from harness.data.columns import CONTEXT, Roles, read_question_and_answers
from harness.data.edit.changes import Change, EditedRow
from harness.data.edit.dedup import dedup
from harness.data.near_duplicates import THRESHOLD, are_alike
from harness.data.splits import AUGMENTED, ORIGIN, SOURCE, is_augmented
from harness.data.text_files import Row
from harness.records import fold_text

_NUMBER = re.compile(r"\d+(?:[.,:]\d+)*")
_USER = ("user", "human", "prompter")
_SAID = ("content", "value", "text")


class QuestionText(NamedTuple):
    """The text of a row that asks, and where it stands: a column, a message's key, and in turns a place."""

    text: str
    column: str
    turn: int | None = None
    key: str = ""

    def put(self, fields: Mapping[str, Any], text: str) -> dict[str, Any]:
        """Return the fields with another text in its place."""
        if self.turn is None:
            return {**fields, self.column: {**fields[self.column], self.key: text} if self.key else text}
        turns = list(fields[self.column])
        turns[self.turn] = {**turns[self.turn], self.key: text}
        return {**fields, self.column: turns}


class Rewording(NamedTuple):
    """A text in other words; `failure` says why there is none."""

    text: str
    failure: str = ""


def find_question(row: Row, roles: Roles) -> QuestionText | None:
    """Find the text of a row that asks: the first column that does, the last turn of the user, a tree's root.

    None of an augmented row, and where a row has no such text.
    """
    if is_augmented(row):
        return None
    for column in roles.questions:
        value = row.fields.get(column)
        if isinstance(value, str) and value.strip() and column != CONTEXT:
            return QuestionText(value, column)
        if isinstance(value, list):
            turns = [(i, turn) for i, turn in enumerate(value) if isinstance(turn, dict)]
            of_user = [(i, turn) for i, turn in turns if {*_USER} & {turn.get("role"), turn.get("from")}]
            place, last = of_user[-1] if of_user else (0, {})
            key = next((name for name in _SAID if isinstance(last.get(name), str)), "")
            return QuestionText(last[key], column, place, key) if key and last[key].strip() else None
        if isinstance(value, dict):
            text, replies = value.get("text"), value.get("replies")
            is_question = value.get("role") in _USER and isinstance(replies, list) and replies
            is_asked = is_question and isinstance(text, str) and text.strip()
            return QuestionText(str(text), column, key="text") if is_asked else None
    return None


def augment(
    rows: Sequence[Row],
    roles: Roles,
    rewordings: Mapping[int, Sequence[Rewording]],
    *,
    by: str,
    in_columns: bool = False,
) -> list[EditedRow]:
    """Return every row as it was, followed by the rows made from it; `rewordings` are by the row's index.

    `by` names how they were made. With `in_columns` every row has the new fields, empty in the others.
    """
    made = list(_make_rows(rows, roles, rewordings))
    # A made row may repeat or contradict an earlier one.
    fit = [one.row._replace(where=f"{one.row.where}, reworded") for one in made if not one.why_not]
    judged = iter(dedup([*rows, *fit], roles, conflicts="drop")[len(rows) :])
    by_row: dict[int, list[EditedRow]] = defaultdict(list)
    for one in made:
        change = Change(one.row.where, "dropped", (f"a rewording that {one.why_not}",))
        if not one.why_not:
            kept, found = next(judged)
            change = Change(one.row.where, "added", (f"a row by {by}",))
            if found and kept is None:
                change = found._replace(where=one.row.where, reasons=(f"a rewording: {found.reason}",))
        by_row[one.of].append(EditedRow(one.row if change.kind == "added" else None, change))
    outcomes: list[EditedRow] = []
    new = (*_marks(rows), ORIGIN) if in_columns else ()
    for i, row in enumerate(rows):
        empty = {name: None for name in new if name not in row.fields}
        outcomes += [EditedRow(row._replace(fields=row.fields | empty)), *by_row[i]]
    return outcomes


class _AugmentedRow(NamedTuple):
    """A row made from the row `of`; `why_not` says what forbids to write it."""

    row: Row
    of: int
    why_not: str


def _make_rows(
    rows: Sequence[Row], roles: Roles, rewordings: Mapping[int, Sequence[Rewording]]
) -> Iterator[_AugmentedRow]:
    known, marks = {row.fields.get("id") for row in rows}, _marks(rows)
    answers = [
        set(filter(None, map(fold_text, read_question_and_answers(row, roles).answers))) for row in rows
    ]
    times = Counter(answer for of in answers for answer in of)
    labels = {answer for answer, n in times.items() if n > 1}  # no words of a question, though they may recur
    for i, found in rewordings.items():
        row = rows[i]
        if (original := find_question(row, roles)) is None:
            continue
        for rewording in found:
            fields = original.put(row.fields, rewording.text)
            fields |= {**marks, ORIGIN: original.text}
            ident = row.fields.get("id")
            if isinstance(ident, int):  # an id that no row has, of the same type
                fields["id"] = 1 + max(one for one in known if isinstance(one, int))
            elif ident is not None:
                names = (f"{ident}-augmented-{k}" for k in count(1))
                fields["id"] = next(name for name in names if name not in known)
            known.add(fields.get("id"))
            why_not = rewording.failure or _unfit(rewording.text, original.text, answers[i] - labels)
            yield _AugmentedRow(Row(row.where, fields), i, why_not)


def _marks(rows: Sequence[Row]) -> dict[str, str]:
    """Return the source of an augmented row; none where rows have such a column of their own."""
    taken = any(SOURCE in row.fields for row in rows if not is_augmented(row))
    return {} if taken else {SOURCE: AUGMENTED}


def _unfit(text: str, original: str, spans: Collection[str]) -> str:
    """Say what keeps a rewording from having the same answer as its original; empty where nothing does."""
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
