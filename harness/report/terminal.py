"""Print a report on the terminal: one table, the sentences, and the verdict as the last line.

Invariant: the table takes at most 100 columns, and different candidates have different names in it; a
name wraps only where none that fits would tell it apart. Nothing that a model or a file chose is read
as markup.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness.comparison import Estimate
from harness.formatting import UNKNOWN, count, score
from harness.report import labels
from harness.report.document import terminal_lines
from harness.report.escape import clean
from harness.report.experiment_report import SMOKE, ExperimentReport, Row, headers, table_rows
from harness.report.labels import STYLES
from harness.report.sections import experiment_document

WIDTH = 100


def terminal(report: ExperimentReport, console: Console) -> None:
    """Print the table of candidates, fitted to its width, then the rest of the document."""
    console.print(terminal_table(report))
    whole = experiment_document(report)
    below = [replace(s, rows=()) if s.kind == "candidates" else s for s in whole.sections]
    *lines, last = terminal_lines(replace(whole, title="", lead="", sections=below))
    for line in lines:
        console.print(line)
    console.print(last, soft_wrap=True)


def terminal_table(report: ExperimentReport) -> Table:
    """Lay the candidates out in at most 100 columns, best first."""
    rows, gap, name_width = _layout(report)
    table = Table(
        box=None, pad_edge=False, padding=(0, gap, 0, 0), title_justify="left", caption_justify="left"
    )
    if report.smoke:
        table.title = Text(f"{clean(report.experiment)}: {SMOKE}")
        table.caption = Text(SMOKE)
    _add_columns(table, rows[0], name_width)
    shown = labels.for_table([row.candidate for row in rows[1:]], name_width)
    for name, row in zip(shown, rows[1:], strict=True):
        verdict = Text(row.verdict, style=STYLES.get(row.verdict, ""))
        table.add_row(Text(name), *map(Text, row[1:-1]), verdict)
    return table


def _add_columns(table: Table, headers: Sequence[str], name_width: int) -> None:
    """Add a column of names, which may wrap, and those beside it, which may not."""
    first, *others = headers
    # Without a least width rich shrinks the one column that wraps to nothing where the others are wide.
    table.add_column(Text(first), overflow="fold", min_width=cell_len(first), max_width=name_width)
    for header in others:
        table.add_column(Text(header), no_wrap=True, overflow="ellipsis")


def _layout(report: ExperimentReport) -> tuple[list[Row], int, int]:
    """Find the roomiest layout that fits: a narrower gap first, then terser cells, then shorter names."""
    for tight, gap in ((False, 2), (False, 1), (True, 1)):
        rows = [headers(report), *table_rows(report, tight=tight)]
        rows = [row._replace(candidate=clean(row.candidate)) for row in rows]
        free = WIDTH - _others(rows) - gap * (len(Row._fields) - 1)
        if free >= max(cell_len(row.candidate) for row in rows):
            break
    return rows, gap, max(free, cell_len(rows[0].candidate))


def _others(rows: Sequence[Row]) -> int:
    """Add up the widths of all columns but the first."""
    return sum(max(map(cell_len, column)) for column in list(zip(*rows, strict=True))[1:])


_SCORE_COLUMNS = ("task", "n-shot", "metric", "score [95 % interval]", "n")


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
    for header in _SCORE_COLUMNS:
        right = header in ("n-shot", "n")
        table.add_column(Text(header), no_wrap=True, overflow="fold", justify="right" if right else "left")
    previous = None
    for s in scores:
        named = f"  {s.part}" if s.part else s.task
        shown = "" if named == previous else named
        previous = named
        table.add_row(*map(Text, (clean(shown), str(s.num_fewshot), clean(s.metric), *_score_cells(s))))
    return table


def _score_cells(s: Scored) -> tuple[str, str]:
    e = s.estimate
    if e is None:
        return UNKNOWN, "0"
    return score(e.unit, *e[:3]), count(e.n)
