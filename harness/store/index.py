"""The DuckDB file: locks, connections, and read-only SQL over the documented tables.

DuckDB lets either one process write or many read, and any process may keep the file open. So no run waits for
it: while it is locked the folders are read instead, and the next process that opens it brings it up to date.
A query is one SELECT; it reads the index and the stored rows, and no other file or address. Source: DuckDB's
documentation, *Securing DuckDB*.
"""

import re
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.errors import HarnessError, UserError, did_you_mean
from harness.store import ingest, parquet_files
from harness.store.layout import ANEW, Store, clear_errors, first_line, hold_file, rename_when_whole
from harness.store.sql_views import TABLES

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection
    from pandas import DataFrame  # type: ignore[import-untyped]

REINDEX = "harness reindex"
_STALE_S = 24 * 3600
_BRIEF_S = 0.2  # wait of a run for the index before it leaves the update to the next process
_PAUSE_S = 0.01  # between two attempts at a locked file
_PAUSES_S = (0.05, 0.1, 0.2, 0.4)  # before the next attempts at an unreadable file


class Counts(NamedTuple):
    """Sizes of the index; `skipped` names unreadable files with the reason."""

    runs: int
    row_sets: int
    rows: int
    skipped: tuple[str, ...]


class _IndexLocked(Exception):
    """Another process or connection holds the file."""


def _writing(store: Store, wait_s: float) -> AbstractContextManager[None]:
    # DuckDB's own lock belongs to its file, which reindex replaces; so all writers share another lock.
    return hold_file(store.folder / ".lock", _IndexLocked(), wait_s)


def update(store: Store) -> bool:
    """Bring the index up to date with the folders; False if another process holds it."""
    try:
        with clear_errors(store, str(store.index), REINDEX), _writing(store, _BRIEF_S):
            if store.index.exists():
                with _connect(store, _BRIEF_S, read_only=False) as db:
                    _refuse_newer(db)
                    if ingest.is_current(db, store):
                        ingest.sync(db, store)
                        return True
            _rebuild(store)  # the index of another schema or folder
    except _IndexLocked:
        return False
    return True


def reindex(store: Store) -> Counts:
    """Rebuild the index from the folders and replace the old one, even while other processes have it open."""
    try:
        with clear_errors(store, str(store.index), REINDEX), _writing(store, store.wait_s):
            return _rebuild(store)
    except _IndexLocked:
        found = f"another process that has been writing it for {store.wait_s:g} s"
        step = f"wait, then: {REINDEX}"
        raise HarnessError(str(store.index), found, "one writer at a time", step) from None


@contextmanager
def connect(store: Store) -> Iterator["DuckDBPyConnection"]:
    """Open an up-to-date index to read it; if another process holds it, a copy built in memory."""
    db = _open_current(store)
    if db is None and update(store):
        db = _open_current(store, despite_skipped=True)
    if db is None:
        import duckdb

        db = parquet_files.hide_progress_bar(duckdb.connect())
        with clear_errors(store, str(store.folder), REINDEX):
            ingest.create(db, store)
            ingest.sync(db, store)
    with db:
        yield db


def _open_current(store: Store, *, despite_skipped: bool = False) -> "DuckDBPyConnection | None":
    # A process that closes a file drops all its locks on it (POSIX), and DuckDB closes some late, so the file
    # may change while it is read. It counts as damaged only after several attempts.
    import duckdb

    if not store.index.exists():
        return None
    with clear_errors(store, str(store.index), REINDEX):
        for pause_s in (*_PAUSES_S, None):
            try:
                db = _connect(store, _BRIEF_S, read_only=True)
                try:
                    _refuse_newer(db)
                    if ingest.is_current(db, store):
                        new = (*ingest.find_changed_files(db, store), *ingest.find_changed_rows(db, store))
                        if despite_skipped or not any(new):
                            return db
                except BaseException:
                    db.close()
                    raise
                db.close()
                return None
            except _IndexLocked:
                return None
            except duckdb.Error:
                if pause_s is None:
                    raise
                time.sleep(pause_s)
    return None


def _rebuild(store: Store) -> Counts:
    import duckdb

    for leftover in (store.folder / ".unfinished").glob("*"):  # of killed writers; recent ones may be in use
        if time.time() - leftover.lstat().st_mtime > _STALE_S:
            leftover.unlink(missing_ok=True)
    with (
        rename_when_whole(store, store.index) as temp_path,
        parquet_files.hide_progress_bar(duckdb.connect(str(temp_path))) as db,
    ):
        ingest.create(db, store)
        skipped = ingest.sync(db, store)
        runs = "SELECT count(*) FROM stored.files WHERE kind = 'run'"
        query = f"SELECT ({runs}), count(*), coalesce(sum(n_rows), 0)::BIGINT FROM stored.rowsets"
        ((n_runs, n_row_sets, n_rows),) = db.execute(query).fetchall()
    # A log left by a killed writer belongs to the replaced file.
    store.index.with_name(store.index.name + ".wal").unlink(missing_ok=True)
    return Counts(n_runs, n_row_sets, n_rows, tuple(skipped))


def _refuse_newer(db: "DuckDBPyConnection") -> None:
    version = ingest.schema_version(db)
    if version > ingest.VERSION:
        found = f"version {version} of the index, written by a newer harness"
        expected = f"version {ingest.VERSION} at most"
        raise HarnessError("index", found, expected, f"upgrade harness, or rebuild the index: {REINDEX}")


def _connect(store: Store, wait_s: float, *, read_only: bool) -> "DuckDBPyConnection":
    import duckdb

    deadline = time.monotonic() + wait_s
    while True:
        try:
            return parquet_files.hide_progress_bar(duckdb.connect(str(store.index), read_only=read_only))
        except (duckdb.IOException, duckdb.ConnectionException) as error:
            if isinstance(error, duckdb.IOException) and "set lock" not in str(error):
                raise
            if time.monotonic() > deadline:
                raise _IndexLocked from error
        time.sleep(_PAUSE_S)


_QUERYING = threading.Lock()  # connections of a process to one file share a locked configuration
_OF_ROWS = re.compile(r"\b(?:scores|samples|deltas)\b", re.IGNORECASE)
_LISTED = "harness sql --tables lists tables and columns"


class QueryResult(NamedTuple):
    """The columns and rows of a query's result; `unread` names damaged files that no table includes."""

    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]
    unread: tuple[str, ...] = ()


def query(store: Store, sql: str) -> QueryResult:
    """Query the index with one SELECT after bringing it up to date."""
    with _select(store, sql) as cursor:
        columns, rows = tuple(name for name, *_ in cursor.description or ()), cursor.fetchall()
        unread = ingest.find_changed_files(cursor, store)[1]  # left out of an up-to-date index
        return QueryResult(columns, rows, tuple(sorted(path for _, path in unread)))


def frame(folder: str | Path, sql: str) -> "DataFrame":
    """Query the index as `query` does, with the same errors, and return a pandas frame."""
    with _select(Store(Path(folder)), sql) as cursor:
        return cursor.df()


@contextmanager
def _select(store: Store, sql: str) -> Iterator["DuckDBPyConnection"]:
    import duckdb

    if not any(store.folder.glob("*/run.json")) and not parquet_files.feedback_files(store):
        found = "no stored run" if store.folder.is_dir() else "no such folder"
        step = "make one: harness compare, or name another folder with --runs"
        raise UserError(str(store.folder), found, "a folder of stored runs", step)
    with _QUERYING, connect(store) as db:
        # Restrict the connection for good to the store's rows: no other file, address or Python variable.
        folders = [store.folder.resolve() / name for name in ("rows", "feedback")]
        allowed = [f"{path}/" for folder in folders for path in (folder, parquet_files.pattern(folder))]
        db.execute("SET python_enable_replacements = false")
        db.execute(f"SET allowed_directories = {parquet_files.quote_texts(allowed)}")
        db.execute("SET enable_external_access = false")
        db.execute("SET lock_configuration = true")
        try:
            kinds = [statement.type.name for statement in db.extract_statements(sql)]
            if kinds != ["SELECT"]:
                found = ", ".join(kinds) or "no statement"
                step = 'harness sql "SELECT run_id, outcome FROM verdicts"'
                raise UserError("query", found, "one SELECT: what is stored is only read", step)
            # Tables of rows leave damaged files out.
            if re.search(r"\bfeedback\b", sql, re.IGNORECASE):
                parquet_files.whole_feedback_files(store)
            unread = "SELECT rowset FROM stored.run_rows EXCEPT SELECT rowset FROM stored.rowsets"
            absent_rows = db.execute(f"{unread} ORDER BY rowset").fetchall() if _OF_ROWS.search(sql) else ()
            if damaged_rows := [digest for (digest,) in absent_rows if store.parquet(digest).exists()]:
                found = f"damaged files of the rows {', '.join(damaged_rows)}"
                raise UserError(str(store.folder / "rows"), found, "whole Parquet files", ANEW)
            yield db.execute(sql)
        except duckdb.Error as error:
            is_denied = isinstance(error, duckdb.PermissionException)
            if isinstance(error, duckdb.IOException) or ("parquet" in str(error) and not is_denied):
                raise UserError("rows", first_line(error), "whole Parquet files", ANEW) from error
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            hints = (line for line in lines if "did you mean" in line.lower() or "Candidate" in line)
            hint = next(hints, "")
            if missing_table := first_line(error).partition("Table with name ")[2].partition(" ")[0]:
                hint = did_you_mean(missing_table, [table.name for table in TABLES])
            step = f"{hint}; {_LISTED}" if hint else _LISTED
            found = first_line(error).removesuffix("!")
            raise UserError("query", found, "SQL over the documented tables", step) from error
