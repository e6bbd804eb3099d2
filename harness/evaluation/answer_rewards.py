"""Rewards of sampled answers by a reward model, used to choose the best of an item's answers.

Invariant: a reward depends only on the item, the text and the reward model; stored rewards are reused.
Source: the best of n by a reward model, Stiennon et al. 2020, arXiv:2009.01325
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from harness.evaluation.session import Session
from harness.metrics import Parts
from harness.models.hub import ModelSource
from harness.prompting import Step
from harness.records import Example, SampleResult
from harness.training import Weights, score_answers

Rewards = Mapping[tuple[str, str], Mapping[str, Parts | None]]
"""Maps item and text to the parts that a reward model adds to an answer's scores."""


class Chooser(NamedTuple):
    """The reward model that chooses: the name of its scores, its weights, its base, and its prompting."""

    metric: str
    weights: Weights
    base: ModelSource
    step: Callable[[], Step]


def read_stored_rewards(chooser: Chooser | None, block: Sequence[SampleResult]) -> Rewards:
    """Read the rewards of stored answers by this reward model."""
    if chooser is None:
        return {}
    name = chooser.metric
    return {(row.example_id, s.text): {name: s.parts.get(name)} for row in block for s in row.samples}


def score_rewards(
    session: Session,
    chooser: Chooser | None,
    block: Sequence[SampleResult],
    examples: Sequence[Example],
    *,
    chat: bool,
) -> Rewards:
    """Score a block's answers with the reward model, each item prompted as in its training.

    `examples` are the items without a candidate's prompting.

    Raises:
        CandidateFailed: memory does not suffice.
    """
    if chooser is None:
        return {}
    folder = chooser.weights.folder
    assert folder is not None, "a reward model is trained into a folder"
    if session.machine.device == "cuda" or session.experiment.engine == "vllm":
        session.unload()  # a reward model has its own base, and a GPU rarely has room for two
    step, plain = chooser.step(), {example.id: example for example in examples}
    answers = list(dict.fromkeys((row.example_id, sample.text) for row in block for sample in row.samples))
    prompted = [step(plain[ident]) for ident, _ in answers]
    model, texts = folder / chooser.weights.kind, [text for _, text in answers]
    scores = score_answers(model, chooser.base, session.machine, prompted, texts, chat)
    return {answer: {chooser.metric: (score,)} for answer, score in zip(answers, scores, strict=True)}
