"""Answers of a row as its file has them, and where they stand: of turns the assistant's, of lists each one.

Invariant: the keys lead to the answer within the row's own fields; message trees, rated completions and
preference pairs have none, for there more than one text answers.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from harness.data.columns import Roles
from harness.data.formats.turns import answer_places

_SAID = ("content", "value", "text")


class Written(NamedTuple):
    """A text or a whole number that answers, and the keys that lead to it from the row's fields on."""

    text: str
    keys: tuple[str | int, ...]


def written_answers(fields: Mapping[str, Any], roles: Roles) -> list[Written]:
    """List the answers of a row in their order; of turns all that the assistant says."""
    if len(roles.answers) != 1:
        return []
    (column,) = roles.answers
    value = fields.get(column)
    if column not in roles.questions:
        return list(_texts(value, (column,)))
    turns = value if isinstance(value, list) else []
    return [text for i in answer_places(turns) for text in _texts(turns[i], (column, i))]


def label_places(fields: Mapping[str, Any], roles: Roles) -> list[Written]:
    """List the answers that are the row's label, or spell it: of turns the last one alone."""
    written = written_answers(fields, roles)
    is_turn = bool(set(roles.answers) & set(roles.questions))
    last = len(fields[roles.answers[0]]) - 1 if is_turn and written else None
    return [of for of in written if last is None or of.keys[1] == last]


def answer_at(fields: Any, keys: tuple[str | int, ...]) -> Any:
    """Return what the keys lead to; None where the row has no such field."""
    for key in keys:
        fields = fields.get(key) if isinstance(fields, dict) else fields[key]
    return fields


def put_answer(fields: Any, keys: tuple[str | int, ...], answer: str | int) -> Any:
    """Return the fields with another answer where the keys lead to."""
    if not keys:
        return answer
    first, rest = keys[0], keys[1:]
    if isinstance(fields, list):
        return [put_answer(of, rest, answer) if i == first else of for i, of in enumerate(fields)]
    return {**fields, first: put_answer(fields.get(first), rest, answer)}


def _texts(value: Any, keys: tuple[str | int, ...]) -> Iterator[Written]:
    if isinstance(value, str) or type(value) is int:
        yield Written(str(value), keys)
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from _texts(inner, (*keys, i))
    elif isinstance(value, dict):
        name = next((name for name in _SAID if name in value), None)
        if name:
            yield from _texts(value[name], (*keys, name))
