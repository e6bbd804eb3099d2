"""Rows and system texts that a teacher writes: answers to training rows, rewritten ones, texts to be tried.

Invariant: no row has an evaluated question, and a proposer is shown training rows only. The same teacher,
rows and seed give the same rows.
Source: sequence-level distillation, Kim and Rush 2016, https://arxiv.org/abs/1606.07947, section 3.2;
prompts written by a model from a few examples, Zhou et al. 2023, https://arxiv.org/abs/2211.01910
"""

import json
import random
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from harness import __version__
from harness.data import Notes, SourcedExample, readers, splits
from harness.data import examples as items_of
from harness.data.edit.changes import Change, EditedRow, drop
from harness.data.edit.save import Edit, digest_of
from harness.data.examples import FIELD
from harness.data.text_files import Row, display_path
from harness.errors import Unscored, UserError
from harness.evaluation import seed_of
from harness.evaluation.row_sets import prompting_digest
from harness.evaluation.session import Session
from harness.experiment import writers
from harness.experiment.stored_rows import refuse_folds
from harness.formatting import pluralize, price
from harness.metrics import normalize
from harness.progress import Progress
from harness.records import Example, Limits, Message, Output, fold_text
from harness.spec import Fields, Task

_REWRITE = """\
Rewrite the answer to the question below, and reply with the rewritten answer alone. How to rewrite it:
{instruction}

Question:
{question}

Answer:
{answer}"""


class Distillation(NamedTuple):
    """Work of a teacher: the rows to answer, or by the instruction `rewrite` to rewrite, and limits.

    `prompts` is a file of rows that need no answer. `min_score` is by the target's metric.
    """

    rewrite: str = ""
    prompts: str | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    max_new_tokens: int | None = None
    min_score: float | None = None
    n_rows: int | None = None
    max_cost: float | None = None
    seed: int = 0


def prepare_distillation(
    session: Session, name: str, request: Distillation, out: str
) -> writers.PreparedRequests[writers.MadeRows]:
    """Find the rows for a candidate to answer or rewrite, and build its prompts; nothing is sent."""
    candidate, target, task = session.candidates[name], session.target, session.target.task
    refuse_folds(session.folds, "harness data distill", "in which every training row is tested too")
    if request.prompts and (request.rewrite or request.min_score is not None):
        option = "--rewrite" if request.rewrite else "--min-score"
        found = "rows whose own answers are not read, by --prompts"
        raise UserError(option, found, "the target's training rows", "leave one of them out")
    metric = target.primary
    if request.min_score is not None and (target.judged or not metric.higher_is_better):
        found = f"{metric.name}, whose higher scores are not always better answers"
        raise UserError("--min-score", found, "a metric that grows with the answer", "leave it out")
    if task.fields != Fields() and not FIELD.fullmatch(task.fields.reference):
        found = f"fields: reference: {task.fields.reference!r}, which an answer cannot be taken apart into"
        step = "make one column of it, or name the columns prompt and reference"
        raise UserError(f"task {task.name}", found, "a single column", step)
    if request.prompts:
        rows = items_of.prompts(task, readers.read(request.prompts, "train"), Notes([], []))
    else:
        rows = target.items.list_sourced("train")
    if not rows:
        step = "name a file of prompts: --prompts FILE"
        raise UserError(f"task {task.name}", "no training rows", "rows for the teacher", step)
    rows = writers.draw_prompts(rows, request.n_rows, request.seed)
    writer = writers.candidate_writer(session, name, request.max_cost)
    step_to = session.prompting_step(candidate.recipe, session.first_seed)
    most = request.max_new_tokens or task.max_new_tokens
    limits = Limits(most, task.stop, request.temperature, request.top_p)
    prompts = []
    for example in (row.example for row in rows):
        if request.rewrite:
            texts = {"question": example.question, "answer": example.references[0]}
            content = _REWRITE.format(instruction=request.rewrite, **texts)
            messages: tuple[Message, ...] = ({"role": "user", "content": content},)
        else:
            messages = step_to(example).messages
        seed = seed_of(request.seed, example.id, 0) if request.temperature > 0 else None
        prompts.append(writers.PromptRequest(messages, limits, seed))
    make = partial(_distill, session, name, request, out, writer, rows, prompts)
    return writers.PreparedRequests(writers.plan_requests(writer, prompts), make)


def _distill(
    session: Session,
    name: str,
    request: Distillation,
    out: str,
    writer: writers.Writer,
    rows: Sequence[SourcedExample],
    prompts: Sequence[writers.PromptRequest],
) -> writers.MadeRows:
    target = session.target
    candidate = session.candidates[name]
    notes = writers.check_contamination(session.tasks, rows, "train", request.prompts or out)
    budgeted = writers.BudgetedWriter(writer, request.max_cost, session.progress)
    answers = budgeted.answers(prompts, f"{pluralize(len(prompts), 'answer')} of {name}")
    once = {prompt.key: answer for prompt, answer in zip(prompts, answers, strict=True)}
    spent = writers.sum_usage(writer, [a for a in once.values() if a.finish_reason != "error"])
    metric = target.primary
    file = request.prompts or target.task.data.source("train") or ""
    sources = {row.where: row for row in readers.read(file, "train").rows}
    outcomes: list[EditedRow] = []
    scored: list[float] = []
    for (example, where, _), answer in zip(rows, answers, strict=True):
        source = sources.get(where)
        score: float | None = None
        if not target.judged and answer.finish_reason != "error" and not request.rewrite:
            with suppress(Unscored):
                text = Output(answer.text.strip())
                parts = metric.score(text, example) if example.references else None
                if parts is not None:
                    score = float(metric.aggregate(np.array([parts]), np.ones(1)))
        scored += [] if score is None else [score]
        if target.task.fields != Fields():  # in the columns that the task names
            written = sources[where]
        else:
            question, groups = writers.write_question(example)
            marks = (splits.SOURCE, splits.ORIGIN) if source and splits.is_augmented(source) else ()
            groups |= {name: source.fields[name] for name in marks if source and name in source.fields}
            documents = {"documents": list(example.documents)} if example.documents else {}
            written = Row(where, {**question, **groups, **documents})
        outcomes.append(_outcome(target.task, written, answer, score, request))
    if not any(outcome.row for outcome in outcomes):
        reasons = ", ".join(dict.fromkeys(o.change.reason for o in outcomes if o.change))
        found = f"{len(outcomes):,} prompts, and none gives a row: {reasons}"
        step = "a larger --max-new-tokens, a system text that says the form of the answer"
        step += ", or another teacher"
        raise UserError("harness data distill", found, "answers to train on", step)
    prompting = prompting_digest(target, candidate.recipe, session.first_seed)
    used = {
        "teacher": name,
        "recipe": candidate.recipe.model_dump(mode="json", exclude_defaults=True),
        "weights": writer.weights_digest,
        "prompting": "" if request.rewrite else prompting,
        "answers": writers.AnswerBook(writer.folder, writer.identity).path.name,
        **request._asdict(),
        "max_new_tokens": request.max_new_tokens or target.task.max_new_tokens,
        "spent": spent._asdict(),
        "leak_check": writers.record_contamination(session.tasks, notes),
    }
    edit = Edit("distill", used, (file,), cost_usd=spent.cost_usd, taught=not request.rewrite)
    remarks = [*notes]
    if scored:
        share = metric.unit.scale * float(np.mean(scored))
        remarks.append(
            f"{metric.name} of the answers against the rows' own: {share:.1f} over all rows that have one"
        )
    cost = price(spent.cost_usd)
    remarks.append(
        f"the teacher's answers took {spent.n_output_tokens:,} tokens and {cost}, kept in the manifest"
    )
    return writers.MadeRows(edit, outcomes, tuple(remarks), spent)


def _outcome(task: Task, row: Row, answer: Output, score: float | None, request: Distillation) -> EditedRow:
    if answer.finish_reason == "error":
        return drop(row, f"the teacher failed ({answer.error})" if answer.error else "the teacher failed")
    text = answer.text.strip()
    if not text:
        return drop(row, "an empty answer")
    if answer.finish_reason == "length" and not task.truncated_scores:
        return drop(row, "an answer cut at max_new_tokens")
    labels = {normalize(label): label for label in task.labels}
    if labels and normalize(text) not in labels:
        return drop(row, "an answer that is not a label of the task")
    if request.min_score is not None and score is not None and score < request.min_score:
        return drop(row, "an answer that scores below --min-score")
    found = FIELD.fullmatch(task.fields.reference)
    column = found[1] if found else "reference"
    kept = {name: value for name, value in row.fields.items() if name != "references" or name == column}
    fields = {**kept, column: labels.get(normalize(text), text)}
    reason = "rewritten by the teacher" if request.rewrite else "labelled by the teacher"
    return EditedRow(Row(row.where, fields), Change(row.where, "changed", (reason,)))


_ASK = """\
Write a system text for a language model that has to do this task.

{task}
{examples}
The text says what to do, which form the answer has, and what to watch out for. Begin it with: {start}
Reply with the system text alone."""
# So that greedy texts differ too.
_STARTS = ("You are", "Read", "Your task is", "Answer", "Think about", "Given")


class PromptProposal(NamedTuple):
    """Request to a proposer: number of texts, number of training rows shown, length, cost limit."""

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
    spent: writers.WriterUsage


def prepare_proposal(
    session: Session, name: str, request: PromptProposal
) -> writers.PreparedRequests[ProposedPrompts]:
    """Sample the training rows to show to a proposer, and build its prompts; nothing is sent."""
    refuse_folds(session.folds, "harness data propose-prompts", "in which every training row is tested too")
    writer = writers.candidate_writer(session, name, request.max_cost)
    task, rows = session.target.task, session.target.items.train
    if not rows:
        found, step = "no training rows", "train: among its data; no other rows are shown to a proposer"
        raise UserError(f"task {task.name}", found, "rows that show the questions", step)
    shown = random.Random(f"{request.seed}/proposals").sample(rows, min(request.n_examples, len(rows)))
    about = [task.description, f"Its labels: {', '.join(task.labels)}." if task.labels else ""]
    about += [f"Its present system text: {task.system}" if task.system else ""]
    examples = [
        f"Example {i}:\n{e.question}\nRight answer: {e.references[0]}\n" for i, e in enumerate(shown, 1)
    ]
    limits, prompts = Limits(request.max_new_tokens, (), request.temperature), []
    for k in range(request.n):  # each text begins differently, and has its own seed
        content = _ASK.format(
            task="\n".join(filter(None, about)) or f"The task is called {task.name}.",
            examples="\n".join(examples),
            start=_STARTS[k % len(_STARTS)],
        )
        seed = seed_of(request.seed, "proposal", k) if request.temperature else None
        prompts.append(writers.PromptRequest(({"role": "user", "content": content},), limits, seed))
    make = partial(_propose, task, name, request, session.progress, writer, shown, prompts)
    return writers.PreparedRequests(writers.plan_requests(writer, prompts), make)


def _propose(
    task: Task,
    name: str,
    request: PromptProposal,
    progress: Progress,
    writer: writers.Writer,
    shown: Sequence[Example],
    prompts: Sequence[writers.PromptRequest],
) -> ProposedPrompts:
    budgeted = writers.BudgetedWriter(writer, request.max_cost, progress)
    outputs = budgeted.answers(prompts, f"{request.n} system texts by {name}")
    answers = [output for output in outputs if output.finish_reason != "error"]
    first: dict[str, str] = {}
    for answer in answers:
        if answer.finish_reason != "length" and (text := answer.text.strip()):
            first.setdefault(fold_text(text), text)
    if not first:
        failed = dict.fromkeys(output.error for output in outputs if output.error)
        reasons = ", ".join(failed) or "texts that are empty or cut at max_new_tokens"
        step = "a larger --max-new-tokens, or another model"
        raise UserError("harness data propose-prompts", reasons, "a text to try", step)
    spent = writers.sum_usage(writer, answers)
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
    comments = [f"# {key}: {json.dumps(value, ensure_ascii=False)}" for key, value in made.provenance.items()]
    texts = [f"      - {json.dumps(text, ensure_ascii=False)}" for text in made.texts]
    return "\n".join([*comments, "candidates:", "  proposed:", "    system:", "      - null", *texts, ""])
