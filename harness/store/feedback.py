"""Rows of feedback from production: one Parquet file for each file that was added.

Invariant: a file appears whole or not at all, holds masked texts alone, and no row twice. The folder and its
key, with which rows and senders are digested, can be read by their owner alone.
"""

import secrets
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime
from itertools import chain, islice
from pathlib import Path
from typing import Any

from harness.cache import make_private_folder
from harness.errors import Problem, UserError, as_argument
from harness.records import FeedbackRow
from harness.store import index
from harness.store.layout import AGAIN, Store, clear_errors, rename_when_whole, write_whole
from harness.store.row_files import FEEDBACK_COLUMNS, note_checksum, whole_feedback_files

_FOLDER = "feedback"
_BATCH = 10_000
_TEXTS = ("messages", "answer", "correction", "preference", "source")


def feedback_key(store: Store) -> str:
    """Return the key that rows and senders of feedback are digested with; the first call makes it.

    Raises:
        UserError: rows are stored and their key is lost, so that repeated rows would not be recognised.
    """
    folder = store.folder / _FOLDER
    make_private_folder(store.folder)
    make_private_folder(folder)
    path = folder / "key"
    with suppress(FileNotFoundError):
        return path.read_text("utf-8").strip()
    if any(folder.glob("*/rows.parquet")):
        step = f"restore it, or remove all feedback and add it again: rm -r {as_argument(str(folder))}"
        raise UserError(Problem(str(path), "no key, but rows digested with it", "the key", step))
    write_whole(store, path, secrets.token_hex(16) + "\n")
    return path.read_text("utf-8").strip()


def save_feedback(store: Store, file_id: str, rows: Iterable[FeedbackRow]) -> int:
    """Write the rows of one added file, all of them or none, and return their number; none write no file.

    Raises:
        HarnessError: the disk is full; nothing is left behind.
    """
    import pyarrow
    import pyarrow.parquet

    n_earlier = len(list((store.folder / _FOLDER).glob(f"{file_id}-*")))
    path = store.place(_FOLDER, f"{file_id}-{n_earlier}") / "rows.parquet"
    kinds = {"VARCHAR": pyarrow.string(), "BOOLEAN": pyarrow.bool_()}
    schema = pyarrow.schema([(name, kinds[kind]) for name, kind in FEEDBACK_COLUMNS.items()])
    rows = iter(rows)
    batches = iter(lambda: list(islice(rows, _BATCH)), [])
    first, n_rows = next(batches, []), 0
    if not first:
        return 0

    def write(part: Path) -> None:
        nonlocal n_rows
        with pyarrow.parquet.ParquetWriter(part, schema, compression="zstd") as writer:
            for batch in chain([first], batches):
                writer.write_table(pyarrow.Table.from_pylist(list(map(asdict, batch)), schema))
                n_rows += len(batch)
        note_checksum(store, path, part)

    with clear_errors(store, str(path), AGAIN):
        rename_when_whole(store, path, write)
    if store.index.exists():
        index.update(store)
    return n_rows


def list_feedback_ids(store: Store) -> set[str]:
    """List the ids of all stored rows of feedback; errors are those of `read_feedback`."""
    return {row["row_id"] for row in _read(store, ["row_id"])}


def read_feedback(
    store: Store, *, texts: bool = True, added_since: datetime | None = None
) -> list[FeedbackRow]:
    """Read the rows of feedback, by time; rows without a time come first. Without `texts` these are empty.

    Those of all files, or of the files that were added at a time or later.

    Raises:
        NotStored: a file is damaged.
    """
    columns = None if texts else [name for name in FEEDBACK_COLUMNS if name not in _TEXTS]
    found = _read(store, columns, added_since)
    rows = (FeedbackRow(**{"messages": "[]", "answer": "", **row}) for row in found)
    return sorted(rows, key=lambda row: (row.time, row.row_id))


def _read(
    store: Store, columns: list[str] | None = None, added_since: datetime | None = None
) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet

    for path in whole_feedback_files(store):
        if added_since and path.stat().st_mtime < added_since.timestamp():
            continue
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(columns=columns):
                yield from batch.to_pylist()
