"""A process killed at any of its file operations and run again leaves the results of an undisturbed one."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import tiny_experiment
from tiny_experiment import read_all_rows

from harness import config
from harness.evaluation.row_sets import RunRequest
from harness.experiment import Scope, prepare_session, step_worker
from harness.experiment.executors import plan_for_workers, write_assignment
from harness.experiment.step_worker import Outcome
from harness.progress import SilentProgress

CANDIDATES = """\
  bag: {method: classifier}
  lora: {method: lora, params: {r: 2, max_length: 200, num_train_epochs: 1, per_device_train_batch_size: 15}}
"""


class Process(NamedTuple):
    """A process that works in a folder, and a function that deletes its results so that it starts anew."""

    run: Callable[[dict[str, object] | None], int]
    folder: Path
    anew: Callable[[], None]


@pytest.fixture
def folder(tiny, own_cache, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(tmp_path)
    tiny_experiment.write(tmp_path, tiny, CANDIDATES)
    return tmp_path


@pytest.fixture
def command(command_driver, folder):
    """Return the command, which does a whole comparison itself."""

    def run(killed):
        return command_driver.run(folder, "compare", killed=killed)

    return Process(run, folder, lambda: shutil.rmtree(folder / "runs"))


@pytest.fixture
def worker(command_driver, folder):
    """Return a worker that does all steps of a plan except the control arm, which would measure its time."""
    loaded = config.load(folder / "harness.yaml")
    session = prepare_session(loaded, Scope(), SilentProgress())
    plan = plan_for_workers(session, [RunRequest(session.candidates[name], 0) for name in loaded.selected], 1)
    file = step_worker.name_assignment(session.store)

    def begin():
        file.with_name(step_worker.JOURNAL).unlink(missing_ok=True)
        journal = write_assignment(file, session, loaded, Scope(), plan, 1)
        journal.note("ended", next(step for step in plan.needs if step.kind == "control"), Outcome())

    def clear_runs():
        for subfolder in ("rows", "weights"):
            shutil.rmtree(folder / "runs" / subfolder)
        begin()

    begin()
    return Process(
        lambda killed: command_driver.run(folder, "worker", str(file), killed=killed), folder, clear_runs
    )


def read_results(folder: Path) -> dict[str, object]:
    """Return a process's results: runs, weights, and every row without its measured time."""
    runs = folder / "runs"
    weights = {
        file.parent.name: json.loads(file.read_text())["digest"] for file in runs.glob("weights/*/fit.json")
    }
    unfinished = [*runs.glob("rows/*/blocks"), *runs.glob("weights/*.part")]
    names = {file.parent.name for file in runs.glob("*/run.json")}
    return {"rows": read_all_rows(folder), "weights": weights, "runs": names, "unfinished": unfinished}


def read_output(process: Process) -> str:
    return (process.folder / "said.txt").read_text()


def run_undisturbed(process: Process) -> tuple[list[tuple[int, bool]], dict[str, object]]:
    """Let a process finish; return the operations at which it can be killed, and its results."""
    # These are all of its file operations; those that open a file to write count twice, before and after
    # the opening.
    counted = process.folder / "counted"
    killed = {"below": str(process.folder / "runs"), "counted": str(counted)}
    assert process.run(killed) == 0, read_output(process)
    operations, results = counted.read_text(), read_results(process.folder)
    assert len(operations) > 50
    assert results["rows"]
    assert len(results["weights"]) == 2
    assert results["unfinished"] == []
    states = {"w": (False, True), "x": (False,)}
    return [(at, is_begun) for at, kind in enumerate(operations, 1) for is_begun in states[kind]], results


def hold_to(process: Process, at: int, is_begun: bool, expected: dict[str, object]) -> None:
    """Kill a process at an operation, let the next one finish, and compare the results."""
    process.anew()
    killed = {"below": str(process.folder / "runs"), "at": at, "begun": is_begun}
    assert process.run(killed) == -9, f"not killed at operation {at}: {read_output(process)}"
    assert process.run(None) == 0, f"killed at operation {at}, begun: {is_begun}: {read_output(process)}"
    assert read_results(process.folder) == expected, f"killed at operation {at}, begun: {is_begun}"


@pytest.fixture(params=["command", "worker"])
def process(request):
    return request.getfixturevalue(request.param)


@pytest.mark.slow
@pytest.mark.parametrize("n_drawn", [2, pytest.param(20, marks=pytest.mark.weekly)])
def test_a_process_that_is_killed_at_some_of_its_file_operations_changes_nothing_that_is_left(
    process, n_drawn
):
    moments, expected = run_undisturbed(process)
    for at, is_begun in random.Random(3).sample(moments, n_drawn):
        hold_to(process, at, is_begun, expected)
