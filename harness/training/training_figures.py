"""Measurements of a training: time, tokens, memory, and what its trainer logged by step.

Loss scale of an fp16 training: what the loss is multiplied with, and the steps whose gradients overflowed.

Invariant: a step whose gradients overflowed changes no weight, and the scale is lower after it.
Source: Micikevicius et al. 2018 (arXiv:1710.03740); torch's GradScaler does it, which accelerate has on GPUs
alone. Its own flag of a skipped step knows no optimiser that is fused, as AdamW is by default.
"""

import resource
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from harness.models.hardware import proc_line
from harness.records import Curve, TrainingRecord
from harness.training.parallel import most, size_of

if TYPE_CHECKING:
    from transformers import Trainer, TrainerCallback

Row = Mapping[str, Any]


def curve(history: Sequence[Row], name: str) -> Curve:
    """Return what was logged under a name, by step; None where it was no number."""
    logged = ((entry["step"], entry[name]) for entry in history if name in entry)
    return tuple((step, None if value is None else float(value)) for step, value in logged)


def figures(
    trainer: "Trainer", n_dropped: int, wall_s: float, device: str, earlier_s: float
) -> TrainingRecord:
    """Return what was measured: time, tokens, memory, parameters and the loss by step."""
    import torch

    model: Any = trainer.model
    history = trainer.state.log_history
    summary = next(e for e in reversed(history) if "train_runtime" in e)
    loop_s = float(summary["train_runtime"]) + earlier_s
    n_tokens = int(trainer.state.num_input_tokens_seen)
    peak = most(
        torch.cuda.max_memory_allocated() if device == "cuda" else resident_peak_bytes(), trainer.args.device
    )
    return TrainingRecord(
        wall_s=round(wall_s, 3),
        train_loop_s=round(loop_s, 3),
        n_tokens=n_tokens,
        tokens_per_s=round(n_tokens / loop_s, 1),
        n_steps=trainer.state.global_step,
        n_dropped_too_long=n_dropped,
        label_smoothing=getattr(trainer.args, "label_smoothing_factor", 0.0) or None,
        n_trainable=sum(size_of(p) for p in model.parameters() if p.requires_grad),
        peak_memory_gib=round(peak / 2**30, 3),
        loss=curve(history, "loss"),
        learning_rate=curve(history, "learning_rate"),
        loss_scale=curve(history, SCALE),
        n_skipped_steps=count_skipped_steps(curve(history, SCALE)),
    )


def resident_peak_bytes() -> int:
    """Return the most memory that this process held; `ru_maxrss` begins at that of the one it came from."""
    own = proc_line("self/status", "VmHWM:").split()
    return 1024 * (int(own[1]) if own else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


SCALE = "loss_scale"  # in an entry of the log


def scale_callback() -> "TrainerCallback":
    """Return a callback that logs the scale with which a training begins, and that which each step leaves."""
    from transformers import TrainerCallback

    class LossScaleCallback(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
            if state.global_step == 0 and (scale := _scale(optimizer)):
                state.log_history.append({SCALE: scale, "step": 0})

        def on_log(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
            if "loss" in state.log_history[-1] and (scale := _scale(optimizer)):
                state.log_history[-1][SCALE] = scale

    return LossScaleCallback()


def _scale(optimizer: Any) -> float:
    """Return what the loss of an optimiser is multiplied with; 0 where it is not scaled."""
    scaler = getattr(optimizer, "scaler", None)
    return float(scaler.get_scale()) if scaler is not None else 0.0


def count_skipped_steps(scales: Curve) -> int | None:
    """Count the steps after which the scale was lower; None of a training whose loss was not scaled."""
    known = [scale or 0.0 for _, scale in scales]
    return sum(after < before for before, after in pairwise(known)) if known else None
