"""Overhead of workers: planning, claiming, and two workers compared with one process.

Invariant: equal runs are asserted, times are not. Simulated steps take no time: only claiming and noting are
measured. `HARNESS_BENCH_SCALE` multiplies candidates and items (0.1 for a trial of two minutes).
"""

import os
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from uuid import uuid4

import bench_page
import pytest
import tiny_experiment
from bench_page import Row, Table
from commands import run

from harness import config
from harness.evaluation.row_sets import RunRequest
from harness.evaluation.session import Session
from harness.experiment import Scope, prepare_session
from harness.experiment.executors import make_plan
from harness.experiment.worker import Journal, Outcome, Plan
from harness.models.hardware import probe
from harness.progress import SilentProgress

SCALE = float(os.environ.get("HARNESS_BENCH_SCALE", "1"))
N_CANDIDATES, N_TASKS, N_WORKERS = round(10_000 * SCALE), 100, 64
N_ITEMS = (
    round(500 * SCALE),
    round(4_000 * SCALE),
)  # of one task: few, so that starting workers dominates, and many
CANDIDATES = "  prompt: {method: base}\n" + "".join(
    f"  lora{n}: {{method: lora, params: {{r: {n}, num_train_epochs: 1, max_length: 200}}}}\n"
    for n in (1, 2, 4)
)
ARMS = {
    "one process": (),
    "one worker beside the command": ("--executor", "local", "--workers", "1"),
    "two workers beside the command": ("--executor", "local", "--workers", "2"),
}


def pull_all(folder: Path, plan: Plan) -> None:
    journal = Journal(folder / uuid4().hex / "journal", plan)
    journal.file.parent.mkdir()
    while claimed := journal.claim(folder / "claims"):
        step, lock = claimed
        journal.note("begun", step)
        journal.note("ended", step, Outcome())
        lock.release()
        journal.read()
    assert journal.is_over


def measure_work(work: Callable[[], object]) -> tuple[float, float]:
    """Return the seconds that a function takes, and its peak memory in MB, measured in a second call."""
    start = perf_counter()
    work()
    wall_s = perf_counter() - start
    tracemalloc.start()
    work()
    peak_mb = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    return wall_s, peak_mb


def widen_session(session: Session) -> Session:
    recipe = session.candidates["lora"].recipe
    wide = session.with_candidates({f"lora{n}": recipe for n in range(N_CANDIDATES)})
    return replace(wide, suites=(session.suites * N_TASKS)[:N_TASKS])


def measure_planning(session: Session, folder: Path) -> list[Row]:
    few = [RunRequest(session.candidates["lora"], seed) for seed in range(500)]
    plan_s, _ = measure_work(lambda: make_plan(session, few, N_WORKERS))
    rows = [Row("1,000 steps planned", plan_s, "s", 1.0, "building the order")]
    wide = widen_session(session)
    requests = [RunRequest(wide.candidates[f"lora{n}"], 0) for n in range(N_CANDIDATES)]
    plan = make_plan(wide, requests, N_WORKERS)
    plan_s, plan_mb = measure_work(lambda: make_plan(wide, requests, N_WORKERS))
    size = f"{N_CANDIDATES:,} candidates × {N_TASKS} tasks"
    pull_s, _ = measure_work(lambda: pull_all(folder, plan))
    return [
        *rows,
        Row(
            f"{size} planned: {len(plan.needs):,} steps", plan_s, "s", None,
            "a training and a set of answers each",
        ),
        Row("memory of the plan", plan_mb, "MB", None, "its steps and what each waits for"),
        Row(
            "all of them claimed and noted", pull_s, "s", None, "two locks and two lines of the journal each"
        ),
    ]  # fmt: skip


def time_workers(folder: Path, model: Path) -> Table:
    """Time an experiment in one process and by workers, all with one thread; all end with the same runs."""
    took: dict[str, list[str]] = {name: [] for name in ARMS}
    for n_items in N_ITEMS:
        run_ids = set()
        for name, words in ARMS.items():
            path = write_experiment(folder / f"{n_items} {name}", model, n_items)
            took[name].append(f"{run(path.parent, 'compare', *words).wall_s:.0f}")
            run_ids.add(frozenset(stored.run_id for stored in tiny_experiment.runs_of(path).values()))
        assert len(run_ids) == 1, run_ids
    sentence = (
        "The tiny model, four candidates, three of them trained, and one thread a process. Beside as many generated "
        "answers of each candidate, starting workers and judging at the end included, in seconds:"
    )
    columns = ("", *(f"{n_items:,} answers" for n_items in N_ITEMS))
    return Table(sentence, columns, tuple((name, *cells) for name, cells in took.items()))


def write_experiment(folder: Path, model: Path, n_items: int) -> Path:
    """Write the tiny experiment with `n_items` items of one task; return the path of its harness.yaml."""
    folder.mkdir()
    path = tiny_experiment.write(folder, model, CANDIDATES)
    items = [{"id": f"n{n}", "prompt": f"What follows {n}?", "reference": str(n + 1)} for n in range(n_items)]
    tiny_experiment.rows(folder / "suites" / "general" / "facts.jsonl", items)
    return path


@pytest.mark.bench
def test_what_workers_take_besides_their_steps_is_measured_and_written(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (tmp_path / "planned").mkdir()
    path = tiny_experiment.write(tmp_path / "planned", tiny)
    rows = measure_planning(prepare_session(config.load(path), Scope(), SilentProgress()), tmp_path)
    tables = (time_workers(tmp_path, tiny),)
    bench_page.write(
        "Workers", rows, probe(), bench_page.stem("workers"), tables, "make bench ARGS='-k workers'"
    )
