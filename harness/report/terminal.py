"""Print a report on the terminal: one table, the sentences, and the verdict as the last line.

Invariant: the table takes at most 100 columns, and different candidates have different names in it; a
name wraps only where none that fits would tell it apart. Nothing that a model or a file chose is read
as markup.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness.comparison import Estimate
from harness.decision import Ablation
from harness.formatting import UNKNOWN, Unit, count, score
from harness.report import decision_tables, labels
from harness.report.escape import clean
from harness.report.experiment_report import SMOKE, ExperimentReport, Row, headers, last_line, table_rows
from harness.report.labels import STYLES
from harness.report.sections import sentences

WIDTH = 100


def terminal(report: ExperimentReport, console: Console) -> None:
    """Print the table and its sentences; the last line is the verdict, never broken in two."""
    console.print(terminal_table(report))
    for ablation in report.ablations:
        console.print(_ablation(ablation, report.unit))
        console.print(Text(clean(decision_tables.ablation_note(ablation))))
    for sentence in sentences(report):
        console.print(Text(clean(sentence)))
    console.print(Text(clean(last_line(report)), style="bold"), soft_wrap=True)


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
    table.add_column(Text(first), overflow="fold", max_width=name_width)
    for header in others:
        table.add_column(Text(header), no_wrap=True, overflow="ellipsis")


def _ablation(ablation: Ablation, unit: Unit) -> Table:
    """Lay one grid out; its members are named by what differs."""
    rows = decision_tables.ablation_rows(ablation, unit)
    columns = [clean(column) for column in decision_tables.ablation_columns(ablation)]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    free = WIDTH - sum(max(map(cell_len, cells)) + 2 for cells in list(zip(columns, *rows, strict=True))[1:])
    width = max(free, cell_len(columns[0]))
    _add_columns(table, columns, width)
    for name, *cells in rows:
        table.add_row(Text(clean(name)), *map(Text, cells))
    return table


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
