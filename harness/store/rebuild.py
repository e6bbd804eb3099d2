"""The index, built from the folders: where it is missing, and when somebody asks for it.

Invariant: an index appears complete or not at all, so one that is there has heard of every run that
was finished before it appeared.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from harness.records import Run
from harness.store import index
from harness.store.ingest import add_rows, drop_orphans, groups
from harness.store.layout import (
    Store,
    clear_errors,
    first_line,
    is_no_room,
    remove_stale_parts,
    rename_when_whole,
)
from harness.store.rows import silent

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection


class Counts(NamedTuple):
    """What the index holds; `skipped` says what could not be read, and why."""

    runs: int
    row_sets: int
    rows: int
    skipped: tuple[str, ...]


@contextmanager
def writing(store: Store) -> Iterator["DuckDBPyConnection"]:
    """Open the index for one transaction, alone; one that is not there is built first."""
    with index.writer_lock(store):
        if not store.index.exists():
            _rebuild(store)
        with index.opened(store) as db:
            yield db


def build_missing(store: Store) -> None:
    """Build the index, unless somebody else has while this process waited.

    Raises:
        HarnessError: the disk is full, or another process keeps writing.
    """
    with index.writer_lock(store):
        if not store.index.exists():
            _rebuild(store)


def reindex(store: Store) -> Counts:
    """Rebuild the index from the folders and put it in the old one's place.

    Raises:
        HarnessError: the disk is full, or another process keeps writing.
    """
    with index.writer_lock(store):
        return _rebuild(store)


def _rebuild(store: Store) -> Counts:
    counts: list[Counts] = []
    with clear_errors(store, str(store.index), index.REINDEX):
        remove_stale_parts(store)
        rename_when_whole(store, store.index, lambda part: counts.append(_build(store, part)))
        # A log that outlived its writer belongs to the file that is gone.
        store.index.with_name(store.index.name + ".wal").unlink(missing_ok=True)
    return counts[0]


def _build(store: Store, path: Path) -> Counts:
    import duckdb

    runs, skipped = runs_on_disk(store)
    with silent(duckdb.connect(str(path))) as db:
        index.migrate(db)
        _add_all_rows(db, store, runs)
        for run in runs:
            try:
                with index.transaction(db):
                    index.add_run(db, store, run, record_of(run))
            except (OSError, duckdb.Error) as error:
                if is_no_room(error):
                    raise
                skipped.append(f"{store.run_file(run.run_id)}: {first_line(error)}")
        if skipped:
            drop_orphans(db)  # rows that only a skipped run refers to
        skipped += index.add_ratings(db, store)
        return Counts(*index.sizes(db), tuple(skipped))


def _add_all_rows(db: "DuckDBPyConnection", store: Store, runs: Sequence[Run]) -> None:
    """Insert the rows of all runs, many sets at once, until one is damaged: each run then brings its own.

    What is not committed yet is in memory, so each group of sets is committed by itself.
    """
    import duckdb

    digests = dict.fromkeys(digest for run in runs for digest in run.rows.values())
    try:
        for group in groups(db, {digest: store.parquet(digest) for digest in digests}):
            with index.transaction(db):
                add_rows(db, group)
    except (OSError, duckdb.Error) as error:
        if is_no_room(error):
            raise


def record_of(run: Run) -> str:
    """Write a run as `run.json` and the index hold it."""
    return json.dumps(asdict(run), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def parsed(text: str) -> Run:
    """Read a run as `record_of` wrote it."""
    return Run(**json.loads(text))


def runs_on_disk(store: Store) -> tuple[list[Run], list[str]]:
    """Read every `run.json` without the index; what cannot be read is named with its reason."""
    runs, unreadable = [], []
    for path in sorted(store.folder.glob("*/run.json")):
        try:
            runs.append(parsed(path.read_text("utf-8")))
        except (ValueError, TypeError) as error:
            unreadable.append(f"{path}: {first_line(error)}")
    return runs, unreadable
