"""What there is to show: runs, reports, the experiment as written, and the command at work.

Invariant: reads files only, each once until it changes, and takes no lock but to see whether somebody
works; so a writer never waits for a page.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import streamlit as st

from harness import config, report, store
from harness.config import LoadedExperiment
from harness.errors import HarnessError
from harness.evaluation.session import Session
from harness.experiment import Scope, SentPrompt, find_sent_prompts, prepare_session, renew_verdicts
from harness.lifecycle import rescue
from harness.lifecycle.rescue import Rescue
from harness.metrics import Metric, load_metrics, mean_metric, metric_of_rows
from harness.progress import SilentProgress
from harness.records import Run, SampleResult
from harness.report import ExperimentReport
from harness.report.escape import clean
from harness.spec import Task
from harness.store import Store


@dataclass(frozen=True)
class Project:
    """The folder of an experiment's file; its runs and reports lie beside it."""

    file: Path

    @property
    def store(self) -> Store:
        """The stored runs: those of the report that is shown, which a smoke run keeps apart."""
        folder = self.file.parent / "runs"
        return Store(folder / "smoke" if is_smoke() else folder, wait_s=2)


def project() -> Project:
    """Return what `harness dashboard` is to show."""
    return Project(Path(os.environ.get("HARNESS_CONFIG") or "harness.yaml").resolve())


def shown() -> str:
    """Name the report that is shown: that of the address, else the latest of the experiment's file.

    Reports of other experiments come after its own, and smoke runs after whole ones.
    """
    found, loaded = _kept_reports(), experiment()
    wanted = str(st.query_params.get("experiment", ""))
    if wanted in found:
        return wanted
    own = loaded.experiment.name if loaded else ""
    return min(found, key=lambda name: (found[name][0].experiment != own, found[name][0].smoke), default="")


def is_smoke() -> bool:
    """Tell whether the runs of what is shown lie in the store of smoke runs, and not in the other one."""
    folder = project().file.parent / "runs"
    if shown_report := _kept_reports().get(shown()):
        names = [f.run_id for f in shown_report[0].facts]
        there, smoke = (any((at / n).exists() for n in names) for at in (folder, folder / "smoke"))
    else:
        there, smoke = (any(at.glob("*/run.json")) for at in (folder, folder / "smoke"))
    return smoke and not there


def runs() -> list[Run]:
    """List the finished and failed runs, oldest first; only files that have changed are read again."""
    (before,) = kept = _runs(str(project().store.folder))
    files = _file_times(project().store.folder.glob("*/run.json"))
    known = {}
    for file, modified_ns in files.items():
        unchanged = file in before and before[file][0] == modified_ns
        known[file] = before[file] if unchanged else (modified_ns, store.read_run(file))
    kept[0] = known
    return sorted(
        (run for _, run in known.values() if run is not None), key=lambda run: (run.created, run.run_id)
    )


@st.cache_resource(show_spinner=False, max_entries=4)
def _runs(folder: str) -> list[dict[Path, tuple[int, Run | None]]]:
    """Keep what was read of each file, with the time of its last change."""
    return [{}]


def reports() -> dict[str, ExperimentReport]:
    """Read the kept reports by name, the latest first; a smoke report is one of its own."""
    return {name: _renew_verdicts(*one) for name, one in _kept_reports().items()}


def unreadable_reports() -> list[str]:
    """List why files that look like reports are not shown, and what to do."""
    return [str(error) for error, _ in _read_reports() if isinstance(error, HarnessError)]


def _kept_reports() -> dict[str, tuple[ExperimentReport, int]]:
    """Map the kept reports by name as they were written, each with when it was."""
    found: dict[str, tuple[ExperimentReport, int]] = {}
    for kept, written_ns in _read_reports():
        if isinstance(kept, ExperimentReport):
            found.setdefault(kept.file_name, (kept, written_ns))
    return found


def _read_reports() -> Iterator[tuple[ExperimentReport | HarnessError, int]]:
    """Yield each kept report, or why it cannot be read, with the time of its last change."""
    files = _file_times(report.kept_reports(project().file.parent / "reports"))
    yield from ((_report(str(file), modified_ns), modified_ns) for file, modified_ns in files.items())


def stamp() -> tuple[tuple[str, int], ...]:
    """Name the files of runs and reports with the times of their last change."""
    here = project().file.parent
    files = (*project().store.folder.glob("*/run.json"), *(here / "reports").glob("*.json"))
    return tuple(sorted((str(file), modified_ns) for file, modified_ns in _file_times(files).items()))


def _file_times(files: Iterable[Path]) -> dict[Path, int]:
    """Map files to the time of their last change; one that was just removed is left out."""
    found = {}
    for file in files:
        with suppress(OSError):
            found[file] = file.stat().st_mtime_ns
    return found


def _renew_verdicts(kept: ExperimentReport, written_ns: int) -> ExperimentReport:
    """Take the verdicts that a gate or a confirmation in fp32 made by the file's policy after a report."""
    loaded = experiment()
    if loaded is None or loaded.experiment.name != kept.experiment:
        return kept
    return renew_verdicts(project().store, kept, runs(), loaded.experiment, written_ns / 1e9)


@st.cache_resource(show_spinner=False, max_entries=200)
def _report(path: str, modified_ns: int) -> ExperimentReport | HarnessError:
    try:
        return report.read(Path(path))
    except HarnessError as error:
        return error


def rescues(of: ExperimentReport) -> list[Rescue]:
    """Read the last rescue of each run that a report is about."""
    ids = {f.run_id for f in of.facts}
    files = _file_times(rescue.report_files(project().file.parent / "reports", of.experiment))
    found = (_rescue(str(file), modified_ns) for file, modified_ns in files.items())
    return [one for one in found if one is not None and one.original.facts.run_id in ids]


@st.cache_resource(show_spinner=False, max_entries=50)
def _rescue(path: str, modified_ns: int) -> Rescue | None:
    return rescue.read(Path(path))


def experiment() -> LoadedExperiment | None:
    """Read the experiment as it is written now; None where there is none that can be used."""
    found = _load_written()
    return found if isinstance(found, LoadedExperiment) else None


def list_problems() -> list[str]:
    """List what keeps the experiment's file from being used; empty where it can be, or is not there."""
    found = _load_written()
    return str(found).splitlines() if isinstance(found, HarnessError) else []


def _load_written() -> LoadedExperiment | HarnessError | None:
    file = project().file
    return _experiment(str(file), file.stat().st_mtime_ns) if file.is_file() else None


@st.cache_resource(show_spinner=False, max_entries=8, ttl=60)
def _experiment(path: str, modified_ns: int) -> LoadedExperiment | HarnessError:
    try:
        return config.load(Path(path))
    except HarnessError as error:
        return error


def find_prompt(run: Run, task: str, item: str) -> SentPrompt | None:
    """Make the prompt of a stored answer again; None where no experiment is written whose files make it.

    Raises:
        HarnessError: the files as they are now do not make it.
    """
    loaded = experiment()
    if loaded is None:
        return None
    file = project().file
    session = _session(str(file), file.stat().st_mtime_ns, loaded, is_smoke())
    return find_sent_prompts(session, run, task, [item])[item]


@st.cache_resource(show_spinner=False, max_entries=2, ttl=600)
def _session(path: str, modified_ns: int, _loaded: LoadedExperiment, quick: bool) -> Session:
    return prepare_session(_loaded, Scope(quick=quick, dry_run=True), SilentProgress())


def champion_ids() -> dict[str, store.Champion]:
    """Map the runs that are champions to what was promoted."""
    try:
        return {champion.run_id: champion for champion in store.champions(project().file.parent)}
    except HarnessError:
        return {}


def find_at_work() -> dict[str, Any] | None:
    """Say where the command is that works in the runs right now; None where none does."""
    return store.current_activity(project().store)


def worker(at: dict[str, Any]) -> str:
    """Name what is at work; what removes a run, or begins only, has not said."""
    return clean(str(at.get("what", "Another command")))


def task(name: str) -> Task | None:
    """Find a task of the experiment as it is written now."""
    loaded = experiment()
    if loaded is None:
        return None
    return next((one for one in loaded.experiment.tasks if one.name == name), None)


def metric(task_name: str, name: str) -> Metric:
    """Build a metric of a task; where neither the task nor the metric is known, a mean in [0, 1]."""
    written = task(task_name)
    with suppress(HarnessError):
        if written is not None and not written.lm_eval and name in (made := load_metrics(written)):
            return made[name]
    known = (run.metrics.get(task_name, {}).get(name) for run in runs())
    return metric_of_rows(name, next(filter(None, known), None)) or mean_metric(name, lambda *_: None)


def row_set_times(*digests: str) -> tuple[int, ...]:
    """Return when row sets last changed: one with a part of its items grows under its digest."""
    known = _file_times(paths := [project().store.parquet(digest) for digest in digests])
    return tuple(known.get(path, 0) for path in paths)


def label_times() -> tuple[int, ...]:
    """Return when people's labels came, as a comparison that they correct changes with them."""
    return tuple(sorted(_file_times((project().store.folder / "labels").glob("*.json")).values()))


def read_scored_rows(digest: str, metric_name: str) -> list[SampleResult]:
    """Read the rows of a set as far as a comparison by one metric needs them."""
    return _read_scored_rows(str(project().store.folder), digest, metric_name, row_set_times(digest))


@st.cache_resource(show_spinner=False, max_entries=16)  # each may hold 10,000 items
def _read_scored_rows(
    folder: str, digest: str, metric_name: str, changed: tuple[int, ...]
) -> list[SampleResult]:
    return store.read_scores(Store(Path(folder)), digest, metric_name)
