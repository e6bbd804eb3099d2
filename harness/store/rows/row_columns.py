"""Columns of rows: their types in Parquet, a row as a line of JSON, and rows from query results.

Invariant: Parquet is read and written by one in-memory database per process.
"""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.records import SampleResult, canonical_json, many_rows
from harness.store.layout import ANEW, failure
from harness.store.rows.checksums import is_damaged

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection


def pattern(path: Path) -> str:
    """Escape a path so that DuckDB, which reads paths as patterns, finds just this file."""
    return re.sub(r"([*?\[])", r"[\1]", str(path))


def quote_texts(texts: Iterable[str]) -> str:
    """Write texts as a list literal of DuckDB's SQL."""
    return "[" + ", ".join("'" + text.replace("'", "''") + "'" for text in texts) + "]"


def whole_file(path: Path) -> str:
    """Return the pattern of a file of rows, which may be missing.

    Raises:
        HarnessError: the file is damaged.
    """
    with suppress(FileNotFoundError):
        if is_damaged(path):
            found = f"{path} of other bytes than were written"
            raise failure(f"rows {path.parent.name}", found, "the file as it was written", ANEW)
    return pattern(path)


@contextmanager
def memory() -> Iterator["DuckDBPyConnection"]:
    """Open a cursor of the in-memory database."""
    with _database().cursor() as db:
        yield db


@cache
def _database() -> "DuckDBPyConnection":
    """Create the one in-memory database that reads and writes Parquet; creating one takes 25 ms."""
    import duckdb

    # A replaced file must not be served from the cache.
    return hide_progress_bar(duckdb.connect(config={"enable_external_file_cache": False}))


def hide_progress_bar(db: "DuckDBPyConnection") -> "DuckDBPyConnection":
    """Keep the bar that DuckDB draws during long queries off stdout, which belongs to the result."""
    db.execute("SET enable_progress_bar = false")
    return db


COLUMNS = {
    "task": "VARCHAR",
    "split": "VARCHAR",
    "example_id": "VARCHAR",
    "position": "BIGINT",
    "status": "VARCHAR",
    "text": "VARCHAR",
    "prompt": "VARCHAR",
    "references": "VARCHAR[]",
    "parts": "MAP(VARCHAR, DOUBLE[])",
    "cluster": "VARCHAR",
    "slice": "VARCHAR",
    "gold_logprob": "DOUBLE",
    "gold_bytes": "BIGINT",
    "margin": "DOUBLE",
    "n_prompt_tokens": "BIGINT",
    "n_output_tokens": "BIGINT",
    "compute_s": "DOUBLE",
    "prompt_digest": "VARCHAR",
    "output_digest": "VARCHAR",
    "boundary_merged": "BOOLEAN",
    "finish_reason": "VARCHAR",
    "passages": "VARCHAR[]",
    "recall": "DOUBLE",
    "attempt": "BIGINT",
    "weight": "DOUBLE",
    "error": "VARCHAR",
}
# A sampled answer to an item, as a line of JSON.
SAMPLE_COLUMNS = {
    "example_id": "VARCHAR",
    "index": "BIGINT",
    "text": "VARCHAR",
    "status": "VARCHAR",
    "parts": "MAP(VARCHAR, DOUBLE[])",
    "finish_reason": "VARCHAR",
    "n_prompt_tokens": "BIGINT",
    "n_output_tokens": "BIGINT",
    "compute_s": "DOUBLE",
    "mean_logprob": "DOUBLE",
    "error": "VARCHAR",
}
# Without hive partitioning a folder named `x=1` does not become a column.
READ_PARQUET = "read_parquet(?, hive_partitioning = false)"
READ_NAMED = READ_PARQUET.replace(")", ", filename = true)")
DIGEST = "parse_path(filename)[-2]"  # digest of a file's row set
_FIELDS = tuple(field.name for field in fields(SampleResult) if field.name in COLUMNS)
# A map is selected as its keys, in its place, and its values, at the end: twice as fast.
_MAPPED = {"parts": 'map_keys("parts")'}
_VALUES = ', map_values("parts")'
SELECTED = ", ".join(_MAPPED.get(name, f'"{name}"') for name in _FIELDS) + _VALUES
# References are needed to score the worst answer where an item has none.
FAILED = "('error', 'incomplete')"
OF_ERRORS = f'CASE WHEN status IN {FAILED} THEN "references" ELSE [] END'
_EMPTY = _MAPPED | {"text": "''", "prompt": "''", "references": OF_ERRORS, "passages": "[]"}
WITHOUT_TEXTS = ", ".join(_EMPTY.get(name, f'"{name}"') for name in _FIELDS) + _VALUES
_TUPLES = tuple(place for place, name in enumerate(_FIELDS) if COLUMNS[name].endswith("[]"))
_PARTS = _FIELDS.index("parts")


def row_line(row: SampleResult) -> str:
    """Write a row as a line of JSON.

    Raises:
        ValueError: a number is NaN or infinite.
    """
    try:
        return canonical_json({name: getattr(row, name) for name in _FIELDS}) + "\n"
    except ValueError as error:
        reason = "NaN and inf are not stored; unknown is None"
        raise ValueError(f"row {row.example_id!r} of {row.task}: {reason}") from error


def rows_from(
    db: "DuckDBPyConnection", source: str, *values: object, texts: bool = True
) -> list[SampleResult]:
    """Read rows by position; selecting the columns in the order of the fields is fastest."""
    selected = SELECTED if texts else WITHOUT_TEXTS
    query = f"SELECT {selected} FROM {source} ORDER BY position"
    with many_rows():
        return [row_of(list(row)) for row in db.execute(query, values).fetchall()]


def row_of(values: list[Any]) -> SampleResult:
    """Build a row from DuckDB's values for `SELECTED`: its fields in order, then the values of `parts`."""
    for place in _TUPLES:
        values[place] = tuple(values[place])
    parts = (None if scores is None else tuple(scores) for scores in values.pop())
    values[_PARTS] = dict(zip(values[_PARTS], parts, strict=True))
    return SampleResult(*values)
