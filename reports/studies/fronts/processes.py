"""Processes that share a GPU, which a small model leaves idle: each makes steps in its own folder.

Invariant: each step is made by the process that took it from the queue; stored results are copied into the
study's folder when all processes have ended, so that an interrupted call can be resumed.
NVIDIA's Multi-Process Service, if it is running, executes their kernels concurrently.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from reports.studies.fronts.experiments import prepare_tasks, prepare_ways
from reports.studies.fronts.plan import Step, make

_STORE = "runs"  # next to each experiment's file
_INDEX = ("harness.duckdb*", "*.lock")  # a store rebuilds these


def make_in_processes(steps: Sequence[Step], folder: Path, chosen: Sequence[str], n: int) -> None:
    """Make steps of the study in `n` processes, and copy their results to its folder.

    `chosen` are the ways of the second stage; each process writes their experiments.
    """
    queue = folder / "queue"
    shutil.rmtree(queue, ignore_errors=True)
    queue.mkdir(parents=True)
    step_names = [f"{step.file.stem}:{step.candidate}" for step in steps]
    (queue / "steps").write_text("\n".join(step_names), "utf-8")
    own_folders = [folder / f"process-{i}" for i in range(min(n, len(steps)))]
    command = [sys.executable, "-m", "reports.studies.fronts.processes", str(queue), ",".join(chosen)]
    started = [
        subprocess.Popen([*command, str(own_folder)], env=os.environ | {"OMP_NUM_THREADS": "1"})
        for own_folder in own_folders
    ]
    try:
        for process in started:
            process.wait()
    finally:
        for process in started:
            process.kill()
        for own_folder in own_folders:
            unite(own_folder, folder)


def unite(own_folder: Path, folder: Path) -> None:
    """Copy a process's stored results into the study's folder, whose index is rebuilt."""
    for store in (own_folder / _STORE, own_folder / "tasks" / _STORE):
        if store.exists():
            into = folder / store.relative_to(own_folder)
            shutil.copytree(store, into, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*_INDEX))
            for file in into.glob(_INDEX[0]):
                file.unlink()


def take_steps(queue: Path, chosen: Sequence[str], folder: Path) -> None:
    """Make steps that no other process has taken, until none are left."""
    files = {
        file.stem: file for file in (prepare_ways(folder), *(prepare_tasks(folder, chosen) if chosen else ()))
    }
    for name in (queue / "steps").read_text("utf-8").splitlines():
        experiment, _, candidate = name.partition(":")
        try:
            (queue / name).mkdir()
        except FileExistsError:
            continue
        make([Step(files[experiment], candidate, is_done=False, expected_s=0.0)], 1)


if __name__ == "__main__":
    take_steps(Path(sys.argv[1]), [name for name in sys.argv[2].split(",") if name], Path(sys.argv[3]))
