"""Steps of the study, one per candidate of an experiment: which are finished, and the others' time."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import harness
from harness import config, experiment
from harness.cli.progress_bar import TerminalProgress
from harness.experiment import Scope, prepare_session
from harness.experiment import in_order
from harness.experiment.run_candidate import find_stored_runs
from harness.progress import SilentProgress
from harness.report import ExperimentReport


class Step(NamedTuple):
    """One candidate of an experiment with all its seeds, finished once each has succeeded or failed.

    `expected_s` excludes the base's answers.
    """

    file: Path
    candidate: str
    is_done: bool
    expected_s: float


def plan(file: Path) -> list[Step]:
    """List the steps of an experiment in a possible order; runs nothing."""
    loaded = config.load(file)
    session = prepare_session(loaded, Scope(dry_run=True), SilentProgress())
    requests = in_order(session.candidates, loaded.selected)
    stored_runs = find_stored_runs(session, requests)
    open_ = {
        request.candidate.name for request, run in zip(requests, stored_runs, strict=True) if run is None
    }
    estimates = experiment.Estimates(session)
    seconds = estimates.seconds(estimates.work(loaded.selected))
    names = dict.fromkeys(request.candidate.name for request in requests)
    return [Step(file, name, name not in open_, seconds[name]) for name in names]


def make(steps: Sequence[Step], n_workers: int) -> None:
    """Train and evaluate candidates of one file; resumes interrupted ones.

    Several workers use one thread each, which gives the rows of one process with one thread.
    """
    values = {"executor": "local", "workers": n_workers, "threads": 1} if n_workers > 1 else {}
    overrides = ["training.process=same", *(f"execution.{name}={value}" for name, value in values.items())]
    names = [step.candidate for step in steps]
    harness.compare(steps[0].file, overrides, names, progress=TerminalProgress())


def machine_of(file: Path) -> str:
    """Return what a row's answers depend on besides the weights: kind of machine, threads and precision."""
    machine = prepare_session(config.load(file), Scope(dry_run=True), SilentProgress()).machine
    return f"{machine.name}, {machine.precision}"


def report_done(file: Path, steps: Sequence[Step]) -> ExperimentReport | None:
    """Report the finished and failed candidates of an experiment, or None. Computes nothing."""
    finished = [step.candidate for step in steps if step.is_done and step.file == file]
    session = prepare_session(config.load(file), Scope(), SilentProgress())
    return experiment.report_stored(session, finished) if finished else None
