"""One epoch of LoRA on the quickstart's rows, by harness and by plain TRL: trained tokens a second.

Invariant: the same rows, base, precision, adapter, learning rate and batches on both sides, gradient
checkpointing off; all else of TRL's side is TRL's default. Nothing is asserted of a time.
`HARNESS_BENCH_SCALE` multiplies the rows (0.05 for a trial of a minute).
"""

import os
from pathlib import Path
from typing import NamedTuple

import bench_page
import pytest
from bench_page import Row, Table

from harness import config
from harness.candidates import load_base
from harness.experiment import Scope, bench_of
from harness.machine import probe
from harness.progress import Silent
from harness.run.weights import step_of
from harness.training import FitContext, LowRankParams, lora_config, low_rank
from harness.training.supervision import _rows

ROOT = Path(__file__).parents[2]
N_ROWS = max(8, round(200 * float(os.environ.get("HARNESS_BENCH_SCALE", "1"))))
PARAMS = LowRankParams(r=16, learning_rate=2e-3, num_train_epochs=1, per_device_train_batch_size=4)
GOAL = 1.3


class Trained(NamedTuple):
    """What one side took: tokens, steps, seconds of the loop, and the mean loss of its last steps."""

    n_tokens: int
    n_steps: int
    loop_s: float
    last_loss: float

    @property
    def tokens_per_s(self) -> float:
        return self.n_tokens / self.loop_s


def by_harness(context: FitContext) -> Trained:
    measured = low_rank(context, PARAMS).training
    losses = [loss for _, loss in measured["loss"]]
    return Trained(measured["n_tokens"], measured["n_steps"], measured["train_loop_s"], mean_of_last(losses))


def by_trl(context: FitContext) -> Trained:
    """Train with TRL as it comes: only what makes the recipe the same is set."""
    from datasets import Dataset
    from transformers import set_seed
    from trl import SFTConfig, SFTTrainer

    set_seed(context.seed)
    base, tokenizer = load_base(context.source, context.machine)
    rows, _ = _rows(context.train, tokenizer, context.chat_template, PARAMS.max_length)
    trainer = SFTTrainer(
        model=base,
        args=SFTConfig(
            output_dir=str(context.folder / "trl"),
            seed=context.seed,
            bf16=context.machine.precision == "bf16",
            use_cpu=context.machine.device == "cpu",
            gradient_checkpointing=False,
            report_to="none",
            disable_tqdm=True,
            logging_steps=1,
            include_num_input_tokens_seen="non_padding",
            save_strategy="no",
            **PARAMS.model_dump(
                include={
                    "learning_rate",
                    "num_train_epochs",
                    "weight_decay",
                    "per_device_train_batch_size",
                    "lr_scheduler_type",
                    "warmup_steps",
                    "max_length",
                }
            ),
        ),
        processing_class=tokenizer,
        peft_config=lora_config(PARAMS),
        train_dataset=Dataset.from_list(rows),
    )
    trainer.train()
    state = trainer.state
    loop_s = next(e["train_runtime"] for e in reversed(state.log_history) if "train_runtime" in e)
    losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
    return Trained(state.num_input_tokens_seen, state.global_step, loop_s, mean_of_last(losses))


def mean_of_last(losses: list[float]) -> float:
    """Average the last quarter of the steps."""
    last = losses[-max(1, len(losses) // 4) :]
    return sum(last) / len(last)


def the_context(folder: Path) -> FitContext:
    """Take the quickstart's training rows, asked as its LoRA candidate asks them."""
    bench = bench_of(config.load(ROOT / "harness.yaml"), Scope(), Silent())
    step = step_of(bench, bench.experiment.candidates["lora"], 0)
    train, validation = (
        tuple(map(step, rows))
        for rows in (bench.target.items.train[:N_ROWS], bench.target.items.validation[:2])
    )
    chat = bench.target.task.chat_template
    return FitContext(bench.source, bench.machine, folder, train, validation, chat, 0, (), lambda *_: None)


@pytest.mark.bench
def test_training_is_measured_against_plain_trl_and_written(tmp_path):
    context = the_context(tmp_path)
    ours, theirs = by_harness(context), by_trl(context)
    assert (ours.n_tokens, ours.n_steps) == (theirs.n_tokens, theirs.n_steps)
    assert min(ours.loop_s, theirs.loop_s) > 0
    name = f"LoRA r16 on {len(context.train)} rows, {ours.n_tokens:,} tokens, batches of 4"
    times = f"plain TRL {theirs.loop_s:.1f} s, harness {ours.loop_s:.1f} s with its evaluation of 2 rows"
    ratio = ours.tokens_per_s / theirs.tokens_per_s
    row = Row(name, ratio, "times as fast", GOAL, times, at_least=True)
    lines = tuple(
        (who, f"{t.tokens_per_s:.0f}", t.n_steps, f"{t.last_loss:.3f}")
        for who, t in (("harness", ours), ("plain TRL", theirs))
    )
    table = Table("Both in one process:", ("who", "tokens/s", "steps", "loss of the last quarter"), lines)
    bench_page.write("Training against plain TRL", [row], probe(), bench_page.stem("training"), [table])
