"""Questions with choices, as public multiple-choice sets and lm-eval's tasks have them: which one is right.

Choices stand in a list, `choices` or `options`, or each in a column of its own, `A`, `B` and so on.

Invariant: a number beside choices is the place of the right one, from 0, as in MMLU, unless no choice stands
there; a text is the choice itself, or its label, as in ARC.
"""

from collections.abc import Mapping
from itertools import takewhile
from string import ascii_uppercase
from typing import Any, NamedTuple

from harness.data.formats.ratings import MEND_ROW
from harness.data.formats.turns import is_plain
from harness.data.readers import Row
from harness.errors import Problem, UserError
from harness.records import parse_json

QUESTIONS = ("question", "query", "question_stem")
RIGHT = ("answerKey", "gold", "answer")
CHOICES = ("choices", "options")


class Choices(NamedTuple):
    """A question, the texts to choose from, and the right one."""

    question: object
    texts: list[str]
    right: object


def has_choices(fields: set[str]) -> bool:
    """Tell whether rows of these fields are questions with choices."""
    listed = bool(fields & {*CHOICES}) or fields >= {"A", "B"}
    return listed and bool(fields & {*QUESTIONS}) and bool(fields & {*RIGHT})


def list_choices(fields: Mapping[str, Any]) -> tuple[list[str], Any]:
    """Return the labels of a row's choices, and the choices, a list where they are of a form that is read."""
    found: Any = next((fields[name] for name in CHOICES if fields.get(name) is not None), None)
    if isinstance(found, str) and not is_plain(found):
        found = _parse(found)
    labels = list(ascii_uppercase)
    if found is None:
        lettered = list(takewhile(lambda label: fields.get(label) not in (None, ""), labels))
        return labels, [str(fields[label]) for label in lettered]
    if isinstance(found, dict) and "text" in found:
        return list(map(str, found.get("label") or labels)), found["text"]
    return (list(found), list(found.values())) if isinstance(found, dict) else (labels, found)


def _parse(text: str) -> Any:
    """Read JSON within a text, as a CSV file holds it; a text that is none as it is."""
    try:
        return parse_json(text)
    except ValueError:
        return text


def read_choices(row: Row) -> Choices:
    """Read a question with its choices.

    Raises:
        UserError: the choices are of another form, or none of them is the right one.
    """
    fields = row.fields
    question = next(fields[name] for name in QUESTIONS if fields.get(name) is not None)
    key = next(name for name in RIGHT if fields.get(name) is not None)
    labels, texts = list_choices(fields)
    right = fields[key]
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        name = next((name for name in CHOICES if fields.get(name) is not None), "A")
        expected = (
            "a list of texts, {label: text}, or {text: [...], label: [...]}, also as JSON within a text"
        )
        raise UserError(Problem(row.where, f"{name!r} of another form", expected, MEND_ROW))
    texts = [text.strip() for text in texts]
    if not isinstance(right, str | int) or isinstance(right, bool):
        return Choices(question, texts, right)
    return Choices(question, texts, _right_one(row, key, texts, labels))


def _right_one(row: Row, key: str, texts: list[str], labels: list[str]) -> str:
    right = row.fields[key]
    if isinstance(right, int) and 0 <= right < len(texts):
        return texts[right]
    said = str(right).strip()
    if said in texts:
        return said
    place = labels.index(said) if said in labels else int(said) if said.isdecimal() else len(texts)
    if place >= len(texts):
        expected = f"one of the {len(texts)} choices, its label, or its place from 0"
        raise UserError(Problem(row.where, f"{right!r} in {key!r}", expected, MEND_ROW))
    return texts[place]
