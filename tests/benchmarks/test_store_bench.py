"""Ten million rows in the store: speed of ingestion, queries and comparisons, and memory and disk use.

Invariant: times are not asserted, because the machine may be busy. `HARNESS_BENCH_ROWS` sets another number
of rows, by hand 100,000,000: a comparison should then take under a second and 4 GB, on 10 GB of disk.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import bench_page
import duckdb
import pytest
from bench_page import Row, Table
from commands import PEAK_GB

from harness import store
from harness.models.hardware import probe
from harness.records import RowsIdentity, Run
from harness.store import Store, disk_use
from harness.store.parquet_files import COLUMNS

ROOT = Path(__file__).parents[2]
A_SET = 10_000  # rows; a run has two sets
WORDS = 20  # per prompt

_INGEST = f"""
import json, sys, time
{PEAK_GB}
from pathlib import Path
from harness.store import Store, reindex
start = time.perf_counter()
counts = reindex(Store(Path(sys.argv[1])))
print(json.dumps([time.perf_counter() - start, peak_gb(), counts.rows]))
"""
_COMPARE = f"""
import json, statistics, sys, time
{PEAK_GB}
from pathlib import Path
from harness import comparison, store
from harness.metrics import mean_metric
from harness.store import Store
at, metric, times = Store(Path(sys.argv[1])), mean_metric("exact_match", lambda output, example: None), []
for _ in range(6):
    start = time.perf_counter()
    rows = store.read_many(at, sys.argv[2:], texts=False)
    comparison.compare_rows(metric, *(rows[digest] for digest in sys.argv[2:]))
    times.append(time.perf_counter() - start)
print(json.dumps([statistics.median(times[1:]), peak_gb()]))
"""


class StoreCosts(NamedTuple):
    """Costs of a store of some size: to ingest it, to list its runs and to compare two of them."""

    n_rows: int
    n_runs: int
    ingest_s: float
    ingest_gb: float
    listing_s: float
    comparison_s: float
    comparison_gb: float


def identity(number: int) -> RowsIdentity:
    task = f"task-{number % 2}"
    return RowsIdentity(
        f"weights-{number // 2}", "t", task, "v", "test", "p", "generate", "bf16", "e", "l", "cpu", "s"
    )


def row_set(db: duckdb.DuckDBPyConnection, at: Store, number: int) -> str:
    """Write a set: prompts that all runs share, and answers, every third of which is new."""
    row_id = identity(number)
    path = at.parquet(row_id.digest)
    path.parent.mkdir(parents=True)
    (path.parent / "identity.json").write_text(json.dumps(asdict(row_id)))
    values = {
        "task": f"'{row_id.task}'", "split": "'test'", "example_id": "'item-' || i", "position": "i",
        "status": "'ok'",
        "text": f"CASE WHEN i % 3 = 0 THEN repeat('answer {number} ', 6) || i ELSE 'answer ' || i % 50 END",
        "prompt": f"repeat('{row_id.task} asks ', {WORDS}) || i", "references": "['answer ' || i % 50]",
        "parts": f"MAP {{'exact_match': [((i * 7919 + {number} * 104729) % 3 > 0)::DOUBLE]}}",
        "n_prompt_tokens": "80 + i % 40", "n_output_tokens": "5 + i % 20", "compute_s": "0.01",
        "prompt_digest": "md5('p' || i)[:16]", "output_digest": f"md5('{number}' || i)[:16]", "attempt": "1",
        "weight": "1.0",
    }  # fmt: skip
    empty = {"VARCHAR": "''", "VARCHAR[]": "[]", "BOOLEAN": "false"}
    columns = ", ".join(
        f'({values.get(name, empty.get(kind, "NULL"))})::{kind} AS "{name}"' for name, kind in COLUMNS.items()
    )
    db.execute(f"COPY (SELECT {columns} FROM range({A_SET}) AS r(i)) TO '{path}' (FORMAT parquet)")
    return row_id.digest


def run_of(number: int, digests: list[str]) -> Run:
    return Run(
        run_id=f"run-{number:05d}", experiment="bench", candidate="lora", method="lora",
        prompting="zero_shot", answer="generate", seed=number, base_model="m",
        weights_digest=f"weights-{number}", base_digest="b", state="done",
        created=f"2025-01-01T00:00:{number:05d}",
        rows={f"task-{i}/test": digest for i, digest in enumerate(digests)}, recipe={"method": "lora"},
    )  # fmt: skip


def fill(at: Store, n_rows: int) -> int:
    n_runs = max(n_rows // (2 * A_SET), 2)
    with duckdb.connect() as db:
        for number in range(n_runs):
            run = run_of(number, [row_set(db, at, 2 * number + i) for i in range(2)])
            at.run_file(run.run_id).parent.mkdir()
            at.run_file(run.run_id).write_text(json.dumps(asdict(run)))
    return n_runs


def seconds_of(job, n: int = 5) -> float:
    times = []
    for _ in range(n):
        start = time.perf_counter()
        job()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def run_code(code: str, *arguments: str) -> list[float]:
    command = [sys.executable, "-c", code, *arguments]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(result.stdout)


def measure_size(at: Store, n_rows: int) -> StoreCosts:
    n_runs = fill(at, n_rows)
    ingest_s, ingest_gb, n = run_code(_INGEST, str(at.folder))
    pair = [identity(2 * number).digest for number in range(2)]
    comparison_s, comparison_gb = run_code(_COMPARE, str(at.folder), *pair)
    listing_s = seconds_of(lambda: store.list_runs(at))
    return StoreCosts(int(n), n_runs, ingest_s, ingest_gb, listing_s, comparison_s, comparison_gb)


def queries(at: Store) -> dict[str, float]:
    sql = {
        "SQL: the mean score of every run and task": "SELECT run_id, task, avg(score) FROM scores GROUP BY ALL",
        "SQL: the mean paired difference of two runs": "SELECT avg(b.score - a.score) FROM scores AS a "
        "JOIN scores AS b USING (task, example_id, metric) "
        "WHERE a.run_id = 'run-00000' AND b.run_id = 'run-00001'",
        "SQL: twenty answers of a run": "SELECT prompt, text FROM samples WHERE run_id = 'run-00001' LIMIT 20",
    }
    return {name: seconds_of(lambda query=query: store.query(at, query), 3) for name, query in sql.items()}


def measure_rows(at: Store, costs: StoreCosts) -> list[Row]:
    size_gb = disk_use(at)["index"] / 1e9
    with duckdb.connect() as db:
        sets = [row_set(db, at, 2 * costs.n_runs + i) for i in range(2)]
    start = time.perf_counter()
    store.save_run(at, run_of(costs.n_runs, sets))
    saving_s = time.perf_counter() - start
    size = f"{costs.n_rows / 1e6:.1f} million rows in {costs.n_runs:,} runs"
    per_s, pair = costs.n_rows / costs.ingest_s, f"paired comparison of two runs on {A_SET:,} items"
    goal_s = 1.0 if costs.n_rows > 10_000_000 else 0.5
    its_peak = "its peak resident memory"
    return [
        Row(f"ingest of {size}", per_s, "rows/s", 200_000, "reading the scores' columns of Parquet", at_least=True),
        Row(its_peak, costs.ingest_gb, "GB", 4.0, "the scores of all rows in one transaction"),
        Row("the index on the disk", size_gb, "GB", None, "scores; texts stay in the Parquet files"),
        Row(f"a run of {2 * A_SET:,} rows more", saving_s, "s", None, "the times of all files, and its scores"),
        Row("listing the runs", costs.listing_s, "s", None, "reading their JSON"),
        Row(pair, costs.comparison_s, "s", goal_s, "making Python objects of two row sets"),
        Row(its_peak, costs.comparison_gb, "GB", 4.0, "the libraries, and two row sets"),
        *(Row(name, seconds, "s", None, "opening Parquet files") for name, seconds in queries(at).items()),
    ]  # fmt: skip


@pytest.mark.bench
def test_the_store_of_ten_million_rows_is_measured_and_written(tmp_path):
    n_rows = int(os.environ.get("HARNESS_BENCH_ROWS", "10_000_000"))
    stores = {n: Store(tmp_path / str(n)) for n in (n_rows // 100, n_rows // 10, n_rows)}
    sizes = [measure_size(at, n) for n, at in stores.items()]
    title = f"The store with {n_rows / 1e6:g} million rows"
    rows = measure_rows(stores[n_rows], sizes[-1])
    assert all(row.measured > 0 for row in rows)
    command = f"HARNESS_BENCH_ROWS={n_rows} make bench ARGS='-k store'"
    columns = ("rows", "runs", "ingest, rows/s", "peak GB", "listing, s", "comparison, s")
    lines = tuple(
        (
            *(f"{s.n_rows:,}", f"{s.n_runs:,}", f"{s.n_rows / s.ingest_s:,.0f}", f"{s.ingest_gb:.1f}"),
            *(f"{s.listing_s:.3f}", f"{s.comparison_s:.2f}"),
        )
        for s in sizes
    )
    table = Table("By rows:", columns, lines)
    bench_page.write(title, rows, probe(), bench_page.stem("store"), [table], command)
