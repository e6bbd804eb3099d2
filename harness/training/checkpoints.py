"""Checkpoints of a training: when they are saved, which are complete, and resuming from them.

Invariant: a checkpoint counts only with its record, which is written last and lists every file with its size;
older checkpoints are removed only after that. Resuming makes the same steps as an uninterrupted run.
"""

import json
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.records import Curve
from harness.training.context import DIGESTS, TrainingPaused
from harness.training.job import FIT
from harness.training.parallel import is_first, name_sharding, share_order, wait_for_all

if TYPE_CHECKING:
    from transformers import TrainerCallback

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
    whole = []
    for path in folder.glob("checkpoint-*"):
        record = json.loads((path / _RECORD).read_text()) if (path / _RECORD).exists() else None
        if record and _sizes(path) == record["sizes"]:
            whole.append(Checkpoint(path, record["elapsed_s"], record["order"]))
        elif clean:
            shutil.rmtree(path)
    return max(whole, key=lambda checkpoint: checkpoint.step, default=None)


def read_log_until(folder: Path, step: int) -> tuple[float | None, Curve, Curve]:
    """Return the seconds of a training up to its last checkpoint, if any, and both losses up to a step."""
    last = find_last_checkpoint(folder)
    if last is None:
        return None, (), ()
    history = read_state(last.folder)["log_history"]
    known = [entry for entry in history if entry["step"] <= step]
    losses = [tuple((e["step"], e[name]) for e in known if name in e) for name in ("loss", "eval_loss")]
    return last.elapsed_s, losses[0], losses[1]


def checkpoint_callback(start: float, resumed: Checkpoint | None) -> "TrainerCallback":
    """Return a callback that also saves within epochs, records each checkpoint and removes older ones."""
    import torch
    from transformers import TrainerCallback
    from transformers.trainer_utils import rotate_checkpoints

    class CheckpointCallback(TrainerCallback):
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
            within = state.epoch % 1 and state.global_step < state.max_steps
            if within and state.global_step % state.save_steps == 0:
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
            part = folder / f"{_RECORD}.part"
            part.write_text(json.dumps({"elapsed_s": elapsed_s, "order": order, "sizes": _sizes(folder)}))
            part.replace(folder / _RECORD)
            rotate_checkpoints(args.output_dir, 1, state.best_model_checkpoint)

    return CheckpointCallback()


def _folder(args: Any, state: Any) -> Path:
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"


def map_tracked_folders(folder: Path) -> dict[int, Path]:
    """Map the steps whose weights are kept in a folder to their folders, in order."""
    found = {int(path.name.removeprefix(_STEP)): path for path in folder.glob(f"{_STEP}*") if not path.suffix}
    return dict(sorted(found.items()))


def spread_steps(steps: Sequence[int], parts: int, last: int) -> list[int]:
    """Choose for each of equal parts of `last` steps the first of the sorted `steps` at or after its end."""
    chosen, before = [], 0
    for step in steps:
        if parts * step // last > parts * before // last:
            chosen.append(step)
            before = step
    return chosen


def make_tracking_callback(
    folder: Path,
    points: int,
    kind: str,
    trained_on: str,
    save: Callable[[Any, Path], None],
    *,
    ends: bool,
    pause_at: int,
) -> "TrainerCallback":
    """Return a callback that keeps the weights of `points` checkpoints, spaced evenly, in a folder.

    `save(model, folder)` writes weights of a `kind`. If a training may end early (`ends`), more are kept
    until then. If `pause_at` is not 0, training stops after that many planned points.
    """
    import torch
    from transformers import TrainerCallback

    class TrackingCallback(TrainerCallback):
        def on_save(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            if not is_first():
                return
            step = state.global_step
            made = [*(kept for kept in map_tracked_folders(folder) if kept < step), step]
            wanted = {*spread_steps(made, points, state.max_steps)}
            if ends:  # the last step is unknown: keep twice as many, evenly over the steps so far
                wanted |= {*spread_steps(made, 2 * points, step)}
            if step in wanted:
                part = folder / f"{_STEP}{step}.part"  # renamed when complete
                shutil.rmtree(part, ignore_errors=True)
                part.mkdir(parents=True)
                with torch.random.fork_rng():  # saving may draw random numbers
                    save(model, part / kind)
                own = DIGESTS[kind](part / kind, trained_on)
                record = {"kind": kind, "digest": own, "trained_on": trained_on, "training": {}}
                (part / FIT).write_text(json.dumps(record))
                shutil.rmtree(part.with_suffix(""), ignore_errors=True)
                part.rename(part.with_suffix(""))
            _remove(folder, {*made} - wanted)

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if pause_at:
                made = [kept for kept in map_tracked_folders(folder) if kept <= state.global_step]
                if len(spread_steps(made, points, state.max_steps)) >= pause_at:
                    raise TrainingPaused

        def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if is_first() and ends:
                kept = [*map_tracked_folders(folder)]
                _remove(folder, {*kept} - {*spread_steps(kept, points, state.global_step)})

    return TrackingCallback()


def _remove(folder: Path, steps: Collection[int]) -> None:
    """Remove the weights of steps, each folder atomically."""
    for step in steps:
        if (point := folder / f"{_STEP}{step}").exists():
            shutil.rmtree(point.rename(point.with_name(f"{point.name}.part")))


def read_state(folder: Path) -> Any:
    """Read the trainer's state from the folder of a checkpoint."""
    return json.loads((folder / "trainer_state.json").read_text())


def _generator_state() -> str:
    import torch

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
