"""Processes that save runs into one store at once, and one that reads it, for a while.

Invariant: each process has its own connections; what they share is the folder.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]

_SAVE = """
import json, sys, time
from dataclasses import replace
from pathlib import Path
from harness.records import Run
from harness.store import Store, save_run
store, name, seconds = Store(Path(sys.argv[1])), sys.argv[2], float(sys.argv[3])
run = Run(**json.loads(sys.argv[4]))
sys.stdin.readline()
until, saved = time.monotonic() + seconds, []
while time.monotonic() < until:
    saved.append(f"{name}-{len(saved)}")
    save_run(store, replace(run, run_id=saved[-1]))
print(json.dumps(saved))
"""

_READ = """
import json, sys, time
from pathlib import Path
from harness.store import Store, list_runs
store, seconds = Store(Path(sys.argv[1])), float(sys.argv[3])
delays = Path("/proc/thread-self/schedstat")  # the second number: ns that it was ready, and no processor was free
def now():
    return time.monotonic() - (int(delays.read_text().split()[1]) / 1e9 if delays.exists() else 0)
sys.stdin.readline()
until, waits, seen = time.monotonic() + seconds, [], 0
while time.monotonic() < until:
    start = now()
    n = len(list_runs(store))
    waits.append(now() - start)
    assert n >= seen, "a run was lost"
    seen = n
    time.sleep(0.05)
print(json.dumps(waits))
"""


class Busy(NamedTuple):
    """What the writers saved, and how long each reading took in seconds, but for waiting for a processor."""

    saved: set[str]
    waits_s: list[float]


def keep_busy(folder: Path, run: dict, n_writers: int, seconds: float) -> Busy:
    """Let so many writers save copies of a run while one process reads; all start together."""
    asked = [(_SAVE, f"writer{i}") for i in range(n_writers)] + [(_READ, "reader")]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(folder), name, str(seconds), json.dumps(run)],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for code, name in asked
    ]
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    *writers, reader = [json.loads(process.communicate()[0]) for process in processes]
    return Busy({run_id for saved in writers for run_id in saved}, reader)
