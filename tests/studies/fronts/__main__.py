"""`python -m tests.studies.fronts --steps N`: make the next N steps of the study of fronts, and write its page.

Without `--steps` nothing is trained: the page is written of what there is, with what did not run and its
estimated hours. A step is one candidate with all its seeds; one that was ended goes on where it was.
`--tasks` goes on to the three tasks with the best of the ways that have run, and leaves the other ways for later.
`HARNESS_TEST_DATA` names the folder of real rows, and `HARNESS_DATASETS_DIR` copies of the public tasks,
without which these are not asked.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from harness.report import ExperimentReport, front_file, to_plain
from tests.studies.fronts.choice import N_BEST, choose
from tests.studies.fronts.experiments import prepare_tasks, prepare_ways
from tests.studies.fronts.fronts_page import page
from tests.studies.fronts.plan import Step, make, plan, report_done
from tests.studies.fronts.ways import PLAIN
from tests.studies.recipe_search import ROOT


def main(arguments: list[str]) -> None:
    """Make the next steps, and write the page."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.studies.fronts", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--steps", type=int, default=0, help="how many steps to make; none without it")
    parser.add_argument("--tasks", action="store_true", help="the three tasks before the ways that are left")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "studies" / "fronts")
    parser.add_argument("--reports", type=Path, default=ROOT / "reports")
    given = parser.parse_args(arguments)
    for _ in range(given.steps):
        if not (left := look(given.folder, given.tasks).left):
            break
        make(left[0])
    write(look(given.folder, given.tasks), given.reports)


class State(NamedTuple):
    """What there is of the study: the report of the first stage, those of the tasks, and what is left.

    `later_s` is what the second stage is expected to take while nothing is chosen for it.
    """

    first: ExperimentReport | None
    tasks: dict[str, ExperimentReport]
    left: list[Step]
    later_s: float = 0.0


def look(folder: Path, tasks_first: bool = False) -> State:
    """Look up what is done; trains nothing. `tasks_first` chooses among the ways that have run so far."""
    ways = prepare_ways(folder)
    steps = plan(ways)
    first, left = report_done(ways, steps), [step for step in steps if not step.is_done]
    chosen = choose(first.facts) if first and (tasks_first or not left) else []
    files = prepare_tasks(folder, chosen)
    of_tasks = [step for file in files for step in plan(file)]
    if not chosen:
        later_s = sum(s.expected_s * (1 if s.candidate == "prompt" else 1 + N_BEST) for s in of_tasks)
        return State(first, {}, left, later_s)
    found = {file.stem: report for file in files if (report := report_done(file, of_tasks))}
    order = ["prompt", f"{PLAIN}-2", *chosen]
    later = sorted((s for s in of_tasks if not s.is_done), key=lambda step: order.index(step.candidate))
    return State(first, found, [*later, *left])


def write(state: State, reports: Path) -> None:
    """Write the page, its numbers and the pictures of what has run."""
    (reports / "fronts.md").write_text(page(*state), "utf-8")
    for name, report in state.tasks.items():
        (reports / f"fronts.{name}.svg").write_text(front_file(report), "utf-8")
    found = {name: _facts(report) for name, report in state.tasks.items()}
    plain = to_plain({"ways": _facts(state.first), **found})
    (reports / "fronts.json").write_text(json.dumps(plain, indent=1) + "\n", "utf-8")
    sys.stdout.write((reports / "fronts.md").read_text("utf-8"))


def _facts(report: ExperimentReport | None) -> Sequence[object]:
    return report.facts if report else ()


if __name__ == "__main__":
    main(sys.argv[1:])
