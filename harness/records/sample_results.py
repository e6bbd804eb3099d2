"""Examples, the answers of a candidate to them, and the rows that hold both.

Invariant: a row holds everything that a later comparison needs, and its identity everything it depends on.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from harness.records.serialization import digest, drop_defaults

BLOCK = 160  # items that are answered together, and whose rows are written together

Message = dict[str, str]
# "incomplete" is a row of several answers of which some failed.
Status = Literal["ok", "unparsable", "truncated", "refused", "incomplete", "error"]


@dataclass(frozen=True, slots=True)
class Example:
    """One item: its question, what is accepted, and to which family and slice it belongs.

    `documents` names the documents that hold the answer (for recall@k); `passages` names
    those that a prompting put into the messages, best first. `constraints` are the checks
    of a verifiable instruction (see `metrics/follows.py`). Of an item of the target as it is prompted,
    `earlier` are the turns of a conversation before the last, as text, and `plain_prompt` is the last one
    before promptings and a template put anything around it.
    """

    id: str
    messages: tuple[Message, ...]
    references: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    cluster: str = ""
    slice: str = ""
    documents: tuple[str, ...] = ()
    passages: tuple[str, ...] = ()
    constraints: tuple[Mapping[str, Any], ...] = ()
    rejected: str = ""
    earlier: str = ""
    plain_prompt: str = ""

    @property
    def prompt(self) -> str:
        """The last user message's text."""
        return next((m["content"] for m in reversed(self.messages) if m["role"] == "user"), "")

    @property
    def has_system(self) -> bool:
        """Whether the first message is a system message of its own."""
        return bool(self.messages) and self.messages[0]["role"] == "system"

    @property
    def question(self) -> str:
        """The text of all messages, each behind its role where there are several."""
        return self.messages[0]["content"] if len(self.messages) == 1 else turns_as_text(self.messages)


def has_closed_labels(examples: Iterable[Example]) -> bool:
    """Tell whether the examples that have choices all have the same ones: labels, and no multiple choice."""
    return len({frozenset(example.choices) for example in examples if example.choices}) == 1


def turns_as_text(messages: Sequence[Message]) -> str:
    """Write the turns of a conversation one below the other, each behind its role."""
    return "\n".join(f"{turn['role']}: {turn['content']}" for turn in messages)


class Document(NamedTuple):
    """One text of a knowledge base."""

    id: str
    title: str
    text: str


class Limits(NamedTuple):
    """Limits of a generated answer; `max_new_tokens` in tokens, `stop` as strings.

    At a `temperature` above 0 tokens are drawn, from the likeliest that together have a chance of `top_p`.
    """

    max_new_tokens: int
    stop: tuple[str, ...] = ()
    temperature: float = 0.0
    top_p: float = 1.0


class PromptText(NamedTuple):
    """Messages and what would follow them, as text; without a chat template they are joined as they are.

    Special tokens within the texts are read as text, unless a template wrote them: `is_written`.
    """

    messages: Sequence[Message]
    continuation: str = ""
    chat_template: bool = True
    is_written: bool = False


class Encoded(NamedTuple):
    """Token ids of a context and of what follows it; `merged` when a token spans the boundary."""

    context: tuple[int, ...]
    continuation: tuple[int, ...] = ()
    merged: bool = False


class Likelihood(NamedTuple):
    """Log-probability in nats of a continuation given its context; `greedy` when it is the argmax."""

    logprob: float
    greedy: bool


@dataclass(frozen=True, slots=True)
class Output:
    """Answer of a candidate to one prompt.

    `choice_logprobs` (nats) and `choice_bytes` are set where choices were ranked, in the
    order of `Example.choices`; `gold_logprob` and `gold_bytes` where the reference was scored.
    `compute_s` is this item's share of its batch's wall time in seconds. `samples` are all answers to the
    item where several were drawn, this one the first of them; `mean_logprob` is in nats a token.
    `first_logprobs` are the log-probabilities (nats) of tokens that could have begun it, where they were
    asked for.
    """

    text: str
    finish_reason: Literal["stop", "length", "ranked", "error"] = "stop"
    n_prompt_tokens: int = 0
    n_output_tokens: int = 0
    compute_s: float = 0.0
    choice_logprobs: tuple[float, ...] = ()
    choice_bytes: tuple[int, ...] = ()
    gold_logprob: float | None = None
    gold_bytes: int | None = None
    error: str = ""
    mean_logprob: float | None = None
    samples: "tuple[Output, ...]" = ()
    first_logprobs: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Sample:
    """One of an item's answers that were drawn, with what it scores; `index` counts them from 0.

    `mean_logprob` is the mean log-probability of its tokens in nats, where that was requested.
    """

    index: int
    text: str
    status: Status
    parts: dict[str, tuple[float, ...] | None]
    finish_reason: str = ""
    n_prompt_tokens: int = 0
    n_output_tokens: int = 0
    compute_s: float = 0.0
    mean_logprob: float | None = None
    error: str = ""


@dataclass(frozen=True, slots=True)
class SampleResult:
    """One example answered by one candidate: everything a later comparison needs.

    `parts` maps a metric's name to its per-sample parts, or to None where it could not be
    scored. `margin` is log p(gold) − log p(best other choice) in nats. `samples` are all answers that were
    drawn, of which the row says what counts; none where it was answered greedily, or was read without them.
    `fold` numbers, from 1, the fold whose model answered; 0 where one answered all items.
    """

    task: str
    split: str
    example_id: str
    position: int
    status: Status
    text: str
    prompt: str
    references: tuple[str, ...]
    parts: dict[str, tuple[float, ...] | None]
    cluster: str = ""
    slice: str = ""
    gold_logprob: float | None = None
    gold_bytes: int | None = None
    margin: float | None = None
    n_prompt_tokens: int = 0
    n_output_tokens: int = 0
    compute_s: float = 0.0
    prompt_digest: str = ""
    output_digest: str = ""
    boundary_merged: bool = False
    finish_reason: str = ""
    passages: tuple[str, ...] = ()
    recall: float | None = None
    attempt: int = 1
    weight: float = 1.0
    error: str = ""
    samples: tuple[Sample, ...] = ()
    fold: int = 0


@dataclass(frozen=True, slots=True)
class RowsIdentity:
    """Identity of a set of rows, everything they depend on; its digest names the folder they lie in.

    All but `scoring_digest` and `choice` says who was prompted with what; the first says how the answers are
    scored, and is empty where the task's own code does both at once. `decoding` digests how answers were
    drawn, empty of greedy ones; `choice` says how one of several was chosen, empty where the first counts.
    """

    weights_digest: str
    template_digest: str
    task: str
    task_version: str
    split: str
    prompting_digest: str
    answer: str
    precision: str
    engine: str
    layout_digest: str
    device_class: str
    scoring_digest: str = ""
    decoding: str = ""
    choice: str = ""

    @property
    def digest(self) -> str:
        """The sixteen hex digits that name `runs/rows/<digest>/`."""
        return digest(drop_defaults(self))

    @property
    def answers(self) -> "RowsIdentity":
        """The same without its scoring: rows of which this is equal hold the same answers."""
        return replace(self, scoring_digest="", choice="")


class Origin(NamedTuple):
    """Origin of a block of rows: the digest of its environment, and the control arm measured beside it.

    Either is empty where it is unknown, or where there was none. `contended` says that other work took the
    processors meanwhile, so that its times are not those of this machine.
    """

    environment: str = ""
    control: str = ""
    contended: bool = False
