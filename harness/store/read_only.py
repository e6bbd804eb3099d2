"""SQL over the documented tables, read-only.

Invariant: one SELECT at a time, so stored data never changes; it reads the index and the stored rows, and no
other file, address or variable.
Source: DuckDB's documentation, *Securing DuckDB*.
"""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.errors import Problem, UserError, did_you_mean
from harness.store import ingest
from harness.store.index import connect
from harness.store.layout import ANEW, Store, first_line
from harness.store.rows.row_columns import pattern, quote_texts
from harness.store.tables import TABLES

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection, Error
    from pandas import DataFrame  # type: ignore[import-untyped]

_QUERYING = threading.Lock()  # connections of a process to one file share a locked configuration
_OF_ROWS = re.compile(r"\b(?:scores|samples|deltas)\b", re.IGNORECASE)
_LISTED = "harness sql --tables lists tables and columns"


class QueryResult(NamedTuple):
    """The columns and rows of a query's result; `unread` names damaged files that no table includes."""

    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]
    unread: tuple[str, ...] = ()


def query(store: Store, sql: str) -> QueryResult:
    """Query the index after bringing it up to date.

    Raises:
        UserError: the folder has no run, or the query is not a single SELECT that DuckDB can answer.
        HarnessError: the index is damaged or written by a newer harness.
    """
    with _select(store, sql) as cursor:
        columns, rows = tuple(name for name, *_ in cursor.description or ()), cursor.fetchall()
        return QueryResult(columns, rows, tuple(ingest.list_unread_files(cursor, store)))


def frame(folder: str | Path, sql: str) -> "DataFrame":
    """Query the index as `query` does, and return a pandas frame.

    Raises:
        UserError: the folder has no run, or the query is not a single SELECT that DuckDB can answer.
        HarnessError: the index is damaged or written by a newer harness.
    """
    with _select(Store(Path(folder)), sql) as cursor:
        return cursor.df()


@contextmanager
def _select(store: Store, sql: str) -> Iterator["DuckDBPyConnection"]:
    import duckdb

    _refuse_empty(store)
    with _QUERYING, connect(store) as db:
        _close_doors(db, store)
        try:
            _refuse_other(db.extract_statements(sql))
            _refuse_damaged(store, db, sql)
            yield db.execute(sql)
        except duckdb.Error as error:
            raise UserError(_problem(error)) from error


def _close_doors(db: "DuckDBPyConnection", store: Store) -> None:
    """Restrict a connection to the store's rows: no other file, address or Python variable, irrevocably."""
    rows = store.folder.resolve() / "rows"
    db.execute("SET python_enable_replacements = false")
    db.execute(f"SET allowed_directories = {quote_texts([f'{rows}/', f'{pattern(rows)}/'])}")
    db.execute("SET enable_external_access = false")
    db.execute("SET lock_configuration = true")


def _refuse_empty(store: Store) -> None:
    if not any(store.folder.glob("*/run.json")):
        found = "no stored run" if store.folder.is_dir() else "no such folder"
        step = "make one: harness compare, or name another folder with --runs"
        raise UserError(Problem(str(store.folder), found, "a folder of stored runs", step))


def _refuse_damaged(store: Store, db: "DuckDBPyConnection", sql: str) -> None:
    """Refuse a query over tables of rows while row files are damaged, which those tables leave out."""
    if not _OF_ROWS.search(sql):
        return
    unread = "SELECT rowset FROM stored.run_rows EXCEPT SELECT rowset FROM stored.rowsets ORDER BY rowset"
    damaged = [digest for (digest,) in db.execute(unread).fetchall() if store.parquet(digest).exists()]
    if damaged:
        found = f"damaged files of the rows {', '.join(damaged)}"
        raise UserError(Problem(str(store.folder / "rows"), found, "whole Parquet files", ANEW))


def _refuse_other(statements: list[Any]) -> None:
    kinds = [statement.type.name for statement in statements]
    if kinds != ["SELECT"]:
        found = ", ".join(kinds) or "no statement"
        step = 'harness sql "SELECT run_id, outcome FROM verdicts"'
        raise UserError(Problem("query", found, "one SELECT: what is stored is only read", step))


def _problem(error: "Error") -> Problem:
    """Turn DuckDB's error into a problem, with the suggested name or our nearest one."""
    import duckdb

    if isinstance(error, duckdb.PermissionException):
        return Problem("query", first_line(error), "SQL over the documented tables alone", _LISTED)
    if isinstance(error, duckdb.IOException) or "parquet" in str(error):
        return Problem("rows", first_line(error), "whole Parquet files", ANEW)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    suggestion = next((line for line in lines if "did you mean" in line.lower() or "Candidate" in line), "")
    missing = first_line(error).partition("Table with name ")[2].partition(" ")[0]
    if missing:
        suggestion = did_you_mean(missing, [table.name for table in TABLES])
    found = first_line(error).removesuffix("!")
    return Problem(
        "query", found, "SQL over the documented tables", "; ".join(filter(None, (suggestion, _LISTED)))
    )
