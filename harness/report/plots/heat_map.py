"""The changes on the capability suite as a heat map: a row a task, a column a fine-tune.

Invariant: only rates are shown, of each task its primary metric; a colour says no more than its number.
"""

from typing import NamedTuple

from harness import formatting
from harness.comparison import Comparison, orient
from harness.decision import is_fine_tuned
from harness.report.experiment_report import ExperimentReport
from harness.report.wording import best_first

_FULL_COLOUR = 0.30  # the change that gets the whole colour; larger ones get no more


class Cell(NamedTuple):
    """`strength` runs from −1 (lost) over 0 to 1 (gained); `shown` says whether the interval leaves 0 out."""

    change: str
    interval: str
    said: str
    strength: float
    shown: bool


class Heat(NamedTuple):
    """One row a task with a cell for each label; None where a candidate did not answer it."""

    labels: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell | None, ...]], ...]


def heat(report: ExperimentReport) -> Heat:
    """Lay out the primary metric of every task of the suites that is a rate, for every fine-tune."""
    labels = tuple(
        f.label for f in best_first(report) if is_fine_tuned(f) and report.comparisons.get(f.label)
    )
    by_label = [
        {task: c for task, c in report.task_comparisons(label).items() if c.unit.is_rate} for label in labels
    ]
    tasks = list(dict.fromkeys(task for of in by_label for task in of))
    rows = tuple(
        (task, tuple(_heat_cell(of[task]) if task in of else None for of in by_label)) for task in tasks
    )
    return Heat(labels, rows)


def _heat_cell(c: Comparison) -> Cell:
    better = orient(c)
    change = formatting.points(c.delta)
    interval = formatting.points(c.delta, c.low, c.high).removeprefix(change).strip()
    said = f"{c.metric} {change} {interval} points, n = {formatting.count(c.n)}"
    strength = max(-1.0, min(1.0, better.delta / _FULL_COLOUR))
    return Cell(change, interval, said, strength, better.low > 0 or better.high < 0)
