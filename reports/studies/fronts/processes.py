"""Processes that share a GPU, which a small model leaves idle: each makes steps in a folder of its own.

Invariant: a step is made by the one process that took it from the queue; what all have stored is copied into
the study's folder when they have ended, so that a call that was stopped goes on with what there is.
NVIDIA's Multi-Process Service, where it runs, lets their kernels run side by side.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from reports.studies.fronts.experiments import prepare_tasks, prepare_ways
from reports.studies.fronts.plan import Step, make

_STORE = "runs"  # beside each experiment's file
_INDEX = ("harness.duckdb*", "*.lock")  # which a store makes anew


def make_in_processes(steps: Sequence[Step], folder: Path, chosen: Sequence[str], n: int) -> None:
    """Make steps of the study in so many processes, and bring what they stored to its folder.

    `chosen` are the ways of the second stage, which each process writes the experiments of.
    """
    queue = folder / "queue"
    shutil.rmtree(queue, ignore_errors=True)
    queue.mkdir(parents=True)
    named = [f"{step.file.stem}:{step.candidate}" for step in steps]
    (queue / "steps").write_text("\n".join(named), "utf-8")
    own = [folder / f"process-{i}" for i in range(min(n, len(steps)))]
    command = [sys.executable, "-m", "reports.studies.fronts.processes", str(queue), ",".join(chosen)]
    started = [
        subprocess.Popen([*command, str(one)], env=os.environ | {"OMP_NUM_THREADS": "1"}) for one in own
    ]
    try:
        for process in started:
            process.wait()
    finally:
        for process in started:
            process.kill()
        for one in own:
            unite(one, folder)


def unite(one: Path, folder: Path) -> None:
    """Copy what a process has stored beside what there is; the index is made anew."""
    for store in (one / _STORE, one / "tasks" / _STORE):
        if store.exists():
            into = folder / store.relative_to(one)
            shutil.copytree(store, into, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*_INDEX))
            for file in into.glob(_INDEX[0]):
                file.unlink()


def take_steps(queue: Path, chosen: Sequence[str], folder: Path) -> None:
    """Make steps that no other process has taken, until there are none."""
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
