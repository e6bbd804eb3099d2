"""Changes of a row and their reasons: where its answers stand, and how one label is spelled.

Invariant: every row that is read has an outcome, in the order of the file. The same answers in the same
order give the same spellings; the commonest stands, of two equally common ones the first. Other signs tell
labels apart, as C and C++. The keys lead to the answer within the row's own fields; of a conversation the
assistant's turns answer, of a message tree its replies, of a pair both answers.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from harness.data.columns import Roles
from harness.data.multiple_choice import CHOICES, has_choices, list_choice_columns
from harness.data.rated_rows import PREFERRED, is_transcript
from harness.data.text_files import Row
from harness.data.turns import answer_places
from harness.records import normalize

Kind = Literal["dropped", "changed", "reported", "added"]
NOT_DRAWN = "not drawn"  # the reason of a row that another draw may still take


class Change(NamedTuple):
    """Change of one row, with its reasons; `of` is where the row stands that it repeats or contradicts.

    `similarity` is the Jaccard index of the two rows' shingles, in [0, 1], None where they are equal. A row
    that is `reported` is written as it was; one that is `added` was made from the row that stands at `where`.
    """

    where: str
    kind: Kind
    reasons: tuple[str, ...]
    of: str = ""
    similarity: float | None = None

    def plain(self) -> dict[str, Any]:
        """Return the plain form for a manifest, without what is not known."""
        found = {"row": self.where, "change": self.kind, "reason": self.reason}
        of = {"of": self.of} if self.of else {}
        return found | of | ({} if self.similarity is None else {"similarity": round(self.similarity, 3)})

    @property
    def reason(self) -> str:
        """The reasons on one line."""
        return "; ".join(self.reasons)

    def __str__(self) -> str:
        """Render as one line: `file:line: dropped, the reason`."""
        alike = "" if self.similarity is None else f" ({self.similarity:.2f})"
        return f"{self.where}: {self.kind}, {self.reason}{f' of {self.of}' if self.of else ''}{alike}"


class EditedRow(NamedTuple):
    """One row as it is to be written, or None where it is dropped, and the change if there is one."""

    row: Row | None
    change: Change | None = None


def drop(row: Row, reason: str, of: str = "", similarity: float | None = None) -> EditedRow:
    """Drop a row for a reason."""
    return EditedRow(None, Change(row.where, "dropped", (reason,), of, similarity))


def several_spellings(answers: Iterable[str]) -> list[list[tuple[str, int]]]:
    """List the spellings of each label that has several, with their numbers of rows, the commonest first."""
    counts: dict[str, Counter[str]] = {}
    for answer in answers:
        # Folded as metrics fold labels, and without what separates words or ends a label.
        folded = re.sub(r"(?<=[^\W\d_])[\s_-]+(?=[^\W\d_])", "", normalize(answer).rstrip(".,;:"))
        counts.setdefault(folded, Counter())[answer] += 1
    return [of.most_common() for folded, of in counts.items() if folded and len(of) > 1]


def commonest_spellings(labels: Iterable[Sequence[tuple[str, int]]]) -> dict[str, str]:
    """Map each rarer spelling to the commonest one of its label."""
    return {spelt: commonest for (commonest, _), *rarer in labels for spelt, _ in rarer}


def unify_spellings(answers: Sequence[str]) -> list[str]:
    """Return answers, each label in its commonest spelling."""
    commonest = commonest_spellings(several_spellings(answers))
    return [commonest.get(answer, answer) for answer in answers]


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
    # The choices stand in a list, by their labels, or each in a column of its own.
    for column in CHOICES:
        value = fields.get(column)
        if isinstance(value, dict) and "text" not in value:
            found += [of for label, text in value.items() for of in _texts(text, (column, label))]
        else:
            found += _texts(value, (column,))
    if has_choices({*fields} - {*CHOICES}):
        for column in list_choice_columns({k: v for k, v in fields.items() if k not in CHOICES}):
            found += _texts(fields[column], (column,))
    return found


def label_places(fields: Mapping[str, Any], roles: Roles) -> list[WrittenAnswer]:
    """List the answers that are the row's label, or spell it: of turns the last one alone."""

    def is_earlier_turn(keys: Keys) -> bool:
        value: Any = fields[str(keys[0])]
        return _are_turns(value) and keys[1] != len(value) - 1

    return [of for of in list_written_answers(fields, roles) if not is_earlier_turn(of.keys)]


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
    objects = [of for of in value if isinstance(of, dict)] if isinstance(value, list) else []
    return any({"role", "from"} & of.keys() for of in objects)


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
