"""Ten million rows in the store: how fast they are ingested, found again and compared, and what they take.

Invariant: nothing is asserted of a time, because the machine may be busy. `HARNESS_BENCH_ROWS` asks for
fewer rows.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import bench_page
import duckdb
import pytest
from bench_page import Row

from harness import comparison, store
from harness.machine import probe
from harness.metrics import mean_metric
from harness.records import RowsIdentity, Run
from harness.store import Store, disk_use
from harness.store.rows import COLUMNS

ROOT = Path(__file__).parents[2]
A_SET = 10_000  # rows; a run has two sets
WORDS = 20  # a prompt

_COMMAND = """
import json, resource, sys, time
from pathlib import Path
from harness.store import Store, reindex
start = time.perf_counter()
counts = reindex(Store(Path(sys.argv[1])))
peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
print(json.dumps([time.perf_counter() - start, peak_gb, counts.rows]))
"""


def identity(number: int) -> RowsIdentity:
    task = f"task-{number % 2}"
    return RowsIdentity(
        f"weights-{number // 2}", "t", task, "v", "test", "p", "generate", "bf16", "e", "l", "cpu", "s"
    )


def row_set(db: duckdb.DuckDBPyConnection, at: Store, number: int) -> str:
    """Write a set: prompts that all runs share, answers of which every third is a new one."""
    one = identity(number)
    path = at.parquet(one.digest)
    path.parent.mkdir(parents=True)
    (path.parent / "identity.json").write_text(json.dumps(asdict(one)))
    values = {
        "task": f"'{one.task}'",
        "split": "'test'",
        "example_id": "'item-' || i",
        "position": "i",
        "status": "'ok'",
        "text": f"CASE WHEN i % 3 = 0 THEN repeat('answer {number} ', 6) || i ELSE 'answer ' || i % 50 END",
        "prompt": f"repeat('{one.task} asks ', {WORDS}) || i",
        "references": "['answer ' || i % 50]",
        "parts": f"MAP {{'exact_match': [((i * 7919 + {number} * 104729) % 3 > 0)::DOUBLE]}}",
        "n_prompt_tokens": "80 + i % 40",
        "n_output_tokens": "5 + i % 20",
        "compute_s": "0.01",
        "prompt_digest": "md5('p' || i)[:16]",
        "output_digest": f"md5('{number}' || i)[:16]",
        "attempt": "1",
        "weight": "1.0",
    }
    empty = {"VARCHAR": "''", "VARCHAR[]": "[]", "BOOLEAN": "false"}
    columns = ", ".join(
        f'({values.get(name, empty.get(kind, "NULL"))})::{kind} AS "{name}"' for name, kind in COLUMNS.items()
    )
    db.execute(f"COPY (SELECT {columns} FROM range({A_SET}) AS r(i)) TO '{path}' (FORMAT parquet)")
    return one.digest


def run_of(number: int, digests: list[str]) -> Run:
    return Run(
        run_id=f"run-{number:05d}",
        experiment="bench",
        candidate="lora",
        method="lora",
        prompting="zero_shot",
        answer="generate",
        seed=number,
        base_model="m",
        weights_digest=f"weights-{number}",
        base_digest="b",
        state="done",
        created=f"2025-01-01T00:00:{number:05d}",
        rows={f"task-{i}/test": digest for i, digest in enumerate(digests)},
        recipe={"method": "lora"},
    )


def fill(at: Store, n_rows: int) -> int:
    """Write run folders with so many rows; returns how many runs."""
    n_runs = max(n_rows // (2 * A_SET), 2)
    with duckdb.connect() as db:
        for number in range(n_runs):
            run = run_of(number, [row_set(db, at, 2 * number + i) for i in range(2)])
            at.run_file(run.run_id).parent.mkdir()
            at.run_file(run.run_id).write_text(json.dumps(asdict(run)))
    return n_runs


def seconds_of(job, n: int = 5) -> float:
    """Return the median time of a job."""
    times = []
    for _ in range(n):
        start = time.perf_counter()
        job()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def compared(at: Store) -> None:
    """Compare two runs on one task, from their folders to the interval."""
    metric = mean_metric("exact_match", lambda output, example: None)
    old, new = (store.read_rows(at, identity(2 * number).digest) for number in range(2))
    comparison.compare_rows(metric, old, new)


def texts(at: Store) -> tuple[int, int]:
    """Count the texts of the index, and how often rows refer to one."""
    with duckdb.connect(str(at.index), read_only=True) as db:
        ((stored, referred),) = db.execute(
            "SELECT (SELECT count(*) FROM texts), 3 * (SELECT count(*) FROM rows)"
        ).fetchall()
    return stored, referred


def measured(at: Store, n_rows: int) -> list[Row]:
    n_runs = fill(at, n_rows)
    done = subprocess.run(
        [sys.executable, "-c", _COMMAND, str(at.folder)], cwd=ROOT, capture_output=True, text=True, check=True
    )

    wall_s, peak_gb, n = json.loads(done.stdout)
    stored, referred = texts(at)
    with duckdb.connect() as db:
        more = run_of(n_runs, [row_set(db, at, 2 * n_runs + i) for i in range(2)])
    start = time.perf_counter()
    store.save_run(at, more)
    saving_s = time.perf_counter() - start
    what = f"{n / 1e6:.1f} million rows in {n_runs:,} runs"
    once = f"each text once: {stored / 1e6:.1f} million texts for {referred / 1e6:.1f} million references"
    listing_s = seconds_of(lambda: store.list_runs(at))
    size_gb = disk_use(at, []).index_file / 1e9
    return [
        Row(
            f"ingest, seconds a million rows, of {what}",
            wall_s / n * 1e6,
            "s",
            5.0,
            f"{n / wall_s:,.0f} rows/s; reading Parquet and hashing texts",
        ),
        Row(
            "peak resident memory of it",
            peak_gb,
            "GB",
            6.0,
            "half a million rows at once, and the texts' keys",
        ),
        Row("the index on the disk", size_gb, "GB", None, once),
        Row(f"a run of {2 * A_SET:,} rows more", saving_s, "s", None, "finding which of its texts are new"),
        Row("listing the runs", listing_s, "s", None, "reading their JSON"),
        Row(
            f"paired comparison of two runs on {A_SET:,} items",
            seconds_of(lambda: compared(at)),
            "s",
            0.5,
            "making Python objects of two row sets",
        ),
    ]


@pytest.mark.bench
def test_the_store_of_ten_million_rows_is_measured_and_written(tmp_path):
    n_rows = int(os.environ.get("HARNESS_BENCH_ROWS", "10_000_000"))
    rows = measured(Store(tmp_path / "runs"), n_rows)
    assert all(row.measured > 0 for row in rows)
    title = f"The store with {n_rows / 1e6:g} million rows"
    bench_page.write(title, rows, probe(), bench_page.stem("store"))
