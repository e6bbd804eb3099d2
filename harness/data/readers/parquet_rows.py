"""Rows of a Parquet file."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from harness.data.readers.row_place import Row
from harness.errors import Problem, UserError


def read_parquet(file: Path, shown: str) -> Iterator[Row]:
    """Yield the rows of a Parquet file, by its groups."""
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            names = table.schema_arrow.names
            if twice := next((name for name in names if names.count(name) > 1), None):
                found = f"two columns named {twice!r}"
                raise UserError(Problem(shown, found, "every name once", "rename one of them"))
            groups = (fields for batch in table.iter_batches() for fields in batch.to_pylist())
            yield from (Row(f"{shown} row {i}", replace_nan(fields)) for i, fields in enumerate(groups))
    except pyarrow.ArrowException as error:
        found = f"no Parquet ({str(error).splitlines()[0]})"
        raise UserError(Problem(shown, found, "a Parquet file", "write it again")) from None


def replace_nan(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row in which NaN, as some tools write a cell without a value, is none."""
    return {
        name: None if isinstance(value, float) and math.isnan(value) else value
        for name, value in fields.items()
    }
