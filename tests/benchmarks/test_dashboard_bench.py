"""Load times of the dashboard's pages on a thousand runs and ten million rows, also while runs are added.

Invariant: the server restarts before each round, so every page is opened with empty caches, in a browser as
by a reader; times are not asserted, because the machine may be busy. `HARNESS_BENCH_ROWS` sets a smaller
number of rows.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import bench_page
import fake_project
import pytest
from bench_page import Row
from serving import chromium, load_page, serve_pages
from test_store_bench import fill, identity

from harness import report, store
from harness.models.hardware import probe
from harness.records import Run, read_training_record
from harness.store import Store

pytestmark = pytest.mark.bench

ROOT = Path(__file__).parents[2]
GOAL_S = 2.0
N_RUNS = 1_000
N_REPORTED = 8  # the first is the base
N_NIGHTS = 120
N_STEPS = 500
PATHS = {
    "report": "/", "answers": "/answers?compare=prompt,lora-1,lora-2&outcome=disagreement",
    "leaderboard": "/leaderboard", "leaderboard, all runs": "/leaderboard?all_runs=true",
    "compare": "/compare?compare=prompt,lora-1,lora-2", "forgetting": "/forgetting", "pareto": "/pareto",
    "training": "/training", "decide": "/decide", "nightly": "/nightly",
    "rate": "/rate?rate=prompt,lora-1&rater=ann",
}  # fmt: skip
BOUND = {
    "leaderboard": "ranking the reported runs on the items of all",
    "leaderboard, all runs": "scoring the 20 newest runs that no report holds, and ranking the 20 best, from their rows",
    "compare": "reading and pairing the rows of the chosen runs",
    "answers": "scoring every item of the chosen runs, and reading the texts of fifty",
    "rate": "finding the items on which two runs differ",
    "nightly": "telling each of the last 40 nights from all before it",
}
EXPERIMENT = """\
name: session
target:
  name: task-0
  data: {train: rows.jsonl, test: rows.jsonl}
  metrics: [exact_match]
candidates:
  prompt: {method: base}
"""
_WRITE = """
import json, sys, time
from dataclasses import replace
from pathlib import Path
from harness.records import run_record
from harness.store import Store, save_run
run = run_record(json.loads(sys.argv[2]))
for i in range(int(sys.argv[3])):
    start = time.perf_counter()
    save_run(Store(Path(sys.argv[1])), replace(run, run_id=f"{sys.argv[4]}-{i}"))
    print(time.perf_counter() - start, flush=True)
"""


def make_stored_run(run: Run, number: int) -> Run:
    """Make a run as comparisons leave it: the first is the base, the others are fine-tunes with a log."""
    digest, latency = identity(0).weights_digest, {"p50_s": 0.25}
    base = replace(run, candidate="prompt", method="base", seed=0, base_digest=digest, latency=latency)
    if number == 0:
        return base
    loss = [[step, 2.0 / (step + number)] for step in range(1, N_STEPS)]
    training = {"wall_s": 60.0, "loss": loss, "validation_loss": [[N_STEPS, 0.5]], "tokens_per_s": 250.0}
    name = f"lora-{number % 100}"
    return replace(
        base, candidate=name, method="lora", seed=number // 100, training=read_training_record(training)
    )


@pytest.fixture(scope="module")
def large_project(tmp_path_factory):
    """Write ten million rows of a thousand runs, every second of which shares another's rows."""
    folder = tmp_path_factory.mktemp("large")
    at = Store(folder / "runs")
    n_filled = fill(at, int(os.environ.get("HARNESS_BENCH_ROWS", "10_000_000")))
    filled, _ = store.runs_on_disk(at)
    runs = [make_stored_run(filled[i % n_filled], i) for i in range(N_RUNS)]
    runs = [run if i < n_filled else replace(run, run_id=f"copy-{i:04d}") for i, run in enumerate(runs)]
    for run in runs:
        at.run_file(run.run_id).parent.mkdir(exist_ok=True)
        at.run_file(run.run_id).write_text(json.dumps(run.to_plain()))
    (folder / "rows.jsonl").write_text("{}\n")
    (folder / "harness.yaml").write_text(EXPERIMENT)
    store.reindex(at)
    bench_report = fake_project.report_of(at, runs[:N_REPORTED], name="bench", tasks=("task-0", "task-1"))
    report.write(bench_report, folder / "reports")
    fake_project.nights(folder, N_NIGHTS, name="bench")
    return folder


def round_of(folder: Path, state: str) -> list[Row]:
    """Open every page of a server that has just started; return a row per page with its time."""
    rows = []
    with serve_pages(folder) as address, chromium() as browser:
        page = browser.new_page()
        load_page(page, f"{address}/pareto")  # shared imports of the pages happen once per server
        for name, path in PATHS.items():
            start = time.perf_counter()
            load_page(page, address + path)
            took_s = time.perf_counter() - start
            assert page.locator("[data-testid=stException], [data-testid=stAlertContentError]").count() == 0
            rows.append(
                Row(f"{name}, {state}", took_s, "s", GOAL_S, BOUND.get(name, "reading the files of runs"))
            )
    return rows


@contextmanager
def save_copies(folder: Path, run: Run, name: str, n: int = 100_000) -> Iterator[subprocess.Popen[str]]:
    """Let another process save copies of a run one by one; it prints the time of each."""
    arguments = [sys.executable, "-c", _WRITE, str(folder / "runs"), json.dumps(run.to_plain()), str(n), name]
    writer = subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        yield writer
    finally:
        writer.terminate()
        writer.wait(30)


def test_every_page_is_measured_on_a_large_store_at_rest_and_while_runs_come_in(large_project):
    rows = round_of(large_project, "at rest")
    run = store.runs_on_disk(Store(large_project / "runs"))[0][0]
    with save_copies(large_project, run, "alone", 20) as writer:
        alone_s = [float(line) for line in writer.stdout]
    with save_copies(large_project, run, "beside") as writer:
        writer.stdout.readline()
        rows += round_of(large_project, "while runs come in")
        assert writer.poll() is None
    beside_s = [float(line) for line in writer.stdout]
    rows += [
        Row("saving a run, no page open", statistics.median(alone_s), "s", None, "the index of all rows"),
        Row("saving a run, pages opened", statistics.median(beside_s), "s", None, "two processors for both"),
        Row("the longest of these", max(beside_s), "s", None, "two processors for both"),
        Row(
            "peak resident memory", resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e9, "GB",
            None, "the largest of servers, writers and browser",
        ),
    ]  # fmt: skip
    title = "The dashboard on ten million rows"
    bench_page.write(title, rows, probe(), bench_page.stem("dashboard"))
