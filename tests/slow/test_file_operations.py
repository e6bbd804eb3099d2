"""A worker that is killed at any of its file operations leaves, after the next one, what an undisturbed one does.

Invariant: what is killed is killed by Python's own announcement of the operation (`sys.addaudithook`), before it
happens, or, where it opens a file to write, with that file begun and empty. No time decides.
"""

import json
import os
import shutil
import signal
import sys
import traceback
from graphlib import TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest
import tiny_experiment

from harness import config, store
from harness.evaluation.rows.row_sets import RunRequest
from harness.experiment import Scope, prepare_session
from harness.experiment.executors import job_runner
from harness.experiment.executors.work_plan import Job, plan_work
from harness.progress import Silent
from harness.store import Store

pytestmark = [pytest.mark.weekly, pytest.mark.usefixtures("own_cache")]

CANDIDATES = """\
  bag: {method: classifier}
  lora: {method: lora, params: {r: 2, max_length: 200, num_train_epochs: 1, per_device_train_batch_size: 15}}
"""
_CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate")


class Work(NamedTuple):
    """Jobs in the order of their needs, and the assignment that they belong to."""

    file: Path
    jobs: list[Job]
    controls: dict[str, str]


class Killer:
    """Hook that counts a process's file operations below a folder, and ends it at one of them.

    `begun` opens the file of that operation before the end, where it is one that writes.
    """

    def __init__(self, below: Path, at: int, begun: bool) -> None:
        self.below, self.at, self.begun, self.seen = f"{below}/", at, begun, 0

    def __call__(self, event: str, arguments: tuple[object, ...]) -> None:
        if event not in ("open", *_CHANGES) or not isinstance(arguments[0], str | os.PathLike):
            return
        path = os.path.abspath(arguments[0])  # noqa: PTH100 (pathlib announces itself)
        writes = event == "open" and bool(arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        if not path.startswith(self.below) or (event == "open" and not writes):
            return
        self.seen += 1
        if self.seen == self.at:
            if writes and self.begun:
                os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC))
            os.kill(os.getpid(), signal.SIGKILL)


def worked(asked: Work, below: Path, at: int = 0, *, begun: bool = False) -> int:
    """Do all jobs in a process of its own, killed at a file operation; returns how many there were, −1 of a kill."""
    listened, spoken = os.pipe()
    if (pid := os.fork()) == 0:
        try:
            killer = Killer(below, at, begun)
            sys.addaudithook(killer)
            for job in asked.jobs:
                outcome = job_runner.run_job(asked.file, job, asked.controls)
                assert outcome.error is None, outcome.error
            os.write(spoken, str(killer.seen).encode())
            os._exit(0)
        except BaseException:  # noqa: BLE001 (the parent hears of it)
            traceback.print_exc()
            os._exit(1)
    os.close(spoken)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with os.fdopen(listened) as heard:
        told = heard.read()
    assert code in (0, -signal.SIGKILL), f"ended with {code}"
    return int(told) if told else -1


def left(runs: Path) -> dict[str, object]:
    """Return what jobs left: the digests of weights, and every row but for its measured time."""
    rows = {
        file.parent.name: [
            {name: getattr(row, name) for name in row.__slots__ if name != "compute_s"}
            for row in store.read_rows(Store(runs), file.parent.name)
        ]
        for file in runs.glob("rows/*/rows.parquet")
    }
    weights = {
        file.parent.name: json.loads(file.read_text())["digest"] for file in runs.glob("weights/*/fit.json")
    }
    unfinished = [*runs.glob("rows/*/blocks"), *runs.glob("weights/*.part")]
    return {"rows": rows, "weights": weights, "unfinished": unfinished}


@pytest.fixture
def asked(tiny, tmp_path, monkeypatch):
    """Plan the jobs of a comparison, opened as a worker opens it."""
    import peft  # noqa: F401 (loaded once, before the processes part)
    import trl  # noqa: F401

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(tmp_path)
    job_runner._opened.clear()
    loaded = config.load(tiny_experiment.write(tmp_path, tiny, CANDIDATES))
    session = prepare_session(loaded, Scope(), Silent())
    requests = [RunRequest(session.candidates[name], 0) for name in loaded.selected]
    plan = plan_work(session, requests, 1)
    jobs = [job for job in TopologicalSorter(plan.needs).static_order() if job.kind != "control"]
    with job_runner.written_assignment(session, loaded, Scope(), 1) as file:
        job_runner._open_session(file)
        yield Work(file, jobs, {session.source.weights_digest: ""})


@pytest.mark.parametrize("below", ["rows", "weights"])
def test_a_worker_that_is_killed_at_any_of_its_file_operations_changes_nothing_that_is_left(asked, below):
    runs = asked.file.parents[1]
    operations = worked(asked, runs / below)
    expected = left(runs)
    assert operations > 10
    assert expected["rows"]
    assert expected["weights"]
    assert expected["unfinished"] == []
    for at in range(1, operations + 1):
        for begun in (False, True):
            shutil.rmtree(runs / below)  # the other stays: of weights that are there, rows alone are made
            assert worked(asked, runs / below, at, begun=begun) == -1
            assert worked(asked, runs / below) >= 0
            assert left(runs) == expected, f"killed at operation {at} of {operations}, begun: {begun}"
