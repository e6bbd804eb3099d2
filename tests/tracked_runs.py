"""A training in TensorBoard, MLflow and W&B: what they received while it ran, and from its report."""

import json
import struct
import time
from pathlib import Path

import pytest


def check_live(folder: Path, experiment: str, run_id: str, training, fit_file: Path):
    """Check that each tracker received a training's curves before it ended, and nothing of a report.

    The target of a point arrives after the loss of its step and before the next loss.
    """
    ended_s = fit_file.stat().st_mtime
    for points in _read_live(folder, experiment, run_id):
        assert [name for name in points if name.startswith(("target/", "forgetting/"))] == []
        for name, curve in _list_curves(training).items():
            assert [v for _, v in points.get(name, ())] == [pytest.approx(v) for _, v in curve], name
        losses_s, validated_s, targets_s = (
            [received_s for received_s, _ in points.get(name, ())]
            for name in ("train/loss", "eval/loss", "training/target")
        )
        assert losses_s[0] < max(*losses_s, *validated_s) <= ended_s
        for point, received_s in zip(training.tracked, targets_s, strict=True):
            assert losses_s[point.step - 1] < received_s < min(losses_s[point.step :], default=time.time())


def check_sent(folder: Path, experiment: str, run_id: str, metric: str, facts, weights: Path):
    """Check that each tracker has a run's curves, score and verdict under its id; two have its weights."""
    board = open_board(folder / "tensorboard" / experiment / run_id)
    client, run = find_in_mlflow(folder / "mlflow", run_id)
    curves, figures = read_wandb(folder / "wandb", run_id)
    for name, curve in _list_curves(facts.training).items():
        points = [(step, pytest.approx(value)) for step, value in curve]
        assert points == curves.get(name, []) == read_mlflow(folder / "mlflow", run_id, name)
    name, value = f"target/{metric}", pytest.approx(facts.target.score)
    assert [board.Scalars(name)[0].value, run.data.metrics[name], figures[name]] == [value] * 3
    (shown,) = board.Tensors("verdict")[0].tensor_proto.string_val
    assert shown.decode() == run.data.tags["verdict"] == figures["verdict"] != ""
    assert (run.info.status, run.data.tags["state"]) == ("FINISHED", "done")
    in_mlflow = {file.path for file in client.list_artifacts(run.info.run_id)}
    in_wandb = {file.name for file in folder.glob(f"wandb/wandb/offline-run-*-{run_id}/files/*")}
    assert {file.name for file in weights.iterdir() if file.is_file()} <= in_mlflow & in_wandb


def _list_curves(training):
    curves = {"train/loss": training.loss, "train/learning_rate": training.learning_rate}
    curves |= {"eval/loss": training.validation_loss}
    return curves | {"training/target": [(point.step, point.target) for point in training.tracked]}


def _read_live(folder: Path, experiment: str, run_id: str):
    """Yield by name the curves that each tracker has, as points of (time of arrival, value)."""
    board = open_board(folder / "tensorboard" / experiment / run_id)
    names = board.Tags()["scalars"]
    yield {name: [(event.wall_time, event.value) for event in board.Scalars(name)] for name in names}
    client, run = find_in_mlflow(folder / "mlflow", run_id)
    histories = {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
    yield {name: [(m.timestamp / 1_000, m.value) for m in history] for name, history in histories.items()}
    in_wandb = {}
    # Each part of a training that pauses has a folder of its own while W&B is offline.
    for file in sorted(folder.glob(f"wandb/wandb/offline-run-*-{run_id}*/*.wandb")):
        for record in _read_finished(file):
            values = _read_values(record.history)
            for name, value in values.items():
                in_wandb.setdefault(name, []).append((values["_timestamp"], value))
    yield in_wandb


def open_board(folder: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(folder))
    board.Reload()
    return board


def read_tensorboard(folder: Path):
    board = open_board(folder)
    return {name: [(e.step, e.value) for e in board.Scalars(name)] for name in board.Tags()["scalars"]}


def find_in_mlflow(folder: Path, run_id: str):
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiment_ids = [experiment.experiment_id for experiment in client.search_experiments()]
    (run,) = client.search_runs(experiment_ids, f"tags.`harness.id` = '{run_id}'")
    return client, run


def read_mlflow(folder: Path, run_id: str, name: str):
    client, run = find_in_mlflow(folder, run_id)
    return [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)]


def read_wandb(folder: Path, run_id: str):
    """Return the curves by name, and the final figures, of the only offline run with an id."""
    (file,) = folder.glob(f"wandb/offline-run-*-{run_id}*/*.wandb")
    curves, figures = {}, {}
    for record in _read_finished(file):
        values = _read_values(record.history)
        for name, value in values.items():
            curves.setdefault(name, []).append((values["_step"], value))
        figures |= values | _read_values(record.summary)
    return curves, figures


def _read_values(record):
    items = [*getattr(record, "item", ()), *getattr(record, "update", ())]
    return {(i.nested_key[0] if i.nested_key else i.key): json.loads(i.value_json) for i in items}


def _read_finished(file: Path):
    """Read a W&B file when its last record has come: W&B's own process may write it after the run's end."""
    latest = time.monotonic() + 30
    while not any(record.HasField("exit") for record in _records(file)):
        assert time.monotonic() < latest, f"{file} has no last record"
        time.sleep(0.05)
    return _records(file)


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
