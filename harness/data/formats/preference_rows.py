"""Rows that say which answer is preferred: pairs of a chosen and a rejected one, and thumbs."""

import re

from harness.data.formats.ratings import MEND_ROW, make_judged_pair
from harness.data.formats.turns import (
    Turns,
    add_system,
    find_known_fields,
    is_plain,
    read_flag,
    read_text,
    read_turns,
    user_turns,
)
from harness.data.readers import Row
from harness.errors import Problem, UserError

_SPEAKER = re.compile(r"\n\n(Human|Assistant):")
OWN_QUESTION = {"prompt", "messages"}


def read_pair(row: Row) -> Row:
    """Return a preference pair with its prompt as messages, and its two answers as texts.

    Raises:
        UserError: the answers are equal or empty, or do not answer the same conversation.
    """
    row = make_judged_pair(row)
    if not {"chosen", "rejected"} <= find_known_fields(row):
        return row
    chosen, rejected = _conversation(row, "chosen"), _conversation(row, "rejected")
    if chosen is None or rejected is None:
        return _check_pair(_name_question(row))
    if not chosen or not rejected:
        raise UserError(Problem(row.where, "an empty conversation", "turns", MEND_ROW))
    n = _n_shared(chosen, rejected)
    answers = chosen[n:], rejected[n:]
    if any(len(rest) > 1 or rest[0]["role"] != "assistant" for rest in answers if rest):
        raise UserError(
            Problem(
                row.where,
                "two conversations that part before the last answer",
                "chosen and rejected with the same turns up to one last answer each",
                MEND_ROW,
            )
        )
    texts = [rest[0]["content"] if rest else "" for rest in answers]
    fields = {**row.fields, "chosen": texts[0], "rejected": texts[1]}
    return _check_pair(_name_question(row._replace(fields=fields | ({"messages": chosen[:n]} if n else {}))))


def read_thumb(row: Row) -> Row | None:
    """Return an answer with a thumb as TRL writes it, `completion` beside `label`; None of other rows.

    Its prompt is read as a pair's is; `completion` is a text, and `label` true or false.

    Raises:
        UserError: the label is no thumb, or the completion is empty or no answer.
    """
    if not {"completion", "label"} <= find_known_fields(row) or {"chosen", "rejected"} <= find_known_fields(
        row
    ):
        return None
    label, completion = row.fields["label"], row.fields["completion"]
    if (is_up := read_flag(label)) is None:
        raise UserError(Problem(row.where, f"the label {label!r}", "true or false, a thumb", MEND_ROW))
    if isinstance(completion, list):
        turns = read_turns(row, "completion")
        if len(turns) != 1 or turns[0]["role"] != "assistant":
            expected = "one turn of the assistant"
            raise UserError(Problem(row.where, "a completion of another form", expected, MEND_ROW))
        completion = turns[0]["content"]
    answer = read_text(row._replace(fields={**row.fields, "completion": completion}), "completion")
    return _name_question(row._replace(fields={**row.fields, "completion": answer, "label": is_up}))


def is_transcript(text: str) -> bool:
    """Tell a transcript of Human and Assistant from a text."""
    return bool(_SPEAKER.match(f"\n\n{text.lstrip()[:12]}"))


def _conversation(row: Row, field: str) -> Turns | None:
    """Read a list of turns, or a transcript of Human and Assistant; None where it is a text alone."""
    value = row.fields[field]
    if isinstance(value, dict):  # LLaMA-Factory's: one turn, beside `conversations`
        return read_turns(row._replace(fields={field: [value]}), field)
    if isinstance(value, list):
        return read_turns(row, field)
    if not isinstance(value, str) or not is_transcript(value):
        return None
    parts = _SPEAKER.split(f"\n\n{value.lstrip()}")[1:]
    speakers = {"Human": "user", "Assistant": "assistant"}
    return [
        {"role": speakers[speaker], "content": text.strip()}
        for speaker, text in zip(parts[::2], parts[1::2], strict=True)
    ]


def _n_shared(chosen: Turns, rejected: Turns) -> int:
    pairs = enumerate(zip(chosen, rejected, strict=False))
    n = next((i for i, (a, b) in pairs if a != b), min(len(chosen), len(rejected)))
    # Equal to the end: the last turn is the answer, twice.
    return n - 1 if n == len(chosen) == len(rejected) else n


def _name_question(row: Row) -> Row:
    """Give a pair whose question stands under another tool's name our own."""
    fields = row.fields
    listed = (
        name
        for name in ("messages", "prompt", "conversations")
        if fields.get(name) and not is_plain(fields[name])
    )
    parts = [fields.get("question") or fields.get("instruction"), fields.get("input")]
    text = fields.get("prompt") or "\n\n".join(str(part) for part in parts if part)
    if name := next(listed, None):
        turns = add_system(read_turns(row, name), row)
    elif text and not is_plain(fields.get("messages")):
        turns = user_turns(str(text), row)
    else:
        return row
    return row._replace(fields={**fields, "messages": turns})


def _check_pair(pair: Row) -> Row:
    """Refuse a pair that says nothing of what is preferred."""
    chosen, rejected = (" ".join(str(pair.fields[name]).split()) for name in ("chosen", "rejected"))
    if chosen == rejected:
        raise UserError(
            Problem(pair.where, "two equal answers", "a chosen answer and another rejected one", MEND_ROW)
        )
    for name, text in (("chosen", chosen), ("rejected", rejected)):
        if not text:
            raise UserError(Problem(pair.where, f"an empty {name} answer", "a text", MEND_ROW))
    return pair
