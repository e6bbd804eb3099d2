"""Trackers get every run of a report, read back by each tracker's own reader."""

import json
import struct
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from fake_facts import candidate, comparison, make_decision, make_fine_tune

from harness.analysis.estimators import Estimate
from harness.records import TrainingRecord
from harness.records.run_records import TrackedPoint
from harness.report import ExperimentReport, trackers
from harness.report.trackers import list_tracked_runs

CURVE = ((1, 2.5), (2, 1.5), (3, None))
POINTS = (TrackedPoint(step=2, target=0.6, capability=-0.01), TrackedPoint(step=3, target=0.8))
LORA = make_fine_tune(
    "lora",
    0.81,
    0.07,
    training=TrainingRecord(loss=CURVE, wall_s=36.0, n_steps=3, tracked=POINTS),
    target=Estimate(0.81, 0.75, 0.86, 200),
)
FACTS = (candidate("prompt", 0.70), LORA, replace(LORA, name="worse", run_id="worse-0", state="failed"))
REPORT = ExperimentReport(
    "desk", "tiny", "exact_match", FACTS, comparisons={"lora": (comparison(-0.03, 0.04, task="chat"),)},
    decision=make_decision(FACTS[:2], closed_labels=False),
)  # fmt: skip


def note_of(name: str, folder: Path, report: ExperimentReport = REPORT) -> str:
    (note,) = trackers.send(report, [name], folder)
    return note


def test_a_tracked_run_holds_curves_scores_intervals_forgetting_and_the_verdict(tmp_path):
    found = {run.label: run for run in list_tracked_runs(REPORT, tmp_path)}["lora"]
    assert found.curves["train/loss"] == ((1, 2.5), (2, 1.5))
    assert found.curves["training/target"] == ((2, 0.6), (3, 0.8))
    assert found.curves["training/forgetting"] == ((2, -0.01),)
    assert [found.metrics[f"target/exact_match{at}"] for at in ("", "/low", "/high")] == [0.81, 0.75, 0.86]
    assert [
        found.metrics[f"forgetting/chat/exact_match{at}"] for at in ("", "/low", "/high")
    ] == pytest.approx([-0.03, -0.07, 0.01])
    assert found.metrics["forgetting/macro"] == -0.004
    assert found.metrics["training/wall_s"] == 36.0
    assert found.tags["verdict"] == "PASS"
    assert found.tags["decision"] == REPORT.decision.sentence


def test_tensorboard_reads_curves_figures_and_verdict_without_torch(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    said = note_of("tensorboard", tmp_path)
    folder = tmp_path / "trackers" / "tensorboard" / "desk"
    assert said == f"tensorboard: tensorboard --logdir {folder}"
    assert sorted(path.name for path in folder.iterdir()) == ["lora", "prompt", "worse"]
    read = EventAccumulator(str(folder / "lora"))
    read.Reload()
    assert [(e.step, e.value) for e in read.Scalars("train/loss")] == [(1, 2.5), (2, 1.5)]
    assert read.Scalars("target/exact_match")[0].value == pytest.approx(0.81)
    assert read.Tensors("verdict")[0].tensor_proto.string_val == [b"PASS"]


@pytest.mark.e2e
def test_mlflow_holds_each_run_once_though_the_report_is_sent_twice(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    from mlflow import MlflowClient

    said = [note_of("mlflow", tmp_path) for _ in range(2)]
    address = f"sqlite:///{tmp_path / 'trackers' / 'mlflow' / 'mlflow.db'}"
    assert said == [f"mlflow: experiment desk on {address}"] * 2
    client = MlflowClient(address)
    place = client.get_experiment_by_name("desk").experiment_id
    runs = {run.info.run_name: run for run in client.search_runs([place])}
    assert {name: run.info.status for name, run in runs.items()} == {
        "prompt": "FINISHED",
        "lora": "FINISHED",
        "worse": "FAILED",
    }
    assert len(client.search_runs([place])) == 3
    lora = runs["lora"]
    assert lora.data.metrics["target/exact_match/low"] == 0.75
    assert lora.data.tags["verdict"] == "PASS"
    assert lora.data.params["method"] == "lora"
    history = client.get_metric_history(lora.info.run_id, "train/loss")
    assert [(m.step, m.value) for m in history] == [(1, 2.5), (2, 1.5)]


@pytest.mark.e2e
def test_wandb_keeps_the_runs_offline_in_a_folder_to_be_synchronised(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    note_of("wandb", tmp_path, replace(REPORT, facts=FACTS[1:2]))
    assert note_of("wandb", tmp_path).startswith("wandb: wandb sync")
    assert len(list((tmp_path / "trackers" / "wandb" / "wandb").glob("offline-run-*"))) == 3, "each run once"
    kept = {}
    for path in (tmp_path / "trackers" / "wandb" / "wandb").glob("offline-run-*/*.wandb"):
        kept[path.stem.removeprefix("run-")] = list(wandb_records(path))
    assert sorted(kept) == ["lora-0", "prompt-0", "worse-0"]
    records = kept["lora-0"]
    history = [
        {
            item.nested_key[0] if item.nested_key else item.key: json.loads(item.value_json)
            for item in r.history.item
        }
        for r in records
        if r.WhichOneof("record_type") == "history"
    ]
    assert [(row["_step"], row.get("train/loss")) for row in history] == [(1, 2.5), (2, 1.5), (3, None)]
    summary = {
        item.nested_key[0] if item.nested_key else item.key: json.loads(item.value_json)
        for r in records
        if r.WhichOneof("record_type") == "summary"
        for item in r.summary.update
    }
    assert summary["verdict"] == "PASS"
    assert summary["target/exact_match"] == 0.81


def wandb_records(path: Path):
    """Read the records of a W&B file: LevelDB's log format, after a header of seven bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        left = 32_768 - at % 32_768
        if left < 7:
            at += left
            continue
        length, kind = struct.unpack_from("<HB", data, at + 4)
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # full, last
            record = Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


def test_a_tracker_that_takes_nothing_costs_a_note_and_one_not_installed_is_refused(tmp_path, monkeypatch):
    (tmp_path / "trackers").write_text("a file where the folder would be")
    said = note_of("tensorboard", tmp_path)
    assert "the results were not sent" in said
    assert "next: harness report" in said

    monkeypatch.setitem(sys.modules, "wandb", None)
    (problem,) = trackers.problems(["tensorboard", "wandb"])
    assert "no package wandb" in str(problem)
    assert "harness-evals[tracking]" in str(problem)


def test_a_password_in_a_servers_address_is_not_printed(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "no-such-scheme://me:secret@host/path")
    assert "secret" not in note_of("mlflow", tmp_path)
