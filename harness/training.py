"""The shared training loop, driven by TRL; it names no method.

Invariant: training loads its own fresh base and leaves only finished weights behind; what is
evaluated later is what was saved.
"""

import json
import resource
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import Field

from harness.candidates import load_base
from harness.embedded import ModelSource
from harness.errors import CandidateFailed
from harness.machine import Machine
from harness.progress import Advance
from harness.quiet import quiet_libraries
from harness.records import Example, digest
from harness.spec import Spec

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
    from trl import SFTTrainer

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class FitContext:
    """What a method may draw from: the base, prompted examples, a folder to write weights into."""

    source: ModelSource
    machine: Machine
    folder: Path
    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    chat_template: bool
    seed: int
    report_to: tuple[str, ...]
    advance: Advance


class Weights(NamedTuple):
    """What a method made: how it is opened, its digest, its folder and what making it cost.

    `training` holds measured figures with units in their names, among them `wall_s`.
    """

    kind: Literal["base", "adapter", "classifier"]
    digest: str
    folder: Path | None
    training: dict[str, Any]


class SupervisedParams(Spec):
    """Parameters of supervised fine-tuning, under TRL's own names.

    `warmup_steps` below 1 is a share of all steps. `early_stopping_patience` counts
    evaluations (one an epoch) without a better validation loss. Rows longer than `max_length`
    tokens are left out and counted, never cut.
    """

    learning_rate: float = Field(1e-3, gt=0, le=1)
    num_train_epochs: float = Field(2.0, gt=0, le=100)
    max_steps: int = Field(-1, ge=-1)
    per_device_train_batch_size: int = Field(8, ge=1)
    gradient_accumulation_steps: int = Field(1, ge=1)
    lr_scheduler_type: Literal["cosine", "linear", "constant", "constant_with_warmup"] = "cosine"
    warmup_steps: float = Field(0.05, ge=0)
    weight_decay: float = Field(0.01, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    max_length: int = Field(1024, ge=8)
    packing: bool = False
    early_stopping_patience: int = Field(2, ge=1)


def supervised(
    context: FitContext, params: SupervisedParams, peft_config: "PeftConfig", save_to: Path
) -> dict[str, Any]:
    """Fine-tune on completions only; keep the checkpoint with the best validation loss.

    Returns:
        Measured figures: losses by step, tokens a second, wall time, peak memory, parameters.

    Raises:
        CandidateFailed: out of memory, no row fits, or the loss was not a number.
    """
    quiet_libraries()
    import torch
    from transformers import set_seed

    set_seed(context.seed)
    start = time.perf_counter()
    base, tokenizer = load_base(context.source, context.machine, _attention(context.machine.device))
    train, n_dropped = _rows(context.train, tokenizer, context.chat_template, params.max_length)
    validation, _ = _rows(context.validation, tokenizer, context.chat_template, params.max_length)
    scratch = save_to.parent / "checkpoints"
    try:
        trainer = _trainer(context, params, peft_config, base, tokenizer, (train, validation), scratch)
        trainer.train()
    except torch.OutOfMemoryError:
        raise CandidateFailed(
            "out of memory while training",
            "params.per_device_train_batch_size (with gradient_accumulation_steps) or max_length",
        ) from None
    history = trainer.state.log_history
    model: Any = trainer.model
    model.save_pretrained(save_to)
    shutil.rmtree(scratch, ignore_errors=True)
    return _figures(trainer, history, n_dropped, time.perf_counter() - start, context.machine.device)


def _attention(device: str) -> str:
    """Choose FlashAttention-2 for training where a GPU has it."""
    from transformers.utils import is_flash_attn_2_available

    return "flash_attention_2" if device == "cuda" and is_flash_attn_2_available() else "sdpa"


def adapter_digest(folder: Path, base_digest: str) -> str:
    """Return the digest of an adapter on its base: its tensors and what scales them, no paths."""
    import hashlib

    config = json.loads((folder / "adapter_config.json").read_text())
    config.pop("base_model_name_or_path", None)
    tensors = hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest()
    return digest(
        [base_digest, tensors, {k: sorted(v) if isinstance(v, list) else v for k, v in config.items()}]
    )


def _rows(
    examples: Sequence[Example], tokenizer: "PreTrainedTokenizerBase", chat: bool, max_length: int
) -> tuple[list[Row], int]:
    """Return prompt/completion rows that fit, and how many did not."""
    rows = [_row(e, chat, tokenizer) for e in examples]
    fitting = [r for r in rows if _length(r, tokenizer) <= max_length]
    if rows and not fitting:
        raise CandidateFailed(
            f"all {len(rows)} rows to train or validate on are longer than {max_length} tokens",
            "a larger params.max_length",
        )
    return fitting, len(rows) - len(fitting)


def _row(example: Example, chat: bool, tokenizer: "PreTrainedTokenizerBase") -> Row:
    answer = example.references[0]
    if chat:
        return {"prompt": list(example.messages), "completion": [{"role": "assistant", "content": answer}]}
    text = "\n\n".join(m["content"] for m in example.messages)
    return {"prompt": text, "completion": f" {answer}{tokenizer.eos_token}"}


def _length(row: Row, tokenizer: "PreTrainedTokenizerBase") -> int:
    if isinstance(row["prompt"], str):
        return len(tokenizer(row["prompt"] + row["completion"])["input_ids"])
    text = tokenizer.apply_chat_template(row["prompt"] + row["completion"], tokenize=False)
    return len(tokenizer(text, add_special_tokens=False)["input_ids"])


def _trainer(
    context: FitContext,
    params: SupervisedParams,
    peft_config: "PeftConfig",
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    rows: tuple[list[Row], list[Row]],
    scratch: Path,
) -> "SFTTrainer":
    from datasets import Dataset
    from transformers import EarlyStoppingCallback, PrinterCallback
    from transformers.utils import is_liger_kernel_available
    from trl import SFTConfig, SFTTrainer

    on_gpu = context.machine.device == "cuda"
    own = params.model_dump(exclude={"early_stopping_patience"})
    config = SFTConfig(
        output_dir=str(scratch),
        seed=context.seed,
        data_seed=context.seed,
        completion_only_loss=True,
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=False,
        per_device_eval_batch_size=params.per_device_train_batch_size,
        logging_steps=1,
        logging_nan_inf_filter=False,  # else a loss that is no number is shown as a number
        include_num_input_tokens_seen="non_padding",
        disable_tqdm=True,
        prediction_loss_only=True,
        gradient_checkpointing=on_gpu,
        use_liger_kernel=on_gpu and is_liger_kernel_available(),
        bf16=context.machine.precision == "bf16",
        fp16=context.machine.precision == "fp16",
        use_cpu=not on_gpu,
        report_to=list(context.report_to) or "none",
        dataloader_pin_memory=on_gpu,
        train_sampling_strategy="group_by_length",
        **own,
    )
    trainer = (SFTTrainer if on_gpu else _cpu_trainer())(
        model=model,
        args=config,
        processing_class=tokenizer,
        peft_config=peft_config,
        train_dataset=Dataset.from_list(rows[0]),
        eval_dataset=Dataset.from_list(rows[1]),
        callbacks=[EarlyStoppingCallback(params.early_stopping_patience), _reporting(context.advance)],
    )
    # Without its bars the trainer would print every log line on stdout, which belongs to the result.
    trainer.remove_callback(PrinterCallback)
    return trainer


def _cpu_trainer() -> "type[SFTTrainer]":
    """Return TRL's trainer with its loss computed in one piece.

    TRL's own loss converts the vocabulary matrix to fp32 in chunks at every step, which spares a
    GPU's memory and takes 43 % of a step's time on a CPU. The value is the same: the mean negative
    log-likelihood of the completion's tokens; logits are made only where some row has one.
    """
    import torch
    from trl import SFTTrainer

    class WholeLossTrainer(SFTTrainer):
        def compute_loss(
            self, model: Any, inputs: Row, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            labels = inputs["labels"][:, 1:]  # (b, t - 1)
            wanted = (labels != -100).any(0).nonzero()[:, 0]
            known = {k: inputs[k] for k in ("input_ids", "attention_mask")}
            outputs = model(**known, logits_to_keep=wanted, use_cache=False)
            targets = labels[:, wanted].flatten()
            total = torch.nn.functional.cross_entropy(
                outputs.logits.flatten(0, 1).float(), targets, ignore_index=-100, reduction="sum"
            )
            count = (targets != -100).sum() if num_items_in_batch is None else num_items_in_batch
            loss = total / count
            return (loss, outputs) if return_outputs else loss

    return WholeLossTrainer


def _reporting(advance: Advance) -> "TrainerCallback":
    from transformers import TrainerCallback

    class Reporting(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Row | None = None, **_: Any) -> None:
            _refuse_divergence(logs or {})
            loss = (logs or {}).get("loss")
            if loss is not None:
                advance(state.global_step, state.max_steps, f"loss {float(loss):.2f}")

    return Reporting()


def _refuse_divergence(logs: Row) -> None:
    """Stop at the first loss that is no number: no later step would mend it."""
    if any(not isfinite(float(logs[name])) for name in ("loss", "eval_loss") if name in logs):
        raise CandidateFailed("the training loss is not a number", "a lower params.learning_rate")


def _figures(
    trainer: "SFTTrainer", history: Sequence[Row], n_dropped: int, wall_s: float, device: str
) -> dict[str, Any]:
    import torch

    model: Any = trainer.model
    curve = [[e["step"], float(e["loss"])] for e in history if "loss" in e]
    validation = [[e["step"], float(e["eval_loss"])] for e in history if "eval_loss" in e]
    summary = next(e for e in reversed(history) if "train_runtime" in e)
    n_tokens = int(trainer.state.num_input_tokens_seen)
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else _resident_peak_bytes()
    return {
        "wall_s": round(wall_s, 3),
        "train_loop_s": round(float(summary["train_runtime"]), 3),
        "n_tokens": n_tokens,
        "tokens_per_s": round(n_tokens / float(summary["train_runtime"]), 1),
        "n_steps": trainer.state.global_step,
        "n_dropped_too_long": n_dropped,
        "n_trainable": int(sum(p.numel() for p in model.parameters() if p.requires_grad)),
        "peak_memory_gib": round(peak / 2**30, 3),
        "loss": curve,
        "validation_loss": validation,
        "best_validation_loss": min((loss for _, loss in validation), default=None),
    }


def _resident_peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
