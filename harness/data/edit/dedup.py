"""Exact and near duplicates of rows, by one rule for the check and for `dedup`.

Invariant: rows with different answers, contexts, system prompts, tools, choices or thumbs are not duplicates.
Answers of at most `_SHORT` characters may differ only in letter case, spaces and punctuation. The first of
duplicate rows stays, and each dropped row names the one it repeats.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from harness.data.columns import QuestionAndAnswers, Roles, read_question_and_answers
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
    """Question and answers of a row, letter case and spaces aside; those of equal rows are equal.

    `setting` is the system prompt, tools and choices: with others the same words are another question.
    """

    question: str
    answers: tuple[str, ...]
    setting: tuple[str, ...]


def fold_row(qa: QuestionAndAnswers) -> NormalizedRow:
    """Fold the question and answers of a row."""
    return NormalizedRow(_fold(qa.whole), tuple(map(_fold, (*qa.answers, qa.thumb))), _list_settings(qa))


def _fold(text: str) -> str:
    marks = _marks(text)
    return "\0".join((fold_text(text), *marks)) if marks else fold_text(text)


def _marks(text: str) -> tuple[str, ...]:
    """Return what distinguishes code with the same words: the indentation of its lines, and its options."""
    lines = _INDENTED.findall(text) if "\n" in text else []
    indented = [white.expandtabs(4) for white in lines] if any(lines) else []
    return (*indented, *(_OPTION.findall(text) if "-" in text else ()))


def near_repeats(rows: Sequence[QuestionAndAnswers], alike: float = THRESHOLD) -> list[DuplicateGroup]:
    """Group rows whose questions are alike (Jaccard index of shingles, in (0, 1]) and whose answers are.

    The others of a group repeat its first row.
    """

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
    """Return whether two questions have one setting, one thumb and, if both have a context, one context."""
    contexts = {fold_text(row.context), fold_text(earlier.context)} - {""}
    return len(contexts) < 2 and _list_settings(row) == _list_settings(earlier) and row.thumb == earlier.thumb


def _list_settings(qa: QuestionAndAnswers) -> tuple[str, ...]:
    return fold_text(qa.system), fold_text(qa.choices), qa.tools


class DedupEntry(NamedTuple):
    """Row with its question and answer, and both without letter case and spaces."""

    row: Row
    qa: QuestionAndAnswers
    folded: NormalizedRow


_Changes = dict[int, EditedRow]
_SAYS_NOTHING = "nothing in the columns of prompt and answer"


def dedup(
    rows: Sequence[Row],
    roles: Roles,
    *,
    alike: float = THRESHOLD,
    conflicts: Literal["keep", "drop"] = "keep",
    against: Sequence[tuple[Row, Roles]] = (),
) -> list[EditedRow]:
    """Drop duplicates, and rows that are in `against` by the measures of the contamination check.

    Two rows are near duplicates if their questions and their answers are `alike` (Jaccard index of shingles,
    in (0, 1]), with one context; with 1 only equal rows are.
    """
    entries = [_entry(row, roles) for row in rows]
    changes: _Changes = {}
    augmented = origins(rows)

    def left() -> dict[int, DedupEntry]:
        return {i: e for i, e in enumerate(entries) if i not in changes or changes[i].row is not None}

    changes |= _drop_evaluated(left(), [_entry(*of) for of in against])
    changes |= _drop_equal(left())
    changes |= _report_conflicts(left(), drop_them=conflicts == "drop")
    indices = list(left())
    for kept, others in near_repeats([entries[i].qa for i in indices], alike) if alike < 1 else ():
        earlier = rows[indices[kept]].where
        for i, similarity in others:
            changes[indices[i]] = drop(rows[indices[i]], "a near duplicate", earlier, similarity)
    # A duplicate of a dropped row gets the reason of that one, and the row it names.
    dropped = {rows[i].where: found.change for i, found in changes.items() if found.row is None}
    for i, (row, change) in list(changes.items()):
        is_duplicate = change and row is None and change.reason == "a duplicate"
        first = dropped.get(change.of) if change and is_duplicate else None
        if first and first.of != rows[i].where:
            changes[i] = drop(rows[i], first.reason, first.of, first.similarity)
    # An augmented row is dropped with all rows of a text that it was made from.
    for i, row in enumerate(rows):
        lost = [o for o in augmented.get(row.where, ()) if o.places and dropped.keys() >= set(o.places)]
        if lost and row.where not in dropped:
            changes[i] = drop(row, "augmented from a row that is dropped", lost[0].places[0])
    return [changes.get(i, EditedRow(row)) for i, row in enumerate(rows)]


def _entry(row: Row, roles: Roles) -> DedupEntry:
    qa = read_question_and_answers(row, roles)
    return DedupEntry(row, qa, fold_row(qa))


def _drop_evaluated(left: Mapping[int, DedupEntry], tests: Sequence[DedupEntry]) -> _Changes:
    """Drop rows with a question of a test file, exactly or by the measures of the contamination check."""
    if not tests:
        return {}
    indices, rows = list(left), list(left.values())
    answers = ["\n".join(entry.qa.answers) for entry in rows]
    changes: _Changes = {}
    for o in overlaps([e.qa.whole for e in rows], [e.qa.whole for e in tests], answers=answers):
        row, where = rows[o.training].row, tests[o.evaluated].row.where
        changes[indices[o.training]] = drop(row, f"in the test file by {o.measure}", where, o.similarity)
    # Equal questions, also with other indentation, which a comparison refuses.
    first = {question: e.row.where for e in reversed(tests) if (question := fold_text(e.qa.whole))}
    for i, entry in left.items():
        if (question := fold_text(entry.qa.whole)) in first:
            changes[i] = drop(entry.row, "a question of the test file", first[question])
    return changes


def _drop_equal(left: Mapping[int, DedupEntry]) -> _Changes:
    first: dict[NormalizedRow, DedupEntry] = {}
    changes: _Changes = {}
    for i, entry in left.items():
        if not entry.folded.question and not any(entry.folded.answers):
            changes[i] = EditedRow(entry.row, Change(entry.row.where, "reported", (_SAYS_NOTHING,)))
            continue
        kept = first.setdefault(entry.folded, entry)
        if kept is not entry:
            changes[i] = drop(entry.row, "a duplicate", kept.row.where)
    return changes


def _report_conflicts(left: Mapping[int, DedupEntry], *, drop_them: bool) -> _Changes:
    by_question: dict[tuple[Any, str], list[int]] = defaultdict(list)
    for i, entry in left.items():
        by_question[entry.folded.setting, entry.folded.question].append(i)
    changes: _Changes = {}
    for (_, question), members in by_question.items():
        if not question or len(members) < 2:
            continue
        for i in members:
            row = left[i].row
            other = left[next(j for j in members if j != i)].row.where
            kind: Kind = "dropped" if drop_them else "reported"
            change = Change(row.where, kind, ("another answer to the question",), other)
            changes[i] = EditedRow(None if drop_them else row, change)
    return changes
