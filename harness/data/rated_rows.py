"""Rows that prefer an answer: rated or ranked answers, a chosen and a rejected one, and thumbs.

Invariant: an answer is better only if its rating is higher; equal ratings make no pair.
Source: Cui et al. 2023, UltraFeedback, https://arxiv.org/abs/2310.01377 (some of its `overall_score` are
wrong, so `fine-grained_score` comes first); Köpf et al. 2023, OpenAssistant Conversations,
https://arxiv.org/abs/2304.07327; https://platform.openai.com/docs/guides/direct-preference-optimization
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from harness.data.cells import find_known_fields, is_plain, read_flag
from harness.data.text_files import Row
from harness.data.turns import MEND_ROW, Turns, add_system, read_text, read_turns, user_turns
from harness.errors import Problem, UserError
from harness.records import Message

RATED, TREE = {"instruction", "completions"}, {"message_tree_id", "prompt"}
PREFERRED = {"input", "preferred_output", "non_preferred_output"}
_SCORES = ("fine-grained_score", "overall_score", "rating", "score")


class RatedAnswer(NamedTuple):
    """A text and its score, higher is better; -inf if it was not judged."""

    text: str
    score: float


class RatedConversation(NamedTuple):
    """Turns that end with a question, and the answers to it, the best first."""

    messages: list[Message]
    answers: list[RatedAnswer]


def best_answer(row: Row, context_apart: bool = False) -> dict[str, Any]:
    """Read a row as an item whose reference is the best answer; of a tree, the last on the path of the best.

    Raises:
        UserError: there is no answer, or the row is of another form.
    """
    judged = _read_rated(row) if row.fields.keys() >= RATED else _tree(row)[-1]
    return {"messages": judged.messages, "references": [judged.answers[0].text.strip()]}


def make_judged_pair(row: Row) -> Row:
    """Return a row with `messages`, `chosen` and `rejected`; of a tree, the first on the path of the best.

    A row of another form is returned as it is.

    Raises:
        UserError: no two answers are rated differently.
    """
    known = {name for name, value in row.fields.items() if value is not None}
    if known >= PREFERRED:
        given = row.fields["input"]
        turns = given.get("messages") if isinstance(given, dict) else None
        pair = {"chosen": row.fields["preferred_output"], "rejected": row.fields["non_preferred_output"]}
        tools = {"tools": given["tools"]} if isinstance(given, dict) and "tools" in given else {}
        return row._replace(fields={**row.fields, "prompt": turns, **pair, **tools})
    if not (known >= RATED or known >= TREE):
        return row
    for messages, answers in [_read_rated(row)] if known >= RATED else _tree(row):
        scored = [answer for answer in answers if answer.score > -math.inf]
        if len({answer.score for answer in scored}) > 1:
            pair = {"chosen": scored[0].text.strip(), "rejected": scored[-1].text.strip()}
            return row._replace(fields={**row.fields, "messages": messages, **pair})
    expected = "two answers, one rated higher than the other"
    raise misfit(row, "no two answers of different ratings", expected)


def _read_rated(row: Row) -> RatedConversation:
    completions = row.fields["completions"]
    if not isinstance(completions, list) or not all(isinstance(of, dict) for of in completions):
        raise misfit(row, "'completions' of another form", "a list of {response, overall_score}")
    answers = [RatedAnswer(str(of.get("response") or ""), _score(row, of)) for of in completions]
    question = str(row.fields["instruction"])
    if not question.strip():
        raise misfit(row, "an empty question", "a text")
    return RatedConversation([{"role": "user", "content": question}], _best_first(row, answers))


def _score(row: Row, completion: Mapping[str, Any]) -> float:
    value = next((completion[name] for name in _SCORES if completion.get(name) is not None), None)
    if value is None:
        return -math.inf
    try:
        score = float(value)
    except (TypeError, ValueError):
        score = math.nan
    if not math.isfinite(score):
        raise misfit(row, f"the rating {value!r}", "a number")
    return score


def _tree(row: Row) -> list[RatedConversation]:
    """Follow the best reply from the root of an OASST tree; return every question answered on that path."""
    message, turns, found = row.fields["prompt"], list[Message](), list[RatedConversation]()
    while message is not None:
        if not isinstance(message, dict) or not isinstance(message.get("text"), str):
            raise misfit(row, "a message of another form", "{text, role, replies}, as OASST writes trees")
        if message.get("deleted"):
            raise misfit(row, "a question that was deleted", "one that is there")
        is_answer = message.get("role") == "assistant"
        turns = [*turns, {"role": "assistant" if is_answer else "user", "content": message["text"]}]
        replies = message.get("replies") or []
        if not isinstance(replies, list) or not all(isinstance(of, dict) for of in replies):
            raise misfit(row, "replies of another form", "a list of messages")
        replies = sorted((of for of in replies if not of.get("deleted")), key=_rank)
        if replies and not is_answer:
            ranked = [RatedAnswer(str(of.get("text") or ""), -_rank(of)) for of in replies]
            found.append(RatedConversation(turns, _best_first(row, ranked)))
        message = replies[0] if replies else None
    if not found:
        raise misfit(row, "a tree without an answer", "a reply of the assistant")
    return found


def _rank(message: Mapping[str, Any]) -> float:
    """Return the rank of a reply, 0 for the best, infinity without a rank."""
    rank = message.get("rank")
    return float(rank) if isinstance(rank, int | float) else math.inf


def _best_first(row: Row, answers: Sequence[RatedAnswer]) -> list[RatedAnswer]:
    written = [answer for answer in answers if answer.text.strip()]
    if not written:
        raise misfit(row, "no answer", "at least one with a text")
    return sorted(written, key=lambda answer: -answer.score)


def misfit(row: Row, found: str, expected: str) -> UserError:
    """Return the error of a row that does not have what is expected."""
    return UserError(Problem(row.where, found, expected, MEND_ROW))


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
        raise misfit(row, "an empty conversation", "turns")
    pairs = enumerate(zip(chosen, rejected, strict=False))
    n = next((i for i, (a, b) in pairs if a != b), min(len(chosen), len(rejected)))
    n -= n == len(chosen) == len(rejected)  # equal to the end: the last turn is the answer, twice
    answers = chosen[n:], rejected[n:]
    if any(len(rest) > 1 or rest[0]["role"] != "assistant" for rest in answers if rest):
        expected = "chosen and rejected with the same turns up to one last answer each"
        raise misfit(row, "two conversations that part before the last answer", expected)
    texts = [rest[0]["content"] if rest else "" for rest in answers]
    fields = {**row.fields, "chosen": texts[0], "rejected": texts[1]}
    return _check_pair(_name_question(row._replace(fields=fields | ({"messages": chosen[:n]} if n else {}))))


def read_thumb(row: Row) -> Row | None:
    """Return an answer with a thumb in TRL's form, `completion` and `label`; None of other rows.

    Raises:
        UserError: the label is no thumb, or the completion is empty or no answer.
    """
    known = find_known_fields(row)
    if not {"completion", "label"} <= known or {"chosen", "rejected"} <= known:
        return None
    label, completion = row.fields["label"], row.fields["completion"]
    if (is_up := read_flag(label)) is None:
        raise misfit(row, f"the label {label!r}", "true or false, a thumb")
    if isinstance(completion, list):
        turns = read_turns(row, "completion")
        if len(turns) != 1 or turns[0]["role"] != "assistant":
            expected = "one turn of the assistant"
            raise misfit(row, "a completion of another form", expected)
        completion = turns[0]["content"]
    answer = read_text(row._replace(fields={**row.fields, "completion": completion}), "completion")
    return _name_question(row._replace(fields={**row.fields, "completion": answer, "label": is_up}))


def is_transcript(text: str) -> bool:
    """Tell whether a text is a transcript of Human and Assistant."""
    return bool(_SPEAKER.match(f"\n\n{text.lstrip()[:12]}"))


def _conversation(row: Row, field: str) -> Turns | None:
    """Read a list of turns, or a transcript of Human and Assistant; None of another text."""
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


def _name_question(row: Row) -> Row:
    """Give a pair's question in another tool's field our field `messages`."""
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
    chosen, rejected = (" ".join(str(pair.fields[name]).split()) for name in ("chosen", "rejected"))
    if chosen == rejected:
        raise misfit(pair, "two equal answers", "a chosen answer and another rejected one")
    for name, text in (("chosen", chosen), ("rejected", rejected)):
        if not text:
            raise misfit(pair, f"an empty {name} answer", "a text")
    return pair
