"""MLflow: an experiment with a run each, on the server of MLFLOW_TRACKING_URI or in a file of SQLite.

Source: `mlflow.MlflowClient`; a run is found again by its tag `run_id`, and written again.
"""

import logging
import os
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from harness.report.trackers.tracked_run import TrackedRun

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

_NOT_A_NAME = re.compile(r"[^A-Za-z0-9_\-. :/]")  # what MLflow refuses in a metric's name
_AT_ONCE = 1_000  # metrics that a request may hold


def send(experiment: str, runs: Sequence[TrackedRun], folder: Path) -> str:
    """Send the runs in place of those of the same ids; return where the experiment is."""
    from mlflow import MlflowClient

    for noisy in ("mlflow", "alembic"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"  # it may hold a name and a password
    address = os.environ.get("MLFLOW_TRACKING_URI") or _name_own_file(folder)
    client = MlflowClient(address)
    found = client.get_experiment_by_name(experiment)
    files = None if "MLFLOW_TRACKING_URI" in os.environ else folder.absolute().as_uri()
    place = found.experiment_id if found else client.create_experiment(experiment, files)
    sent = [_send_run(client, place, run) for run in runs]
    for old in client.search_runs([place], max_results=50_000):
        if old.data.tags.get("run_id") in {run.run_id for run in runs} and old.info.run_id not in sent:
            client.delete_run(old.info.run_id)
    return f"experiment {experiment} on {address}"


def _name_own_file(folder: Path) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{folder.absolute() / 'mlflow.db'}"


def _send_run(client: "MlflowClient", place: str, run: TrackedRun) -> str:
    from mlflow.entities import Param, RunTag

    made: str = client.create_run(place, run_name=run.label).info.run_id
    metrics = list(_metrics(run))
    for first in range(0, len(metrics), _AT_ONCE):
        client.log_batch(made, metrics=metrics[first : first + _AT_ONCE])
    params = [Param(name, value) for name, value in run.params.items()]
    client.log_batch(made, params=params, tags=[RunTag(name, text) for name, text in run.tags.items()])
    client.set_terminated(made, "FINISHED" if run.tags["state"] == "done" else "FAILED")
    return made


def _metrics(run: TrackedRun) -> Iterator["Metric"]:
    from mlflow.entities import Metric

    now = int(1_000 * time.time())
    figures = {name: ((0, value),) for name, value in run.metrics.items()}
    for name, curve in {**figures, **run.curves}.items():
        for step, value in curve:
            yield Metric(_NOT_A_NAME.sub("_", name), value, now, step)
