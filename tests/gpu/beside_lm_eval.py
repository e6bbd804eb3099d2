"""The same texts asked of one model in memory by harness and by lm-eval's own `hf` model.

Invariant: both are timed from texts to log-likelihoods or answers, including tokenising; lm-eval's time is
that of the fastest batch size that fits into memory.
"""

import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import peaks
from bench_page import Row
from random_llama import RandomModel

from harness import config, data
from harness.models import memory
from harness.models.hf import ANSWERING, READING, ModelHost
from harness.records import BLOCK, Limits

ROOT = Path(__file__).parents[2]
CHOICES, QUESTIONS = ("world_facts", "reading", "grammar", "arithmetic"), "arithmetic_words"


class Section(NamedTuple):
    """Questions to ask: items per task, worked examples before each, tokens to generate (0: none)."""

    name: str
    tasks: tuple[str, ...]
    n_items: int
    n_shots: int
    n_new: int
    goal: float


class Question(NamedTuple):
    """One prompt, and the choices to score after it; none if an answer is generated."""

    prompt: str
    choices: tuple[str, ...]


class SideAnswers(NamedTuple):
    """One side's log-likelihoods in nats or answers, in order, with seconds and peak memory."""

    said: list
    seconds: float
    peak_gb: float
    how: str


class SectionResult(NamedTuple):
    """Part of the page for a section: rows, and a line on the agreement of both sides."""

    rows: list[Row]
    agreement: tuple


@cache
def rows_of(task: str) -> tuple:
    """Return the rows of a task of the shipped suites."""
    tasks = {t.name: t for suite in config.read_suites(ROOT / "suites") for t in suite.tasks}
    return data.load_task(tasks[task].model_copy(update={"limit": None}), 0).test


def questions(section: Section) -> list[Question]:
    """Lay out the items of a section after its worked examples, which all of them share."""
    prompts = []
    for task in section.tasks:
        shots, items = rows_of(task)[: section.n_shots], rows_of(task)[section.n_shots :]
        before = "".join(f"{e.prompt} {e.references[0]}\n\n" for e in shots)
        chosen = items[: section.n_items]
        prompts += [Question(before + e.prompt, () if section.n_new else e.choices) for e in chosen]
    return prompts


def measure(section: Section, model: RandomModel, host: ModelHost, batches: Sequence[int]) -> SectionResult:
    """Ask both sides; `batches` are lm-eval's batch sizes to try."""
    items = questions(section)
    counted = peaks.ScoringCounter(host.base)
    ask, n_lm_eval = (
        (generate_answers, len(items))
        if section.n_new
        else (score_choices, sum(len(q.choices) for q in items))
    )
    ask(counted, items[:2], section)  # the first call warms up
    counted = peaks.ScoringCounter(host.base)
    peaks.forget(model.machine.device)
    start = time.perf_counter()
    answers = ask(counted, items, section)
    ours = SideAnswers(
        answers, time.perf_counter() - start, peaks.peak_gb(model.machine.device), f"blocks of {BLOCK}"
    )
    # lm-eval asks in each batch size; keep the fastest that fits into memory.
    import torch

    runs, too_large = [], []
    for batch in batches:
        try:
            runs.append(ask_lm_eval(section, items, host, batch))
        except torch.OutOfMemoryError:
            too_large.append(batch)
    best = min(runs, key=lambda run: run.seconds)
    theirs = best._replace(how=f"{best.how} (no memory for {too_large})") if too_large else best
    name = f"{section.name}, {len(items)} items"
    times = f"lm-eval {theirs.seconds:.1f} s in {theirs.how}, harness {ours.seconds:.1f} s"
    rows = [Row(name, theirs.seconds / ours.seconds, "times as fast", section.goal, times, at_least=True)]
    if counted.n_tokens:
        peak = peaks.peak_gflops(model.machine)
        rows.append(peaks.share_row(section.name, counted, model.shape, peak))
    rows.append(memory_row(section, model, host, items, ours))
    return SectionResult(rows, (section.name, n_lm_eval, *agreement(section, host, items, ours, theirs)))


def score_choices(candidate, items: Sequence[Question], section: Section) -> list:
    """Score all choices, block by block as an evaluation does."""
    scored = []
    for start in range(0, len(items), BLOCK):
        block = items[start : start + BLOCK]
        scored += candidate.loglikelihood(
            [
                candidate.encode(_turn(q), f" {choice}" if q.prompt else choice, chat_template=False)[:2]
                for q in block
                for choice in q.choices
            ]
        )
    return [score.logprob for score in scored]


def generate_answers(candidate, items: Sequence[Question], section: Section) -> list:
    """Answer all prompts, block by block."""
    outputs = []
    for start in range(0, len(items), BLOCK):
        prompts = [
            candidate.encode(_turn(q), chat_template=False).context for q in items[start : start + BLOCK]
        ]
        outputs += candidate.generate(prompts, Limits(section.n_new, ()))
    return [output.text for output in outputs]


def _turn(question: Question) -> list[dict]:
    return [{"role": "user", "content": question.prompt}] if question.prompt else []


def ask_lm_eval(section: Section, items: Sequence[Question], host: ModelHost, batch: int) -> SideAnswers:
    """Ask the same texts of lm-eval's model, which wraps the weights that harness used."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    model = HFLM(pretrained=host.model, tokenizer=host.tokenizer, batch_size=batch)
    if section.n_new:
        how = {"until": [], "max_gen_toks": section.n_new, "do_sample": False}
        arguments, kind = [(q.prompt, how) for q in items], "generate_until"
    else:
        pairs = [(q.prompt, f" {choice}" if q.prompt else choice) for q in items for choice in q.choices]
        arguments, kind = pairs, "loglikelihood"
    requests = [Instance(kind, {}, argument, i) for i, argument in enumerate(arguments)]
    ask = getattr(model, kind)
    ask(requests[:2], disable_tqdm=True)
    peaks.forget(host.machine.device)
    start = time.perf_counter()
    responses = ask(requests, disable_tqdm=True)
    seconds = time.perf_counter() - start
    values = responses if section.n_new else [logprob for logprob, _ in responses]
    return SideAnswers(values, seconds, peaks.peak_gb(host.machine.device), f"batches of {batch}")


def memory_row(
    section: Section, model: RandomModel, host: ModelHost, items: Sequence[Question], ours: SideAnswers
) -> Row:
    """Compare the peak with the estimate for the tokens whose keys are in memory at the same time."""
    device, precision = model.machine.device, model.machine.precision
    tokens = READING[device].tokens
    if section.n_new:
        longest = max(len(host.base.encode(_turn(q), chat_template=False).context) for q in items)
        tokens = min(ANSWERING[device].tokens, min(BLOCK, len(items)) * (longest + section.n_new))
    estimate = memory.inference_peak(model.shape, tokens, precision).total
    note = f"{ours.peak_gb:.1f} GB, estimated {estimate:.1f} GB with {tokens:,} tokens in the cache"
    return Row(f"{section.name}: peak memory", ours.peak_gb / estimate, "of the estimate", 1.0, note)


def agreement(
    section: Section, host: ModelHost, items: Sequence[Question], ours: SideAnswers, theirs: SideAnswers
) -> tuple[float, str]:
    """Return the difference between both sides, and its unit."""
    if section.n_new:
        same = sum(a.strip() == b.strip() for a, b in zip(ours.said, theirs.said, strict=True))
        return 1 - same / len(items), "of the answers differ"
    tokens = [len(host.tokenizer(choice)["input_ids"]) for q in items for choice in q.choices]
    gaps = [abs(a - b) / n for a, b, n in zip(ours.said, theirs.said, tokens, strict=True)]
    return sum(gaps) / len(gaps), "nats a token, mean gap"
