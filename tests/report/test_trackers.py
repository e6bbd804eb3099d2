"""Trackers receive every run of a report, and follow a training; they neither change nor cost anything."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_experiment
import tiny_methods
import tracked_runs
from fake_facts import candidate, comparison, make_decision, make_fine_tune
from tiny_methods import ignore
from tracked_runs import open_board, read_mlflow, read_tensorboard, read_wandb

from harness import experiment
from harness.analysis.estimators import Estimate
from harness.records import TrainingRecord
from harness.records.run_records import TrackedPoint
from harness.report import ExperimentReport, trackers
from harness.report.trackers import list_tracked_runs
from harness.training import run_job
from harness.training.live_trackers import LiveRun, open_trackers, read_seen

CURVE = ((1, 2.5), (2, 1.5), (3, None))
POINTS = (TrackedPoint(step=2, target=0.6, capability=-0.01), TrackedPoint(step=3, target=0.8))
RECORD = TrainingRecord(loss=CURVE, wall_s=36.0, n_steps=3, tracked=POINTS)
LORA = make_fine_tune("lora", 0.81, 0.07, training=RECORD, target=Estimate(0.81, 0.75, 0.86, 200))
FACTS = (candidate("prompt", 0.70), LORA, replace(LORA, name="worse", run_id="worse-0", state="failed"))
REPORT = ExperimentReport(
    "desk", "tiny", "exact_match", FACTS, comparisons={"lora": (comparison(-0.03, 0.04, task="chat"),)},
    decision=make_decision(FACTS[:2], closed_labels=False),
)  # fmt: skip

pytestmark = pytest.mark.usefixtures("own_cache")


def note_of(name: str, folder: Path, report: ExperimentReport = REPORT) -> str:
    (note,) = trackers.send(report, [name], folder)
    return note


def test_a_tracked_run_holds_curves_scores_intervals_forgetting_and_the_verdict(tmp_path):
    tracked = {run.label: run for run in list_tracked_runs(REPORT, tmp_path)}["lora"]
    assert tracked.curves["train/loss"] == ((1, 2.5), (2, 1.5))
    assert tracked.curves["training/target"] == ((2, 0.6), (3, 0.8))
    assert tracked.curves["training/forgetting"] == ((2, -0.01),)
    for name, figures in (("target", (0.81, 0.75, 0.86)), ("forgetting/chat", (-0.03, -0.07, 0.01))):
        sent = [tracked.metrics[f"{name}/exact_match{at}"] for at in ("", "/low", "/high")]
        assert sent == pytest.approx(figures)
    assert tracked.metrics["forgetting/macro"] == -0.004
    assert tracked.metrics["training/wall_s"] == 36.0
    assert tracked.tags["verdict"] == "PASS"
    assert tracked.tags["decision"] == REPORT.decision.sentence


def test_tensorboard_reads_curves_figures_and_verdict_without_torch(tmp_path):
    note = note_of("tensorboard", tmp_path)
    folder = tmp_path / "trackers" / "tensorboard" / "desk"
    assert note == f"tensorboard: tensorboard --logdir {folder}"
    assert sorted(path.name for path in folder.iterdir()) == ["lora", "prompt", "worse"]
    curves = read_tensorboard(folder / "lora")
    assert curves["train/loss"] == [(1, 2.5), (2, 1.5)]
    assert curves["target/exact_match"] == [(0, pytest.approx(0.81))]
    assert open_board(folder / "lora").Tensors("verdict")[0].tensor_proto.string_val == [b"PASS"]


@pytest.mark.e2e
def test_mlflow_holds_each_run_once_though_the_report_is_sent_twice(tmp_path):
    from mlflow import MlflowClient

    notes = [note_of("mlflow", tmp_path) for _ in range(2)]
    address = f"sqlite:///{tmp_path / 'trackers' / 'mlflow' / 'mlflow.db'}"
    assert notes == [f"mlflow: experiment desk on {address}"] * 2
    client = MlflowClient(address)
    experiment_id = client.get_experiment_by_name("desk").experiment_id
    runs = {run.info.run_name: run for run in client.search_runs([experiment_id])}
    states = {name: run.info.status for name, run in runs.items()}
    assert states == {"prompt": "FINISHED", "lora": "FINISHED", "worse": "FAILED"}
    assert len(client.search_runs([experiment_id])) == 3
    lora = runs["lora"]
    assert lora.data.metrics["target/exact_match/low"] == 0.75
    assert lora.data.tags["verdict"] == "PASS"
    assert lora.data.params["method"] == "lora"
    history = client.get_metric_history(lora.info.run_id, "train/loss")
    assert [(m.step, m.value) for m in history] == [(1, 2.5), (2, 1.5)]


def test_a_tracker_that_takes_nothing_costs_a_note_and_one_not_installed_is_refused(tmp_path, monkeypatch):
    (tmp_path / "trackers").write_text("a file where the folder would be")
    note = note_of("tensorboard", tmp_path)
    assert "the results were not sent" in note
    assert "next: harness report" in note

    monkeypatch.setitem(sys.modules, "wandb", None)
    (problem,) = trackers.problems(["tensorboard", "wandb"])
    assert "no package wandb" in str(problem)
    assert "harness-evals[tracking]" in str(problem)


def test_a_password_in_a_servers_address_is_not_printed(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "no-such-scheme://me:secret@host/path")
    assert "secret" not in note_of("mlflow", tmp_path)


PARAMS = {
    "r": 2,
    "num_train_epochs": 2,
    "learning_rate": 0.01,
    "max_length": 200,
    "per_device_train_batch_size": 2,
}
ALL = ("tensorboard", "mlflow", "wandb")


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.mark.e2e
def test_three_trackers_see_a_training_and_then_its_scores_verdict_and_files_under_one_id(
    tiny, tmp_path, command
):
    recipe = f"{{method: lora, track: {{points: 2}}, params: {json.dumps(PARAMS)}}}"
    candidates = f"  prompt: {{method: base}}\n  lora: {recipe}\n"
    for name, extra in (("plain", ""), ("tracked", "report_to: [tensorboard, mlflow, wandb]\n")):
        (tmp_path / name).mkdir()
        path = tiny_experiment.write(tmp_path / name, tiny, candidates, extra=extra)
        lora = next(f for f in experiment.compare(path).facts if f.name == "lora")
    (fit,) = (tmp_path / "plain" / "runs" / "weights").glob("*/fit.json")
    (same,) = (tmp_path / "tracked" / "runs" / "weights").glob("*/fit.json")
    assert fit.parent.name == same.parent.name, "the key of weights depends on no tracker"
    plain_fit, tracked_fit = (json.loads(path.read_text()) for path in (fit, same))
    assert plain_fit["digest"] == tracked_fit["digest"]
    for curve in ("loss", "validation_loss", "learning_rate"):
        assert plain_fit["training"][curve] == tracked_fit["training"][curve]

    folder, run_id = tmp_path / "tracked" / "reports" / "trackers", f"lora-0-{fit.parent.name[:8]}"
    assert {name: sink.error for name, sink in read_seen(folder, run_id).items()} == dict.fromkeys(ALL, "")
    tracked_runs.check_live(folder, "tiny", run_id, lora.training, same)
    assert command("report", "-c", path)[0] == 0
    tracked_runs.check_sent(folder, "tiny", run_id, "exact_match", lora, same.parent)


@pytest.mark.parametrize(
    "model",
    [pytest.param("tiny", marks=pytest.mark.e2e), pytest.param("smollm2-135m", marks=pytest.mark.weekly)],
)
def test_a_training_needs_no_tracker_that_fails(model, tiny, tmp_path):
    """A file stands at TensorBoard's path: W&B goes on, and the weights are the same."""
    model, folder, digests = tiny if model == "tiny" else model, tmp_path / "trackers", []
    folder.mkdir()
    (folder / "tensorboard").write_text("a file where the folder would be")
    live = LiveRun("lora-0-abc", "lora", "tiny", folder, ("tensorboard", "wandb"), {"r": "2"})
    for name, seen_by in (("plain", None), ("seen", live)):
        run_job(
            tiny_methods.write_job(model, tmp_path / name, params=PARAMS, threads=1, live=seen_by), ignore
        )
        digests.append(tiny_methods.read_fit(tmp_path / name)["digest"])
    assert digests[0] == digests[1]
    states = read_seen(folder, "lora-0-abc")
    assert [bool(states[name].error) for name in live.names] == [True, False]
    curves, _ = read_wandb(folder / "wandb", "lora-0-abc")
    assert [step for step, _ in curves["train/loss"]] == [*range(1, 13)]


@pytest.mark.e2e
def test_a_training_that_goes_on_from_a_checkpoint_goes_on_under_its_id(tmp_path):
    run = LiveRun("lora-0-abc", "lora", "tiny", tmp_path, ("tensorboard", "mlflow"), {"r": "2"})
    for resumed_at, steps in ((None, range(1, 8)), (5, range(6, 9))):
        with open_trackers(run, resumed_at) as send:
            for step in steps:
                send({"train/loss": 1 / step}, step)
    once = [(step, pytest.approx(1 / step)) for step in range(1, 9)]
    assert read_tensorboard(tmp_path / "tensorboard" / "tiny" / run.run_id)["train/loss"] == once
    assert sorted({*read_mlflow(tmp_path / "mlflow", run.run_id, "train/loss")}) == once  # of one run
    with open_trackers(run, None) as send:  # trained anew, from nothing
        send({"train/loss": 3.0}, 1)
    assert read_tensorboard(tmp_path / "tensorboard" / "tiny" / run.run_id)["train/loss"] == [(1, 3.0)]
    assert read_mlflow(tmp_path / "mlflow", run.run_id, "train/loss") == [(1, 3.0)]
