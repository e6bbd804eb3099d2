"""Rows that repeat another one, equal or nearly: one rule, by which the check names and `dedup` drops.

Invariant: rows whose answers differ repeat nothing, nor do those that stand on two contexts, under two system
prompts, have other tools, choices or thumbs. Answers of at most `_SHORT` characters are labels, names and
numbers, in which a slip makes another answer: there only letter case, blanks and punctuation may differ.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

from harness.data.columns import QuestionAndAnswers
from harness.data.near_duplicates import THRESHOLD, DuplicateGroup, are_alike, near_duplicates
from harness.records import fold_text

_SHORT = 60
_INDENTED = re.compile(r"(?<=\n)[ \t]*(?=\S)")
_OPTION = re.compile(r"(?<!\S)--?[A-Za-z][\w-]*")


class NormalizedRow(NamedTuple):
    """Question and answers of a row, letter case and spaces aside; those of equal rows are equal.

    Indentation and options of commands count: `ls -L` and `ls -l` differ, and so do two blocks of Python.
    `setting` is what makes a question of the same words another one: system prompt, tools and choices.
    """

    question: str
    answers: tuple[str, ...]
    setting: tuple[str, ...]


def fold_row(of: QuestionAndAnswers) -> NormalizedRow:
    """Fold what a row asks and answers."""
    answers = tuple(map(_fold, (*of.answers, of.thumb)))
    return NormalizedRow(_fold(of.whole), answers, _list_settings(of))


def _fold(text: str) -> str:
    marks = _marks(text)
    return "\0".join((fold_text(text), *marks)) if marks else fold_text(text)


def _marks(text: str) -> tuple[str, ...]:
    """Return what tells code of the same words apart: the indentation of its lines, and its options."""
    lines = _INDENTED.findall(text) if "\n" in text else []
    indented = [white.expandtabs(4) for white in lines] if any(lines) else []
    return (*indented, *(_OPTION.findall(text) if "-" in text else ()))


def near_repeats(rows: Sequence[QuestionAndAnswers], alike: float = THRESHOLD) -> list[DuplicateGroup]:
    """Group rows whose questions are alike (Jaccard index of shingles, in (0, 1]) and whose answers are.

    Of each group the first row is the one that the others repeat.
    """
    questions = [row.question for row in rows]
    return near_duplicates(
        questions, threshold=alike, same=lambda i, j: _answer_alike(rows[i], rows[j], alike)
    )


def _answer_alike(row: QuestionAndAnswers, earlier: QuestionAndAnswers, alike: float) -> bool:
    """Return whether the answers of two rows are alike, and all that their questions stand on is equal."""
    if _marks(row.question) != _marks(earlier.question) or not stand_on_same(row, earlier):
        return False
    return all(
        _fold(a) == _fold(b)
        or (_marks(a) == _marks(b) and are_alike(a, b, alike if max(len(a), len(b)) > _SHORT else 1))
        for a, b in zip(row.answers, earlier.answers, strict=False)
    )


def stand_on_same(row: QuestionAndAnswers, earlier: QuestionAndAnswers) -> bool:
    """Return whether two questions have one setting, one thumb and, where both have some, one context."""
    contexts = {fold_text(row.context), fold_text(earlier.context)} - {""}
    return len(contexts) < 2 and _list_settings(row) == _list_settings(earlier) and row.thumb == earlier.thumb


def _list_settings(of: QuestionAndAnswers) -> tuple[str, ...]:
    return fold_text(of.system), fold_text(of.choices), of.tools
