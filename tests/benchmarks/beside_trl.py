"""Training on the same rows by harness and by plain TRL, with the same base and adapter.

Invariant: rows, base, precision, adapter, learning rate, batches and gradient checkpointing are the same
on both sides; all other settings of TRL are its defaults.
"""

from typing import NamedTuple

import peaks

from harness.methods.supervised import Lora
from harness.models.devices import load_base
from harness.training import FitContext, LowRankParams, lora_config
from harness.training import trainer as loop
from harness.training.sft import _rows

_SHARED = (
    "learning_rate", "num_train_epochs", "weight_decay", "per_device_train_batch_size", "lr_scheduler_type",
    "warmup_steps", "max_length",
)  # fmt: skip


class TrainingCosts(NamedTuple):
    """Costs of one side: tokens, steps, seconds of the loop, mean loss of its last steps, and memory."""

    n_tokens: int
    n_steps: int
    loop_s: float
    last_loss: float
    peak_gb: float

    @property
    def tokens_per_s(self) -> float:
        return self.n_tokens / self.loop_s


def train_by_harness(context: FitContext, params: LowRankParams) -> TrainingCosts:
    peaks.forget(context.machine.device)
    measured = Lora.METHOD.fit(context, params).training
    return TrainingCosts(
        measured.n_tokens, measured.n_steps, measured.train_loop_s,
        mean_of_last([loss for _, loss in measured.loss]), peaks.peak_gb(context.machine.device),
    )  # fmt: skip


def train_by_trl(
    context: FitContext, params: LowRankParams, attention: str = "sdpa", *, autocast: bool = True
) -> TrainingCosts:
    """Train with TRL's defaults: only settings that define the recipe are set, and optionally no autocast."""
    from datasets import Dataset
    from transformers import set_seed
    from trl import SFTConfig, SFTTrainer

    peaks.forget(context.machine.device)
    on_gpu = context.machine.device == "cuda"
    set_seed(context.seed)
    base, tokenizer = load_base(context.source, context.machine, attention)
    rows, _ = _rows(context.train, context, tokenizer, params)
    config = SFTConfig(
        output_dir=str(context.folder / "trl"), seed=context.seed,
        bf16=autocast and context.machine.precision == "bf16",
        fp16=autocast and context.machine.precision == "fp16", use_cpu=not on_gpu,
        gradient_checkpointing=loop.settings(context, params)["gradient_checkpointing"],
        completion_only_loss=True, report_to="none", disable_tqdm=True, logging_steps=1,
        include_num_input_tokens_seen="non_padding", save_strategy="no",
        **params.model_dump(include=set(_SHARED)),
    )  # fmt: skip
    if config.n_gpu > 1:
        config._n_gpu = 1
    trainer = SFTTrainer(
        model=base, args=config, processing_class=tokenizer, peft_config=lora_config(params),
        train_dataset=Dataset.from_list(rows),
    )  # fmt: skip
    trainer.train()
    state = trainer.state
    loop_s = next(e["train_runtime"] for e in reversed(state.log_history) if "train_runtime" in e)
    losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
    return TrainingCosts(
        state.num_input_tokens_seen, state.global_step, loop_s, mean_of_last(losses),
        peaks.peak_gb(context.machine.device),
    )  # fmt: skip


def mean_of_last(losses: list[float]) -> float:
    last = losses[-max(1, len(losses) // 4) :]
    return sum(last) / len(last)
