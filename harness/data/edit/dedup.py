"""Exact and near duplicates of rows, by one rule for the check and for `dedup`.

Invariant: rows with different answers, contexts, system prompts, tools, choices or thumbs are not duplicates.
Answers of at most `_SHORT` characters may differ only in letter case, spaces and punctuation. The first of
duplicate rows stays, and each dropped row names the one it repeats.
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from harness.data.column_roles import QuestionAndAnswers, Roles, read_question_and_answers
from harness.data.contamination import overlaps
from harness.data.edit.changes import Change, EditedRow, Kind, drop
from harness.data.near_duplicates import THRESHOLD, DuplicateGroup, are_alike, near_duplicates
from harness.data.splits import origins
from harness.data.text_files import Row
from harness.records import fold_text

_SHORT = 60
_INDENTED = re.compile(r"(?<=\n)[ \t]*(?=\S)")
_OPTION = re.compile(r"(?<!\S)--?[A-Za-z][\w-]*")


class NormalizedRow(NamedTuple):
    """Folded question and answers of a row, and `setting`: its system prompt, choices and tools."""

    question: str
    answers: tuple[str, ...]
    setting: tuple[str, ...]


def fold_row(qa: QuestionAndAnswers) -> NormalizedRow:
    """Fold the question and answers of a row, and what they depend on."""
    setting = fold_text(qa.system), fold_text(qa.choices), qa.tools
    return NormalizedRow(_fold(qa.whole), tuple(map(_fold, (*qa.answers, qa.thumb))), setting)


def _fold(text: str) -> str:
    marks = _marks(text)
    return "\0".join((fold_text(text), *marks)) if marks else fold_text(text)


def _marks(text: str) -> tuple[str, ...]:
    """Return the marks of code with the same words: the indentation of its lines, and its options."""
    lines = _INDENTED.findall(text) if "\n" in text else []
    indented = [indentation.expandtabs(4) for indentation in lines] if any(lines) else []
    return (*indented, *(_OPTION.findall(text) if "-" in text else ()))


def near_repeats(rows: Sequence[QuestionAndAnswers], alike: float = THRESHOLD) -> list[DuplicateGroup]:
    """Group rows whose questions are alike (Jaccard index of shingles, in (0, 1]) and whose answers are."""

    def have_same_answer(i: int, j: int) -> bool:
        row, earlier = rows[i], rows[j]
        if _marks(row.question) != _marks(earlier.question) or not stand_on_same(row, earlier):
            return False
        return all(
            _fold(a) == _fold(b)
            or (_marks(a) == _marks(b) and are_alike(a, b, alike if max(len(a), len(b)) > _SHORT else 1))
            for a, b in zip(row.answers, earlier.answers, strict=False)
        )

    return near_duplicates([row.question for row in rows], threshold=alike, same=have_same_answer)


def stand_on_same(row: QuestionAndAnswers, earlier: QuestionAndAnswers) -> bool:
    """Return whether two questions have the same setting, thumb and, if both have a context, context."""
    contexts = {fold_text(row.context), fold_text(earlier.context)} - {""}
    settings = {(fold_text(qa.system), fold_text(qa.choices), qa.tools, qa.thumb) for qa in (row, earlier)}
    return len(contexts) < 2 and len(settings) == 1


_SAYS_NOTHING = "nothing in the columns of prompt and answer"


def dedup(
    rows: Sequence[Row],
    roles: Roles,
    *,
    alike: float = THRESHOLD,
    conflicts: Literal["keep", "drop"] = "keep",
    against: Sequence[tuple[Row, Roles]] = (),
) -> list[EditedRow]:
    """Drop rows with `alike` questions and answers (Jaccard index in (0, 1]), or a question of `against`."""
    qa_rows = [read_question_and_answers(row, roles) for row in rows]
    folded = list(map(fold_row, qa_rows))
    changes = _drop_evaluated(rows, qa_rows, against)
    row_by_text: dict[NormalizedRow, int] = {}
    by_question: dict[tuple[Any, str], list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        if i in changes:
            continue
        if not folded[i].question and not any(folded[i].answers):
            changes[i] = EditedRow(row, Change(row.where, "reported", (_SAYS_NOTHING,)))
        elif (first_row := row_by_text.setdefault(folded[i], i)) != i:
            changes[i] = drop(row, "a duplicate", rows[first_row].where)
        else:
            by_question[folded[i].setting, folded[i].question].append(i)
    kind: Kind = "dropped" if conflicts == "drop" else "reported"
    for (_, question), members in by_question.items():
        for i in members if question and len(members) > 1 else ():
            other_place = rows[next(j for j in members if j != i)].where
            change = Change(rows[i].where, kind, ("another answer to the question",), other_place)
            changes[i] = EditedRow(None if kind == "dropped" else rows[i], change)
    indices = [i for i in range(len(rows)) if i not in changes or changes[i].row is not None]
    for first_row, matches in near_repeats([qa_rows[i] for i in indices], alike) if alike < 1 else ():
        earlier_place = rows[indices[first_row]].where
        for i, similarity in matches:
            changes[indices[i]] = drop(rows[indices[i]], "a near duplicate", earlier_place, similarity)
    # A duplicate of a dropped row gets the reason of that one, and the row it names.
    drops = {rows[i].where: edited.change for i, edited in changes.items() if edited.row is None}
    for i, outcome in list(changes.items()):
        is_duplicate = outcome.change and outcome.change.reason == "a duplicate"
        original = drops.get(outcome.change.of) if outcome.change and is_duplicate else None
        if original and original.of != rows[i].where:
            changes[i] = drop(rows[i], original.reason, original.of, original.similarity)
    # An augmented row is dropped with all rows of a text that it was made from.
    augmented = origins(rows)
    for i, row in enumerate(rows):
        lost_origins = [o for o in augmented.get(row.where, ()) if o.places and drops.keys() >= set(o.places)]
        if lost_origins and row.where not in drops:
            changes[i] = drop(row, "augmented from a row that is dropped", lost_origins[0].places[0])
    return [changes.get(i, EditedRow(row)) for i, row in enumerate(rows)]


def _drop_evaluated(
    rows: Sequence[Row], qa_rows: Sequence[QuestionAndAnswers], against: Sequence[tuple[Row, Roles]]
) -> dict[int, EditedRow]:
    """Drop rows with a question of a test file, exactly or by the measures of the contamination check."""
    changes: dict[int, EditedRow] = {}
    if not against:
        return changes
    tests = [(test.where, read_question_and_answers(test, roles).whole) for test, roles in against]
    questions, answers = [qa.whole for qa in qa_rows], ["\n".join(qa.answers) for qa in qa_rows]
    for o in overlaps(questions, [question for _, question in tests], answers=answers):
        where, reason = tests[o.evaluated][0], f"in the test file by {o.measure}"
        changes[o.training] = drop(rows[o.training], reason, where, o.similarity)
    # A comparison refuses equal questions, also with other indentation.
    place_by_text = {fold_text(question): where for where, question in reversed(tests)}
    place_by_text.pop("", None)
    for i, question in enumerate(map(fold_text, questions)):
        if question in place_by_text:
            changes[i] = drop(rows[i], "a question of the test file", place_by_text[question])
    return changes
