"""The DuckDB file: locks and connections.

Invariant: DuckDB lets either one process write or many read, and any process may keep the file open. So no
run waits for it: while it is locked the folders are read instead, and the next process that opens it brings
it up to date.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from harness.cache import make_private_folder
from harness.store import ingest
from harness.store.layout import Store, clear_errors, failure, remove_stale_parts, rename_when_whole
from harness.store.rows.row_columns import hide_progress_bar

if TYPE_CHECKING:
    from pathlib import Path

    from duckdb import DuckDBPyConnection

REINDEX = "harness reindex"
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


def update(store: Store) -> bool:
    """Bring the index up to date with the folders; False where another process holds it.

    Raises:
        HarnessError: the file is damaged or written by a newer harness, or the disk is full.
    """
    try:
        with clear_errors(store, str(store.index), REINDEX), writer_lock(store, _BRIEF_S):
            if not store.index.exists() or not _sync_current(store, _BRIEF_S):
                _rebuild(store)
    except _IndexLocked:
        return False
    return True


def reindex(store: Store) -> Counts:
    """Rebuild the index from the folders and replace the old one, even while other processes have it open.

    Raises:
        HarnessError: the disk is full, or another process keeps rebuilding.
    """
    try:
        with clear_errors(store, str(store.index), REINDEX), writer_lock(store, store.wait_s):
            return _rebuild(store)
    except _IndexLocked:
        found = f"another process that has been writing it for {store.wait_s:g} s"
        raise failure(str(store.index), found, "one writer at a time", f"wait, then: {REINDEX}") from None


@contextmanager
def connect(store: Store) -> Iterator["DuckDBPyConnection"]:
    """Open an up-to-date index to read it; where another process holds it, a copy built in memory.

    Raises:
        HarnessError: the file is damaged or written by a newer harness.
    """
    db = _open_current(store)
    if db is None and update(store):
        db = _open_current(store, despite_skipped=True)
    if db is None:
        db = _build_in_memory(store)
    with db:
        yield db


@contextmanager
def writer_lock(store: Store, wait_s: float) -> Iterator[None]:
    """Hold the lock that all writers of a store take."""
    # DuckDB's own lock belongs to its file, which reindex replaces; hence a separate one.
    from filelock import FileLock, Timeout

    make_private_folder(store.folder)
    try:
        held = FileLock(store.folder / ".lock").acquire(timeout=wait_s)
    except Timeout as error:
        raise _IndexLocked from error
    with held:
        yield


def _sync_current(store: Store, wait_s: float) -> bool:
    """Bring an index of this schema and folder up to date; False for any other, which must be rebuilt."""
    with _connect(store, wait_s, read_only=False) as db:
        _refuse_newer(db)
        if not ingest.is_current(db, store):
            return False
        ingest.sync(db, store)
    return True


def _open_current(store: Store, *, despite_skipped: bool = False) -> "DuckDBPyConnection | None":
    """Open an up-to-date index; None if it is missing, locked or out of date."""
    # A process that closes a file drops all its locks on it (POSIX), and DuckDB closes some late, so the file
    # may change while it is read. It counts as damaged only after several attempts.
    import duckdb

    if not store.index.exists():
        return None
    with clear_errors(store, str(store.index), REINDEX):
        for pause_s in (*_PAUSES_S, None):
            try:
                return _try_open(store, despite_skipped=despite_skipped)
            except _IndexLocked:
                return None
            except duckdb.Error:
                if pause_s is None:
                    raise
                time.sleep(pause_s)
    return None


def _try_open(store: Store, *, despite_skipped: bool) -> "DuckDBPyConnection | None":
    db = _connect(store, _BRIEF_S, read_only=True)
    try:
        _refuse_newer(db)
        if ingest.is_current(db, store) and (despite_skipped or not ingest.is_behind(db, store)):
            return db
    except BaseException:
        db.close()
        raise
    db.close()
    return None


def _build_in_memory(store: Store) -> "DuckDBPyConnection":
    import duckdb

    db = hide_progress_bar(duckdb.connect())
    with clear_errors(store, str(store.folder), REINDEX):
        ingest.create(db, store)
        ingest.sync(db, store)
    return db


def _rebuild(store: Store) -> Counts:
    counts: list[Counts] = []
    remove_stale_parts(store)
    rename_when_whole(store, store.index, lambda part: counts.append(_build(store, part)))
    # A log left by a killed writer belongs to the replaced file.
    store.index.with_name(store.index.name + ".wal").unlink(missing_ok=True)
    return counts[0]


def _build(store: Store, path: "Path") -> Counts:
    import duckdb

    with hide_progress_bar(duckdb.connect(str(path))) as db:
        ingest.create(db, store)
        skipped = ingest.sync(db, store)
        return Counts(*ingest.sizes(db), tuple(skipped))


def _refuse_newer(db: "DuckDBPyConnection") -> None:
    version = ingest.schema_version(db)
    if version > ingest.VERSION:
        found = f"version {version} of the index, written by a newer harness"
        expected = f"version {ingest.VERSION} at most"
        raise failure("index", found, expected, f"upgrade harness, or rebuild the index: {REINDEX}")


def _connect(store: Store, wait_s: float, *, read_only: bool) -> "DuckDBPyConnection":
    import duckdb

    deadline = time.monotonic() + wait_s
    while True:
        try:
            return hide_progress_bar(duckdb.connect(str(store.index), read_only=read_only))
        except (duckdb.IOException, duckdb.ConnectionException) as error:
            if isinstance(error, duckdb.IOException) and "set lock" not in str(error):
                raise
            if time.monotonic() > deadline:
                raise _IndexLocked from error
        time.sleep(_PAUSE_S)
