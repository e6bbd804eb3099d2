"""Command that queries the stored tables: sql.

Invariant: stdout holds the rows and nothing else; nothing that is stored changes.
"""

import sys
from collections.abc import Sequence
from math import isfinite
from typing import TYPE_CHECKING, Annotated, Any

from harness.cli.app import STORED, app, print_document, print_json, say
from harness.cli.options import Argument, Json, Option, StoredRuns, verb
from harness.errors import Problem, UserError

if TYPE_CHECKING:
    from harness.store import QueryResult

_WIDEST = 60  # characters of a cell


@verb(app, "harness sql --tables", 'harness sql "SELECT candidate, outcome FROM verdicts"', heading=STORED)
def sql(
    query: Annotated[str, Argument("One SELECT, in DuckDB's SQL.", "SELECT")] = "",
    *,
    tables: Annotated[bool, Option("List the tables with their columns, units and meanings.")] = False,
    as_csv: Annotated[bool, Option("Print CSV, with cells uncut.", "--csv")] = False,
    kept: StoredRuns,
    as_json: Json = False,
) -> None:
    """Query everything that is stored, in DuckDB's SQL."""
    from harness import store
    from harness.report import ResultDocument, Section
    from harness.report.escape import write_csv

    if tables == bool(query) or (as_csv and as_json):
        given = "both" if tables else "neither a query nor --tables"
        found = "both --csv and --json" if as_csv and as_json else given
        step = 'harness sql "SELECT * FROM runs", or harness sql --tables'
        raise UserError(Problem("harness sql", found, "a query or --tables, in one form", step))
    answer = _list_columns() if tables else store.query(store.Store(kept.folder), query)
    for name in answer.unread:
        say(f"left out, as damaged: {kept.folder / name}; next: repair or delete it")
    if as_json:
        names = _distinct(answer.columns)
        print_json([dict(zip(names, map(_plain, row), strict=True)) for row in answer.rows])
    elif as_csv:
        write_csv(sys.stdout, answer.columns, answer.rows)
    else:
        rows = [list(map(_cell, row)) for row in answer.rows]
        print_document(ResultDocument("", [Section(columns=answer.columns, rows=rows)], ""))
        say(f"{len(answer.rows):,} rows")


def _list_columns() -> "QueryResult":
    """List every column of every table as rows of one more table."""
    from harness.store import TABLES, QueryResult

    rows: list[tuple[Any, ...]] = [(table.name, *column[:4]) for table in TABLES for column in table.columns]
    return QueryResult(("table", "column", "type", "unit", "meaning"), rows)


def _cell(value: object) -> str:
    """Write a value on one line, cut where it is long: it may be what a model wrote."""
    from harness.report.escape import clean

    text = "" if value is None else f"{value:.6g}" if isinstance(value, float) else clean(str(value))
    return text if len(text) <= _WIDEST else text[: _WIDEST - 1] + "…"


def _distinct(columns: Sequence[str]) -> list[str]:
    """Name columns of one name apart, as DuckDB does in a subquery: `n`, `n_1`."""
    names: list[str] = []
    for column in columns:
        own = (column, *(f"{column}_{i}" for i in range(1, len(columns))))
        names.append(next(name for name in own if name not in names))
    return names


def _plain(value: Any) -> Any:
    """Turn what JSON does not know into text, such as times and decimals; NaN and infinity are null."""
    if isinstance(value, float) and not isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)
