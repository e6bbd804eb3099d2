"""Training of LoRA and QLoRA on a random model: tokens per second, peak memory, attentions compared.

Invariant: all trainings use the same rows in batches of the same size, and each starts from a fresh base.
"""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from bench_page import Row
from beside_lm_eval import rows_of
from beside_trl import TrainingCosts, train_by_harness, train_by_trl
from random_llama import RandomModel

from harness.models import memory
from harness.models.hub import quantize
from harness.records import Example
from harness.training import FitContext, LowRankParams
from harness.training import trainer as loop

GOAL = 1.3


class Recipe(NamedTuple):
    """Size of a training: rows, earlier turns before each row, and the parameters of all trainings."""

    n_rows: int
    n_turns: int
    params: LowRankParams


class Line(NamedTuple):
    """One training in the page's table."""

    who: str
    trained: TrainingCosts

    @property
    def cells(self) -> tuple:
        """The cells of this line."""
        t = self.trained
        return self.who, f"{t.tokens_per_s:,.0f}", t.n_steps, f"{t.last_loss:.3f}", f"{t.peak_gb:.1f}"


class TrainingResult(NamedTuple):
    """Rows and lines about training for the page."""

    rows: list[Row]
    lines: list[Line]


def measure(recipe: Recipe, model: RandomModel, folder: Path, attentions: tuple[str, ...]) -> TrainingResult:
    """Train by harness, by plain TRL with each attention, and as QLoRA, after a step to start the device."""
    # Rows of a general task, each with other rows as earlier turns of the conversation.
    rows = rows_of("chat_facts")
    train = tuple(conversation(rows, i, recipe.n_turns) for i in range(recipe.n_rows))
    shared = {"source": model.source, "machine": model.machine, "seed": 0, "advance": lambda *_: None}
    context = FitContext(folder=folder / "lora", train=train, validation=train[:2], **shared)
    first = context.train[: recipe.params.per_device_train_batch_size]
    train_by_trl(replace(context, train=first, folder=folder / "first"), recipe.params)
    ours = train_by_harness(context, recipe.params)
    plain = {name: train_by_trl(context, recipe.params, name) for name in attentions}
    in_nf4 = replace(context, source=quantize(model.source, "nf4"), folder=folder / "qlora")
    qlora = train_by_harness(in_nf4, recipe.params)
    theirs = plain["sdpa"]
    size = recipe.params.per_device_train_batch_size
    name = f"LoRA r{recipe.params.r}, {ours.n_tokens:,} tokens in batches of {size}"
    times = f"plain TRL {theirs.loop_s:.1f} s, harness {ours.loop_s:.1f} s with its checkpoints"
    ratio = ours.tokens_per_s / theirs.tokens_per_s
    rows = [
        Row(name, ratio, "times as fast", GOAL, times, at_least=True),
        *(compare_with_sdpa(name, plain[name], plain["sdpa"]) for name in attentions if name != "sdpa"),
        memory_row("LoRA", recipe, context, model, ours),
        qlora_row(qlora, ours),
        memory_row("QLoRA", recipe, in_nf4, model, qlora),
    ]
    sides = {f"plain TRL, {name}": trained for name, trained in plain.items()}
    trainings = {"harness, LoRA": ours, **sides, "harness, QLoRA": qlora}
    return TrainingResult(rows, [Line(*item) for item in trainings.items()])


def conversation(rows: tuple[Example, ...], i: int, n_turns: int) -> Example:
    """Put the rows before row i in front of it, as answered turns."""
    earlier = [rows[(i + k) % len(rows)] for k in range(1, n_turns)]
    turns = [
        message
        for row in earlier
        for message in (*row.messages, {"role": "assistant", "content": row.references[0]})
    ]
    current = rows[i % len(rows)]
    return Example(f"row-{i}", (*turns, *current.messages), current.references[:1])


def compare_with_sdpa(name: str, costs: TrainingCosts, sdpa: TrainingCosts) -> Row:
    speeds = f"both by plain TRL: {costs.tokens_per_s:,.0f} and {sdpa.tokens_per_s:,.0f} tokens/s"
    ratio = costs.tokens_per_s / sdpa.tokens_per_s
    return Row(f"training with {name} against SDPA", ratio, "times as fast", 1.0, speeds, at_least=True)


def qlora_row(qlora: TrainingCosts, lora: TrainingCosts) -> Row:
    speeds = f"{qlora.tokens_per_s:,.0f} and {lora.tokens_per_s:,.0f} tokens/s; NF4 is unpacked at every pass"
    ratio = qlora.tokens_per_s / lora.tokens_per_s
    return Row("QLoRA against LoRA", ratio, "times as fast", None, speeds)


def memory_row(
    method: str, recipe: Recipe, context: FitContext, model: RandomModel, trained: TrainingCosts
) -> Row:
    """Compare the peak with the estimate for a batch of the longest rows."""
    # Count the tokens of the longest training row.
    from transformers import AutoTokenizer

    from harness.training.tokenized import tokenize

    tokenizer = AutoTokenizer.from_pretrained(context.source.path)
    answers = [example.references[:1] for example in context.train]
    rows = tokenize(context.train, answers, context.chat_template, tokenizer, context.source)
    longest = max(len(row.wholes[0]) for row in rows)
    tokens = recipe.params.per_device_train_batch_size * longest
    chosen = loop.settings(context, recipe.params)
    estimate = memory.training_peak(
        model.shape, memory.lora_parameters(model.shape, recipe.params.r), tokens, model.machine.precision,
        quantization=context.source.quantization if model.machine.device == "cuda" else "",
        checkpointing=chosen["gradient_checkpointing"], in_tiles=model.machine.device == "cuda",
    ).total  # fmt: skip
    note = f"{trained.peak_gb:.1f} GB, estimated {estimate:.1f} GB with {tokens:,} tokens in a batch, activations "
    note += "computed again" if chosen["gradient_checkpointing"] else "kept"
    return Row(f"{method} training: peak memory", trained.peak_gb / estimate, "of the estimate", 1.0, note)
