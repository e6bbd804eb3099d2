"""`python -m reports.studies.fronts --steps N`: make the next N steps of the study of fronts, and write its page.

Without `--steps` nothing is trained: the page is written of what there is, with what did not run and its
estimated hours. A step is one candidate with all its seeds; one that was ended goes on where it was. The
shortest come first. `--workers N` makes several at once, with `OMP_NUM_THREADS=1`. On a GPU, which a
small model leaves idle, `--processes N` does so, with the best of the ways after them in one call.
`--tasks` goes on to the three tasks with the best of the ways that have run, and leaves the other ways for later.
`HARNESS_TEST_DATA` names the folder of real rows, and `HARNESS_DATASETS_DIR` copies of the public tasks,
without which these are not asked.
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
    given = parse(arguments)
    found = look(given.folder, given.reports, given.tasks)
    n_left = given.steps
    while n_left and (
        group := next_group(found.left, min(n_left, size_of_group(given)), stage=given.processes > 0)
    ):
        if given.processes:
            make_in_processes(group, given.folder, found.chosen, given.processes)
        else:
            make(group, given.workers)
        n_left -= len(group)
        found = look(given.folder, given.reports, given.tasks)
        write(found, given.reports)
    write(found, given.reports)
    sys.stdout.write((given.reports / "fronts.md").read_text("utf-8"))


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


def next_group(left: Sequence[Step], n: int, *, stage: bool = False) -> list[Step]:
    """Return the next steps that are made at once, at most `n`: of one experiment, or of a whole stage."""
    first = left[0].file if left else Path()
    return [s for s in left[:n] if s.file == first or (stage and s.file.parent == first.parent)]


def size_of_group(given: argparse.Namespace) -> int:
    """Count the steps after which the page is written; of several workers none should wait long for the last."""
    if given.processes:
        return 10 * given.processes
    return 1 if given.workers == 1 else 4 * given.workers


class State(NamedTuple):
    """What there is of the study: rows, reports of tasks that were measured here, and what is left.

    `chosen` are the ways of the second stage, none while it has not begun; `later_s` is what it is expected
    to take until then.
    """

    rows: list[Row]
    tasks: dict[str, ExperimentReport]
    left: list[Step]
    later_s: float = 0.0
    chosen: Sequence[str] = ()


def look(folder: Path, reports: Path, tasks_first: bool = False) -> State:
    """Look up what is done, here or in the rows that are kept; trains nothing.

    `tasks_first` chooses among the ways that have run so far.
    """
    ways = prepare_ways(folder)
    machine, steps = machine_of(ways), plan(ways)
    rows = merge(read_rows(reports / "fronts.json"), rows_of(WAYS_TASK, machine, report_done(ways, steps)))
    left = sorted(list_open(steps, rows, machine), key=lambda step: step.expected_s)
    chosen = choose([row for row in rows if row.task == WAYS_TASK]) if tasks_first or not left else []
    files = prepare_tasks(folder, chosen)
    of_tasks = [step for file in files for step in plan(file)]
    found = {file.stem: report for file in files if (report := report_done(file, of_tasks))}
    rows = merge(rows, [row for name, report in found.items() for row in rows_of(name, machine, report)])
    if not chosen:
        later_s = sum(s.expected_s * (1 if s.candidate == PROMPT else 1 + N_BEST) for s in of_tasks)
        return State(rows, found, left, later_s)
    order = [PROMPT, f"{PLAIN}-2", *chosen]
    later = sorted(list_open(of_tasks, rows, machine), key=lambda step: order.index(step.candidate))
    return State(rows, found, [*later, *left], chosen=chosen)


def list_open(steps: list[Step], rows: list[Row], machine: str) -> list[Step]:
    """Return the steps that are neither done here nor kept; the prompt and plain LoRA where others are left."""
    left = [
        s for s in steps if not s.is_done and s.candidate not in list_measured(rows, s.file.stem, machine)
    ]
    busy = {s.file for s in left if not is_reference(s.candidate)}
    return [s for s in left if s.file in busy]


def write(state: State, reports: Path) -> None:
    """Write the rows, the pictures of tasks of which no other machine measured more, and the page."""
    write_rows(reports / "fronts.json", state.rows)
    for name, report in state.tasks.items():
        measured = {(row.machine, row.candidate) for row in state.rows if row.task == name}
        most = max(Counter(machine for machine, _ in measured).values())
        if len({f.name for f in report.facts}) >= most:
            (reports / f"fronts.{name}.svg").write_text(front_file(report), "utf-8")
    (reports / "fronts.md").write_text(page(state.rows, state.left, state.later_s, reports), "utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
