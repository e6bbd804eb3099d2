"""`python -m tests.studies.fronts --steps N`: make the next N steps of the study of fronts, and write its page.

Without `--steps` nothing is trained: the page is written of what there is, with what did not run and its
estimated hours. A step is one candidate with all its seeds; one that was ended goes on where it was.
`HARNESS_TEST_DATA` names the folder of real rows, and `HARNESS_DATASETS_DIR` copies of the public tasks,
without which these are not asked.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from harness.report import ExperimentReport, front_file, to_plain
from tests.studies.fronts.choice import N_BEST, choose
from tests.studies.fronts.experiments import prepare_tasks, prepare_ways
from tests.studies.fronts.fronts_page import page
from tests.studies.fronts.plan import Step, make, plan, report_done
from tests.studies.recipe_search import ROOT


def main(arguments: list[str]) -> None:
    """Make the next steps, and write the page."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.studies.fronts", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--steps", type=int, default=0, help="how many steps to make; none without it")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "studies" / "fronts")
    parser.add_argument("--reports", type=Path, default=ROOT / "reports")
    given = parser.parse_args(arguments)
    for _ in range(given.steps):
        _, _, _, left, _ = look(given.folder)
        if not left:
            break
        make(left[0])
    write(given.folder, given.reports)


def look(
    folder: Path,
) -> tuple[ExperimentReport | None, list[Path], list[Step], list[Step], float]:
    """Return the first stage's report, the files and steps of the second, what is left, and its later seconds."""
    ways = prepare_ways(folder)
    steps = plan(ways)
    first = report_done(ways, steps)
    left = [step for step in steps if not step.is_done]
    if left or first is None:
        plain = [step for file in prepare_tasks(folder, ()) for step in plan(file)]
        later_s = sum(s.expected_s * (1 if s.candidate == "prompt" else 1 + N_BEST) for s in plain)
        return first, [], [], left, later_s
    files = prepare_tasks(folder, choose(first.facts))
    of_tasks = [step for file in files for step in plan(file)]
    return first, files, of_tasks, [step for step in of_tasks if not step.is_done], 0.0


def write(folder: Path, reports: Path) -> None:
    """Write the page, its numbers and the pictures of what has run."""
    first, files, steps, left, later_s = look(folder)
    found = {file.stem: report_done(file, steps) for file in files}
    done = {name: report for name, report in found.items() if report}
    (reports / "fronts.md").write_text(page(first, done, left, later_s), "utf-8")
    for name, report in done.items():
        (reports / f"fronts.{name}.svg").write_text(front_file(report), "utf-8")
    plain = to_plain({"ways": _facts(first), **{name: _facts(report) for name, report in done.items()}})
    (reports / "fronts.json").write_text(json.dumps(plain, indent=1) + "\n", "utf-8")
    sys.stdout.write((reports / "fronts.md").read_text("utf-8"))


def _facts(report: ExperimentReport | None) -> Sequence[object]:
    return report.facts if report else ()


if __name__ == "__main__":
    main(sys.argv[1:])
