"""Answers of a row as its file has them, and where they stand: in columns, lists, turns, replies and ratings.

Invariant: the keys lead to the answer within the row's own fields; of a conversation the assistant's turns
answer, of a message tree its replies, of a pair both answers.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from harness.data.columns import Roles
from harness.data.formats.multiple_choice import CHOICES, has_choices, list_choice_columns
from harness.data.formats.preference_rows import is_transcript
from harness.data.formats.ratings import PREFERRED
from harness.data.formats.turns import answer_places

_SAID = ("content", "value", "text", "response")
_PAIR = ("chosen", "rejected")
Keys = tuple[str | int, ...]


class WrittenAnswer(NamedTuple):
    """A text or a whole number that answers, and the keys that lead to it from the row's fields on."""

    text: str
    keys: Keys


def list_written_answers(fields: Mapping[str, Any], roles: Roles) -> list[WrittenAnswer]:
    """List the answers of a row in their order, behind them its choices; of turns all the assistant's."""
    found: list[WrittenAnswer] = []
    is_openai = roles.answers == _PAIR and fields.keys() >= PREFERRED  # the preferred one comes first
    for column in ("preferred_output", "non_preferred_output") if is_openai else roles.answers:
        value: Any = fields.get(column)
        keys: Keys = (column,)
        if isinstance(value, dict) and column in roles.questions:
            found += _replies(value, keys)
        elif _are_turns(value):
            # Without a question in front, as in a pair, the first turn may answer.
            before = 0 if column in roles.questions else 1
            places = [i - before for i in answer_places([{}] * before + list(value))]
            found += [of for i in places for of in _texts(value[i], (column, i))]
        elif column not in roles.questions:
            found += _texts(value, keys)
    return found + list(_choices(fields))


def _choices(fields: Mapping[str, Any]) -> Iterator[WrittenAnswer]:
    """Yield the choices of a row, in a list, by their labels, or each in a column of its own."""
    for column in CHOICES:
        value = fields.get(column)
        if isinstance(value, dict) and "text" not in value:
            for label, text in value.items():
                yield from _texts(text, (column, label))
        else:
            yield from _texts(value, (column,))
    if has_choices({*fields} - {*CHOICES}):
        for column in list_choice_columns({k: v for k, v in fields.items() if k not in CHOICES}):
            yield from _texts(fields[column], (column,))


def label_places(fields: Mapping[str, Any], roles: Roles) -> list[WrittenAnswer]:
    """List the answers that are the row's label, or spell it: of turns the last one alone."""
    return [of for of in list_written_answers(fields, roles) if not _is_earlier_turn(fields, of.keys)]


def answer_at(fields: Any, keys: Keys) -> Any:
    """Return what the keys lead to; None where the row has no such field."""
    for key in keys:
        fields = fields.get(key) if isinstance(fields, dict) else fields[key]
    return fields


def put_answer(fields: Any, keys: Keys, answer: str | int) -> Any:
    """Return the fields with another answer where the keys lead to."""
    if not keys:
        return answer
    first, rest = keys[0], keys[1:]
    if isinstance(fields, list):
        return [put_answer(of, rest, answer) if i == first else of for i, of in enumerate(fields)]
    return {**fields, first: put_answer(fields.get(first), rest, answer)}


def _are_turns(value: Any) -> bool:
    return isinstance(value, list) and any(
        isinstance(of, dict) and {"role", "from"} & of.keys() for of in value
    )


def _is_earlier_turn(fields: Mapping[str, Any], keys: Keys) -> bool:
    value: Any = fields[str(keys[0])]
    return _are_turns(value) and keys[1] != len(value) - 1


def _replies(message: Mapping[str, Any], keys: Keys) -> Iterator[WrittenAnswer]:
    """Yield the assistant's messages below a message, but those that were deleted."""
    replies = message.get("replies")
    for i, reply in enumerate(replies if isinstance(replies, list) else ()):
        if isinstance(reply, dict) and not reply.get("deleted"):
            at = (*keys, "replies", i)
            if reply.get("role") == "assistant":
                yield from _texts(reply.get("text"), (*at, "text"))
            yield from _replies(reply, at)


def _texts(value: Any, keys: Keys) -> Iterator[WrittenAnswer]:
    if isinstance(value, str) or type(value) is int:
        text = str(value)
        # A transcript begins with the prompt.
        yield WrittenAnswer(text.lstrip() if is_transcript(text) else text, keys)
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from _texts(inner, (*keys, i))
    elif isinstance(value, dict):
        name = next((name for name in _SAID if name in value), None)
        if name:
            yield from _texts(value[name], (*keys, name))
