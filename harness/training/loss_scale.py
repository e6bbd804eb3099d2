"""Loss scale of an fp16 training: what the loss is multiplied with, and the steps whose gradients overflowed.

Invariant: a step whose gradients overflowed changes no weight, and the scale is lower after it.
Source: Micikevicius et al. 2018 (arXiv:1710.03740); torch's GradScaler does it, which accelerate has on GPUs
alone. Its own flag of a skipped step knows no optimiser that is fused, as AdamW is by default.
"""

from itertools import pairwise
from typing import TYPE_CHECKING, Any

from harness.records import Curve

if TYPE_CHECKING:
    from transformers import TrainerCallback

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
