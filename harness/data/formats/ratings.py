"""Answers that were rated, ranked or preferred: as the best one, or as a pair of the best and the worst.

Invariant: an answer is better only where its rating says so; equal ratings make no pair.
Source: Cui et al. 2023, UltraFeedback, https://arxiv.org/abs/2310.01377 (its `fine-grained_score` goes before
`overall_score`, of which some are wrong); Köpf et al. 2023, OpenAssistant Conversations,
https://arxiv.org/abs/2304.07327; OpenAI, https://platform.openai.com/docs/guides/direct-preference-optimization
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from harness.data.readers import Row
from harness.errors import Problem, UserError
from harness.records import Message

MEND_ROW = "fix the row, or set invalid_rows: drop in data: of the task"
RATED, TREE = {"instruction", "completions"}, {"message_tree_id", "prompt"}
PREFERRED = {"input", "preferred_output", "non_preferred_output"}
_SCORES = ("fine-grained_score", "overall_score", "rating", "score")


class RatedAnswer(NamedTuple):
    """A text and how good it is, as a number of which more is better; None where it was not judged."""

    text: str
    score: float | None


class RatedConversation(NamedTuple):
    """Turns that end with a question, and the answers to it, the best first."""

    messages: list[Message]
    answers: list[RatedAnswer]


def best_answer(row: Row) -> dict[str, Any]:
    """Read a row as an item whose reference is the best answer; of a tree, the last on the path of the best.

    Raises:
        UserError: there is no answer, or the row is of another form.
    """
    judged = _read_rated(row) if row.fields.keys() >= RATED else _tree(row)[-1]
    return {"messages": judged.messages, "references": [judged.answers[0].text.strip()]}


def make_judged_pair(row: Row) -> Row:
    """Return a row with `messages`, `chosen` and `rejected`; of a tree, the first on the path of the best.

    A row of another form comes back as it is.

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
        scored = [answer for answer in answers if answer.score is not None]
        if len({answer.score for answer in scored}) > 1:
            pair = {"chosen": scored[0].text.strip(), "rejected": scored[-1].text.strip()}
            return row._replace(fields={**row.fields, "messages": messages, **pair})
    expected = "two answers, one rated higher than the other"
    raise UserError(Problem(row.where, "no two answers of different ratings", expected, MEND_ROW))


def _read_rated(row: Row) -> RatedConversation:
    """Read UltraFeedback's instruction and rated completions."""
    completions = row.fields["completions"]
    if not isinstance(completions, list) or not all(isinstance(of, dict) for of in completions):
        raise _misfit(row, "'completions' of another form", "a list of {response, overall_score}")
    answers = [RatedAnswer(str(of.get("response") or ""), _score(row, of)) for of in completions]
    question = str(row.fields["instruction"])
    if not question.strip():
        raise _misfit(row, "an empty question", "a text")
    return RatedConversation([{"role": "user", "content": question}], _best_first(row, answers))


def _score(row: Row, completion: Mapping[str, Any]) -> float | None:
    value = next((completion[name] for name in _SCORES if completion.get(name) is not None), None)
    try:
        score = None if value is None else float(value)
    except (TypeError, ValueError):
        score = math.nan
    if score is not None and not math.isfinite(score):
        raise _misfit(row, f"the rating {value!r}", "a number")
    return score


def _tree(row: Row) -> list[RatedConversation]:
    """Follow the best reply from the root of an OASST tree; give every question answered on that path."""
    message, turns, found = row.fields["prompt"], list[Message](), list[RatedConversation]()
    while message is not None:
        if not isinstance(message, dict) or not isinstance(message.get("text"), str):
            raise _misfit(row, "a message of another form", "{text, role, replies}, as OASST writes trees")
        if message.get("deleted"):
            raise _misfit(row, "a question that was deleted", "one that is there")
        is_answer = message.get("role") == "assistant"
        turns = [*turns, {"role": "assistant" if is_answer else "user", "content": message["text"]}]
        replies = sorted(_replies(row, message), key=_rank)
        if replies and not is_answer:
            ranked = [RatedAnswer(str(of.get("text") or ""), _rank_score(of)) for of in replies]
            found.append(RatedConversation(turns, _best_first(row, ranked)))
        message = replies[0] if replies else None
    if not found:
        raise _misfit(row, "a tree without an answer", "a reply of the assistant")
    return found


def _replies(row: Row, message: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    replies = message.get("replies") or []
    if not isinstance(replies, list) or not all(isinstance(of, dict) for of in replies):
        raise _misfit(row, "replies of another form", "a list of messages")
    return [of for of in replies if not of.get("deleted")]


def _rank(message: Mapping[str, Any]) -> tuple[bool, float]:
    """Sort by rank, 0 first, and what has none behind."""
    score = _rank_score(message)
    return score is None, 0.0 if score is None else -score


def _rank_score(message: Mapping[str, Any]) -> float | None:
    rank = message.get("rank")
    return -float(rank) if isinstance(rank, int | float) else None


def _best_first(row: Row, answers: Sequence[RatedAnswer]) -> list[RatedAnswer]:
    written = [answer for answer in answers if answer.text.strip()]
    if not written:
        raise _misfit(row, "no answer", "at least one with a text")
    return sorted(written, key=lambda a: (a.score is None, 0.0 if a.score is None else -a.score))


def _misfit(row: Row, found: str, expected: str) -> UserError:
    return UserError(Problem(row.where, found, expected, MEND_ROW))
