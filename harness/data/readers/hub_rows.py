"""Rows of a data set in the hub's layout, by its id, from a local copy or a folder, and of a Parquet file."""

import math
import os
import zlib
from collections.abc import Iterator, Mapping
from decimal import Decimal
from itertools import count
from pathlib import Path
from typing import Any

from harness.data.readers.text_file import SHOWN, Row, display_path, kind_of, refuse_bomb
from harness.errors import Problem, UserError, as_argument, refuse_unreadable
from harness.spec import HUB

_LONGEST_REASON = 300
_AT_ONCE, _LEAST = 1024, 8  # rows of a Parquet file read at once, and bytes that each takes at least


def stream_set(reference: str, split: str) -> Iterator[Row]:
    """Stream one split through the datasets library, from a local copy where there is one."""
    import datasets
    from yaml import YAMLError  # type: ignore[import-untyped]

    datasets.disable_progress_bars()
    source, config, named = hub_source(reference)
    split, where = named or split, reference if named else f"{reference} {split}"
    of_files = (OSError, EOFError, ValueError, TypeError, zlib.error)
    unreadable = (*of_files, YAMLError, datasets.exceptions.DatasetsError)
    n = 0
    try:
        for fields in datasets.load_dataset(source, config or None, split=split, streaming="[" not in split):
            yield Row(f"{where} row {n}", replace_nan(fields))
            n += 1
    except unreadable as error:
        raise UserError(_unread(error, reference, split, n, is_copy=Path(source).is_dir())) from None
    except StopIteration:  # as the library ends an empty file
        return


def list_parts(reference: str) -> list[str]:
    """List the parts of a data set in the hub's layout, such as train and test; none where one is named."""
    import datasets

    source, config, named = hub_source(reference)
    try:
        return [] if named else datasets.get_dataset_split_names(source, config or None)
    except (OSError, ValueError, datasets.exceptions.DatasetsError):  # the rows were read without
        return []


def hub_source(reference: str) -> tuple[str, str, str]:
    """Return the local copy of a data set or its name on the hub, its configuration, and the split named."""
    name, config, named = [*reference.removeprefix(HUB).split(":", 2), "", ""][:3]
    copies = os.environ.get("HARNESS_DATASETS_DIR")
    copy = Path(copies, name) if copies else None
    return str(copy) if copy and copy.is_dir() else name, config, named


def _unread(error: Exception, reference: str, split: str, n: int, *, is_copy: bool) -> Problem:
    """Say why rows of a data set cannot be had, `n` of which were read."""
    why = " ".join(str(error.__cause__ or error).split())[:_LONGEST_REASON]
    found = f"{n:,} rows of {split} and then one that cannot be read" if n else f"no {split} rows to be had"
    expected, is_hub = "a data set on the hub or a copy", reference.startswith(HUB)
    if n:
        next_step = "fix its files, or fetch them again"
    elif not is_hub:
        expected, next_step = "a file of rows, or a folder in the hub's layout", _name_a_file(Path(reference))
    elif is_copy:
        next_step = "name the part that there is, as in hub:owner/name:config:split, or fix its files"
    else:
        next_step = "without a network point HARNESS_DATASETS_DIR at local copies, or name a file"
    return Problem(display_path(reference), f"{found} ({why})", expected, next_step)


def _name_a_file(folder: Path) -> str:
    """Say which files of rows lie in a folder, or in folders of it, to be named one by one."""
    names = sorted(str(file) for at in ("*", "*/*") for file in folder.glob(at) if kind_of(file))
    if not names:
        return "name a file of rows; this folder holds none"
    more = f" or {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return f"name a file: {', '.join(map(as_argument, map(display_path, names[:SHOWN])))}{more}"


def read_parquet(file: Path, shown: str) -> Iterator[Row]:
    """Yield the rows of a Parquet file, by its groups."""
    import pyarrow.parquet

    readable = refuse_unreadable(shown, "a whole Parquet file", "fetch or write it again")
    with readable, pyarrow.parquet.ParquetFile(file) as table:
        names = table.schema_arrow.names
        if twice := next((name for name in names if names.count(name) > 1), None):
            found = f"two columns named {twice!r}"
            raise UserError(Problem(shown, found, "every name once", "rename one of them"))
        n_bytes, places, step = 0, count(), "where that is meant, write it as JSON Lines"
        refuse_bomb(shown, _LEAST * table.metadata.num_rows, file.stat().st_size, step)
        for batch in table.iter_batches(_AT_ONCE):  # of one text a million times a file holds one
            n_bytes += _LEAST * batch.num_rows + sum(_count_bytes(column) for column in batch.columns)
            refuse_bomb(shown, n_bytes, file.stat().st_size, step)
            for fields in batch.to_pylist():
                yield Row(f"{shown} row {next(places)}", replace_nan(fields))


def _count_bytes(column: Any) -> int:
    """Count the bytes of a column's values, each by itself."""
    n_bytes: int = (column.dictionary_decode() if hasattr(column, "dictionary") else column).nbytes
    return n_bytes


def replace_nan(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row in which NaN, as some tools write a cell without a value, is none; within cells too."""
    return {name: _without_nan(value) for name, value in fields.items()}


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nan(of) for name, of in value.items()}
    if isinstance(value, list):
        return [_without_nan(of) for of in value]
    is_nan = (isinstance(value, float) and math.isnan(value)) or (
        isinstance(value, Decimal) and value.is_nan()
    )
    return None if is_nan else value
