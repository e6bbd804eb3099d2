"""Eight processes save runs for a while; none is lost, and no read takes a second.

One reader lists runs by the index, like the command line; the other reads like the dashboard's pages. Time
during which a reader was ready but no processor was free does not count: ten processes share a few cores.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_store import IDENTITY, complete, make_rows, make_run

from harness import store as stores

ROOT = Path(__file__).parents[2]
SAVE = """
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

READ = """
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
    rows = stores.read_rows(store, digest, texts=False)
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


@pytest.mark.parametrize(
    "seconds", [pytest.param(6, marks=pytest.mark.slow), pytest.param(60, marks=pytest.mark.weekly)]
)
def test_eight_writers_and_two_readers_lose_nothing_and_wait_for_nobody(tmp_path, seconds):
    store = stores.Store(tmp_path / "runs")
    complete(store, IDENTITY, make_rows(640))
    stores.save_run(store, make_run("first", [IDENTITY.digest]))
    run = (store.folder / "first" / "run.json").read_text("utf-8")
    programs = [(SAVE, f"writer{i}") for i in range(8)] + [(READ, "list"), (READ, "page")]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(store.folder), name, str(seconds), run],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for code, name in programs
    ]
    for process in processes:  # start all at once
        process.stdin.write("go\n")
        process.stdin.flush()
    *writers, listing, page = [json.loads(process.communicate()[0]) for process in processes]
    saved = {run_id for saved in writers for run_id in saved}
    assert {run.run_id for run in stores.list_runs(store)} == {"first", *saved}
    assert max(*listing, *page) < 1
    before = stores.list_runs(store)
    assert stores.reindex(store).runs == len(before)
    assert stores.list_runs(store) == before
