"""Print a report on the terminal: one table, the sentences, and the verdict as the last line.

Invariant: the table takes at most 100 columns, and different candidates have different names in it; a
name wraps only where none that fits would tell it apart. Nothing that a model or a file chose is read
as markup.
"""

import re
from collections.abc import Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness.decide import Ablation
from harness.report import recipes
from harness.report.escape import clean, shorten
from harness.report.facts import SMOKE, ExperimentReport, Row, headers, last_line, sentences, table_rows
from harness.report.verdicts import STYLES

WIDTH = 100
_KEYS = re.compile(r"(?<=[\[,])[\w.]+=")  # of a grid's member, as in few-shot[select=knn,shots=4]


def terminal(report: ExperimentReport, console: Console) -> None:
    """Print the table and its sentences; the last line is the verdict, never broken in two."""
    console.print(terminal_table(report))
    for ablation in report.ablations:
        console.print(_ablation(ablation, report.metric))
        console.print(Text(clean(recipes.ablation_note(ablation))))
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
    names = _names([row.candidate for row in rows[1:]], name_width)
    for name, row in zip(names, rows[1:], strict=True):
        verdict = Text(row.verdict, style=STYLES.get(row.verdict, ""))
        table.add_row(Text(name), *map(Text, row[1:-1]), verdict)
    return table


def _add_columns(table: Table, headers: Sequence[str], name_width: int) -> None:
    """Add a column of names, which may wrap, and those beside it, which may not."""
    first, *others = headers
    table.add_column(Text(first), overflow="fold", max_width=name_width)
    for header in others:
        table.add_column(Text(header), no_wrap=True, overflow="ellipsis")


def _ablation(ablation: Ablation, metric: str) -> Table:
    """Lay one grid out; its members are named by what differs."""
    rows = recipes.ablation_rows(ablation, metric)
    columns = [clean(column) for column in recipes.ablation_columns(ablation)]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    free = WIDTH - sum(max(map(cell_len, cells)) + 2 for cells in list(zip(columns, *rows, strict=True))[1:])
    width = max(free, cell_len(columns[0]))
    _add_columns(table, columns, width)
    for name, *cells in rows:
        table.add_row(Text(clean(name)), *map(Text, cells))
    return table


def _names(names: Sequence[str], width: int) -> list[str]:
    """Shorten names to a width in cells where some are longer, as far as different ones stay different.

    The keys of a grid's members go first, then the middle of what stands before; values are kept.
    """
    if all(cell_len(name) <= width for name in names):
        return list(names)
    brief = [_KEYS.sub("", name) for name in names]
    short = [_shorter(name, width) for name in brief]
    fit = all(cell_len(name) <= width for name in short)
    n_different = len(set(names))
    return next(list(of) for of in (short if fit else brief, brief, names) if len(set(of)) == n_different)


def _shorter(name: str, width: int) -> str:
    source, bracket, values = name.partition("[")
    room = width - cell_len(bracket + values)
    return shorten(source, max(room, 1)) + bracket + values


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
