"""Print the scores of one model on tasks of lm-eval: one row a task and metric.

Invariant: names are lm-eval's; every score stands with its 95 % interval and its number of items.
"""

from collections.abc import Iterable
from typing import NamedTuple

from rich.table import Table
from rich.text import Text

from harness.comparison import Estimate
from harness.formatting import UNKNOWN, count, score
from harness.report.escape import clean

_HEADERS = ("task", "n-shot", "metric", "score [95 % interval]", "n")


class Scored(NamedTuple):
    """One score of a task, or of one task of a group (`part`); None where nothing was scored."""

    task: str
    part: str
    num_fewshot: int
    metric: str
    estimate: Estimate | None


def score_table(scores: Iterable[Scored]) -> Table:
    """Lay scores out, rates in percent, others in their own unit; a group's tasks are indented."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for header in _HEADERS:
        right = header in ("n-shot", "n")
        table.add_column(Text(header), no_wrap=True, overflow="fold", justify="right" if right else "left")
    previous = None
    for s in scores:
        named = f"  {s.part}" if s.part else s.task
        shown = "" if named == previous else named
        previous = named
        table.add_row(*map(Text, (clean(shown), str(s.num_fewshot), clean(s.metric), *_cells(s))))
    return table


def _cells(s: Scored) -> tuple[str, str]:
    e = s.estimate
    if e is None:
        return UNKNOWN, "0"
    return score(e.unit, *e[:3]), count(e.n)
