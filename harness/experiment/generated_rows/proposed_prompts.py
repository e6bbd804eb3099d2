"""System texts that a model proposes for the task, to be tried as a grid of prompts on validation.

Invariant: the model is shown training rows and what the task says of itself, never a validation or test row;
a text that repeats another, letter case and spaces aside, is left out.
Source: prompts written by a model from a few examples, Zhou et al. 2023, https://arxiv.org/abs/2211.01910.
"""

import json
import random
from collections.abc import Sequence
from typing import Any, NamedTuple

from harness import __version__
from harness.data.edit import digest_of
from harness.data.text_files import display_path
from harness.errors import Problem, UserError
from harness.evaluation import seed_of
from harness.evaluation.session import Session
from harness.experiment.generated_rows.asking import (
    BudgetedWriter,
    PromptRequest,
    WriterPlan,
    WriterUsage,
    plan_requests,
    sum_usage,
)
from harness.experiment.generated_rows.writers import Writer, candidate_writer, refuse_unpriced
from harness.experiment.runs.stored_rows import refuse_folds
from harness.records import Example, Limits, fold_text

_ASK = """\
Write a system text for a language model that has to do this task.

{task}
{examples}
The text says what to do, which form the answer has, and what to watch out for. Begin it with: {start}
Reply with the system text alone."""
# So that greedy texts differ too.
_STARTS = ("You are", "Read", "Your task is", "Answer", "Think about", "Given")


class PromptProposal(NamedTuple):
    """Question to a proposer: how many texts, from how many training rows, how long, and what it may cost."""

    n: int = 6
    n_examples: int = 4
    max_new_tokens: int = 200
    temperature: float = 0.7
    max_cost: float | None = None
    seed: int = 0


class ProposedPrompts(NamedTuple):
    """System texts, each once, with what they depend on and what they took."""

    texts: tuple[str, ...]
    provenance: dict[str, Any]
    spent: WriterUsage


class _Questions(NamedTuple):
    """Questions to a proposer, and the training rows that they show."""

    writer: Writer
    shown: list[Example]
    prompts: list[PromptRequest]


def plan_proposals(session: Session, name: str, request: PromptProposal) -> WriterPlan:
    """Count the requests to a proposer, without sending one.

    Raises:
        UserError: it generates no text, or there are no training rows.
    """
    questions = _questions(session, name, request)
    return plan_requests(questions.writer, questions.prompts)


def _questions(session: Session, name: str, request: PromptProposal) -> _Questions:
    """Write the proposer's prompts."""
    refuse_folds(session, "harness data propose-prompts", "in which every training row is tested too")
    writer = candidate_writer(session, name)
    refuse_unpriced(session.candidates[name], writer.planned(1, 1), request.max_cost)
    task, rows = session.target.task, session.target.items.train
    if not rows:
        found, step = "no training rows", "train: among its data; no other rows are shown to a proposer"
        raise UserError(Problem(f"task {task.name}", found, "rows that show the questions", step))
    shown = random.Random(f"{request.seed}/proposals").sample(rows, min(request.n_examples, len(rows)))
    return _Questions(writer, shown, [_prompt(session, shown, request, k) for k in range(request.n)])


def propose_prompts(session: Session, name: str, request: PromptProposal) -> ProposedPrompts:
    """Let a candidate propose system texts for the target.

    Raises:
        UserError: it generates no text, there are no training rows, or it proposes nothing that can be used.
        CandidateFailed: it cannot be asked, or has cost what is allowed.
    """
    writer, shown, questions = _questions(session, name, request)
    task, budgeted = session.target.task, BudgetedWriter(writer, request.max_cost, session.progress)
    outputs = budgeted.answers(questions, f"{request.n} system texts by {name}")
    answers = [one for one in outputs if one.finish_reason != "error"]
    whole = [a.text.strip() for a in answers if a.finish_reason != "length" and a.text.strip()]
    first: dict[str, str] = {}
    for text in whole:
        first.setdefault(fold_text(text), text)
    if not first:
        failed = dict.fromkeys(one.error for one in outputs if one.error)
        reasons = ", ".join(failed) or "texts that are empty or cut at max_new_tokens"
        step = "a larger --max-new-tokens, or another model"
        raise UserError(Problem("harness data propose-prompts", reasons, "a text to try", step))
    spent = sum_usage(writer, answers)
    file = task.data.source("train") or ""
    provenance = {
        "harness": __version__,
        "proposer": name,
        "weights": writer.weights_digest,
        "task": task.name,
        "examples": [example.id for example in shown],
        "rows": {"file": display_path(file), "sha256": digest_of(file)} if file else {},
        **request._asdict(),
        "spent": spent._asdict(),
    }
    return ProposedPrompts(tuple(first.values()), provenance, spent)


def recipe_text(made: ProposedPrompts) -> str:
    """Write a candidate with the texts as a grid of harness.yaml; a comment says who proposed them."""
    said = [f"# {key}: {json.dumps(value, ensure_ascii=False)}" for key, value in made.provenance.items()]
    texts = [f"      - {json.dumps(text, ensure_ascii=False)}" for text in made.texts]
    return "\n".join([*said, "candidates:", "  proposed:", "    system:", "      - null", *texts, ""])


def _prompt(session: Session, shown: Sequence[Example], request: PromptProposal, k: int) -> PromptRequest:
    """Ask for one text; each begins in another way, and is drawn by a seed of its own."""
    task = session.target.task
    about = [task.description, f"Its labels: {', '.join(task.labels)}." if task.labels else ""]
    about += [f"Its present system text: {task.system}" if task.system else ""]
    examples = [
        f"Example {i}:\n{e.question}\nRight answer: {e.references[0]}\n" for i, e in enumerate(shown, 1)
    ]
    content = _ASK.format(
        task="\n".join(filter(None, about)) or f"The task is called {task.name}.",
        examples="\n".join(examples),
        start=_STARTS[k % len(_STARTS)],
    )
    seed = seed_of(request.seed, "proposal", k) if request.temperature else None
    limits = Limits(request.max_new_tokens, (), request.temperature)
    return PromptRequest(({"role": "user", "content": content},), limits, seed)
