"""The command line as a user starts it: a process of its own, with its time, its memory and what it imported."""

import os
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

LIMIT_S = 40 * 60  # then a command is stopped, and the benchmark fails

_COMMAND = (
    "import sys\n"
    "from harness.cli import main\n"
    "try: main()\n"
    "finally: print('torch' in sys.modules, file=sys.stderr)\n"
)


class Finished(NamedTuple):
    """A command that ended well, with the peak resident memory of its process."""

    wall_s: float
    peak_gb: float
    imported_torch: bool


def run(folder: Path, *arguments: str) -> Finished:
    """Run the command line in a folder; what it prints goes into `out.txt` and `err.txt` there."""
    start = time.perf_counter()
    with (folder / "out.txt").open("w") as out, (folder / "err.txt").open("w") as err:
        command = [sys.executable, "-c", _COMMAND, *arguments]
        process = subprocess.Popen(command, cwd=folder, stdout=out, stderr=err)
        limit = threading.Timer(LIMIT_S, process.kill)
        limit.start()
        _, status, usage = os.wait4(process.pid, 0)
        limit.cancel()
    wall_s = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    said = (folder / "err.txt").read_text()
    assert process.returncode == 0, said
    return Finished(wall_s, usage.ru_maxrss * 1024 / 1e9, said.splitlines()[-1] == "True")


def median_of(folder: Path, *arguments: str, n: int = 5) -> Finished:
    """Run a command some times, the first time besides to fill caches; returns the median time."""
    run(folder, *arguments)
    found = [run(folder, *arguments) for _ in range(n)]
    wall_s = statistics.median(one.wall_s for one in found)
    return Finished(wall_s, max(one.peak_gb for one in found), any(one.imported_torch for one in found))
