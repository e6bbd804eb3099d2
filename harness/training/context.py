"""Context of a fit, the weights that it returns, and what was measured of their training.

Invariant: a method writes only into `context.folder`; what is evaluated later is what was saved there. A step
whose gradients overflowed in fp16 changes no weight, and what the loss is multiplied with is lower after it.
Source: Micikevicius et al. 2018 (arXiv:1710.03740); torch's GradScaler does it, which accelerate has on GPUs
alone. Its own flag of a skipped step knows no optimiser that is fused, as AdamW is by default.
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
CHECKPOINTS = "checkpoints"  # below a method's folder; kept until the weights are complete
TRACKED = "tracked"  # beside it: the weights of some checkpoints, kept with the others
# Digests of the weights of a kind, by their folder and the digest of their base.
DIGESTS: Mapping[str, Callable[[Path, str], str]] = {
    "adapter": adapter_digest,
    "delta": delta_digest,
    "model": model_digest,
    "reward": adapter_digest,
    "artefact": artefact_digest,
}


@dataclass(frozen=True, slots=True)
class Reward:
    """Source of rewards: a reward model with the base it was trained on, or what is `written` of another.

    That is the name of a metric, which is computed as the `task` says, or the path of a Python file.
    """

    model: Path | None = None
    source: ModelSource | None = None
    written: str = ""
    task: Task | None = None


@dataclass(frozen=True, slots=True)
class FitContext:
    """Input of a method: the base, prompted examples, a folder to write weights into.

    `source` is the base as it will be served, so a quantised one where the method quantises. `pairs` are
    preference pairs, prompted like the examples. `init` is the folder of the adapter (or the model) that
    training starts from, `merges` are those of the adapters to merge, `reward` is what its answers are
    rewarded by; `path` is where weights made elsewhere lie. `prepare` changes the loaded base before it is
    trained, for example by freezing a part of it. `regularize` are the regularisers of the training, and
    `general` the rows that penalties read, by name. The weights of `track` checkpoints are kept; where
    `pause_at` of them are, training stops for now, and likewise at `show_at` of those planned. `send` takes
    what is logged to trackers; None where there are none.
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
    """A training that stopped at a tracked point, with a checkpoint to go on from."""


class Weights(NamedTuple):
    """Weights made by a method: kind, digest, folder and measured cost.

    An `adapter` lies in `folder/adapter`; a `delta` (see `models.deltas`), a whole `model`, a `reward` model,
    a classification `head` and one of an `embedding` likewise in folders of these names; of an endpoint the
    kind is the protocol it is asked by (`completions` or `chat`); of an `artefact` the file of that name says
    where it lies. `source` is the base as it is served; None
    is the experiment's own, and what a method gives back. An adapter that is `merged` answers from copies of
    the base's layers with its own added. `choosers` names the reward models that choose
    among several answers of these weights.
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
        """Whether they generate text, and have a base and capabilities to lose."""
        return self.kind in get_args(_LanguageModel)


def made_weights(context: FitContext, kind: Any, training: TrainingRecord) -> Weights:
    """Return the weights of a kind in `DIGESTS` that lie under its name in a context's folder."""
    own = DIGESTS[kind](context.folder / kind, context.source.weights_digest)
    return Weights(kind, own, context.folder, training)


Row = Mapping[str, Any]


def curve(history: Sequence[Row], name: str) -> Curve:
    """Return what was logged under a name, by step; None where it was no number."""
    logged = ((entry["step"], entry[name]) for entry in history if name in entry)
    return tuple((step, None if value is None else float(value)) for step, value in logged)


def count_pairs(kind: Any) -> Any:
    """Return a kind of trainer that counts tokens also where a batch holds both answers of a pair apart."""
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
    """Return what was measured: time, tokens, memory, parameters and the loss by step."""
    import torch

    model: Any = trainer.model
    history = trainer.state.log_history
    summary = next(e for e in reversed(history) if "train_runtime" in e)
    loop_s = float(summary["train_runtime"]) + earlier_s
    n_tokens = int(trainer.state.num_input_tokens_seen) or None  # unknown of batches that were not counted
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    device = trainer.args.device
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else resident_peak_bytes()
    scales = curve(history, SCALE)
    known = [scale or 0.0 for _, scale in scales]  # lower after a step that was skipped
    return TrainingRecord(
        wall_s=round(wall_s, 3),
        train_loop_s=round(loop_s, 3),
        n_tokens=n_tokens,
        tokens_per_s=round(n_tokens / loop_s, 1) if n_tokens else None,
        n_steps=trainer.state.global_step,
        n_dropped_too_long=n_dropped,
        label_smoothing=getattr(trainer.args, "label_smoothing_factor", 0.0) or None,
        n_trainable=int(sum(getattr(p, "ds_numel", p.numel()) for p in trained)),  # ZeRO 3 leaves none of p
        peak_memory_gib=round(most(peak, device) / 2**30, 3),
        loss=curve(history, "loss"),
        learning_rate=curve(history, "learning_rate"),
        loss_scale=scales,
        n_skipped_steps=sum(after < before for before, after in pairwise(known)) if known else None,
    )


def resident_peak_bytes() -> int:
    """Return the most memory that this process held; `ru_maxrss` begins at that of the one it came from."""
    own = proc_line("self/status", "VmHWM:").split()
    return 1024 * (int(own[1]) if own else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


SCALE = "loss_scale"  # in an entry of the log


def scale_callback() -> "TrainerCallback":
    """Return a callback that logs the scale with which a training begins, and that which each step leaves."""
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
