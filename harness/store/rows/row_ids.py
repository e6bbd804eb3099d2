"""Example ids of complete row sets, which tell whether a set holds the wanted items.

Invariant: a damaged file has no ids, even if part of it is readable.
"""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from harness.store.layout import Store
from harness.store.rows.checksums import is_as_written
from harness.store.rows.file_memo import FileMemo
from harness.store.rows.row_columns import DIGEST, READ_NAMED, READ_PARQUET, memory, pattern


def read_ids(store: Store, rows_digests: Iterable[str]) -> None:
    """Read the ids of many sets at once, so that `has_rows` need not open each file."""
    _IDS.prepare(store, rows_digests)


def parquet_ids(path: Path) -> list[str] | None:
    """Return the ids of a file by position; None if it is missing or damaged."""
    try:
        return _IDS.get(path)
    except OSError:
        return None


def _read(path: Path) -> list[str] | None:
    import duckdb

    try:
        whole = is_as_written(path)
        if whole is False:
            return None
        # A file older than checksums is read in all columns instead, to detect damage.
        columns = "example_id" if whole else "example_id, hash(file)"
        query = f"SELECT {columns} FROM {READ_PARQUET} AS file ORDER BY position"
        with memory() as db:
            return [example_id for example_id, *_ in db.execute(query, [pattern(path)]).fetchall()]
    except (OSError, duckdb.Error):
        return None


def _read_all(paths: Mapping[str, Path]) -> Mapping[str, list[str]]:
    import duckdb

    with suppress(OSError, duckdb.Error), memory() as db:
        ids_of: dict[str, list[str]] = {name: [] for name, path in paths.items() if is_as_written(path)}
        query = f"SELECT {DIGEST} AS digest, example_id FROM {READ_NAMED} ORDER BY digest, position"
        files = [pattern(paths[name]) for name in ids_of]
        for rows_digest, example_id in db.execute(query, [files]).fetchall() if files else ():
            ids_of[rows_digest].append(example_id)
        return ids_of
    return {}


_IDS = FileMemo(_read, _read_all)
