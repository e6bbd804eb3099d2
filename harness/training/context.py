"""Context of a fit, the weights that it returns, and the figures measured in training.

A step with overflowed fp16 gradients changes no weight, and lowers the loss scale (Micikevicius et al. 2018,
arXiv:1710.03740). accelerate's flag of skipped steps does not work with fused optimisers such as AdamW.
"""

import resource
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

from harness.models.artefacts import artefact_digest
from harness.models.deltas import delta_digest
from harness.models.hardware import Machine, proc_line
from harness.models.hub import ModelSource
from harness.models.weight_files import adapter_digest, model_digest
from harness.progress import Advance
from harness.records import Curve, Example, TrainingRecord
from harness.regularizers import Regularize
from harness.spec import Task
from harness.training.live_trackers import Send
from harness.training.parallel import most

if TYPE_CHECKING:
    from transformers import Trainer, TrainerCallback

_LanguageModel = Literal["base", "adapter", "delta", "model", "completions", "chat", "artefact"]
CHECKPOINTS = "checkpoints"  # subfolder of a method's folder; kept until the weights are complete
TRACKED = "tracked"  # its sibling: weights of some checkpoints, kept with the final ones
# Functions from the folder of weights of a kind and the digest of their base to their digest.
DIGESTS: Mapping[str, Callable[[Path, str], str]] = {
    "adapter": adapter_digest,
    "delta": delta_digest,
    "model": model_digest,
    "reward": adapter_digest,
    "artefact": artefact_digest,
}


@dataclass(frozen=True, slots=True)
class Reward:
    """Source of rewards: a reward model with its base, or (`written`) a task's metric or a Python file."""

    model: Path | None = None
    source: ModelSource | None = None
    written: str = ""
    task: Task | None = None


@dataclass(frozen=True, slots=True)
class FitContext:
    """Input of a method: the base as it will be served, prompted examples, and a folder for the weights.

    `init` is the folder of the adapter or model that training starts from, `merges` are those of adapters to
    merge, `path` is that of weights made elsewhere. `prepare` changes the loaded base. `general` are the rows
    that penalties read, by regulariser. The weights of `track` checkpoints are kept; training pauses after
    `pause_at` of them, or `show_at` planned ones. `send` passes logged values to trackers.
    """

    source: ModelSource
    machine: Machine
    folder: Path
    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    chat_template: bool
    seed: int
    advance: Advance
    pairs: tuple[Example, ...] = ()
    init: Path | None = None
    path: Path | None = None
    prepare: Callable[[Any], None] = lambda model: None
    reward: Reward | None = None
    regularize: Regularize = field(default_factory=dict)
    general: Mapping[str, tuple[Example, ...]] = field(default_factory=dict)
    merges: tuple[Path, ...] = ()
    track: int = 0
    pause_at: int = 0
    show_at: int = 0
    send: Send | None = None


class TrainingPaused(Exception):
    """Training that stopped at a tracked point, with a checkpoint to resume from."""


class Weights(NamedTuple):
    """Weights made by a method: kind, digest, folder and measured cost.

    Most kinds are in a subfolder with their name; an endpoint's kind is its protocol. `source` is the base as
    it is served, None for the experiment's. A `merged` adapter answers from copies of the base's layers.
    `choosers` are the reward models that choose among several answers, by name.
    """

    kind: Literal[_LanguageModel, "classifier", "reward", "head", "embedding"]
    digest: str
    folder: Path | None
    training: TrainingRecord = TrainingRecord()
    source: ModelSource | None = None
    choosers: tuple[tuple[str, "Weights"], ...] = ()
    merged: bool = False

    @property
    def is_language_model(self) -> bool:
        """Whether these weights generate text, and so have capabilities of a base to lose."""
        return self.kind in get_args(_LanguageModel)


def made_weights(context: FitContext, kind: Any, training: TrainingRecord) -> Weights:
    """Return the weights of a kind in `DIGESTS` that are stored under its name in a context's folder."""
    own = DIGESTS[kind](context.folder / kind, context.source.weights_digest)
    return Weights(kind, own, context.folder, training)


Row = Mapping[str, Any]


def curve(history: Sequence[Row], name: str) -> Curve:
    """Return the values logged under a name, by step; None for NaN and infinite ones."""
    logged = ((entry["step"], entry[name]) for entry in history if name in entry)
    return tuple((step, None if value is None else float(value)) for step, value in logged)


def count_pairs(kind: Any) -> Any:
    """Return a trainer class that also counts the tokens of batches with the two answers of pairs."""
    import torch

    class CountingTrainer(kind):  # type: ignore[misc]
        def _track_num_input_tokens(self, inputs: dict[str, Any]) -> None:
            both = ("chosen_attention_mask", "rejected_attention_mask")
            if "input_ids" not in inputs and all(name in inputs for name in both):
                mask = torch.cat([inputs[name].flatten() for name in both])
                inputs = {"input_ids": mask, "attention_mask": mask}
            super()._track_num_input_tokens(inputs)

    return CountingTrainer


def figures(trainer: "Trainer", n_dropped: int, wall_s: float, earlier_s: float) -> TrainingRecord:
    """Return the measured figures: time, tokens, memory, parameters and the loss by step."""
    import torch

    model: Any = trainer.model
    history = trainer.state.log_history
    summary = next(e for e in reversed(history) if "train_runtime" in e)
    loop_s = float(summary["train_runtime"]) + earlier_s
    n_tokens = int(trainer.state.num_input_tokens_seen) or None  # unknown if batches were not counted
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    device = trainer.args.device
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else resident_peak_bytes()
    scales = curve(history, SCALE)
    known = [scale or 0.0 for _, scale in scales]  # a skipped step lowers the scale
    return TrainingRecord(
        wall_s=round(wall_s, 3),
        train_loop_s=round(loop_s, 3),
        n_tokens=n_tokens,
        tokens_per_s=round(n_tokens / loop_s, 1) if n_tokens else None,
        n_steps=trainer.state.global_step,
        n_dropped_too_long=n_dropped,
        label_smoothing=getattr(trainer.args, "label_smoothing_factor", 0.0) or None,
        n_trainable=int(sum(getattr(p, "ds_numel", p.numel()) for p in trained)),  # with ZeRO 3, p is empty
        peak_memory_gib=round(most(peak, device) / 2**30, 3),
        loss=curve(history, "loss"),
        learning_rate=curve(history, "learning_rate"),
        loss_scale=scales,
        n_skipped_steps=sum(after < before for before, after in pairwise(known)) if known else None,
    )


def resident_peak_bytes() -> int:
    """Return the peak memory of this process; `ru_maxrss` would start at its parent's."""
    own = proc_line("self/status", "VmHWM:").split()
    return 1024 * (int(own[1]) if own else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


SCALE = "loss_scale"  # key in a log entry


def scale_callback() -> "TrainerCallback":
    """Return a callback that logs the loss scale at the start and after each step."""
    from transformers import TrainerCallback

    def scale_of(optimizer: Any) -> float:
        scaler = getattr(optimizer, "scaler", None)
        return float(scaler.get_scale()) if scaler is not None else 0.0

    class LossScaleCallback(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
            if state.global_step == 0 and (scale := scale_of(optimizer)):
                state.log_history.append({SCALE: scale, "step": 0})

        def on_log(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
            if "loss" in state.log_history[-1] and (scale := scale_of(optimizer)):
                state.log_history[-1][SCALE] = scale

    return LossScaleCallback()
