"""Candidate × task → rows: items, answers and scores.

Invariant: items are cut into blocks of `BLOCK` in an order seeded by the task's version, and batching happens
inside a block, so a block's numbers do not depend on what ran before it.
"""

import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from harness.config import is_judged
from harness.errors import HarnessError, Unscored, UserError, one_line
from harness.evaluation.sampled_answers import draw_answers, limits_of, seed_of, settle
from harness.metrics import Metric, Parts, extremes, normalize
from harness.models import Candidate
from harness.prompting import recall
from harness.records import (
    BLOCK,
    Encoded,
    Example,
    Message,
    Output,
    PromptText,
    RowsIdentity,
    Sample,
    SampleResult,
    Status,
    digest,
    is_refusal,
)
from harness.spec import Decoding, Recipe, Role, Task

_PLACE = re.compile(r"\{[^{}]*\}")  # a placeholder in a template
_STATUS: Mapping[str, Status] = {"error": "error", "ranked": "ok", "length": "truncated"}  # by finish reason
_ROUNDING = 1e-9  # relative rounding error of a score, allowed beyond its metric's bounds


@dataclass(frozen=True, slots=True)
class EvaluationJob:
    """One task's items with a candidate's prompts, in order; `decoding` is None if answers are greedy."""

    task: Task
    role: Role
    split: str
    examples: tuple[Example, ...]
    metrics: Mapping[str, Metric]
    answer: str
    identity: RowsIdentity
    decoding: Decoding | None = None

    @property
    def n_blocks(self) -> int:
        """The number of blocks of `BLOCK` items, the last one possibly shorter."""
        return -(-len(self.examples) // BLOCK)


def put_in_order(examples: Sequence[Example], version: str) -> tuple[Example, ...]:
    """Return the examples in the order seeded by the task's version."""
    order = np.random.default_rng(int(version, 16)).permutation(len(examples))
    return tuple(examples[i] for i in order)


def wrap_prompt(example: Example, system: str | None, template: str | None) -> Example:
    """Merge the recipe's system text with the item's (templates refuse two), and apply its template."""
    messages: tuple[Message, ...] = example.messages
    if template and messages:
        text = template.replace("{prompt}", messages[-1]["content"])
        messages = (*messages[:-1], {**messages[-1], "content": text})
    if system is not None and messages:
        item_system = [messages[0]["content"]] if example.has_system else []
        text = "\n\n".join(filter(None, (system, *item_system)))
        messages = ({"role": "system", "content": text}, *messages[len(item_system) :])
    return replace(example, messages=messages)


def has_instruction(task: Task, recipe: Recipe, examples: Sequence[Example]) -> bool:
    """Tell whether prompts contain an instruction: a system text, or words of a template or of all items."""
    if task.kind != "generate" or task.lm_eval or recipe.system or (recipe.system is None and task.system):
        return True
    instruction_words = _PLACE.sub(" ", f"{task.fields.prompt} {recipe.template or ''}").split()
    prompts = [example.prompt.split() or [""] for example in examples]
    for ends in ({words[0] for words in prompts}, {words[-1] for words in prompts}):
        instruction_words += [word for word in ends if len(ends) == 1 and not word.endswith(":")]
    has_words = any(any(map(str.isalpha, word)) for word in instruction_words)
    return has_words or all(example.has_system for example in examples)


class EncodedItem(NamedTuple):
    """Token ids of an item: its context, and the texts scored after it (each choice, or a whole text)."""

    context: Encoded
    scored: tuple[Encoded, ...] = ()


def encode_block(candidate: Candidate, job: EvaluationJob, index: int) -> list[EncodedItem]:
    """Encode all prompts of the candidate in one block of items."""
    prompts, chat = [], job.task.chat_template
    for example in job.examples[index * BLOCK : (index + 1) * BLOCK]:
        texts = [prompt_text(job.task, example)]  # the context, then the texts scored after it
        if _is_ranked(job, example):
            gap = "" if chat or not example.messages else " "
            texts += [PromptText(example.messages, gap + choice, chat) for choice in example.choices]
        elif job.task.kind == "bits_per_byte":  # a whole text has no question
            texts.append(PromptText((), example.references[0], chat_template=False))
        prompts.append(texts)
    ids = iter(candidate.encode_all([text for texts in prompts for text in texts]))
    return [EncodedItem(next(ids), tuple(next(ids) for _ in texts[1:])) for texts in prompts]


def prompt_text(task: Task, example: Example) -> PromptText:
    """Return an item's context as it is sent; empty for a whole text."""
    return PromptText(example.messages, "", task.chat_template and task.kind != "bits_per_byte")


def _is_ranked(job: EvaluationJob, example: Example) -> bool:
    return bool(example.choices) and (job.task.kind == "choice" or job.answer == "rank")


def evaluate_block(
    candidate: Candidate, job: EvaluationJob, index: int, encoded: Sequence[EncodedItem] = ()
) -> list[SampleResult]:
    """Let the candidate answer one block of items, already `encoded` or not, and score the answers."""
    examples = job.examples[index * BLOCK : (index + 1) * BLOCK]
    items = encoded or encode_block(candidate, job, index)
    # An error for prompts that do not fit: they are counted, never cut.
    room = candidate.max_context - (job.task.max_new_tokens if job.task.kind == "generate" else 0)
    sizes = [len(item.context.context) for item in items]
    outputs = {i: _unfit(n, room) for i, n in enumerate(sizes) if n > room}
    texts_by_item = {i: item.scored for i, item in enumerate(items) if item.scored and i not in outputs}
    longest, room = {i: max(map(_size, texts)) for i, texts in texts_by_item.items()}, candidate.max_context
    outputs |= {i: _unfit(n, room) for i, n in longest.items() if n > room}
    if fit := {i: texts for i, texts in texts_by_item.items() if i not in outputs}:
        start = time.perf_counter()
        pairs = [(e.context, e.continuation) for texts in fit.values() for e in texts]
        scores = iter(candidate.loglikelihood(pairs))
        logprobs = {i: [next(scores).logprob for _ in texts] for i, texts in fit.items()}
        share = (time.perf_counter() - start) / len(fit)
        outputs |= {i: _choose(job, examples[i], fit[i], logprobs[i], share) for i in fit}
    remaining = [i for i in range(len(examples)) if i not in outputs]
    if job.decoding is not None:
        pending_items = [(examples[i], items[i].context) for i in remaining]
        answers = draw_answers(candidate, job.task, job.decoding, pending_items)
    else:
        prompts = [items[i].context.context for i in remaining]
        answers = candidate.generate(prompts, limits_of(job.task)) if remaining else []
    outputs |= dict(zip(remaining, answers, strict=True))
    rows = zip(examples, items, strict=True)
    return [_row(job, *row, index * BLOCK + i, outputs[i]) for i, row in enumerate(rows)]


def _unfit(n_tokens: int, room: int) -> Output:
    reason = f"prompt of {n_tokens} tokens, the context holds {room}"
    return Output("", "error", n_prompt_tokens=n_tokens, error=reason)


def _size(encoded: Encoded) -> int:
    return len(encoded.context) + len(encoded.continuation)


def _choose(
    job: EvaluationJob, example: Example, encoded: Sequence[Encoded], logprobs: Sequence[float], share: float
) -> Output:
    """Choose the likeliest choice, by likelihood per byte if the task says so; none for a whole text."""
    if job.task.kind == "bits_per_byte":
        n_bytes, n_tokens = len(example.references[0].encode()), _size(encoded[0])
        return Output("", "ranked", n_tokens, compute_s=share, gold_logprob=logprobs[0], gold_bytes=n_bytes)
    sizes = [len(c.encode()) for c in example.choices]
    scores = [x / n for x, n in zip(logprobs, sizes, strict=True)] if job.task.length_normalized else logprobs
    gold = example.choices.index(example.references[0])
    best = max(range(len(scores)), key=scores.__getitem__)
    n_read, n_scored = len(encoded[0].context), sum(len(e.continuation) for e in encoded)
    figures = n_read, n_scored, share, tuple(logprobs), tuple(sizes), logprobs[gold], sizes[gold]
    return Output(example.choices[best], "ranked", *figures)


def _row(
    job: EvaluationJob, example: Example, item: EncodedItem, position: int, output: Output
) -> SampleResult:
    is_ranked, margin = output.finish_reason == "ranked" and _is_ranked(job, example), None
    if len(output.choice_logprobs) > 1:  # log p(gold) − log p(best other choice), in nats
        gold = example.choices.index(example.references[0])
        other_logprobs = (x for i, x in enumerate(output.choice_logprobs) if i != gold)
        margin = output.choice_logprobs[gold] - max(other_logprobs)
    return SampleResult(
        task=job.task.name,
        split=job.split,
        example_id=example.id,
        position=position,
        prompt=f"{example.earlier}\nuser: {example.prompt}" if example.earlier else example.prompt,
        references=example.references,
        cluster=example.cluster,
        slice=example.slice,
        gold_logprob=output.gold_logprob,
        gold_bytes=output.gold_bytes,
        margin=margin,
        n_prompt_tokens=output.n_prompt_tokens,
        n_output_tokens=output.n_output_tokens,
        compute_s=output.compute_s,
        prompt_digest=digest(item.context.context),
        boundary_merged=is_ranked and any(e.merged for e in item.scored),
        passages=example.passages,
        recall=recall(example),
        **answer_fields(job, example.references, output, lambda answer: score_output(job, example, answer)),
    )


class AnswerScore(NamedTuple):
    """Scores of an answer: its status, its parts by metric, and the reason for a missing answer or score."""

    status: Status
    parts: dict[str, Parts | None]
    error: str


def answer_fields(
    job: EvaluationJob, references: Sequence[str], output: Output, score: "Callable[[Output], AnswerScore]"
) -> dict[str, Any]:
    """Return the fields of a row that depend on the answer that counts and on its scores."""
    samples = tuple(_sample(index, answer, score(answer)) for index, answer in enumerate(output.samples))
    if samples and job.decoding is not None:
        primary = job.metrics.get(job.task.primary_metric if job.task.metrics else "")
        extremes_by_metric = {name: extremes(metric, references) for name, metric in job.metrics.items()}
        worst_parts = {name: limits and limits.worst for name, limits in extremes_by_metric.items()}
        final_answer = settle(samples, job.decoding, primary.same if primary else normalize, worst_parts)
    else:
        final_answer = _sample(0, output, score(output))
    return {
        "text": final_answer.text,
        "finish_reason": final_answer.finish_reason,
        "status": final_answer.status,
        "parts": final_answer.parts,
        "error": final_answer.error,
        "output_digest": digest(final_answer.text),
        "samples": samples,
    }


def _sample(index: int, output: Output, answer_score: "AnswerScore") -> Sample:
    figures = (output.n_prompt_tokens, output.n_output_tokens, output.compute_s, output.mean_logprob)
    answer = (output.text, answer_score.status, answer_score.parts, output.finish_reason)
    return Sample(index, *answer, *figures, answer_score.error)


def score_output(job: EvaluationJob, example: Example, output: Output) -> AnswerScore:
    """Return an answer's status and scores, or an error without a primary score; UserError: out of bounds."""
    status = _STATUS.get(output.finish_reason) or answer_status(output.text, example.choices)
    status = "ok" if status == "refused" and job.role == "safety" else status
    scores: dict[str, Parts | None] = {}
    unscored: dict[str, str] = {}
    is_cut = status == "truncated" and job.task.truncated_scores
    for name, metric in job.metrics.items():
        is_read = status == "refused" and is_judged(name)  # a rubric may want refusals
        counts = status == "ok" or is_read or is_cut or (metric.reads_any and status == "unparsable")
        try:
            scores[name] = None
            if status != "error" and metric.reads(example):
                scores[name] = metric.score(output, example) if counts else metric.worst(example)
        except Unscored as error:
            scores[name], unscored[name] = None, f"metric {name}: item {example.id}: {error}"
        except HarnessError:
            raise
        except Exception as error:
            where, found = f"task {job.task.name}: metric {name}", f"{one_line(error)} (item {example.id})"
            raise UserError(where, found, "a score of every answer, or None", "fix the metric") from error
    not_finite = [n for n, parts in scores.items() if parts is not None and not np.isfinite(parts).all()]
    parts = {n: None if n in not_finite else parts for n, parts in scores.items()}
    for name, metric_parts in parts.items():
        if metric_parts is None:
            continue
        low, high = job.metrics[name].bounds  # on which every test and interval depends
        score = float(job.metrics[name].aggregate(np.array([metric_parts], float), np.ones(1)))
        room = _ROUNDING * max(1.0, abs(score))
        if score < low - room or score > high + room:  # an item may have no score of its own, which is NaN
            where, found = f"task {job.task.name}: metric {name}", f"a score of {score:g} (item {example.id})"
            step = "fix the metric, or declare bounds that hold"
            raise UserError(where, found, f"{low:g} to {high:g}", step)
    if status == "error":
        return AnswerScore(status, parts, output.error)
    reasons = [*unscored.values()]
    if names_text := ", ".join(not_finite):
        found = f"metric {names_text}: found NaN or infinity for item {example.id}"
        reasons.append(f"{found}; expected a finite score")
    is_failed = bool(unscored) and job.task.primary_metric in unscored
    return AnswerScore("error" if is_failed else status, parts, "; ".join(reasons))


def answer_status(text: str, choices: Iterable[str]) -> Status:
    """Tell whether a finished answer is readable, as one of any `choices`, and whether it is a refusal."""
    normalized_choices = {normalize(c) for c in choices}
    if not text.strip() or (normalized_choices and normalize(text) not in normalized_choices):
        return "unparsable"
    return "refused" if is_refusal(text) else "ok"
