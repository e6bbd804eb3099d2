"""Rows of feedback from production: one Parquet file for each file that was added.

Invariant: a file appears whole or not at all, holds masked texts alone, and no row twice. The folder and its
key, with which rows and senders are digested, can be read by their owner alone.
"""

import secrets
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, fields
from itertools import chain, islice
from pathlib import Path

from harness.cache import make_private_folder
from harness.errors import NotStored, Problem, UserError, as_argument
from harness.records import FeedbackRow
from harness.store import index
from harness.store.layout import AGAIN, Store, clear_errors, failure, rename_when_whole, write_whole
from harness.store.row_files import is_damaged, note_checksum

_FOLDER = "feedback"
_BATCH = 10_000


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

    path = store.place(_FOLDER, file_id) / "rows.parquet"
    kinds = {"thumb": pyarrow.bool_()}
    names = [field.name for field in fields(FeedbackRow)]
    schema = pyarrow.schema([(name, kinds.get(name, pyarrow.string())) for name in names])
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


def feedback_files(store: Store) -> list[Path]:
    """List the files of stored feedback."""
    return sorted((store.folder / _FOLDER).glob("*/rows.parquet"))


def read_feedback(store: Store) -> list[FeedbackRow]:
    """Read all rows of feedback, by time; rows without a time come first.

    Raises:
        NotStored: a file is damaged.
    """
    import pyarrow.parquet

    rows: list[FeedbackRow] = []
    for path in feedback_files(store):
        if is_damaged(path):
            step = f"remove {path.parent}, then add its file again"
            raise failure(str(path), "other bytes than were written", "the file as written", step, NotStored)
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches():
            rows += (FeedbackRow(**row) for row in batch.to_pylist())
    return sorted(rows, key=lambda row: (row.time, row.row_id))
