"""Missing values: rows without question or answer, empty cells of other columns, columns of mixed types.

False alarms: none; every figure is a count.
"""

from collections import Counter
from collections.abc import Iterator

from harness.data.check import Finding, Given
from harness.data.check._table import Table
from harness.data.column_types import Column
from harness.data.formats import THUMB_DOWN


def check(table: Table, given: Given) -> Iterator[Finding]:
    """List rows that no comparison can use, empty cells, and columns that mix texts and numbers."""
    down = [row for row in table.unusable if row.why == THUMB_DOWN]
    if down:
        title, meaning = (
            "answers with a thumb down",
            "no right answers, but for methods that learn from thumbs",
        )
        rows = tuple(row.where for row in down)
        yield Finding("missing_values", "note", title, meaning, len(down), table.n, rows)
    if unusable := [row for row in table.unusable if row.why != THUMB_DOWN]:
        kinds = Counter(row.why for row in unusable).most_common(3)
        yield Finding(
            "missing_values",
            "error",
            "rows that cannot be used: " + ", ".join(f"{why} ({n:,})" for why, n in kinds),
            "compare stops at such a row, unless it is told to leave it out",
            len(unusable),
            table.n,
            tuple(row.where for row in unusable),
            f"{unusable[0].where}: {unusable[0].why}",
            "harness data clean FILE --out OUT",
        )
    for name, column in table.columns.items():
        lacking = table.n - column.n + column.empty
        # An optional column, such as Alpaca's input, is empty in many rows on purpose: a note.
        if lacking:
            yield _empty(name, lacking, column, table)
        if {"text", "number"} <= column.kinds.keys():
            yield _report_mixed(name, column, table)


def _empty(name: str, lacking: int, column: Column, table: Table) -> Finding:
    return Finding(
        "missing_values",
        "note",
        f"column {name!r} is empty",
        "harmless where the column is optional or not read",
        lacking,
        table.n,
        tuple(column.places),
    )


def _report_mixed(name: str, column: Column, table: Table) -> Finding:
    rarest = min(("text", "number"), key=lambda kind: column.kinds[kind])
    return Finding(
        "missing_values",
        "warning",
        f"column {name!r} holds texts and numbers",
        "1 and '1' become one text; a number where a text belongs is often a slip of an export",
        column.kinds[rarest],
        table.n,
        tuple(column.of_kind[rarest]),
        f"the first {rarest}: {column.of_kind[rarest][0]}",
        "write the column as texts alone",
    )
