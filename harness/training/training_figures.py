"""Measurements of a training: time, tokens, memory, and what its trainer logged by step."""

import resource
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness.models.hardware import proc_line
from harness.records import Curve, TrainingRecord
from harness.training.loss_scale import SCALE, count_skipped_steps
from harness.training.parallel.processes import most
from harness.training.parallel.shards import size_of

if TYPE_CHECKING:
    from transformers import Trainer

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
