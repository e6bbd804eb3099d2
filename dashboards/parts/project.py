"""Stored results for the pages: runs, reports, the experiment's file, and the running command."""

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import streamlit as st

from harness import config, report, store
from harness.config import LoadedExperiment
from harness.errors import HarnessError
from harness.evaluation.session import Session
from harness.experiment import Scope, SentPrompt, find_sent_prompts, prepare_session, rescue_trials
from harness.experiment.rescue_trials import Rescue
from harness.experiment.verdict_records import renew_verdicts
from harness.metrics import Metric, load_metrics, mean_metric, metric_of_rows
from harness.progress import SilentProgress
from harness.records import Run, SampleResult
from harness.report import ExperimentReport
from harness.report.escape import clean
from harness.spec import Task
from harness.store import Store


def written_file() -> Path:
    """Return the experiment's file; its runs and reports are in the same folder."""
    return Path(os.environ.get("HARNESS_CONFIG") or "harness.yaml").resolve()


def runs_store() -> Store:
    """Return the stored runs of the displayed report; smoke runs have a separate folder."""
    folder = written_file().parent / "runs"
    return Store(folder / "smoke" if is_smoke() else folder, wait_s=2)


def shown() -> str:
    """Return the name of the displayed report: the address's, else the latest of the experiment's file.

    The experiment's own reports come before others, and full runs before smoke runs.
    """
    kept, loaded = _kept_reports(), experiment()
    wanted = str(st.query_params.get("experiment", ""))
    if wanted in kept:
        return wanted
    own = loaded.experiment.name if loaded else ""
    return min(kept, key=lambda name: (kept[name][0].experiment != own, kept[name][0].smoke), default="")


def is_smoke() -> bool:
    """Tell whether the displayed runs are only in the store of smoke runs."""
    folder = written_file().parent / "runs"
    if shown_report := _kept_reports().get(shown()):
        names = [f.run_id for f in shown_report[0].facts]
        full, smoke = (any((runs / n).exists() for n in names) for runs in (folder, folder / "smoke"))
    else:
        full, smoke = (any(runs.glob("*/run.json")) for runs in (folder, folder / "smoke"))
    return smoke and not full


def runs() -> list[Run]:
    """List the finished and failed runs, oldest first; only changed files are read again."""
    (previous,) = cache = _runs(str(runs_store().folder))
    files = _file_times(runs_store().folder.glob("*/run.json"))
    current = {}
    for file, modified_ns in files.items():
        unchanged = file in previous and previous[file][0] == modified_ns
        current[file] = previous[file] if unchanged else (modified_ns, store.read_run(file))
    cache[0] = current
    return sorted(
        (run for _, run in current.values() if run is not None), key=lambda run: (run.created, run.run_id)
    )


@st.cache_resource(show_spinner=False, max_entries=4)
def _runs(folder: str) -> list[dict[Path, tuple[int, Run | None]]]:
    """Cache each file's run with the time of the file's last change."""
    return [{}]


def reports() -> dict[str, ExperimentReport]:
    """Read the kept reports by name, the latest first; smoke reports have their own names.

    A gate or an fp32 confirmation by the file's policy may have renewed a verdict later.
    """
    loaded, read = experiment(), {}
    for name, (kept, written_ns) in _kept_reports().items():
        if loaded and loaded.experiment.name == kept.experiment:
            kept = renew_verdicts(runs_store(), kept, runs(), loaded.experiment, written_ns / 1e9)
        read[name] = kept
    return read


def unreadable_reports() -> list[str]:
    """List the errors of reports that cannot be read."""
    return [str(error) for error, _ in _read_reports() if isinstance(error, HarnessError)]


def _kept_reports() -> dict[str, tuple[ExperimentReport, int]]:
    """Map names to the kept reports as written, each with its time."""
    kept: dict[str, tuple[ExperimentReport, int]] = {}
    for each, written_ns in _read_reports():
        if isinstance(each, ExperimentReport):
            kept.setdefault(each.file_name, (each, written_ns))
    return kept


def _read_reports() -> list[tuple[Any, int]]:
    files = _file_times(report.kept_reports(written_file().parent / "reports"))
    return [(_read_file(str(file), time_ns, "report"), time_ns) for file, time_ns in files.items()]


def stamp() -> tuple[tuple[str, int], ...]:
    """List the files of runs and reports with the times of their last change."""
    here = written_file().parent
    files = (*runs_store().folder.glob("*/run.json"), *(here / "reports").glob("*.json"))
    return tuple(sorted((str(file), modified_ns) for file, modified_ns in _file_times(files).items()))


def _file_times(files: Iterable[Path]) -> dict[Path, int]:
    """Map files to the time of their last change; files removed meanwhile are left out."""
    times = {}
    for file in files:
        with suppress(OSError):
            times[file] = file.stat().st_mtime_ns
    return times


def rescues(shown_report: ExperimentReport) -> list[Rescue]:
    """Read the last rescue of each run in a report."""
    ids = {f.run_id for f in shown_report.facts}
    files = _file_times(
        rescue_trials.report_files(written_file().parent / "reports", shown_report.experiment)
    )
    read = (_read_file(str(file), modified_ns, "rescue") for file, modified_ns in files.items())
    return [each for each in read if each is not None and each.original.facts.run_id in ids]


@st.cache_resource(show_spinner=False, max_entries=250)
def _read_file(path: str, modified_ns: int, kind: str) -> Any:
    """Read a rescue, or a report, whose error is returned."""
    if kind == "rescue":
        return rescue_trials.read(Path(path))
    try:
        return report.read(Path(path))
    except HarnessError as error:
        return error


def experiment() -> LoadedExperiment | None:
    """Read the experiment's current file; None if it is missing or invalid."""
    loaded = _load_written()
    return loaded if isinstance(loaded, LoadedExperiment) else None


def list_problems() -> list[str]:
    """List the problems of the experiment's file; empty if it is valid or missing."""
    loaded = _load_written()
    return str(loaded).splitlines() if isinstance(loaded, HarnessError) else []


def _load_written() -> LoadedExperiment | HarnessError | None:
    file = written_file()
    return _experiment(str(file), file.stat().st_mtime_ns) if file.is_file() else None


@st.cache_resource(show_spinner=False, max_entries=8, ttl=60)
def _experiment(path: str, modified_ns: int) -> LoadedExperiment | HarnessError:
    try:
        return config.load(Path(path))
    except HarnessError as error:
        return error


def find_prompt(run: Run, task: str, item: str) -> SentPrompt | None:
    """Rebuild the prompt of a stored answer; None without an experiment's file.

    Raises:
        HarnessError: the current files cannot rebuild it.
    """
    loaded = experiment()
    if loaded is None:
        return None
    file = written_file()
    session = _session(str(file), file.stat().st_mtime_ns, loaded, is_smoke())
    return find_sent_prompts(session, run, task, [item])[item]


@st.cache_resource(show_spinner=False, max_entries=2, ttl=600)
def _session(path: str, modified_ns: int, _loaded: LoadedExperiment, quick: bool) -> Session:
    return prepare_session(_loaded, Scope(quick=quick, dry_run=True), SilentProgress())


def champion_ids() -> dict[str, store.Champion]:
    """Map run ids to champions."""
    try:
        return {champion.run_id: champion for champion in store.champions(written_file().parent)}
    except HarnessError:
        return {}


def find_at_work() -> dict[str, Any] | None:
    """Return the progress of the command that is using the runs folder, with its name; None without one."""
    activity = store.current_activity(runs_store())
    if activity is None:
        return None
    # A starting command, or one that removes a run, gives no name.
    return {**activity, "what": clean(str(activity.get("what", "Another command")))}


def task(name: str) -> Task | None:
    """Return a task of the experiment's current file."""
    loaded = experiment()
    if loaded is None:
        return None
    return next((task for task in loaded.experiment.tasks if task.name == name), None)


def metric(task_name: str, name: str) -> Metric:
    """Return a metric of a task; if task and metric are unknown, a mean in [0, 1]."""
    written = task(task_name)
    with suppress(HarnessError):
        if written is not None and not written.lm_eval and name in (metrics := load_metrics(written)):
            return metrics[name]
    stored = (run.metrics.get(task_name, {}).get(name) for run in runs())
    return metric_of_rows(name, next(filter(None, stored), None)) or mean_metric(name, lambda *_: None)


def row_set_times(*digests: str) -> tuple[int, ...]:
    """Return when row sets last changed; an incomplete one grows under the same digest."""
    times = _file_times(paths := [runs_store().parquet(digest) for digest in digests])
    return tuple(times.get(path, 0) for path in paths)


def label_times() -> tuple[int, ...]:
    """Return the times of people's labels, which change the comparisons that they correct."""
    return tuple(sorted(_file_times((runs_store().folder / "labels").glob("*.json")).values()))


def read_scored_rows(digest: str) -> list[SampleResult]:
    """Read the fields of a row set that a comparison needs."""
    return _read_scored_rows(str(runs_store().folder), digest, row_set_times(digest))


@st.cache_resource(show_spinner=False, max_entries=16)  # each may hold 10,000 items
def _read_scored_rows(folder: str, digest: str, changed: tuple[int, ...]) -> list[SampleResult]:
    return store.read_rows(Store(Path(folder)), digest, texts=False)
