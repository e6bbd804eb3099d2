"""General rows that regularisers read: prompts with the base's own answers, or rows of a file.

Invariant: the sample depends only on the parameters, the number of training rows and the seed, and no row
asks the question of an evaluated item.
"""

import json
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import NamedTuple, Protocol

from harness.data import load_rows, suite_contamination
from harness.errors import CandidateFailed, UserError, refuse
from harness.records import Example, fold_text
from harness.spec import Task, TaskData

_LONGEST = 64  # tokens of an answer
_SPARE = 1.9  # some four in ten answers are cut at that length, and a few are empty or refused
_ENDS = (".", "!", "?")
_PROMPTS = Path(__file__).with_name("general_prompts.jsonl")
_SHIPPED = Path(__file__).parent / "answers"  # a file a base, written by reports/studies/shipped_answers.py


class Mixture(NamedTuple):
    """General rows of a regulariser: `n` of them, taken from `rows`.

    If `max_new_tokens` is not 0 the rows are prompts, and the base's answers of at most that many tokens are
    added to them.
    """

    n: int
    rows: tuple[Example, ...]
    max_new_tokens: int = 0


class Answered(Protocol):
    """Answer of a base to a general prompt, like a stored row; cut ones have the status `truncated`."""

    @property
    def example_id(self) -> str: ...
    @property
    def text(self) -> str: ...
    @property
    def status(self) -> str: ...


class ShippedAnswer(NamedTuple):
    """Answer of a base that ships with the package."""

    example_id: str
    text: str
    status: str


@dataclass(frozen=True, slots=True)
class MixContext:
    """The number of training rows, the seed, and by task the evaluated items, which are never mixed in."""

    n_train: int
    seed: int
    evaluated: Mapping[str, tuple[Example, ...]]


def general_mixture(name: str, n: int, data: str | None, context: MixContext) -> Mixture:
    """Sample `n` rows of the user's file, or more than `n` general prompts; none of them is evaluated."""
    if data is None:
        return Mixture(n, _prompts(name, context)[: round(_SPARE * n) + 1], _LONGEST)
    rows = _rows_of(name, data)
    refuse(suite_contamination(rows, context.evaluated))
    n = min(n, len(rows))
    return Mixture(n, tuple(random.Random(f"{context.seed}/{name}").sample(rows, n)))


def _rows_of(name: str, data: str) -> list[Example]:
    """Read a user's file of general rows; errors say what the rows are for."""
    try:
        rows = load_rows(Task(name=name, data=TaskData(train=data)), data)
    except UserError as error:
        problems = [replace(p, where=f"general rows of regularize: {p.where}") for p in error.problems]
        raise UserError(problems) from None
    return sorted(rows, key=lambda e: e.id)


def collect_answered_rows(
    name: str, mixture: Mixture, evaluate: Callable[[], Iterable[Answered]]
) -> tuple[Example, ...]:
    """Return rows of a file as they are; join prompts with the base's answers, complete ones first."""
    # If complete answers are too few, cut ones follow, each up to its last sentence.
    if not mixture.max_new_tokens:
        return mixture.rows
    answers = {row.example_id: row for row in evaluate()}
    complete, cut = (
        [(e, _text(row)) for e in mixture.rows if (row := answers.get(e.id)) and row.status == status]
        for status in ("ok", "truncated")
    )
    answered = [(e, text) for e, text in (*complete, *cut) if text]
    if not answered:
        reason = f"the base gave no whole answer to any of {len(mixture.rows)} general prompts"
        raise CandidateFailed(reason, f"data: rows-of-yours.jsonl under regularize: {name}")
    return tuple(Example(e.id, e.messages, (text,), cluster=e.cluster) for e, text in answered[: mixture.n])


def find_shipped_answers(base_digest: str, mixture: Mixture) -> tuple[ShippedAnswer, ...]:
    """Return the shipped answers to a mixture's prompts; empty if any is missing.

    `base_digest` names the base's weights and template. Any other base has to compute its answers.
    """
    shipped = _read_shipped_answers(base_digest)
    if not mixture.max_new_tokens or any(e.prompt not in shipped for e in mixture.rows):
        return ()
    rows = ((e.id, shipped[e.prompt]) for e in mixture.rows)
    return tuple(ShippedAnswer(example_id, row["answer"], row["status"]) for example_id, row in rows)


@cache
def _read_shipped_answers(base_digest: str) -> dict[str, dict[str, str]]:
    path = _SHIPPED / f"{base_digest[:16]}.jsonl"
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    return {row["prompt"]: row for row in map(json.loads, lines)}


def _prompts(name: str, context: MixContext) -> tuple[Example, ...]:
    taken = {fold_text(e.prompt) for examples in context.evaluated.values() for e in examples}
    return tuple(
        Example(f"{name}-{number}", ({"role": "user", "content": text},), cluster=f"{name}-{number}")
        for number, (text, folded) in enumerate(_fold_general_prompts())
        if folded not in taken
    )


@cache
def _fold_general_prompts() -> tuple[tuple[str, str], ...]:
    return tuple((text, fold_text(text)) for text in general_prompts())


@cache
def general_prompts() -> tuple[str, ...]:
    """Return the general prompts, ordered so that each prefix has about equal shares of all kinds."""
    lines = _PROMPTS.read_text("utf-8").splitlines()
    return tuple(json.loads(line)["prompt"] for line in lines)


def _text(row: Answered) -> str:
    """Return an answer; a cut one only up to its last sentence."""
    text = row.text.strip()
    return text if row.status == "ok" else text[: 1 + max(text.rfind(end) for end in _ENDS)]
