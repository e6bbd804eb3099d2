"""How long each page of the dashboard takes on a thousand runs and ten million rows, also while runs come in.

Invariant: a page is measured with empty caches, and nothing is asserted of a time, because the machine may be
busy. `HARNESS_BENCH_ROWS` asks for fewer rows.
"""

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import bench_page
import pytest
from bench_page import Row
from test_store_bench import fill

from harness import store
from harness.machine import probe
from harness.store import Store

pytestmark = pytest.mark.bench

ROOT = Path(__file__).parents[2]
GOAL_S = 2.0
N_RUNS = 1_000
PATHS = {
    "leaderboard": {},
    "compare": {"compare": "lora (seed 1),lora (seed 2)"},
    "forgetting": {},
    "pareto": {},
    "training": {},
    "decide": {},
    "rate": {"rate": "lora (seed 1),lora (seed 2)", "rater": "ann"},
}
EXPERIMENT = """\
name: bench
target:
  name: task-0
  data: {train: rows.jsonl, test: rows.jsonl}
  metrics: [exact_match]
candidates:
  prompt: {method: base}
"""
_WRITE = """
import json, sys
from dataclasses import replace
from pathlib import Path
from harness.records import Run
from harness.store import Store, save_run
run = Run(**json.loads(sys.argv[2]))
for i in range(10_000):
    save_run(Store(Path(sys.argv[1])), replace(run, run_id=f"new-{i}"))
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """Write ten million rows of a thousand runs, every second of which shares the rows of another."""
    folder = tmp_path_factory.mktemp("large")
    at = Store(folder / "runs")
    n_filled = fill(at, int(os.environ.get("HARNESS_BENCH_ROWS", "10_000_000")))
    runs, _ = store.runs_on_disk(at)
    for i in range(N_RUNS - n_filled):
        run = replace(runs[i % n_filled], run_id=f"copy-{i:04d}", seed=n_filled + i)
        at.run_file(run.run_id).parent.mkdir()
        at.run_file(run.run_id).write_text(json.dumps(asdict(run)))
    (folder / "rows.jsonl").write_text("{}\n")
    (folder / "harness.yaml").write_text(EXPERIMENT)
    store.reindex(at)
    return folder


def seconds_of(name: str, monkeypatch) -> float:
    """Open a page with empty caches; returns how long that took."""
    import streamlit
    from streamlit.testing.v1 import AppTest

    monkeypatch.syspath_prepend(str(ROOT / "dashboards"))
    streamlit.cache_data.clear()
    streamlit.cache_resource.clear()
    page = AppTest.from_file(str(ROOT / "dashboards" / f"{name}.py"), default_timeout=120)
    for key, value in PATHS[name].items():
        page.query_params[key] = value
    start = time.perf_counter()
    page.run()
    assert [e.value for e in page.exception] == []
    return time.perf_counter() - start


def row(name: str, took_s: float, what: str) -> Row:
    return Row(f"{name}, {what}", took_s, "s", GOAL_S, "reading run files; rows of the runs that are shown")


def test_every_page_is_measured_on_a_large_store_at_rest_and_while_runs_come_in(large, monkeypatch):
    monkeypatch.setenv("HARNESS_CONFIG", str(large / "harness.yaml"))
    seconds_of("decide", monkeypatch)  # what every page imports is imported once by a server
    rows = [row(name, seconds_of(name, monkeypatch), f"{N_RUNS:,} runs") for name in PATHS]
    run = store.runs_on_disk(Store(large / "runs"))[0][0]
    arguments = [sys.executable, "-c", _WRITE, str(large / "runs"), json.dumps(asdict(run))]
    writer = subprocess.Popen(arguments, cwd=ROOT)
    try:
        time.sleep(3)
        rows += [row(name, seconds_of(name, monkeypatch), "while runs come in") for name in PATHS]
        assert writer.poll() is None
    finally:
        writer.terminate()
        writer.wait(30)
    title = "The dashboard on ten million rows"
    bench_page.write(title, rows, probe(), ROOT / "reports" / "benchmarks" / "dashboard")
