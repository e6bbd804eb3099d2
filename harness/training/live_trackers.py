"""Trackers that follow a running training: TensorBoard, MLflow and W&B, each fed by its own thread.

    trackers/NAME/…                files that a tracker writes to this disk
    trackers/live/<run id>.json    what each tracker received from a training, and the error that stopped it

Invariant: a training never waits for a tracker and never fails because of it: a tracker that fails gets
nothing more, and the report later sends it the whole run.
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
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Thread
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.cache import fill_cache_file
from harness.masking import mask_secrets
from harness.records import parse_json

if TYPE_CHECKING:
    from mlflow import MlflowClient

_NOT_A_NAME = re.compile(r"[^A-Za-z0-9_\-. :/]")  # characters that MLflow refuses in metric names
LIVE_ID = "harness.id"  # tag of MLflow runs
_KEY_DIGITS = 8
_PATIENCE_S = 30.0  # longest wait for a tracker, before the first step and after the last

Send = Callable[[Mapping[str, float], int], None]
_Opened = tuple[Send, Callable[[str], None]]  # (log, close with the final state)


@dataclass(frozen=True, slots=True)
class LiveRun:
    """Run of a training in trackers: their `names`, their `folder`, and the run's name there.

    The training pauses after `pause_at` of its planned points, to be measured.
    """

    run_id: str
    label: str
    experiment: str
    folder: Path
    names: tuple[str, ...]
    params: dict[str, str]
    pause_at: int = 0


class Seen(NamedTuple):
    """Names of the curves that a tracker received from a training, and the error that stopped it."""

    names: tuple[str, ...] = ()
    error: str = ""


def make_live_id(candidate: str, seed: int, fit_key: str) -> str:
    """Return the id of a training's run in trackers, which is known before it begins."""
    return f"{candidate}-{seed}-{fit_key[:_KEY_DIGITS]}"


def read_seen(folder: Path, run_id: str) -> dict[str, Seen]:
    """Read what each tracker received from a training; empty if there is no readable record."""
    try:
        record = parse_json((folder / "live" / f"{run_id}.json").read_text("utf-8"))
        return {name: Seen(tuple(names), error) for name, (names, error) in record.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


@contextmanager
def open_trackers(run: LiveRun | None, resumed_at: int | None = None) -> Iterator[Send]:
    """Open a training's trackers and yield a function that sends values of a step; `resumed_at` is a step."""
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
        received = before | {feed.name: feed.seen(before.get(feed.name, Seen())) for feed in feeds}
        file = run.folder / "live" / f"{run.run_id}.json"
        try:
            fill_cache_file(file, lambda path: path.write_text(json.dumps(received), "utf-8"))
        except OSError:  # the report will send everything
            with suppress(OSError):
                file.unlink(missing_ok=True)


class _Feed(Thread):
    """Thread that opens a tracker and logs queued values until it gets the final state."""

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
        except BaseException as error:  # noqa: BLE001  (a third-party library may raise anything)
            self._error = mask_secrets(traceback.format_exception_only(error)[-1].strip().splitlines()[0])
        finally:
            self.opened.set()

    def seen(self, before: Seen) -> Seen:
        """Return what was received so far, in this and earlier calls of the training."""
        error = self._error or (f"no answer in {_PATIENCE_S:.0f} s" if self.is_alive() else "")
        return Seen(tuple(sorted({*before.names, *list(self._logged)})), error)


def _open_tensorboard(run: LiveRun, resumed_at: int | None) -> _Opened:
    from torch.utils.tensorboard import SummaryWriter

    folder = run.folder / "tensorboard" / run.experiment / run.run_id
    if resumed_at is None:
        shutil.rmtree(folder, ignore_errors=True)
    # Drop what came after the checkpoint from which the training resumes.
    writer: Any = SummaryWriter(str(folder), purge_step=(resumed_at or 0) + 1)

    def log(values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    return log, lambda state: writer.close()


def open_mlflow(folder: Path) -> "tuple[MlflowClient, str]":
    """Open the server of MLFLOW_TRACKING_URI, or SQLite in a folder; return it with its address."""
    for name, few in (("MAX_RETRIES", "2"), ("TIMEOUT", "10")):
        os.environ.setdefault(f"MLFLOW_HTTP_REQUEST_{name}", few)
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"  # it may contain a name and a password
    from mlflow import MlflowClient

    for noisy in ("mlflow", "alembic"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    address = os.environ.get("MLFLOW_TRACKING_URI")
    if not address:
        folder.mkdir(parents=True, exist_ok=True)
        address = f"sqlite:///{folder.absolute() / 'mlflow.db'}"
    return MlflowClient(address), address


def find_mlflow_experiment(client: "MlflowClient", experiment: str, folder: Path) -> str:
    """Return the id of an MLflow experiment, created if missing; files go to a folder or to its server."""
    files = None if os.environ.get("MLFLOW_TRACKING_URI") else folder.absolute().as_uri()
    existing = client.get_experiment_by_name(experiment)
    return str(existing.experiment_id if existing else client.create_experiment(experiment, files))


def clean_metric_name(name: str) -> str:
    """Replace the characters of a metric's name that MLflow refuses."""
    return _NOT_A_NAME.sub("_", name)


def find_mlflow_run(client: "MlflowClient", experiment_id: str, run_id: str) -> Any:
    """Return the run with an id in an MLflow experiment; None if there is none."""
    found = client.search_runs([experiment_id], f"tags.`{LIVE_ID}` = '{run_id}'", max_results=1)
    return next(iter(found), None)


def _open_mlflow(run: LiveRun, resumed_at: int | None) -> _Opened:
    from mlflow.entities import Metric, Param

    folder = run.folder / "mlflow"
    client, _ = open_mlflow(folder)
    experiment_id = find_mlflow_experiment(client, run.experiment, folder)
    entry = find_mlflow_run(client, experiment_id, run.run_id)
    if entry and resumed_at is None:
        client.delete_run(entry.info.run_id)
        entry = None
    entry = entry or client.create_run(experiment_id, run_name=run.label, tags={LIVE_ID: run.run_id})
    run_id = entry.info.run_id
    client.log_batch(run_id, params=[Param(name, value[:500]) for name, value in run.params.items()])
    client.update_run(run_id, status="RUNNING")

    def log(values: Mapping[str, float], step: int) -> None:
        now = int(1_000 * time.time())
        metrics = [Metric(clean_metric_name(name), value, now, step) for name, value in values.items()]
        client.log_batch(run_id, metrics=metrics)

    return log, lambda state: client.set_terminated(run_id, state)


def begin_wandb_run(run_id: str, label: str, experiment: str, params: Mapping[str, str], folder: Path) -> Any:
    """Start or resume a W&B run with an id, without printing."""
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
    wandb_run = begin_wandb_run(run.run_id, run.label, run.experiment, run.params, run.folder / "wandb")
    # Measurements made while a training pauses are sent when its last step is closed.
    wandb_run.define_metric("training/target", step_metric="training/step")

    def log(values: Mapping[str, float], step: int) -> None:
        if any(name.startswith("training/") for name in values):
            wandb_run.log({**values, "training/step": step})
        else:
            wandb_run.log(dict(values), step=step)

    return log, lambda state: wandb_run.finish(exit_code=int(state == "FAILED"))


_OPENERS: dict[str, Callable[[LiveRun, int | None], _Opened]] = {
    "tensorboard": _open_tensorboard,
    "mlflow": _open_mlflow,
    "wandb": _open_wandb,
}
