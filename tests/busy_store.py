"""Processes that save runs into one store at once, and two that read it, for a while.

Invariant: each process has its own connections; what they share is the folder.

One reader lists runs by the index, as the command line does. The other does what the dashboard's pages do:
it reads the runs' files, and rows, statuses, columns and items of the newest run. What is measured is how
long each of these takes as a whole, its own work included, but for the time in which it was ready and no
processor was free: ten processes share the machine's few cores, and that waiting is nobody's lock.
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
from harness.records import run_record
from harness.store import Store, save_run
store, name, seconds = Store(Path(sys.argv[1])), sys.argv[2], float(sys.argv[3])
run = run_record(json.loads(sys.argv[4]))
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
from harness import store as stores
store, name, seconds = stores.Store(Path(sys.argv[1])), sys.argv[2], float(sys.argv[3])
delays = Path("/proc/thread-self/schedstat")  # the second number: ns that it was ready, and no processor was free
def now():
    return time.monotonic() - (int(delays.read_text().split()[1]) / 1e9 if delays.exists() else 0)
known = {}
def page():
    for file in store.folder.glob("*/run.json"):
        if file not in known:
            known[file] = stores.read_run(file)
    newest = max(filter(None, known.values()), key=lambda run: run.created)
    (digest,) = newest.rows.values()
    rows = stores.read_scores(store, digest, "exact_match")
    stores.read_columns(store, [digest], "exact_match")
    stores.count_statuses(store, [digest])
    stores.read_samples(store, digest, [rows[0].example_id])
    stores.read_answers(store, [digest], "exact_match", stores.ItemFilter("answer 7"), n=50)
    stores.list_differing_items(store, digest, digest)
    stores.list_ratings(store)
    stores.current_activity(store)
    return len(known)
look = page if name == "page" else lambda: len(stores.list_runs(store))
sys.stdin.readline()
until, took, seen = time.monotonic() + seconds, [], 0
while time.monotonic() < until:
    start = now()
    n = look()
    took.append(now() - start)
    assert n >= seen, "a run was lost"
    seen = n
    time.sleep(0.05)
print(json.dumps(took))
"""


class LoadResult(NamedTuple):
    """What the writers saved, and by reader how long each look took in seconds, as the module says."""

    saved: set[str]
    took_s: dict[str, list[float]]


def keep_busy(folder: Path, run: dict, n_writers: int, seconds: float) -> LoadResult:
    """Let so many writers save copies of a run while two processes read; all start together."""
    asked = [(_SAVE, f"writer{i}") for i in range(n_writers)] + [(_READ, "list"), (_READ, "page")]
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
    *writers, listing, page = [json.loads(process.communicate()[0]) for process in processes]
    return LoadResult({run_id for saved in writers for run_id in saved}, {"list": listing, "page": page})
