"""Time of the command that directs workers: planning, dispatching, and two workers beside one process.

Invariant: nothing is asserted of a time, because the machine may be busy. Simulated workers answer at once, so
what is measured of them is the command's own time.
"""

import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import bench_page
import pytest
import tiny_experiment
from bench_page import Row, Table
from commands import run

from harness import config
from harness.evaluation.rows.row_sets import RunRequest
from harness.evaluation.session import Session
from harness.experiment import Scope, prepare_session
from harness.experiment.executors.dispatch import run_jobs
from harness.experiment.executors.job_runner import Outcome
from harness.experiment.executors.work_plan import plan_work
from harness.models.hardware import probe
from harness.progress import Silent

N_CANDIDATES, N_TASKS, N_WORKERS = 10_000, 100, 64
N_ITEMS = 1_500  # of one task, and so many seconds that starting workers is not all that is seen


class AtOnce:
    """Workers that have always finished already."""

    def __init__(self, size: int) -> None:
        self.size = size

    def run(self, job: object, known: object) -> Outcome:
        return Outcome()

    def stop(self) -> None:
        pass


def measured(work: Callable[[], object]) -> tuple[float, float]:
    """Return the seconds of some work, and the MB that it holds at most, measured in a second call."""
    start = perf_counter()
    work()
    wall_s = perf_counter() - start
    tracemalloc.start()
    work()
    peak_mb = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    return wall_s, peak_mb


def many(session: Session) -> Session:
    """Return a session of many candidates with weights of their own, and of many tasks."""
    recipe = session.candidates["lora"].recipe
    wide = session.with_candidates({f"lora{n}": recipe for n in range(N_CANDIDATES)})
    return replace(wide, suites=(session.suites * N_TASKS)[:N_TASKS])


def simulated_rows(session: Session) -> list[Row]:
    few = [RunRequest(session.candidates["lora"], seed) for seed in range(500)]
    plan_s, _ = measured(lambda: plan_work(session, few, N_WORKERS))
    rows = [Row("1,000 jobs planned", plan_s, "s", 1.0, "building the order")]
    wide = many(session)
    requests = [RunRequest(wide.candidates[f"lora{n}"], 0) for n in range(N_CANDIDATES)]
    plan = plan_work(wide, requests, N_WORKERS)
    plan_s, plan_mb = measured(lambda: plan_work(wide, requests, N_WORKERS))
    of = f"{N_CANDIDATES:,} candidates × {N_TASKS} tasks"
    run_s, run_mb = measured(
        lambda: run_jobs(plan.needs, AtOnce(N_WORKERS), {}, lambda done, total, note="": None, Path())
    )
    return [
        *rows,
        Row(
            f"{of} planned: {len(plan.needs):,} jobs",
            plan_s,
            "s",
            None,
            "a training and a set of answers each",
        ),
        Row("memory of the plan", plan_mb, "MB", None, "its jobs and what each waits for"),
        Row(
            f"all of them dispatched to {N_WORKERS} workers",
            run_s,
            "s",
            None,
            "a hand-over between threads each",
        ),
        Row("memory of the dispatch", run_mb, "MB", None, "the order; no row"),
    ]


def beside_one_process(folder: Path, model: Path) -> Table:
    """Time the same experiment in one process and with two workers of one thread."""
    lines = []
    candidates = "  prompt: {method: base}\n" + "".join(
        f"  lora{n}: {{method: lora, params: {{r: {n}, num_train_epochs: 1, max_length: 200}}}}\n"
        for n in (1, 2, 4)
    )
    arms = {
        "one process of one thread": (),
        "two workers of one thread": ("--executor", "local", "--workers", "2"),
    }
    for name, words in arms.items():
        at = folder / name.replace(" ", "_")
        at.mkdir()
        tiny_experiment.write(at, model, candidates)
        asked = [
            {"id": f"n{n}", "prompt": f"What follows {n}?", "reference": str(n + 1)} for n in range(N_ITEMS)
        ]
        tiny_experiment.rows(at / "suites" / "general" / "facts.jsonl", asked)
        took = run(at, "compare", *words)
        lines.append((name, f"{took.wall_s:.0f}"))
    sentence = f"The tiny model, four candidates, {N_ITEMS:,} generated answers each; starting workers is part of it:"
    return Table(sentence, ("", "s"), tuple(lines))


@pytest.mark.bench
def test_what_directing_workers_takes_is_measured_and_written(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (tmp_path / "planned").mkdir()
    path = tiny_experiment.write(tmp_path / "planned", tiny)
    rows = simulated_rows(prepare_session(config.load(path), Scope(), Silent()))
    tables = (beside_one_process(tmp_path, tiny),)
    bench_page.write(
        "Workers", rows, probe(), bench_page.stem("workers"), tables, "make bench ARGS='-k workers'"
    )
