"""`python -m reports.studies.fronts --steps N`: make the next N steps of the study, and write its page.

Without `--steps` nothing is trained: the page is written from the stored results, with missing steps and
their estimated hours. A step is one candidate with all its seeds; an interrupted one is resumed. The shortest
come first. `--workers N` makes several at once, with `OMP_NUM_THREADS=1`. On a GPU, which a small model
leaves idle, `--processes N` does so, and continues with the best ways in the same call. `--tasks` continues
with the three tasks and the best ways so far, and leaves the other ways for later. `HARNESS_TEST_DATA` names
the folder of real rows, and `HARNESS_DATASETS_DIR` copies of the public tasks, without which these are not
asked.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from harness.report import ExperimentReport, front_file
from reports.studies.fronts.choice import N_BEST, choose
from reports.studies.fronts.experiments import prepare_tasks, prepare_ways
from reports.studies.fronts.fronts_page import WAYS_TASK, page
from reports.studies.fronts.plan import Step, machine_of, make, plan, report_done
from reports.studies.fronts.processes import make_in_processes
from reports.studies.fronts.rows import (
    PROMPT,
    Row,
    is_reference,
    list_measured,
    merge,
    read_rows,
    rows_of,
    write_rows,
)
from reports.studies.fronts.ways import PLAIN
from reports.studies.recipe_search import ROOT


def main(arguments: list[str]) -> None:
    """Make the next steps, and write the page after each."""
    options = parse(arguments)
    state = look(options.folder, options.reports, options.tasks)
    n_left = options.steps
    while n_left and (
        group := next_group(state.left, min(n_left, size_of_group(options)), stage=options.processes > 0)
    ):
        if options.processes:
            make_in_processes(group, options.folder, state.chosen, options.processes)
        else:
            make(group, options.workers)
        n_left -= len(group)
        state = look(options.folder, options.reports, options.tasks)
        write(state, options.reports)
    write(state, options.reports)
    sys.stdout.write((options.reports / "fronts.md").read_text("utf-8"))


def parse(arguments: list[str]) -> argparse.Namespace:
    """Parse the arguments of the command."""
    parser = argparse.ArgumentParser(
        prog="python -m reports.studies.fronts", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--steps", type=int, default=0, help="how many steps to make; none without it")
    parser.add_argument("--workers", type=int, default=1, help="processes of one thread each")
    parser.add_argument("--processes", type=int, default=0, help="processes that share one GPU")
    parser.add_argument("--tasks", action="store_true", help="the three tasks before the ways that are left")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "studies" / "fronts")
    parser.add_argument("--reports", type=Path, default=ROOT / "reports")
    return parser.parse_args(arguments)


def next_group(steps: Sequence[Step], n: int, *, stage: bool = False) -> list[Step]:
    """Return the next steps to make together, at most `n`: of one experiment, or of a whole stage."""
    first = steps[0].file if steps else Path()
    return [s for s in steps[:n] if s.file == first or (stage and s.file.parent == first.parent)]


def size_of_group(options: argparse.Namespace) -> int:
    """Return the number of steps between pages; no worker should wait long for the last one."""
    if options.processes:
        return 10 * options.processes
    return 1 if options.workers == 1 else 4 * options.workers


class State(NamedTuple):
    """State of the study: rows, reports of tasks measured here, and steps that are left.

    `chosen` are the ways of the second stage, empty before it begins; `later_s` is its expected time
    until then.
    """

    rows: list[Row]
    tasks: dict[str, ExperimentReport]
    left: list[Step]
    later_s: float = 0.0
    chosen: Sequence[str] = ()


def look(folder: Path, reports: Path, tasks_first: bool = False) -> State:
    """Return what is finished, here or in the stored rows; trains nothing.

    `tasks_first` chooses among the ways that have run so far.
    """
    ways = prepare_ways(folder)
    machine, steps = machine_of(ways), plan(ways)
    rows = merge(read_rows(reports / "fronts.json"), rows_of(WAYS_TASK, machine, report_done(ways, steps)))
    open_steps = sorted(list_open(steps, rows, machine), key=lambda step: step.expected_s)
    chosen = choose([row for row in rows if row.task == WAYS_TASK]) if tasks_first or not open_steps else []
    files = prepare_tasks(folder, chosen)
    task_steps = [step for file in files for step in plan(file)]
    task_reports = {file.stem: report for file in files if (report := report_done(file, task_steps))}
    rows = merge(
        rows, [row for name, report in task_reports.items() for row in rows_of(name, machine, report)]
    )
    if not chosen:
        later_s = sum(s.expected_s * (1 if s.candidate == PROMPT else 1 + N_BEST) for s in task_steps)
        return State(rows, task_reports, open_steps, later_s)
    order = [PROMPT, f"{PLAIN}-2", *chosen]
    later = sorted(list_open(task_steps, rows, machine), key=lambda step: order.index(step.candidate))
    return State(rows, task_reports, [*later, *open_steps], chosen=chosen)


def list_open(steps: list[Step], rows: list[Row], machine: str) -> list[Step]:
    """Return the steps neither finished here nor stored; the prompt and plain LoRA if others are left."""
    open_steps = [
        s for s in steps if not s.is_done and s.candidate not in list_measured(rows, s.file.stem, machine)
    ]
    busy = {s.file for s in open_steps if not is_reference(s.candidate)}
    return [s for s in open_steps if s.file in busy]


def write(state: State, reports: Path) -> None:
    """Write the rows, the page, and the pictures of tasks that no other machine measured more completely."""
    write_rows(reports / "fronts.json", state.rows)
    for name, report in state.tasks.items():
        measured = {(row.machine, row.candidate) for row in state.rows if row.task == name}
        n_most = max(Counter(machine for machine, _ in measured).values())
        if len({f.name for f in report.facts}) >= n_most:
            (reports / f"fronts.{name}.svg").write_text(front_file(report), "utf-8")
    (reports / "fronts.md").write_text(page(state.rows, state.left, state.later_s, reports), "utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
