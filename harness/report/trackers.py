"""Trackers of results: TensorBoard, MLflow and W&B.

Invariant: runs are identified by id, so sending a report again updates them. A failing tracker adds a note,
and loses no result. Scores and differences are in the metric's unit, a rate in [0, 1].
"""

import glob
import shutil
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from importlib.util import find_spec
from math import isfinite
from pathlib import Path

from harness.analysis.candidate_facts import best_untrained
from harness.analysis.estimators import Comparison, Estimate
from harness.errors import Problem
from harness.masking import mask_secrets
from harness.records import SERVING, Curve, TrainingRecord
from harness.report.experiment_report import ExperimentReport
from harness.report.wording import SMOKE, best_first, find_shown_figure, last_line, verdict_word
from harness.store import ChampionEntry
from harness.training import live_trackers

FOLDER = "trackers"  # next to the reports
ALIAS = "champion"
# Curves by their names in trackers; transformers' name if it has one.
_CURVES = {f.name: f"training/{f.name}" for f in fields(TrainingRecord) if f.type is Curve} | {
    "loss": "train/loss",
    "learning_rate": "train/learning_rate",
    "token_accuracy": "train/mean_token_accuracy",
    "validation_loss": "eval/loss",
    "validation_token_accuracy": "eval/mean_token_accuracy",
}
_LARGEST = 100e6  # most bytes of weights that are sent
_FIGURES = (*(figure.name for figure in SERVING), "training_cost_usd")
Point = tuple[int, float]
_AT_ONCE = 1_000  # metrics that a request may hold
_OF_REPORT = ".report"  # suffix of event files; those without it were written during training


def problems(names: Iterable[str]) -> Iterator[Problem]:
    """Yield each tracker whose package is not installed."""
    for name in names:
        if find_spec(name) is None:
            step = "pip install 'harness-evals[tracking]', or leave it out of report_to"
            yield Problem("report_to", f"{name}, and no package {name}", "an installed tracker", step)


def send(
    report: ExperimentReport, names: Sequence[str], folder: Path, weights: Callable[[str], Path] | None = None
) -> list[str]:
    """Send a report's runs to trackers in `folder`, weights by key; return links, or why sending failed."""
    runs = list_tracked_runs(report, folder / FOLDER, weights)
    experiment = f"{report.experiment}-smoke" if report.smoke else report.experiment
    senders = {"tensorboard": send_to_tensorboard, "mlflow": send_to_mlflow, "wandb": send_to_wandb}
    links = []
    for name in names:
        try:
            link = senders[name](experiment, runs, folder / FOLDER / name)
        except Exception as error:  # noqa: BLE001  (a server of somebody else's: any kind)
            text = _first_line(error)
            link = f"the results were not sent ({text}); next: harness report, which sends them again"
        links.append(f"{name}: {mask_secrets(link)}")
        missed = {run.label: run.seen.get(name, live_trackers.Seen()).error for run in runs}
        links += [
            f"{name} did not see all of the training of {label}: {why}"
            for label, why in missed.items()
            if why
        ]
    return links


def _first_line(error: Exception) -> str:
    return traceback.format_exception_only(error)[-1].strip().splitlines()[0]


@dataclass(frozen=True, slots=True)
class TrackedRun:
    """Run of a candidate: texts, figures, curves of (step, value), files, and what trackers saw of it."""

    label: str
    run_id: str
    params: dict[str, str]
    tags: dict[str, str]
    metrics: dict[str, float]
    curves: dict[str, tuple[Point, ...]]
    seen: dict[str, live_trackers.Seen]
    files: tuple[Path, ...] = ()

    def saw_whole(self, tracker: str) -> bool:
        """Tell whether a tracker saw the training to its end."""
        return tracker in self.seen and not self.seen[tracker].error

    def points(self, tracker: str) -> dict[str, tuple[Point, ...]]:
        """Return by name the figures, at step 0, and the curves that a tracker has not seen."""
        seen_names = self.seen[tracker].names if self.saw_whole(tracker) else ()
        figures = {name: ((0, value),) for name, value in self.metrics.items()}
        return figures | {name: curve for name, curve in self.curves.items() if name not in seen_names}


def list_tracked_runs(
    report: ExperimentReport, folder: Path, weights: Callable[[str], Path] | None = None
) -> list[TrackedRun]:
    """List the runs of a report, best first; `folder` is that of the trackers."""
    runs = []
    for f in best_first(report):
        params = {"base_model": report.base_model, "method": f.method, "prompting": f.prompting}
        params |= {"answer": f.answer, "seed": str(f.seed), "n_train": str(f.n_train)}
        tags = {"experiment": report.experiment, "run_id": f.run_id, "state": f.state}
        tags |= {"verdict": verdict_word(f), "decision": last_line(report)}
        tags |= {"verdict_reason": f.verdict.sentence} if f.verdict else {}
        tags |= {"error": f.error} if f.error else {}
        tags["evidence"] = SMOKE if report.smoke else "measured"
        key = f.training.fit_key
        run_id = live_trackers.make_live_id(f.name, f.seed, key) if key else f.run_id
        files = _list_files(weights(key)) if key and weights else ()
        seen_by_tracker = live_trackers.read_seen(folder, run_id)
        raw_curves = {name: getattr(f.training, field) for field, name in _CURVES.items()}
        points = f.training.tracked
        raw_curves["training/target"] = tuple((p.step, p.target) for p in points)
        raw_curves["training/forgetting"] = tuple((p.step, p.capability) for p in points)
        curves = {}
        for name, curve in raw_curves.items():
            if numbers := tuple((int(step), float(v)) for step, v in curve if v is not None and isfinite(v)):
                curves[name] = numbers
        disturbed = f.speed.disturbed
        figures = {name: None if name in disturbed else find_shown_figure(f, name) for name in _FIGURES}
        figures |= _interval(f"target/{report.metric}", f.target)
        if f.label != best_untrained(report.facts):
            figures |= _interval("target/vs_best_untrained", f.vs_untrained)
        if f.verdict:
            figures |= _interval("forgetting/macro", f.verdict.macro)
            figures |= {"forgetting/items_lost": f.verdict.lost, "forgetting/items_gained": f.verdict.gained}
        for c in report.comparisons.get(f.label, ()):
            figures |= _interval(f"forgetting/{c.task}/{c.metric}", c)
        for measured in fields(f.training):
            value = getattr(f.training, measured.name)
            if isinstance(value, int | float) and not isinstance(value, bool):
                figures[f"training/{measured.name}"] = value
        metrics = {name: float(v) for name, v in figures.items() if v is not None and isfinite(v)}
        runs.append(TrackedRun(f.label, run_id, params, tags, metrics, curves, seen_by_tracker, files))
    return runs


def _list_files(folder: Path) -> tuple[Path, ...]:
    files = [path for path in sorted(folder.glob("*")) if path.is_file()]
    files += [path for path in sorted(folder.glob("*/*")) if path.is_file()]
    is_large = sum(path.stat().st_size for path in files) > _LARGEST
    return tuple(path for path in files if not is_large or path.parent == folder)


def _interval(name: str, e: Estimate | Comparison | None) -> dict[str, float | None]:
    if e is None:
        return {}
    return {
        name: e.delta if isinstance(e, Comparison) else e.score,
        f"{name}/low": e.low,
        f"{name}/high": e.high,
    }


def register_champion(target: str, present: ChampionEntry | None, folder: Path) -> str:
    """Set MLflow's alias `champion` of `target` to this promotion, or delete it; return what was done."""
    try:
        client, address = live_trackers.open_mlflow(folder / FOLDER / "mlflow")
        if not any(m.name == target for m in client.search_registered_models(f"name = '{target}'")):
            client.create_registered_model(target)
        if present is None:
            client.delete_registered_model_alias(target, ALIAS)
            return mask_secrets(f"mlflow: no version of {target} is the {ALIAS} on {address}")
        tags = {"run_id": present.champion.run_id, "promotion": str(present.number)}
        tags |= {"weights_digest": present.champion.weights_digest, "verdict": present.champion.verdict}
        versions = client.search_model_versions(f"name = '{target}'")
        version = next((v.version for v in versions if {**v.tags, **tags} == v.tags), None)
        source = f"harness:{present.champion.run_id}"  # the weights stay in the store
        version = version or client.create_model_version(target, source, tags=tags).version
        client.set_registered_model_alias(target, ALIAS, str(version))
    except Exception as error:  # noqa: BLE001  (a server of somebody else's: any kind)
        text = f"{_first_line(error)}); the next promotion or rollback registers it"
        return mask_secrets(f"mlflow: the champion was not registered ({text}")
    return mask_secrets(f"mlflow: version {version} of {target} is the {ALIAS} on {address}")


def send_to_mlflow(experiment: str, runs: Sequence[TrackedRun], folder: Path) -> str:
    """Send runs to the server of MLFLOW_TRACKING_URI, else to SQLite; return where the experiment is."""
    from mlflow.entities import Metric, Param, RunTag

    client, address = live_trackers.open_mlflow(folder)
    exp_id = live_trackers.find_mlflow_experiment(client, experiment, folder)
    for run in runs:
        copy = live_trackers.find_mlflow_run(client, exp_id, run.run_id)
        if copy and any(copy.data.params.get(name, value) != value for name, value in run.params.items()):
            client.delete_run(copy.info.run_id)
            copy = None
        copy = copy or client.create_run(exp_id, run_name=run.label, tags={live_trackers.LIVE_ID: run.run_id})
        run_id, logged_metrics, now = copy.info.run_id, copy.data.metrics, int(1_000 * time.time())
        metrics = [
            Metric(metric_name, value, now, step)
            for name, points in run.points("mlflow").items()
            if logged_metrics.get(metric_name := live_trackers.clean_metric_name(name)) != points[-1][1]
            for step, value in points
        ]
        for first in range(0, len(metrics), _AT_ONCE):
            client.log_batch(run_id, metrics=metrics[first : first + _AT_ONCE])
        params = [Param(name, value) for name, value in run.params.items()]
        client.log_batch(run_id, params=params, tags=[RunTag(name, text) for name, text in run.tags.items()])
        if run.files and not client.list_artifacts(run_id):
            for path in run.files:
                client.log_artifact(run_id, str(path))
        client.set_terminated(run_id, "FINISHED" if run.tags["state"] == "done" else "FAILED")
    return f"experiment {experiment} on {address}"


def send_to_tensorboard(experiment: str, runs: Sequence[TrackedRun], folder: Path) -> str:
    """Write these runs' event files again; return the command that shows them."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.text import metadata
    from tensorboard.summary.writer.event_file_writer import EventFileWriter
    from tensorboard.util.tensor_util import make_tensor_proto

    log_folder = folder / experiment
    for run in runs:
        run_folder = log_folder / (run.run_id if run.seen else run.label)
        if run.saw_whole("tensorboard"):
            for old in run_folder.glob(f"*{_OF_REPORT}"):
                old.unlink()
        else:
            shutil.rmtree(run_folder, ignore_errors=True)
        writer, now = EventFileWriter(str(run_folder), filename_suffix=_OF_REPORT), time.time()
        for name, points in run.points("tensorboard").items():
            for step, value in points:
                scalar = Summary(value=[Summary.Value(tag=name, simple_value=value)])
                writer.add_event(Event(wall_time=now, step=step, summary=scalar))
        for name, text in {**run.params, **run.tags}.items():
            plain = metadata.create_summary_metadata(display_name=name, description="")
            entry = Summary.Value(tag=name, metadata=plain, tensor=make_tensor_proto(text))
            writer.add_event(Event(wall_time=now, step=0, summary=Summary(value=[entry])))
        writer.close()
    return f"tensorboard --logdir {log_folder}"


def send_to_wandb(experiment: str, runs: Sequence[TrackedRun], folder: Path) -> str:
    """Send runs; return the project's address, or with WANDB_MODE=offline the command that sends them."""
    url = None
    for run in runs:
        later_parts = ["-?"] * bool(run.seen)  # of a training that paused, begun in the same second
        for end in ("", *later_parts):
            for earlier in folder.glob(f"wandb/offline-run-????????_??????-{glob.escape(run.run_id)}{end}"):
                shutil.rmtree(earlier)
        with live_trackers.begin_wandb_run(run.run_id, run.label, experiment, run.params, folder) as sent:
            by_step: defaultdict[int, dict[str, float]] = defaultdict(dict)
            for name, points in (run.curves if sent.offline else run.points("wandb")).items():
                for step, value in points if name in run.curves else ():
                    by_step[step][name] = value
            for step in sorted(by_step):
                sent.log(by_step[step], step=step)
            sent.summary.update({**run.metrics, **run.tags})
            for path in run.files:
                sent.save(str(path), base_path=str(path.parent), policy="now")
            if not sent.offline:
                url = sent.project_url
    return url or f"wandb sync --sync-all, in {folder}"
