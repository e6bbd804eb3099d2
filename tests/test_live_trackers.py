"""Trackers see a training while it runs, then its scores under the same id; they change and cost nothing."""

import json
from pathlib import Path

import pytest
import tiny_experiment
import tiny_methods
from test_trackers import wandb_records

from harness.training import LiveRun, open_trackers, read_seen, worker

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("own_cache")]

LORA = {"r": 2, "num_train_epochs": 2, "learning_rate": 0.01, "max_length": 200}
LORA |= {"per_device_train_batch_size": 2}
ALL = ("tensorboard", "mlflow", "wandb")


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def read_tensorboard(folder: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder))
    read.Reload()
    return {name: [(e.step, e.value) for e in read.Scalars(name)] for name in read.Tags()["scalars"]}


def read_mlflow(folder: Path, run_id: str):
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    places = [one.experiment_id for one in client.search_experiments()]
    (run,) = client.search_runs(places, f"tags.`harness.id` = '{run_id}'")
    return run, lambda name: [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)]


def read_wandb(folder: Path, run_id: str):
    """Return the curves by name, and the figures at the end, of the one offline run of an id."""
    (file,) = folder.glob(f"wandb/offline-run-*-{run_id}/*.wandb")
    curves, figures = {}, {}
    for record in wandb_records(file):
        values = {
            (item.nested_key[0] if item.nested_key else item.key): json.loads(item.value_json)
            for item in [*record.history.item, *record.summary.update]
        }
        if record.WhichOneof("record_type") == "history":
            for name, value in values.items():
                curves.setdefault(name, []).append((values["_step"], value))
        figures |= values
    return curves, figures


def test_three_trackers_see_a_training_and_then_its_scores_verdict_and_files_under_one_id(
    tiny, tmp_path, command
):
    candidates = (
        "  prompt: {method: base}\n"
        f"  lora: {{method: lora, track: {{points: 2}}, params: {json.dumps(LORA)}}}\n"
    )
    files = {}
    for name, extra in (("plain", ""), ("tracked", "report_to: [tensorboard, mlflow, wandb]\n")):
        (tmp_path / name).mkdir()
        files[name] = tiny_experiment.write(tmp_path / name, tiny, candidates, extra=extra)
        assert command("compare", "-c", files[name])[0] == 0
    (fit,) = (tmp_path / "plain" / "runs" / "weights").glob("*/fit.json")
    (same,) = (tmp_path / "tracked" / "runs" / "weights").glob("*/fit.json")
    assert fit.parent.name == same.parent.name, "the key of weights depends on no tracker"
    made, seen = (json.loads(path.read_text()) for path in (fit, same))
    assert made["digest"] == seen["digest"]
    for curve in ("loss", "validation_loss", "learning_rate"):
        assert made["training"][curve] == seen["training"][curve]

    folder, run_id = tmp_path / "tracked" / "reports" / "trackers", f"lora-0-{fit.parent.name[:8]}"
    loss, validation = made["training"]["loss"], made["training"]["validation_loss"]
    assert {name: one.error for name, one in read_seen(folder, run_id).items()} == dict.fromkeys(ALL, "")
    in_board = read_tensorboard(folder / "tensorboard" / "tiny" / run_id)
    run, history = read_mlflow(folder / "mlflow", run_id)
    in_wandb, figures = read_wandb(folder / "wandb", run_id)
    for of in (in_board.get, history, in_wandb.get):
        assert of("train/loss") == [(step, pytest.approx(value)) for step, value in loss]
        assert of("eval/loss") == [(step, pytest.approx(value)) for step, value in validation]
        assert len(of("train/learning_rate")) == len(loss)
        assert [step for step, _ in of("training/target")] == [15, 30]
    score = figures["target/exact_match"]
    assert run.data.metrics["target/exact_match"] == score
    assert in_board["target/exact_match"] == [(0, pytest.approx(score))]
    assert run.data.tags["verdict"] == figures["verdict"] != ""
    assert run.info.status == "FINISHED"
    assert run.data.params["learning_rate"] == "0.01"
    kept = {path.name for path in folder.rglob("*") if path.is_file() or path.is_symlink()}
    assert {"fit.json", "adapter_model.safetensors"} <= kept


def test_a_training_in_a_process_of_its_own_is_seen_and_needs_no_tracker_that_fails(
    tiny, tmp_path, monkeypatch
):
    """MLflow's server is down, and where TensorBoard would write is a file: W&B goes on, and the weights are the same."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    folder, digests = tmp_path / "trackers", []
    folder.mkdir()
    (folder / "tensorboard").write_text("a file where the folder would be")
    live = LiveRun("lora-0-abc", "lora", "tiny", folder, ALL, {"r": "2"})
    for name, seen_by in (("plain", None), ("seen", live)):
        tiny_methods.write_job(tiny, tmp_path / name, params=LORA, threads=1, live=seen_by)
        worker.launch(tmp_path / name, tiny_methods.ignore)
        digests.append(tiny_methods.read_fit(tmp_path / name)["digest"])
    assert digests[0] == digests[1]
    seen = read_seen(folder, "lora-0-abc")
    assert [bool(seen[name].error) for name in ALL] == [True, True, False]
    curves, _ = read_wandb(folder / "wandb", "lora-0-abc")
    assert [step for step, _ in curves["train/loss"]] == [*range(1, 13)]


def test_a_training_that_goes_on_from_a_checkpoint_goes_on_under_its_id(tmp_path):
    run = LiveRun("lora-0-abc", "lora", "tiny", tmp_path, ("tensorboard", "mlflow"), {"r": "2"})
    for resumed_at, steps in ((None, range(1, 8)), (5, range(6, 9))):
        with open_trackers(run, resumed_at) as send:
            for step in steps:
                send({"train/loss": 1 / step}, step)
    once = [(step, pytest.approx(1 / step)) for step in range(1, 9)]
    assert read_tensorboard(tmp_path / "tensorboard" / "tiny" / run.run_id)["train/loss"] == once
    _, history = read_mlflow(tmp_path / "mlflow", run.run_id)  # of one run
    assert sorted({*history("train/loss")}) == once
    with open_trackers(run, None) as send:  # trained anew, from nothing
        send({"train/loss": 3.0}, 1)
    assert read_tensorboard(tmp_path / "tensorboard" / "tiny" / run.run_id)["train/loss"] == [(1, 3.0)]
    assert read_mlflow(tmp_path / "mlflow", run.run_id)[1]("train/loss") == [(1, 3.0)]
