"""What there is to show: runs, reports, the experiment as written, and the comparison at work.

Invariant: reads files only, each once until it changes, and takes no lock but to see whether somebody
works; so whoever writes never waits for a page.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import streamlit as st

from harness import config, report, store
from harness.config import Loaded
from harness.errors import HarnessError
from harness.metrics import Metric, load_metrics, mean_metric
from harness.records import Run, SampleResult
from harness.release import Champion
from harness.release.champions import champions
from harness.report import ExperimentReport
from harness.spec import Task, TaskData
from harness.store import Columns, Store


@dataclass(frozen=True)
class Project:
    """The folder of an experiment's file; its runs and reports lie beside it."""

    file: Path

    @property
    def store(self) -> Store:
        """The stored runs."""
        return Store(self.file.parent / "runs", wait_s=20)


def project() -> Project:
    """Return what `harness dashboard` was asked to show."""
    return Project(Path(os.environ.get("HARNESS_CONFIG") or "harness.yaml").resolve())


def runs() -> list[Run]:
    """List the finished and failed runs, oldest first."""
    files = sorted(project().store.folder.glob("*/run.json"))
    return _runs(str(project().store.folder), tuple((str(f), f.stat().st_mtime_ns) for f in files))


@st.cache_resource(show_spinner=False, max_entries=4)
def _runs(folder: str, files: tuple[tuple[str, int], ...]) -> list[Run]:
    found, _ = store.runs_on_disk(Store(Path(folder)))
    return sorted(found, key=lambda run: (run.created, run.run_id))


def reports() -> dict[str, ExperimentReport]:
    """Read the kept reports by name, the latest first; a smoke report is one of its own."""
    found: dict[str, ExperimentReport] = {}
    for path in report.kept_reports(project().file.parent / "reports"):
        try:
            one = _report(str(path), path.stat().st_mtime_ns)
        except (HarnessError, OSError):
            continue
        found.setdefault(one.file_name, one)
    return found


def stamp() -> tuple[tuple[str, int], ...]:
    """Name the files of runs and reports with the times of their last change."""
    here = project().file.parent
    files = (*project().store.folder.glob("*/run.json"), *(here / "reports").glob("*.json"))
    return tuple(sorted((file.name, file.stat().st_mtime_ns) for file in files))


@st.cache_resource(show_spinner=False, max_entries=200)
def _report(path: str, modified_ns: int) -> ExperimentReport:
    return report.read(Path(path))


def experiment() -> Loaded | None:
    """Read the experiment as it is written now; None where there is none that can be used."""
    file = project().file
    return _experiment(str(file), file.stat().st_mtime_ns) if file.is_file() else None


@st.cache_resource(show_spinner=False, max_entries=8, ttl=60)
def _experiment(path: str, modified_ns: int) -> Loaded | None:
    try:
        return config.load(Path(path))
    except HarnessError:
        return None


def champion_ids() -> dict[str, Champion]:
    """Map the runs that are champions to what was promoted."""
    try:
        return {champion.run_id: champion for champion in champions(project().file.parent)}
    except HarnessError:
        return {}


def at_work() -> dict[str, Any] | None:
    """Say where the comparison is that works right now; None where none does."""
    return store.at_work(project().store)


def task(name: str) -> Task | None:
    """Find a task of the experiment as it is written now."""
    loaded = experiment()
    if loaded is None:
        return None
    of = loaded.experiment
    named = {t.name: t for t in (of.target, *(t for suite in of.suites for t in suite.tasks))}
    return named.get(name)


def metric(task_name: str, name: str) -> Metric:
    """Build a metric of a task; where neither the task nor the metric is known, a mean in [0, 1]."""
    written = task(task_name)
    for one in (written, Task(name="unknown", data=TaskData(), metrics=(name,))):
        try:
            if one is not None and not one.lm_eval and name in (made := load_metrics(one)):
                return made[name]
        except HarnessError:
            continue
    return mean_metric(name, lambda output, example: None)


@st.cache_resource(show_spinner=False, max_entries=512)
def _scored(folder: str, digest: str, modified_ns: int) -> list[SampleResult]:
    return store.read_rows(Store(Path(folder)), digest, texts=False)


def scored(digest: str) -> list[SampleResult]:
    """Read the rows of a set without their texts."""
    path = project().store.parquet(digest)
    return _scored(str(project().store.folder), digest, path.stat().st_mtime_ns if path.exists() else 0)


@st.cache_resource(show_spinner=False, max_entries=32)
def columns(digests: tuple[str, ...], metric_name: str) -> dict[str, Columns]:
    """Read what ranks and scores of many row sets need, all at once."""
    return store.read_columns(project().store, digests, metric_name)


def base_rows(run: Run, key: str) -> str | None:
    """Find the row set of the run's base on the same task; None where it is not there."""
    from dataclasses import replace

    if key not in run.rows:
        return None
    try:
        own = store.read_identity(project().store, run.rows[key])
    except (HarnessError, OSError):
        return None
    digest = replace(own, weights_digest=run.base_digest).digest
    return digest if project().store.parquet(digest).exists() else None
