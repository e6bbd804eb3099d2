"""Rows to files: JSON Lines, JSON, CSV and TSV (also gzipped), and Parquet, chosen by the name.

Invariant: the same rows give the same bytes; order, columns and types stay, and what a kind of file cannot
hold is refused with its row. Reading what was written gives the rows again; CSV holds texts alone.
"""

import csv
import gzip
import io
import itertools
import json
import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import date, datetime, time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TextIO, cast

from harness.data.csv_header import is_csv
from harness.data.readers import Row
from harness.errors import Problem, UserError
from harness.spec import HUB

if TYPE_CHECKING:
    import pyarrow

KINDS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
_BATCH = 10_000

OutputNames = dict[tuple[str, str], str]  # what a verb writes of a file, by both


def row_suffix(name: str) -> str:
    """Return what a name of rows ends with, such as `.csv.gz`, in small letters; empty where none do so."""
    name = name.lower()
    kind = next((kind for kind in KINDS if name.removesuffix(".gz").endswith(kind)), "")
    gz = ".gz" if name.endswith(".gz") else ""
    return "" if kind == ".parquet" and gz else kind and kind + gz


def new_name(file: str, verb: str, taken: Collection[str] = ()) -> str:
    """Name what a verb writes, beside what it reads: a file of the same kind, or the folder of a split.

    A name that is taken gets a number.
    """
    return _free(f"{_stem(file)}.{verb}", "" if verb == "split" else row_suffix(file) or ".jsonl", taken)


def name_output(names: OutputNames, file: str, verb: str) -> str:
    """Name what a verb writes of a file as nothing that another of the commands writes."""
    if (file, verb) not in names:
        names[file, verb] = new_name(file, verb, names.values())
    return names[file, verb]


def free_folders(files: Iterable[str]) -> dict[str, str]:
    """Name a folder for an experiment on each file of rows, in the working directory, no two alike."""
    named: dict[str, str] = {}
    for file in files:
        named[file] = _free(Path(_stem(file)).name, taken=named.values())
    return named


def _stem(file: str) -> str:
    if file.startswith(HUB):  # a data set of the hub has no folder here
        return file.rpartition("/")[2].replace(":", "-")
    return file[: len(file) - len(row_suffix(file))].rstrip("/")


def _free(start: str, ending: str = "", taken: Collection[str] = ()) -> str:
    names = (f"{start}{f'-{i}' if i > 1 else ''}{ending}" for i in itertools.count(1))
    return next(name for name in names if name not in taken and not os.path.lexists(name))


def write_rows(file: Path, suffix: str, rows: Iterable[Row], sources: Sequence[str]) -> None:
    """Write rows as files of a suffix hold them; `sources` are the files that they come from.

    JSON is written row by row, CSV and Parquet too where the rows come from one file of that kind.

    Raises:
        UserError: a row holds what such a file cannot hold.
    """
    if suffix == ".parquet":
        _write_parquet(file, rows, sources)
        return
    with _text(file, suffix.endswith(".gz")) as out:
        if suffix.startswith((".csv", ".tsv")):
            _write_csv(out, rows, "\t" if suffix.startswith(".tsv") else ",", sources)
        elif suffix.startswith(".jsonl"):
            out.writelines(f"{_json(row)}\n" for row in rows)
        else:
            lines = (f"{',' if i else ''}\n{_json(row)}" for i, row in enumerate(rows))
            out.writelines(itertools.chain("[", lines, "\n]\n"))


@contextmanager
def _text(file: Path, gz: bool) -> Iterator[TextIO]:
    """Open a text for writing; a gzip file holds neither a name nor a date."""
    with ExitStack() as stack:
        raw: IO[bytes] = stack.enter_context(file.open("wb"))
        if gz:
            packed = gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0)
            raw = cast("IO[bytes]", stack.enter_context(packed))
        yield stack.enter_context(io.TextIOWrapper(raw, encoding="utf-8", newline=""))


def _json(row: Row) -> str:
    try:
        return json.dumps(row.fields, ensure_ascii=False, allow_nan=False, default=_as_text)
    except (TypeError, ValueError) as error:
        raise UserError(
            Problem(
                row.where,
                f"a value that JSON cannot hold ({error})",
                "texts and numbers",
                "write a .parquet file" if isinstance(error, TypeError) else "fix the row",
            )
        ) from None


def _as_text(value: Any) -> str:
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    raise TypeError(f"a {type(value).__name__}")


def _write_csv(out: TextIO, rows: Iterable[Row], delimiter: str, sources: Sequence[str]) -> None:
    """Write a line of names and one a row, with the line ends of RFC 4180, so that all others are quoted."""
    rows = iter(rows) if len(sources) == 1 and is_csv(sources[0]) else list(rows)
    first = list(itertools.islice(rows, 1)) if isinstance(rows, Iterator) else rows
    names = list(dict.fromkeys(name for row in first for name in row.fields))
    writer = csv.writer(out, delimiter=delimiter)
    writer.writerow(names)
    for row in itertools.chain(first, rows) if isinstance(rows, Iterator) else rows:
        writer.writerow([_cell(row, name) for name in names])


def _cell(row: Row, name: str) -> str:
    value = row.fields.get(name)
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str | int | float):
        return str(value)
    try:
        return _as_text(value)
    except TypeError as error:
        raise UserError(
            Problem(row.where, f"{error} in {name!r}", "values that CSV can hold", "write a .jsonl file")
        ) from None


def _write_parquet(file: Path, rows: Iterable[Row], sources: Sequence[str]) -> None:
    """Write rows with the types of the Parquet files that they come from, else with those of their values."""
    import pyarrow
    import pyarrow.parquet

    batches: Iterator[list[Row]]
    if all(source.lower().endswith(".parquet") for source in sources):
        schema = _source_schema(sources)
        first = list(itertools.islice(rows := iter(rows), _BATCH))
        names = list(dict.fromkeys(itertools.chain(schema.names, *(row.fields for row in first[:1]))))
        for name in names[len(schema.names) :]:
            schema = schema.append(pyarrow.field(name, pyarrow.string()))
        batches = itertools.chain([first], iter(lambda: list(itertools.islice(rows, _BATCH)), []))
    else:
        first = list(rows)
        schema = _value_schema(first)
        batches = iter([first])
    with pyarrow.parquet.ParquetWriter(file, schema) as writer:
        for batch in batches:
            try:
                table = pyarrow.Table.from_pylist([row.fields for row in batch], schema)
            except pyarrow.ArrowException as error:
                found = f"a value of another type ({str(error).splitlines()[0]})"
                where = f"{batch[0].where} and the rows after it"
                raise UserError(Problem(where, found, "the column's type", "write a .jsonl file")) from None
            writer.write_table(table)


def _source_schema(sources: Sequence[str]) -> "pyarrow.Schema":
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.unify_schemas([pyarrow.parquet.read_schema(source) for source in sources])
    except pyarrow.ArrowException as error:
        found = f"columns of other types ({str(error).splitlines()[0]})"
        shown = ", ".join(sources)
        raise UserError(Problem(shown, found, "equal types", "write a .jsonl file")) from None


def _value_schema(rows: Sequence[Row]) -> "pyarrow.Schema":
    """Find each column's type from all of its values."""
    import pyarrow

    names = dict.fromkeys(name for row in rows for name in row.fields)
    return pyarrow.schema([(name, _column_type(rows, name)) for name in names])


def _is_large(value: Any) -> bool:
    return isinstance(value, int) and not -(2**63) <= value < 2**63


def _column_type(rows: Sequence[Row], name: str) -> "pyarrow.DataType":
    import pyarrow

    values = [row.fields.get(name) for row in rows]
    try:
        return pyarrow.array(values).type
    except OverflowError:
        large = next(row for row in rows if _is_large(row.fields.get(name)))
        found, step = f"an integer of more than 64 bits in {name!r}", "write a .jsonl file"
        raise UserError(Problem(large.where, found, "numbers that Parquet can hold", step)) from None
    except pyarrow.ArrowException:
        kind = next(type(value) for value in values if value is not None)
        other = next((row for row in rows if not isinstance(row.fields.get(name), kind | None)), rows[0])
        found = f"a {type(other.fields.get(name)).__name__} in {name!r}, which holds a {kind.__name__} before"
        step = "fix the row, or write a .jsonl file"
        raise UserError(Problem(other.where, found, "one type a column", step)) from None
