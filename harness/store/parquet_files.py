"""Files of row sets: their checksums, their columns in Parquet, the ids in them, and a cache of their ids.

Invariant: no checksum is deleted, so a whole file is never taken for a damaged one, which has no ids. A
replaced file is read again. One in-memory database per process reads and writes Parquet.
"""

import json
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import records
from harness.errors import NotStored, as_argument
from harness.store import layout
from harness.store.layout import Store

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

_PIECE = 1 << 20  # bytes


def note_checksum(store: Store, path: Path, finished: Path) -> None:
    """Record the checksum of a finished file before it gets its final name."""
    checksums = {*(_read_checksums(path) or ()), _checksum(finished)}
    layout.write_whole(store, _file(path), json.dumps(sorted(checksums)) + "\n")


@contextmanager
def write_checked(store: Store, path: Path) -> Iterator[Path]:
    """Yield a file to fill, whose checksum is noted before it gets its name."""
    with layout.clear_errors(store, str(path), layout.AGAIN), layout.rename_when_whole(store, path) as temp:
        yield temp
        note_checksum(store, path, temp)


def is_as_written(path: Path) -> bool | None:
    """Tell whether a file has the content that was written, in its own folder; None without a checksum."""
    actual = _checksum(path)  # read before the noted checksums: the file may be replaced in between
    with suppress(OSError, ValueError):
        identity = records.load(records.RowsIdentity, path.with_name("identity.json").read_bytes())
        if identity.digest != path.parent.name:
            return False
    checksums = _read_checksums(path)
    return None if checksums is None else actual in checksums


def is_damaged(path: Path) -> bool:
    """Tell whether a file differs from its noted checksums; cached until the file changes."""
    return _is_damaged(path, *file_version(path))


@lru_cache(maxsize=4096)
def _is_damaged(path: Path, *_version: int) -> bool:
    return is_as_written(path) is False


def file_version(path: Path) -> tuple[int, int, int]:
    """Return inode, time and size of a file, which change when the file is replaced."""
    file_stat = path.stat()
    return file_stat.st_ino, file_stat.st_mtime_ns, file_stat.st_size


def _read_checksums(path: Path) -> list[str] | None:
    with suppress(OSError, ValueError):
        return records.load(list[str], _file(path).read_bytes())
    return None


def _file(path: Path) -> Path:
    return path.with_name("checksums.json")


def _checksum(path: Path) -> str:
    value = 0
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            value = zlib.crc32(piece, value)
    return f"{value:08x}"


def feedback_files(store: Store) -> list[Path]:
    """List the files of stored feedback."""
    return sorted((store.folder / "feedback").glob("*/rows.parquet"))


def whole_feedback_files(store: Store) -> list[Path]:
    """List the files of stored feedback; a damaged one is refused."""
    for path in filter(is_damaged, files := feedback_files(store)):
        found, step = "other bytes than were written", f"rm -r {as_argument(str(path.parent))}"
        step += ", then add its log again"
        raise NotStored(str(path), found, "the file as it was written", step)
    return files


def pattern(path: Path | str) -> str:
    """Escape a path so that DuckDB, which reads paths as patterns, finds just this file."""
    return re.sub(r"([*?\[])", r"[\1]", str(path))


def quote_texts(texts: Iterable[str]) -> str:
    """Write texts as a list literal of DuckDB's SQL."""
    return "[" + ", ".join("'" + text.replace("'", "''") + "'" for text in texts) + "]"


def whole_file(path: Path) -> str:
    """Return the pattern of a file of rows, which may be missing; a damaged one is refused."""
    with suppress(FileNotFoundError):
        if is_damaged(path):
            found = f"{path} of other bytes than were written"
            expected = "the file as it was written"
            raise NotStored(f"rows {path.parent.name}", found, expected, layout.ANEW)
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


_TYPES: dict[Any, str] = {  # DuckDB's, of the fields of rows and of sampled answers
    str: "VARCHAR",
    records.Status: "VARCHAR",
    int: "BIGINT",
    int | None: "BIGINT",
    float: "DOUBLE",
    float | None: "DOUBLE",
    bool: "BOOLEAN",
    bool | None: "BOOLEAN",
    tuple[str, ...]: "VARCHAR[]",
    dict[str, tuple[float, ...] | None]: "MAP(VARCHAR, DOUBLE[])",
}
_BESIDE = ("samples", "fold")  # fields that other files hold
COLUMNS = {f.name: _TYPES[f.type] for f in fields(records.SampleResult) if f.name not in _BESIDE}
# A sampled answer to an item, as a line of JSON.
SAMPLE_COLUMNS = {"example_id": "VARCHAR"} | {f.name: _TYPES[f.type] for f in fields(records.Sample)}
FEEDBACK_COLUMNS = {f.name: _TYPES[f.type] for f in fields(records.FeedbackRow)}
# Without hive partitioning a folder named `x=1` does not become a column.
READ_PARQUET = "read_parquet(?, hive_partitioning = false)"
READ_NAMED = READ_PARQUET.replace(")", ", filename = true)")
DIGEST = "parse_path(filename)[-2]"  # digest of a file's row set
_FIELDS = tuple(COLUMNS)
# A map is selected as its keys, in its place, and its values, at the end: twice as fast.
_MAPPED = {"parts": 'map_keys("parts")'}
_VALUES = ', map_values("parts")'
SELECTED = ", ".join(_MAPPED.get(name, f'"{name}"') for name in _FIELDS) + _VALUES
# References are needed to score the worst answer if an item has no answer.
FAILED = "('error', 'incomplete')"
OF_ERRORS = f'CASE WHEN status IN {FAILED} THEN "references" ELSE [] END'
_EMPTY = _MAPPED | {"text": "''", "prompt": "''", "references": OF_ERRORS, "passages": "[]"}
WITHOUT_TEXTS = ", ".join(_EMPTY.get(name, f'"{name}"') for name in _FIELDS) + _VALUES
_TUPLES = tuple(place for place, name in enumerate(_FIELDS) if COLUMNS[name].endswith("[]"))
_PARTS = _FIELDS.index("parts")


def rows_from(db: "DuckDBPyConnection", source: str, *values: object) -> list[records.SampleResult]:
    """Read rows by position; selecting the columns in the order of the fields is fastest."""
    with records.many_rows():
        fetched_rows = db.execute(f"SELECT {SELECTED} FROM {source} ORDER BY position", values).fetchall()
        return [row_of(list(row)) for row in fetched_rows]


def row_of(values: list[Any]) -> records.SampleResult:
    """Build a row from DuckDB's values for `SELECTED`: its fields in order, then the values of `parts`."""
    for index in _TUPLES:
        values[index] = tuple(values[index])
    parts = (None if scores is None else tuple(scores) for scores in values.pop())
    values[_PARTS] = dict(zip(values[_PARTS], parts, strict=True))
    return records.SampleResult(*values)


_IDS: dict[tuple[Path, tuple[int, int, int]], list[str] | None] = {}  # by file and its version
_MOST = 1024  # files; beyond these the oldest is dropped


def read_ids(store: Store, rows_digests: Iterable[str]) -> None:
    """Read the ids of many sets at once, so that `has_rows` need not open each file, which is slower."""
    import duckdb

    files = []
    for path in map(store.parquet, set(rows_digests)):
        with suppress(OSError):
            files.append((path, file_version(path)))
    with suppress(OSError, duckdb.Error):  # a damaged file is reported when it is read alone
        _read_ids([file for file in files if file not in _IDS])


def parquet_ids(path: Path) -> list[str] | None:
    """Return the ids of a file by position, read again when it is replaced; None if missing or damaged."""
    import duckdb

    with suppress(OSError, duckdb.Error):
        if (file := (path, file_version(path))) not in _IDS:
            _read_ids([file])
        return _IDS[file]
    return None


def _read_ids(new_files: Sequence[tuple[Path, tuple[int, int, int]]]) -> None:
    is_whole_by_path = {path: is_as_written(path) for path, _ in new_files}
    ids: dict[Path, list[str]] = {}
    # A file of the cache has no file of checksums: all columns are read instead, to detect damage.
    for columns, is_noted in (("example_id", True), ("example_id, hash(file)", None)):
        files = {str(path): path for path, is_whole in is_whole_by_path.items() if is_whole is is_noted}
        if files:
            ids |= {path: [] for path in files.values()}
            query = f"SELECT filename, {columns} FROM {READ_NAMED} AS file ORDER BY position"
            with memory() as db:
                for name, example_id, *_ in db.execute(query, [[*map(pattern, files)]]).fetchall():
                    ids[files[name]].append(example_id)
    for file in new_files:
        if len(_IDS) >= _MOST:
            del _IDS[next(iter(_IDS))]
        _IDS[file] = ids.get(file[0])
