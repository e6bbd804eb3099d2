"""Commands on stored runs, as a user calls them: the gate, an unchanged compare, and their growth.

Invariant: times are not asserted, because the machine may be busy; no command loads a model.
"""

from pathlib import Path

import bench_page
import pytest
import stored_quickstart
import worlds
from bench_page import Row, Table
from commands import CommandRun, median_of

from harness.models.hardware import probe

TRUTH = worlds.Truth(
    {"zero_shot": {"plain": 20}, "few_shot": {"plain": 30}, "rag": {"plain": 30}, "tuned": {"plain": 60}}
)
SIZES = (200, 1_000, 3_000)  # items of each of four general tasks
GATE_S, COMPARE_S = 1.0, 2.0  # goals
# An inconclusive verdict exits with 1, as in CI; only the time counts here.
GATE = ("gate", "--candidate", "lora", "gate.on_inconclusive=pass")
CHOSEN = ("prompt", "prompt,knn,rag,lora", "")  # candidates; "" is all of them


def rows_of(name: str, result: CommandRun, goal: float | None, bounded_by: str) -> list[Row]:
    memory = f"torch {'was' if result.imported_torch else 'was not'} imported"
    return [
        Row(f"{name}, median of 5", result.wall_s, "s", goal, bounded_by),
        Row("its peak resident memory", result.peak_gb, "GB", None, memory),
    ]


def measure_by_candidates(folder: Path) -> Table:
    lines = []
    for names in CHOSEN:
        n = len(names.split(",")) if names else 11
        result = median_of(folder, "compare", *(["--candidates", names] if names else []), n=3)
        lines.append((n, f"{result.wall_s:.2f}", f"{result.peak_gb:.2f}"))
    return Table(
        "An unchanged compare of the quickstart, by candidates:", ("candidates", "s", "peak GB"), tuple(lines)
    )


def format_time(wall_s: float, goal_s: float) -> str:
    """Format a time, and its excess over a missed goal."""
    over_s = wall_s - goal_s
    return f"{wall_s:.2f}" if over_s <= 0 else f"{wall_s:.2f}, over the goal by {over_s:.2f}"


def measure_by_items(folder: Path) -> Table:
    lines = []
    for n in SIZES:
        at = folder / str(n)
        worlds.report(at, TRUTH, worlds.Sizes(general=n))
        gate = median_of(at, *GATE, n=3)
        compare = median_of(at, "compare", n=3)
        assert not gate.imported_torch
        assert not compare.imported_torch
        times = format_time(gate.wall_s, GATE_S), format_time(compare.wall_s, COMPARE_S)
        lines.append((f"{4 * n:,}", *times, f"{compare.peak_gb:.2f}"))
    return Table(
        "Five candidates, one of them with weights of its own, by items of the general suite; what grows is "
        "reading rows and pairing them:",
        ("items", "gate, s", "compare, s", "peak GB of it"),
        tuple(lines),
    )


@pytest.mark.bench
def test_what_is_asked_of_stored_runs_is_measured_and_written(tmp_path, monkeypatch):
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    for name in ("quickstart", "worlds"):
        (tmp_path / name).mkdir()
    folder = tmp_path / "quickstart"
    stored_quickstart.write(folder)
    bound = "imports are half of it; then statistics, rows and the index"
    rows = [
        *rows_of("`harness --help`", median_of(folder, "--help"), 0.3, "starting Python and importing typer"),
        *rows_of("`harness gate --candidate lora`", median_of(folder, *GATE), GATE_S, bound),
        *rows_of(
            "`harness compare` again, unchanged",
            median_of(folder, "compare"),
            COMPARE_S,
            "bootstraps of five sets of weights, rows, imports, and six forms of the report",
        ),
    ]
    assert not any("torch was imported" in row.bounded_by for row in rows)
    tables = (measure_by_candidates(tmp_path / "quickstart"), measure_by_items(tmp_path / "worlds"))
    bench_page.write("Commands on stored runs", rows, probe(), bench_page.stem("stored"), tables)
