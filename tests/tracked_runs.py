"""Readers of a run's curves, figures and tags in TensorBoard, MLflow and W&B."""

import json
import struct
import time
from pathlib import Path


def open_board(folder: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(folder))
    board.Reload()
    return board


def read_tensorboard(folder: Path):
    board = open_board(folder)
    return {name: [(e.step, e.value) for e in board.Scalars(name)] for name in board.Tags()["scalars"]}


def read_mlflow(folder: Path, run_id: str):
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiment_ids = [experiment.experiment_id for experiment in client.search_experiments()]
    (run,) = client.search_runs(experiment_ids, f"tags.`harness.id` = '{run_id}'")
    return run, lambda name: [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)]


def read_wandb(folder: Path, run_id: str):
    """Return the curves by name, and the final figures, of the only offline run with an id.

    W&B's own process writes the last records; they may come after the run was finished here.
    """
    (file,) = folder.glob(f"wandb/offline-run-*-{run_id}/*.wandb")
    latest = time.monotonic() + 30
    while "exit" not in {record.WhichOneof("record_type") for record in _records(file)}:
        assert time.monotonic() < latest, f"{file} has no last record"
        time.sleep(0.05)
    curves, figures = {}, {}
    for record in _records(file):
        values = {
            (item.nested_key[0] if item.nested_key else item.key): json.loads(item.value_json)
            for item in [*record.history.item, *record.summary.update]
        }
        if record.WhichOneof("record_type") == "history":
            for name, value in values.items():
                curves.setdefault(name, []).append((values["_step"], value))
        figures |= values
    return curves, figures


def _records(path: Path):
    """Read the records of a W&B file: LevelDB's log format, after a header of seven bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        block_left = 32_768 - at % 32_768
        if block_left < 7:
            at += block_left
            continue
        length, kind = struct.unpack_from("<HB", data, at + 4)
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # full, last
            record = Record()
            record.ParseFromString(whole)
            yield record
            whole = b""
