"""Questions with choices in the forms of public multiple-choice sets and lm-eval's tasks.

Choices are a list (`choices`, `options`, `endings`), or columns: `A`, `B`, …, `option1`, `opa`, `Answer A`,
or the right one and the wrong ones (`distractor1`).

Invariant: what an answer is (the choice itself, its label as in ARC, its place from 0 as in MMLU or from 1)
is a property of all rows of a task: the form that fits every row. If two forms fit and give different
choices, nothing is read until the task says which (`answers_are`).
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import takewhile
from string import ascii_uppercase
from typing import Any, NamedTuple

from harness.data.cells import is_plain
from harness.data.text_files import Row
from harness.data.turns import MEND_ROW
from harness.errors import Problem, UserError
from harness.records import normalize, parse_json

CHOICE_QUESTIONS = (
    *("question", "query", "question_stem", "ctx", "sentence", "goal", "problem", "premise"),
    "text",
)
RIGHT = (
    *("answerKey", "gold", "answer", "answer_idx", "answer_index"),
    *("correct", "correct_answer", "correct_idx", "correct_index", "label", "cop", "best_answer"),
)
_SURE = tuple(name for name in RIGHT if name not in ("gold", "correct", "label", "cop"))
CHOICES = ("choices", "options", "endings")
_MARKED = re.compile(r"(?:op|opt|option|choice|sol|solution|ending|answer)[ _-]?([a-h]|[0-8])")
_WRONG = re.compile(r"(?:distractor|(?:incorrect|wrong)(?:[ _-]?(?:answer|option|choice))?)[ _-]?[a-d\d]?")
_ITSELF, _LABELS, _FROM_0, _FROM_1 = "choices", "labels", "places from 0", "places from 1"
_NUMBERS, _WORDS = (_ITSELF, _FROM_0, _FROM_1), (_ITSELF, _LABELS)
_NUMBER = re.compile(r"-?\d{1,9}(?:\.0+)?")


class AnswerForms(NamedTuple):
    """Forms of answers, in the order of trying: of numbers, and of all others.

    `problems` are listed if the rows do not determine the form.
    """

    numbers: tuple[str, ...] = _NUMBERS
    words: tuple[str, ...] = _WORDS
    has_numbers: bool = False
    problems: tuple[Problem, ...] = ()


ANY_FORM = AnswerForms()


class _Answer(NamedTuple):
    """A row's answer: its place, its written value, and the choice that it is in each form."""

    where: str
    column: str
    written: object
    is_number: bool
    choices: dict[str, str]


def has_choices(fields: set[str]) -> bool:
    """Tell whether rows of these fields are questions with choices."""
    named = dict.fromkeys(fields, "…")
    listed = bool(fields & {*CHOICES}) or len(list_choice_columns(named)) > 1
    return listed and bool(find_column(named, CHOICE_QUESTIONS)) and bool(find_column(named, RIGHT))


def find_column(fields: Mapping[str, Any], known: Iterable[str]) -> str | None:
    """Find the column of the first known name with a value; `Correct Answer` is `correct_answer` too."""
    filled = [name for name in fields if fields[name] is not None]
    alike = {name.lower().replace(" ", "_"): name for name in reversed(filled)}
    named = (name if name in filled else alike.get(name) for name in known)
    return next((name for name in named if name), None)


def list_choice_columns(fields: Mapping[str, Any]) -> list[str]:
    """List the columns of a row's choices: a list, letters or numbers, or the right and the wrong answers."""
    if listed := [name for name in CHOICES if fields.get(name) is not None][:1]:
        return listed
    filled = [name for name, value in fields.items() if value not in (None, "")]
    letters = list(takewhile(filled.__contains__, ascii_uppercase))
    marked = {mark[1]: name for name in filled if (mark := _MARKED.fullmatch(name.lower()))}
    in_order = [marked[mark] for mark in sorted(marked)]
    wrong = [name for name in filled if _WRONG.fullmatch(name.lower())]
    right = find_column(fields, ("correct_answer", "best_answer", "answer")) if wrong else None
    forms = [letters, in_order, [right, *sorted(wrong)] if right else []]
    return next((columns for columns in forms if len(columns) > 1), [])


def list_choices(fields: Mapping[str, Any]) -> tuple[list[str], Any]:
    """Return the labels of a row's choices, and the choices, a list if their form can be read."""
    found: Any = next((fields[name] for name in CHOICES if fields.get(name) is not None), None)
    if isinstance(found, str) and not is_plain(found):
        with suppress(ValueError):  # JSON within a text, as in a CSV file
            found = parse_json(found)
    labels = list(ascii_uppercase)
    if found is None:
        columns = list_choice_columns(fields)
        texts = [str(fields[name]) for name in columns]
        return labels, sorted(texts) if find_column(fields, RIGHT) in columns else texts
    if isinstance(found, dict) and "text" in found:
        return list(map(str, found.get("label") or labels)), found["text"]
    return (list(found), list(found.values())) if isinstance(found, dict) else (labels, found)


def read_choices(row: Row, forms: AnswerForms) -> tuple[object, list[str], object]:
    """Read a question, the texts to choose from, and the right one.

    Raises:
        UserError: the choices are of another form, or none of them is the right one.
    """
    fields = row.fields
    question = fields[find_column(fields, CHOICE_QUESTIONS) or ""]
    column, texts = find_column(fields, RIGHT) or "", _texts(row)
    if not isinstance(fields[column], str | int | float):
        return question, texts, fields[column]
    answer = _read_answer(row)
    taken = forms.numbers if answer.is_number else forms.words
    right = next((answer.choices[form] for form in taken if form in answer.choices), None)
    if right is None:
        ways = {_ITSELF: "itself", _LABELS: "by its label", _FROM_0: "by its place from 0"}
        ways[_FROM_1] = "by its place from 1"
        expected = f"one of the {len(texts)} choices, {' or '.join(ways[form] for form in taken)}"
        raise UserError(Problem(row.where, f"{fields[column]!r} in {column!r}", expected, MEND_ROW))
    for name in _SURE:
        if name == column or fields.get(name) is None:
            continue
        other = _read_answer(row, name)
        if other.choices and right not in other.choices.values():
            found = f"{other.written!r} in {name!r}, and {fields[column]!r} in {column!r}, which is {right!r}"
            raise UserError(Problem(row.where, found, "columns that name one right choice", MEND_ROW))
    return question, texts, right


def settle_forms(rows: Iterable[Row], told: str | None = None) -> AnswerForms:
    """Find the form that fits all numbers, and the one that fits the other answers; or take what is told."""
    answers: dict[bool, list[_Answer]] = {True: [], False: []}
    for row in rows:
        try:
            answer = _read_answer(row)
        except (UserError, KeyError):  # refused when it is read
            continue
        if answer.choices:
            answers[answer.is_number].append(answer)
    problems: list[Problem] = []
    numbers = (told,) if told in _NUMBERS else _settle(answers[True], _NUMBERS, problems)
    if not numbers:
        one, other = (next(a for a in answers[True] if form not in a.choices) for form in (_FROM_1, _FROM_0))
        written = f"{one.written!r} in {one.column!r}, which is not a place from 1"
        found = f"{written}, and {other.written!r} in {other.where}, which is none from 0"
        expected = "places that count from 0, or from 1, in all rows"
        problems.append(Problem(one.where, found, expected, _say_forms(_FROM_0, _FROM_1)))
    words = (told,) if told in _WORDS else _settle(answers[False], _WORDS, problems)
    return AnswerForms(numbers or _NUMBERS, words or _WORDS, bool(answers[True]), tuple(problems))


def _settle(answers: Sequence[_Answer], forms: Sequence[str], problems: list[Problem]) -> tuple[str, ...]:
    """Return the form that fits all answers, or all that may; () if each fails on some."""
    if not answers:
        return tuple(forms)
    possible = [form for form in forms if all(form in answer.choices for answer in answers)]
    for other in possible[1:]:
        form = possible[0]
        unlike = next((answer for answer in answers if answer.choices[other] != answer.choices[form]), None)
        if unlike:
            n, first, second = len(answers), unlike.choices[form], unlike.choices[other]
            written = f"{unlike.written!r} in {unlike.column!r}, which is {first!r} if answers are {form}"
            found = f"{written} and {second!r} if they are {other}; none of {n:,} answers says which"
            expected = "answers that can be read in one way"
            problems.append(Problem(unlike.where, found, expected, _say_forms(form, other)))
            return tuple(possible)
    return tuple(possible[:1])


def _say_forms(one: str, other: str) -> str:
    ways = f"write answers_are: {one}, or {other}, under fields: of the task"
    return f"{ways}, or the texts of the choices into the file"


def _texts(row: Row) -> list[str]:
    texts = list_choices(row.fields)[1]
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        name = next((name for name in CHOICES if row.fields.get(name) is not None), "A")
        expected = "a list of texts, {label: text}, or {text: [...], label: [...]}, also as JSON in a text"
        raise UserError(Problem(row.where, f"{name!r} of another form", expected, MEND_ROW))
    return [text.strip() for text in texts]


def _read_answer(row: Row, column: str = "") -> _Answer:
    texts, column = _texts(row), column or find_column(row.fields, RIGHT) or ""
    labels, written = list_choices(row.fields)[0], row.fields[column]
    said = (str(written).lower() if isinstance(written, bool) else str(written)).strip()
    alike = [text for text in texts if text == said] or [t for t in texts if normalize(t) == normalize(said)]
    choices = {_ITSELF: alike[0]} if len(alike) == 1 else {}
    is_own_label = said in labels
    is_number = _NUMBER.fullmatch(said) is not None and not is_own_label
    if is_number:
        place = int(said.partition(".")[0])
        places = {_FROM_0: place, _FROM_1: place - 1}
        choices |= {form: texts[at] for form, at in places.items() if 0 <= at < len(texts)}
    elif (label := said if is_own_label else said.strip("(). ").upper()) in labels[: len(texts)]:
        choices[_LABELS] = texts[labels.index(label)]
    return _Answer(row.where, column, written, is_number, choices)
