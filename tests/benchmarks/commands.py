"""The command line in a separate process, with its time, its memory and whether it imported torch."""

import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

LIMIT_S = 40 * 60  # after this time a command is stopped, and the benchmark fails
# Of this process alone: for a child getrusage reports the peak of the process that started it.
PEAK_GB = """
def peak_gb():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e9 for line in lines if line.startswith("VmHWM"))
"""

_COMMAND = f"""
import sys
from harness.cli import main
{PEAK_GB}
try:
    main()
finally:
    print("torch" in sys.modules, peak_gb(), file=sys.stderr)
"""


class CommandRun(NamedTuple):
    """A successful command, with the peak resident memory of its process."""

    wall_s: float
    peak_gb: float
    imported_torch: bool


def run(folder: Path, *arguments: str) -> CommandRun:
    """Run the command line in a folder; its output goes to `out.txt` and `err.txt` there."""
    start = time.perf_counter()
    with (folder / "out.txt").open("w") as out, (folder / "err.txt").open("w") as err:
        command = [sys.executable, "-c", _COMMAND, *arguments]
        process = subprocess.Popen(command, cwd=folder, stdout=out, stderr=err)
        limit = threading.Timer(LIMIT_S, process.kill)
        limit.start()
        code = process.wait()
        limit.cancel()
    wall_s = time.perf_counter() - start
    stderr = (folder / "err.txt").read_text()
    assert code == 0, stderr
    imported_torch, peak_gb = stderr.splitlines()[-1].split()
    return CommandRun(wall_s, float(peak_gb), imported_torch == "True")


def median_of(folder: Path, *arguments: str, n: int = 5) -> CommandRun:
    """Run a command n times, after one call that fills caches; return the median time."""
    run(folder, *arguments)
    runs = [run(folder, *arguments) for _ in range(n)]
    wall_s = statistics.median(r.wall_s for r in runs)
    return CommandRun(wall_s, max(r.peak_gb for r in runs), any(r.imported_torch for r in runs))
