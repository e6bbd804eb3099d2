"""`harness data check` on many rows, as a user's command: its time, its peak memory, and their growth.

Invariant: times are not asserted, because the machine may be busy. Rows are messages of the quickstart's
generator, each followed by general prompts: rows hardly repeat, but all share patterns, which is the slow
case for near duplicates.
"""

import json
import os
import random
import sys
from pathlib import Path

import bench_page
import pytest
from bench_page import Row, Table
from commands import CommandRun, run

from harness.models.hardware import probe
from harness.regularizers import general_prompts

ROOT = Path(__file__).parents[2]
SCALE = float(os.environ.get("HARNESS_BENCH_SCALE", "1"))
N_ROWS, N_TEST, N_BYTES = 200_000, 2_000, 1_000_000_000
GOAL_S = 300.0
SHORT, LONG = 1, 16  # prompts after a message


def messages() -> list[tuple[str, str]]:
    """Return the generator's messages with their labels."""
    sys.path.insert(0, str(ROOT / "suites"))
    import make_support

    rows = (row for salt in range(100) for row, _ in make_support._behaviour("train", f"bench/{salt}"))
    return list({row["prompt"]: row["reference"] for row in rows}.items())


def write(file: Path, n_prompts: int, seed: int, *, n_rows: int | None = None, n_bytes: int = 0) -> int:
    """Write `n_rows` rows, or rows until the file has `n_bytes` bytes; return their number."""
    rng, labelled, prompts, n = random.Random(seed), messages(), general_prompts(), 0
    with file.open("w", encoding="utf-8") as out:
        while n < n_rows if n_rows is not None else out.tell() < n_bytes:
            message, label = rng.choice(labelled)
            prompt = " ".join([message, *rng.sample(prompts, n_prompts)])
            out.write(json.dumps({"prompt": prompt, "reference": label}) + "\n")
            n += 1
    return n


def rows_of(name: str, cost: CommandRun, goal: float | None) -> list[Row]:
    return [
        Row(name, cost.wall_s, "s", goal, "shingles of near duplicates, and the classifier of labels"),
        Row(
            "its peak resident memory", cost.peak_gb, "GB", None, "texts of up to 1 GB, and their signatures"
        ),
    ]


@pytest.mark.bench
def test_the_check_of_many_rows_and_of_a_large_file_is_measured_and_written(tmp_path):
    write(tmp_path / "test.jsonl", SHORT, 1, n_rows=round(N_TEST * SCALE))
    lines = []
    for n_rows in (N_ROWS // 4, N_ROWS // 2, N_ROWS):
        n = write(tmp_path / "rows.jsonl", SHORT, 2, n_rows=round(n_rows * SCALE))
        cost = run(tmp_path, "data", "check", "rows.jsonl", "--test", "test.jsonl")
        lines.append((f"{n:,}", f"{cost.wall_s:.0f}", f"{cost.peak_gb:.1f}"))
    name = f"`harness data check` of {n:,} rows against {round(N_TEST * SCALE):,} test rows"
    measured = rows_of(name, cost, GOAL_S)
    n = write(tmp_path / "rows.jsonl", LONG, 3, n_bytes=round(N_BYTES * SCALE))
    size = (tmp_path / "rows.jsonl").stat().st_size / 1e9
    cost = run(tmp_path, "data", "check", "rows.jsonl")
    measured += rows_of(f"`harness data check` of a file of {size:.2g} GB, {n:,} rows", cost, None)
    assert all(row.measured > 0 for row in measured)
    by_rows = Table("Short rows against test rows:", ("rows", "s", "peak GB"), tuple(lines))
    bench_page.write(
        "The data check of many rows", measured, probe(), bench_page.stem("data_check"), [by_rows]
    )
