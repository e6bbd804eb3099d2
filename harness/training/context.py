"""Context of a fit, its checkpoints, the weights that it returns, and the figures measured in training.

Invariant: a checkpoint counts only with its record, which is written last and lists every file with its size;
older checkpoints are removed only after that. Resuming makes the same steps as an uninterrupted run. A step
with overflowed fp16 gradients changes no weight, and lowers the loss scale (Micikevicius et al. 2018,
arXiv:1710.03740). accelerate's flag of skipped steps does not work with fused optimisers such as AdamW.
"""

import json
import resource
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from harness.models.artefacts import artefact_digest
from harness.models.deltas import delta_digest
from harness.models.hardware import Machine, proc_line
from harness.models.hub import ModelSource
from harness.models.later import torch, transformers
from harness.models.weight_files import adapter_digest, model_digest
from harness.progress import Advance
from harness.records import Curve, Example, TrainingRecord
from harness.regularizers import Regularize
from harness.spec import Task
from harness.training.live_trackers import Send
from harness.training.parallel import is_first, most, name_sharding, share_order, wait_for_all

_LanguageModel = Literal["base", "adapter", "delta", "model", "completions", "chat", "artefact"]
CHECKPOINTS = "checkpoints"  # subfolder of a method's folder; kept until the weights are complete
FIT = "fit.json"  # written last into the folder of weights; marks them as complete
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


@dataclass(frozen=True, slots=True, kw_only=True)
class FitSettings:
    """Inputs of a fit besides its method and rows: the base as it will be served, and other weights.

    `init` is the folder of the adapter or model that training starts from, `merges` are those of adapters to
    merge, `path` is that of weights made elsewhere. The weights of `track` checkpoints are kept; training
    pauses after `pause_at` of them.
    """

    source: ModelSource
    machine: Machine
    seed: int
    chat_template: bool = True
    regularize: Regularize = field(default_factory=dict)
    init: Path | None = None
    merges: tuple[Path, ...] = ()
    path: Path | None = None
    reward: Reward | None = None
    track: int = 0
    pause_at: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class FitContext(FitSettings):
    """Input of a method: settings, prompted examples, and a folder for the weights.

    `prepare` changes the loaded base. `general` are the rows that penalties read, by regulariser. Training
    also pauses after `show_at` planned points. `send` passes logged values to trackers.
    """

    folder: Path
    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    advance: Advance
    pairs: tuple[Example, ...] = ()
    general: Mapping[str, tuple[Example, ...]] = field(default_factory=dict)
    prepare: Callable[[Any], None] = lambda model: None
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
    weights_digest = DIGESTS[kind](context.folder / kind, context.source.weights_digest)
    return Weights(kind, weights_digest, context.folder, training)


Row = Mapping[str, Any]


def curve(history: Sequence[Row], name: str) -> Curve:
    """Return the values logged under a name, by step; None for NaN and infinite ones."""
    logged = ((entry["step"], entry[name]) for entry in history if name in entry)
    return tuple((step, None if value is None else float(value)) for step, value in logged)


def figures(trainer: "transformers.Trainer", n_dropped: int, wall_s: float, past_s: float) -> TrainingRecord:
    """Return the measured figures: time, tokens, memory, parameters and the loss by step."""
    model: Any = trainer.model
    history = trainer.state.log_history
    loop_s = float(next(e for e in reversed(history) if "train_runtime" in e)["train_runtime"]) + past_s
    n_tokens = int(trainer.state.num_input_tokens_seen) or None  # unknown if batches were not counted
    params = [parameter for parameter in model.parameters() if parameter.requires_grad]
    device = trainer.args.device
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else resident_peak_bytes()
    scales = curve(history, SCALE)
    scale_values = [scale or 0.0 for _, scale in scales]  # a skipped step lowers the scale
    record = TrainingRecord(
        wall_s=round(wall_s, 3),
        train_loop_s=round(loop_s, 3),
        n_tokens=n_tokens,
        tokens_per_s=round(n_tokens / loop_s, 1) if n_tokens else None,
        n_steps=trainer.state.global_step,
        n_dropped_too_long=n_dropped,
        label_smoothing=getattr(trainer.args, "label_smoothing_factor", 0.0) or None,
        n_trainable=int(sum(getattr(p, "ds_numel", p.numel()) for p in params)),  # with ZeRO 3, p is empty
        peak_memory_gib=round(most(peak, device) / 2**30, 3),
        loss=curve(history, "loss"),
        learning_rate=curve(history, "learning_rate"),
        loss_scale=scales,
    )
    # The gradients of such a step overflowed in fp16.
    n_skipped = sum(after < before for before, after in pairwise(scale_values)) if scale_values else None
    return record.add(n_skipped_steps=n_skipped)


def resident_peak_bytes() -> int:
    """Return the peak memory of this process; `ru_maxrss` would start at its parent's."""
    words = proc_line("self/status", "VmHWM:").split()
    return 1024 * (int(words[1]) if words else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


SCALE = "loss_scale"  # key in a log entry


SAVED_EVERY = 0.25  # share of all steps between checkpoints, besides those at the end of each epoch

_RECORD = "record.json"
_STEP = "step-"  # prefix of the folder of a tracked point


class Checkpoint(NamedTuple):
    """Complete checkpoint: folder, seconds spent, and torch's random state (hex) at the epoch's start."""

    folder: Path
    elapsed_s: float
    order: str

    @property
    def step(self) -> int:
        """Number of optimiser steps made."""
        return int(self.folder.name.rpartition("-")[2])


def find_last_checkpoint(folder: Path, *, clean: bool = False) -> Checkpoint | None:
    """Return the latest complete checkpoint of a training, if any; `clean` deletes the others."""
    checkpoints = []
    for path in folder.glob("checkpoint-*"):
        record = json.loads((path / _RECORD).read_text()) if (path / _RECORD).exists() else None
        if record and _sizes(path) == record["sizes"]:
            checkpoints.append(Checkpoint(path, record["elapsed_s"], record["order"]))
        elif clean:
            shutil.rmtree(path)
    return max(checkpoints, key=lambda checkpoint: checkpoint.step, default=None)


def read_log_until(folder: Path, step: int) -> tuple[float | None, Curve, Curve]:
    """Return the seconds of a training up to its last checkpoint, if any, and both losses up to a step."""
    last = find_last_checkpoint(folder)
    if last is None:
        return None, (), ()
    entries = [entry for entry in read_state(last.folder)["log_history"] if entry["step"] <= step]
    losses = [tuple((e["step"], e[name]) for e in entries if name in e) for name in ("loss", "eval_loss")]
    return last.elapsed_s, losses[0], losses[1]


def checkpoint_callback(start: float, resumed: Checkpoint | None) -> "transformers.TrainerCallback":
    """Return a callback that also saves within epochs, records each checkpoint and removes older ones."""
    from transformers.trainer_utils import rotate_checkpoints

    class CheckpointCallback(transformers.TrainerCallback):
        order, found = "", resumed

        def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if self.found:  # a resumed epoch draws its order again
                torch.set_rng_state(torch.tensor(list(bytes.fromhex(self.found.order)), dtype=torch.uint8))
                self.found = None
            share_order()
            self.order = _generator_state()

        def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            share_order()  # the checkpoint holds the state that draws the next epoch's order

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            in_epoch = state.epoch % 1 and state.global_step < state.max_steps
            if in_epoch and state.global_step % state.save_steps == 0:
                control.should_save = True

        def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if name_sharding():  # the best checkpoint's folder must exist before its shards are written
                _folder(args, state).mkdir(parents=True, exist_ok=True)

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            wait_for_all()  # each process adds its own random state
            if not is_first():
                return
            folder = _folder(args, state)
            order = self.order if state.epoch % 1 else _generator_state()
            elapsed_s = round(time.perf_counter() - start, 3)
            partial = folder / f"{_RECORD}.part"
            partial.write_text(json.dumps({"elapsed_s": elapsed_s, "order": order, "sizes": _sizes(folder)}))
            partial.replace(folder / _RECORD)
            rotate_checkpoints(args.output_dir, 1, state.best_model_checkpoint)

    return CheckpointCallback()


def _folder(args: Any, state: Any) -> Path:
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"


def map_tracked_folders(folder: Path) -> dict[int, Path]:
    """Map the steps whose weights are kept in a folder to their folders, in order."""
    paths = {int(path.name.removeprefix(_STEP)): path for path in folder.glob(f"{_STEP}*") if not path.suffix}
    return dict(sorted(paths.items()))


def spread_steps(steps: Sequence[int], parts: int, last: int) -> list[int]:
    """Choose for each of equal parts of `last` steps the first of the sorted `steps` at or after its end."""
    chosen, before = [], 0
    for step in steps:
        if parts * step // last > parts * before // last:
            chosen.append(step)
            before = step
    return chosen


def track(
    trainer: "transformers.Trainer", context: FitContext, save_to: Path, save: Callable[[Any, Path], None]
) -> None:
    """Keep the weights of `context.track` checkpoints, spaced evenly, next to those of `save_to`.

    `save(model, folder)` writes weights of the kind after which `save_to` is named. If a training may end
    early, more are kept until then.
    """
    if not context.track:
        return
    folder, kind, points = save_to.with_name(TRACKED), save_to.name, context.track
    trained_on, pause_at = context.source.weights_digest, context.pause_at or context.show_at
    stopping = transformers.EarlyStoppingCallback
    ends = any(isinstance(c, stopping) for c in trainer.callback_handler.callbacks) and not context.pause_at

    class TrackingCallback(transformers.TrainerCallback):
        def on_save(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            if not is_first():
                return
            step = state.global_step
            steps = [*(tracked for tracked in map_tracked_folders(folder) if tracked < step), step]
            kept_steps = {*spread_steps(steps, points, state.max_steps)}
            if ends:  # the last step is unknown: keep twice as many, evenly over the steps so far
                kept_steps |= {*spread_steps(steps, 2 * points, step)}
            if step in kept_steps:
                part_folder = folder / f"{_STEP}{step}.part"  # renamed when complete
                shutil.rmtree(part_folder, ignore_errors=True)
                part_folder.mkdir(parents=True)
                with torch.random.fork_rng():  # saving may draw random numbers
                    save(model, part_folder / kind)
                weights_digest = DIGESTS[kind](part_folder / kind, trained_on)
                record = {"kind": kind, "digest": weights_digest, "trained_on": trained_on, "training": {}}
                (part_folder / FIT).write_text(json.dumps(record))
                shutil.rmtree(part_folder.with_suffix(""), ignore_errors=True)
                part_folder.rename(part_folder.with_suffix(""))
            _remove(folder, {*steps} - kept_steps)

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if pause_at:
                steps = [tracked for tracked in map_tracked_folders(folder) if tracked <= state.global_step]
                if len(spread_steps(steps, points, state.max_steps)) >= pause_at:
                    raise TrainingPaused

        def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if is_first() and ends:
                steps = [*map_tracked_folders(folder)]
                _remove(folder, {*steps} - {*spread_steps(steps, points, state.global_step)})

    trainer.add_callback(TrackingCallback())


def _remove(folder: Path, steps: Collection[int]) -> None:
    for step in steps:
        if (point := folder / f"{_STEP}{step}").exists():
            shutil.rmtree(point.rename(point.with_name(f"{point.name}.part")))


def read_state(folder: Path) -> Any:
    """Read the trainer's state from the folder of a checkpoint."""
    return json.loads((folder / "trainer_state.json").read_text())


def _generator_state() -> str:
    return bytes(torch.get_rng_state().tolist()).hex()


def _sizes(folder: Path) -> dict[str, int]:
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(_RECORD)]
    return {str(path.relative_to(folder)): path.stat().st_size for path in files}


@contextmanager
def skip_cards(trainer: Any) -> Iterator[None]:
    """Stop TRL and PEFT from writing model cards into checkpoints."""

    def write_nothing(*_: Any, **__: Any) -> None: ...

    trainer.create_model_card = write_nothing
    adapted = hasattr(trainer.model, "create_or_update_model_card")
    if adapted:
        trainer.model.create_or_update_model_card = write_nothing
    try:
        yield
    finally:
        if adapted:
            del trainer.model.create_or_update_model_card
