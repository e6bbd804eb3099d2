"""Examples, a candidate's answers to them, and the rows that hold both.

Invariant: a row holds everything that a later comparison needs; its identity, everything that it depends on.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from harness.records.serialization import digest, drop_defaults

BLOCK = 160  # items that are answered together, and whose rows are written together

Message = dict[str, str]
# "incomplete" is a row of several answers, some of which failed.
Status = Literal["ok", "unparsable", "truncated", "refused", "incomplete", "error"]


@dataclass(frozen=True, slots=True)
class Example:
    """One item: its question, accepted answers, family and slice.

    `documents` hold the answer; `passages` names those in the prompt, best first. `constraints` are read by
    `metrics/follows.py`. For prompted items of the target, `earlier` is the text of the turns before the last
    one, and `plain_prompt` the last turn before prompting. `is_cut`: the answer is only the beginning of one.
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
    is_cut: bool = False

    @property
    def prompt(self) -> str:
        """The last user message's text."""
        return next((m["content"] for m in reversed(self.messages) if m["role"] == "user"), "")

    @property
    def has_system(self) -> bool:
        """Whether the first message is a system message."""
        return bool(self.messages) and self.messages[0]["role"] == "system"

    @property
    def question(self) -> str:
        """The text of all messages, each after its role if there are several."""
        return self.messages[0]["content"] if len(self.messages) == 1 else turns_as_text(self.messages)


def has_closed_labels(examples: Iterable[Example]) -> bool:
    """Tell whether all examples with choices have the same ones: labels, not multiple choice."""
    return len({frozenset(example.choices) for example in examples if example.choices}) == 1


def turns_as_text(messages: Sequence[Message]) -> str:
    """Join the turns of a conversation line by line, each after its role."""
    return "\n".join(f"{turn['role']}: {turn['content']}" for turn in messages)


class Document(NamedTuple):
    """One text of a knowledge base."""

    id: str
    title: str
    text: str


class Limits(NamedTuple):
    """Limits of a generated answer; tokens are sampled at a `temperature` above 0, within `top_p`."""

    max_new_tokens: int
    stop: tuple[str, ...] = ()
    temperature: float = 0.0
    top_p: float = 1.0


class PromptText(NamedTuple):
    """Messages and the text that follows them; without a chat template the messages are joined as they are.

    Special tokens in the texts are read as plain text, unless a template wrote them (`is_written`).
    """

    messages: Sequence[Message]
    continuation: str = ""
    chat_template: bool = True
    is_written: bool = False


class Encoded(NamedTuple):
    """Token ids of a context and of its continuation; `merged` when a token spans the boundary."""

    context: tuple[int, ...]
    continuation: tuple[int, ...] = ()
    merged: bool = False


class Likelihood(NamedTuple):
    """Log-probability in nats of a continuation given its context; `greedy` when it is the argmax."""

    logprob: float
    greedy: bool


@dataclass(frozen=True, slots=True)
class Output:
    """A candidate's answer to one prompt; log-probabilities in nats.

    `choice_…` are set if choices were ranked, `gold_…` if the reference was scored. `compute_s` is this
    item's share of its batch's wall time. `samples` are all sampled answers, this one first; `mean_logprob`
    is per token. `first_logprobs` are those of possible first tokens, where requested.
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
    """One of an item's sampled answers, with its scores; `mean_logprob` in nats per token."""

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
    """One example answered by one candidate: everything that a later comparison needs.

    `parts` maps metrics to per-sample parts, None if not scored. `margin` is log p(gold) − log p(best other
    choice) in nats. `samples` are all sampled answers, empty for greedy ones or if they were not read. `fold`
    is from 1; 0 if one model answered all items.
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
    """Identity of a set of rows: everything that the rows depend on; its digest names their folder.

    `scoring_digest` is empty if the task's own code scores, `decoding` for greedy answers, `choice` if the
    first of several answers counts.
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
        """The identity without its scoring: rows that share it hold the same answers."""
        return replace(self, scoring_digest="", choice="")

    @property
    def computes_apart(self) -> bool:
        """Whether the engine belongs to the candidate: a server's, or that of an artefact."""
        return self.engine.startswith(("endpoint/", "artefact/"))


class Origin(NamedTuple):
    """Origin of a block of rows: its environment and control arm, and what disturbed it.

    `contended`: other work disturbed its times. `halved`: memory ran out, and batches were halved.
    """

    environment: str = ""
    control: str = ""
    contended: bool = False
    halved: bool = False


FEEDBACK_ORIGIN = ("source", "model", "time")  # of a row that is made of feedback, by the same columns


@dataclass(frozen=True, slots=True)
class FeedbackRow:
    """One served request, with personal data masked; an unknown text is empty, an unknown thumb None.

    `row_id` and `sender` are keyed digests. `messages` is the conversation up to the answer, as canonical
    JSON. `correction` is the answer as a person wrote it, `preference` one preferred to `answer`. `time` is
    ISO 8601 in UTC. `assignment` says how the model was chosen, `source` is the file and line.
    """

    row_id: str
    messages: str
    answer: str
    thumb: bool | None = None
    correction: str = ""
    preference: str = ""
    model: str = ""
    time: str = ""
    sender: str = ""
    assignment: str = ""
    source: str = ""

    @property
    def conversation(self) -> tuple[Message, ...]:
        """Messages up to the answer."""
        return tuple(json.loads(self.messages))

    @property
    def request(self) -> str:
        """The last user message's text, as in a test item; a tool's results are not questions."""
        return next((m["content"] for m in reversed(self.conversation) if m["role"] == "user"), "")
