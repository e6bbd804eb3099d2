"""Trackers that see a training while it runs: TensorBoard, MLflow and W&B, each fed by a thread of its own.

    trackers/NAME/…                what a tracker writes to this disk
    trackers/live/<run id>.json    what each tracker saw of a training, and by which error it stopped seeing

Invariant: a training waits for no tracker while it runs, draws no number for one and fails by none: a tracker
that cannot be opened, or fails, gets nothing more, and the report sends it the whole run. A training that was
stopped goes on under its id. Names are those of transformers' own integrations: `train/loss`, `eval/loss`.
Source: `mlflow.MlflowClient`; torch's `SummaryWriter`; `wandb.init`
"""

import json
import logging
import os
import re
import shutil
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Thread
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.cache import fill_cache_file
from harness.masking import mask_secrets
from harness.records import parse_json

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from transformers import TrainerCallback

_NOT_A_NAME = re.compile(r"[^A-Za-z0-9_\-. :/]")  # what MLflow refuses in a metric's name
LIVE_ID = "harness.id"  # a tag of MLflow's runs
_KEY_DIGITS = 8
_PATIENCE_S = 30.0  # that a training waits for a tracker, before its first step and after its last
_SUMMARY = ("train_", "total_flos")  # begin the names of the figures at the end, which the report has

Send = Callable[[Mapping[str, float], int], None]
_Opened = tuple[Send, Callable[[str], None]]  # what logs, and what closes with the state at the end


@dataclass(frozen=True, slots=True)
class LiveRun:
    """Run of a training in trackers: their `names`, their `folder`, and what they call it.

    Where `pause_at` of the points planned along the training are kept it stops for now, to be measured.
    """

    run_id: str
    label: str
    experiment: str
    folder: Path
    names: tuple[str, ...]
    params: dict[str, str]
    pause_at: int = 0


class Seen(NamedTuple):
    """Names of the curves that a tracker saw of a training, and the error by which it stopped seeing."""

    names: tuple[str, ...] = ()
    error: str = ""


def make_live_id(candidate: str, seed: int, fit_key: str) -> str:
    """Name the run of a training in trackers, which is known before it begins."""
    return f"{candidate}-{seed}-{fit_key[:_KEY_DIGITS]}"


def read_seen(folder: Path, run_id: str) -> dict[str, Seen]:
    """Read what each tracker saw of a training; empty of one that none saw, or whose record is damaged."""
    try:
        known = parse_json((folder / "live" / f"{run_id}.json").read_text("utf-8"))
        return {name: Seen(tuple(names), error) for name, (names, error) in known.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


@contextmanager
def open_trackers(run: LiveRun | None, resumed_at: int | None = None) -> Iterator[Send]:
    """Open the trackers of a training and yield what sends them values at a step; close them at the end.

    `resumed_at` is the step that an earlier call left it at; None where it begins.
    """
    if run is None:
        yield lambda values, step: None
        return
    before = {} if resumed_at is None else read_seen(run.folder, run.run_id)
    names = [name for name in run.names if not before.get(name, Seen()).error]
    feeds = [_Feed(name, run, resumed_at) for name in names]
    for feed in feeds:
        feed.opened.wait(_PATIENCE_S)

    def send(values: Mapping[str, float], step: int) -> None:
        for feed in feeds:
            feed.queue.put((dict(values), step))

    state = "FAILED"
    try:
        yield send
        state = "FINISHED"
    finally:
        for feed in feeds:
            feed.queue.put(state)
        latest = time.monotonic() + _PATIENCE_S
        for feed in feeds:
            feed.join(max(0.0, latest - time.monotonic()))
        seen = before | {feed.name: feed.seen(before.get(feed.name, Seen())) for feed in feeds}
        file = run.folder / "live" / f"{run.run_id}.json"
        try:
            fill_cache_file(file, lambda part: part.write_text(json.dumps(seen), "utf-8"))
        except OSError:  # the report then sends everything
            with suppress(OSError):
                file.unlink(missing_ok=True)


class _Feed(Thread):
    """Thread that opens one tracker and logs what is queued for it, until it is told the state at the end."""

    def __init__(self, name: str, run: LiveRun, resumed_at: int | None) -> None:
        super().__init__(name=name, daemon=True)
        self.queue: SimpleQueue[Any] = SimpleQueue()
        self.opened, self._logged, self._error = Event(), set[str](), ""
        self._run, self._resumed_at = run, resumed_at
        self.start()

    def run(self) -> None:
        try:
            log, close = _OPENERS[self.name](self._run, self._resumed_at)
            self.opened.set()
            while not isinstance(item := self.queue.get(), str):
                log(*item)
                self._logged.update(item[0])
            close(item)
        except BaseException as error:  # noqa: BLE001  (a library of somebody else's: any kind)
            self._error = mask_secrets(traceback.format_exception_only(error)[-1].strip().splitlines()[0])
        finally:
            self.opened.set()

    def seen(self, before: Seen) -> Seen:
        """Return what was seen by now and in earlier calls of the training."""
        error = self._error or (f"no answer in {_PATIENCE_S:.0f} s" if self.is_alive() else "")
        return Seen(tuple(sorted({*before.names, *list(self._logged)})), error)


def _open_tensorboard(run: LiveRun, resumed_at: int | None) -> _Opened:
    from torch.utils.tensorboard import SummaryWriter

    folder = run.folder / "tensorboard" / run.experiment / run.run_id
    if resumed_at is None:
        shutil.rmtree(folder, ignore_errors=True)
    # A reader forgets what came after the checkpoint that the training goes on from.
    writer: Any = SummaryWriter(str(folder), purge_step=(resumed_at or 0) + 1)

    def log(values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    return log, lambda state: writer.close()


def open_mlflow(folder: Path) -> "tuple[MlflowClient, str]":
    """Open the server of MLFLOW_TRACKING_URI, else SQLite in a folder; returns its address too."""
    for name, few in (("MAX_RETRIES", "2"), ("TIMEOUT", "10")):
        os.environ.setdefault(f"MLFLOW_HTTP_REQUEST_{name}", few)
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"  # it may hold a name and a password
    from mlflow import MlflowClient

    for noisy in ("mlflow", "alembic"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    address = os.environ.get("MLFLOW_TRACKING_URI")
    if not address:
        folder.mkdir(parents=True, exist_ok=True)
        address = f"sqlite:///{folder.absolute() / 'mlflow.db'}"
    return MlflowClient(address), address


def find_mlflow_experiment(client: "MlflowClient", experiment: str, folder: Path) -> str:
    """Return the id of an experiment of MLflow, made if missing; files lie in a folder or on its server."""
    files = None if os.environ.get("MLFLOW_TRACKING_URI") else folder.absolute().as_uri()
    found = client.get_experiment_by_name(experiment)
    return str(found.experiment_id if found else client.create_experiment(experiment, files))


def clean_metric_name(name: str) -> str:
    """Replace in the name of a metric what MLflow refuses."""
    return _NOT_A_NAME.sub("_", name)


def find_mlflow_run(client: "MlflowClient", place: str, run_id: str) -> Any:
    """Return the run of an id in an experiment of MLflow, None where it has none."""
    return next(iter(client.search_runs([place], f"tags.`{LIVE_ID}` = '{run_id}'", max_results=1)), None)


def _open_mlflow(run: LiveRun, resumed_at: int | None) -> _Opened:
    from mlflow.entities import Metric, Param

    folder = run.folder / "mlflow"
    client, _ = open_mlflow(folder)
    place = find_mlflow_experiment(client, run.experiment, folder)
    found = find_mlflow_run(client, place, run.run_id)
    if found and resumed_at is None:
        client.delete_run(found.info.run_id)
        found = None
    found = found or client.create_run(place, run_name=run.label, tags={LIVE_ID: run.run_id})
    own = found.info.run_id
    client.log_batch(own, params=[Param(name, value[:500]) for name, value in run.params.items()])
    client.update_run(own, status="RUNNING")

    def log(values: Mapping[str, float], step: int) -> None:
        now = int(1_000 * time.time())
        metrics = [Metric(clean_metric_name(name), value, now, step) for name, value in values.items()]
        client.log_batch(own, metrics=metrics)

    return log, lambda state: client.set_terminated(own, state)


def begin_wandb_run(run_id: str, label: str, experiment: str, params: Mapping[str, str], folder: Path) -> Any:
    """Begin a run of W&B under an id, or go on with it; nothing is printed."""
    import wandb

    folder.mkdir(parents=True, exist_ok=True)
    return wandb.init(
        project=os.environ.get("WANDB_PROJECT", experiment),
        id=run_id,
        name=label,
        group=experiment,
        config=dict(params),
        dir=folder,
        resume="allow",
        reinit="create_new",
        settings=wandb.Settings(console="off", silent=True, init_timeout=_PATIENCE_S),
    )


def _open_wandb(run: LiveRun, resumed_at: int | None) -> _Opened:
    begun = begin_wandb_run(run.run_id, run.label, run.experiment, run.params, run.folder / "wandb")
    # What is measured while a training pauses is sent when its last step is closed.
    begun.define_metric("training/target", step_metric="training/step")

    def log(values: Mapping[str, float], step: int) -> None:
        if any(name.startswith("training/") for name in values):
            begun.log({**values, "training/step": step})
        else:
            begun.log(dict(values), step=step)

    return log, lambda state: begun.finish(exit_code=int(state == "FAILED"))


_OPENERS: dict[str, Callable[[LiveRun, int | None], _Opened]] = {
    "tensorboard": _open_tensorboard,
    "mlflow": _open_mlflow,
    "wandb": _open_wandb,
}


def live_callback(send: Send) -> "TrainerCallback":
    """Return a callback that sends what the trainer logs."""
    from transformers import TrainerCallback

    class LiveCallback(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            kept = {}
            for name, value in (logs or {}).items():
                if isinstance(value, int | float) and isfinite(value) and not name.startswith(_SUMMARY):
                    of_validation = name.startswith("eval_")
                    kept[f"eval/{name[5:]}" if of_validation else f"train/{name}"] = float(value)
            if kept:
                send(kept, state.global_step)

    return LiveCallback()
