"""Writing of edited rows in the format given by the file name, and reading of their manifests.

Invariant: the same rows give the same bytes; order, columns and types are kept, and values that a format
cannot store are refused with their row. A payment is identified by its rows, so it counts once.
"""

import csv
import gzip
import io
import itertools
import json
import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack
from datetime import date, datetime, time
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from harness.data import readers
from harness.data.text_files import Row, is_csv, text_of_cell
from harness.errors import UserError
from harness.records import checksum, parse_json
from harness.spec import HUB

KINDS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
_BATCH = 10_000

OutputNames = dict[tuple[str, str], str]  # output by input file and verb


def row_suffix(name: str) -> str:
    """Return the suffix of a row file, such as `.csv.gz`, in lower case; "" for other files."""
    name = name.lower()
    kind = next((kind for kind in KINDS if name.removesuffix(".gz").endswith(kind)), "")
    gz = ".gz" if name.endswith(".gz") else ""
    return "" if kind == ".parquet" and gz else kind and kind + gz


def new_name(file: str, verb: str, names: Collection[str] = ()) -> str:
    """Return a new name for a verb's output next to its input: a file of its kind, or a split's folder."""
    return _free(f"{_stem(file)}.{verb}", "" if verb == "split" else row_suffix(file) or ".jsonl", names)


def name_output(names: OutputNames, file: str, verb: str) -> str:
    """Name a verb's output unlike the outputs of other commands."""
    if (file, verb) not in names:
        names[file, verb] = new_name(file, verb, names.values())
    return names[file, verb]


def free_folders(files: Iterable[str]) -> dict[str, str]:
    """Name a new folder in the working directory for an experiment on each file of rows."""
    folders: dict[str, str] = {}
    for file in files:
        folders[file] = _free(Path(_stem(file)).name, taken_names=folders.values())
    return folders


def _stem(file: str) -> str:
    if file.startswith(HUB):  # a data set of the hub has no folder here
        return file.rpartition("/")[2].replace(":", "-")
    return file[: len(file) - len(row_suffix(file))].rstrip("/")


def _free(start: str, ending: str = "", taken_names: Collection[str] = ()) -> str:
    names = (f"{start}{f'-{i}' if i > 1 else ''}{ending}" for i in itertools.count(1))
    return next(name for name in names if name not in taken_names and not os.path.lexists(name))


def write_rows(file: Path, suffix: str, rows: Iterable[Row], sources: Sequence[str]) -> None:
    """Write rows, read from `sources`, in the format of a suffix; values that it cannot hold are refused."""
    if suffix == ".parquet":
        _write_parquet(file, rows, sources)
        return
    with ExitStack() as stack:
        raw: IO[bytes] = stack.enter_context(file.open("wb"))
        if suffix.endswith(".gz"):  # no name and date in the header
            gzip_file = gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0)
            raw = cast("IO[bytes]", stack.enter_context(gzip_file))
        text_file = stack.enter_context(io.TextIOWrapper(raw, encoding="utf-8", newline=""))
        if suffix.startswith((".csv", ".tsv")):
            are_csv = [is_csv(source) for source in sources]
            rows = iter(rows) if are_csv == [True] else list(rows)
            first_rows = list(itertools.islice(rows, 1)) if isinstance(rows, Iterator) else rows
            names = list(dict.fromkeys(name for row in first_rows for name in row.fields))
            writer = csv.writer(text_file, delimiter="\t" if suffix.startswith(".tsv") else ",")
            writer.writerow(names)
            for row in itertools.chain(first_rows, rows) if isinstance(rows, Iterator) else rows:
                writer.writerow([_cell(row, name, from_csv=any(are_csv) and all(are_csv)) for name in names])
        elif suffix.startswith(".jsonl"):
            text_file.writelines(f"{_json(row)}\n" for row in rows)
        else:
            lines = (f"{',' if i else ''}\n{_json(row)}" for i, row in enumerate(rows))
            text_file.writelines(itertools.chain("[", lines, "\n]\n"))


def _json(row: Row) -> str:
    try:
        return json.dumps(row.fields, ensure_ascii=False, allow_nan=False, default=_as_text)
    except (TypeError, ValueError) as error:
        step = "write a .parquet file" if isinstance(error, TypeError) else "fix the row"
        found = f"a value that JSON cannot hold ({error})"
        raise UserError(row.where, found, "texts and numbers", step) from None


def _as_text(value: Any) -> str:
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    raise TypeError(f"a {type(value).__name__}")


def _cell(row: Row, name: str, *, from_csv: bool) -> str:
    value = row.fields.get(name)
    if value is None:
        return ""
    if from_csv and isinstance(value, list):  # read from a Python literal
        return str(value)
    if (text := text_of_cell(value)) is None:
        found, expected = f"a {type(value).__name__} in {name!r}", "values that CSV can hold"
        raise UserError(row.where, found, expected, "write a .jsonl file")
    return text.lower() if isinstance(value, bool) else text


def _write_parquet(file: Path, rows: Iterable[Row], sources: Sequence[str]) -> None:
    """Write rows with the types of their Parquet sources, or else of their values."""
    import pyarrow
    import pyarrow.parquet

    batches: Iterator[list[Row]]
    if sources and all(source.lower().endswith(".parquet") for source in sources):
        try:
            schema = pyarrow.unify_schemas([pyarrow.parquet.read_schema(source) for source in sources])
        except pyarrow.ArrowException as error:
            found, shown_paths = f"columns of other types ({str(error).splitlines()[0]})", ", ".join(sources)
            raise UserError(shown_paths, found, "equal types", "write a .jsonl file") from None
        first_rows = list(itertools.islice(rows := iter(rows), _BATCH))
        names = list(dict.fromkeys(itertools.chain(schema.names, *(row.fields for row in first_rows[:1]))))
        for name in names[len(schema.names) :]:
            schema = schema.append(pyarrow.field(name, pyarrow.string()))
        batches = itertools.chain([first_rows], iter(lambda: list(itertools.islice(rows, _BATCH)), []))
    else:
        first_rows, fields = list(rows), list[Any]()
        for name in dict.fromkeys(name for row in first_rows for name in row.fields):
            try:
                fields.append((name, pyarrow.array([row.fields.get(name) for row in first_rows]).type))
            except (OverflowError, pyarrow.ArrowException) as error:
                found = f"values in {name!r} that Parquet cannot hold ({str(error).splitlines()[0]})"
                step = "fix the rows, or write a .jsonl file"
                raise UserError(first_rows[0].where, found, "one type a column", step) from None
        schema, batches = pyarrow.schema(fields), iter([first_rows])
    with pyarrow.parquet.ParquetWriter(file, schema) as writer:
        for batch in batches:
            try:
                table = pyarrow.Table.from_pylist([row.fields for row in batch], schema)
            except pyarrow.ArrowException as error:
                found = f"a value of another type ({str(error).splitlines()[0]})"
                where = f"{batch[0].where} and the rows after it"
                raise UserError(where, found, "the column's type", "write a .jsonl file") from None
            writer.write_table(table)


MANIFEST = ".manifest.json"
SPLIT_MANIFEST = f"split{MANIFEST}"
TAUGHT = "a teacher's"


class Payment(NamedTuple):
    """Payment for the rows of a file, by its sha256; `share` in [0, 1] is the part of it that counts."""

    rows: str
    cost_usd: float
    share: float = 1.0


def take_share(payments: Iterable[Payment], share: float) -> tuple[Payment, ...]:
    """Return the payments for a share of their rows; none if the share is 0."""
    fraction = min(max(share, 0.0), 1.0)
    return tuple(payment._replace(share=payment.share * fraction) for payment in payments if fraction)


def join_payments(payments: Iterable[Payment]) -> tuple[Payment, ...]:
    """Join payments for the same rows, at most the whole payment."""
    payment_by_rows: dict[str, Payment] = {}
    for payment in payments:
        earlier_payment = payment_by_rows.get(payment.rows)
        share = min(1.0, payment.share + (earlier_payment.share if earlier_payment else 0.0))
        payment_by_rows[payment.rows] = payment._replace(share=share)
    return tuple(payment_by_rows.values())


def total_usd(payments: Iterable[Payment]) -> float:
    """Add up payments in USD, those for the same rows once."""
    return sum(payment.cost_usd * payment.share for payment in join_payments(payments))


def manifest_of(path: str) -> dict[str, Any] | None:
    """Read the manifest of a file, of the file it was packed from, or of its split; a damaged one is refused.

    A split's manifest covers the files that it names and files with the same content.
    """
    if path.startswith(HUB):
        return None
    for file in dict.fromkeys((Path(path), Path(path).resolve())):
        for name in dict.fromkeys((file.name, file.name.removesuffix(".gz"))):
            if (manifest_file := file.with_name(name + MANIFEST)).is_file():
                return _read_manifest(manifest_file)
        if (manifest_file := file.with_name(SPLIT_MANIFEST)).is_file():
            manifest = _read_manifest(manifest_file)
            if _part_of(file, manifest):
                return manifest
    return None


def is_taught(path: str) -> bool:
    """Tell from the manifest whether a teacher labelled every row of a file."""
    return (manifest_of(path) or {}).get("labels") == TAUGHT


def payments_for(path: str) -> tuple[Payment, ...]:
    """List the payments for a file's rows by its manifest; a part of a split has its share."""
    manifest = manifest_of(path)
    if not manifest:
        return ()
    outputs, part = manifest["outputs"], _part_of(Path(path), manifest)
    share = part["rows"] / sum(output["rows"] for output in outputs) if part and len(outputs) > 1 else 1.0
    return take_share([Payment(**payment) for payment in manifest.get("paid", ())], share)


def n_rows_of(path: str) -> int | None:
    """Return the number of rows of a file by its manifest; None without one."""
    manifest = manifest_of(path)
    return int((_part_of(Path(path), manifest) or manifest["outputs"][0])["rows"]) if manifest else None


def _part_of(file: Path, manifest: dict[str, Any]) -> dict[str, Any] | None:
    """Return the output of a manifest that describes a file, by its name or its content."""
    output: dict[str, Any] | None = next((p for p in manifest["outputs"] if p["file"] == file.name), None)
    if output is None and file.is_file():
        content = checksum(file)
        output = next((part for part in manifest["outputs"] if part["sha256"] == content), None)
    return output


def _read_manifest(file: Path) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = parse_json(file.read_bytes())
        are_lists = [isinstance(manifest[key], list) for key in ("licenses", "notes", "outputs")]
        parts = [
            {"file": str, "rows": int, "sha256": str} == {k: type(v) for k, v in part.items()}
            for part in manifest["outputs"]
        ]
        [Payment(**payment) for payment in manifest.get("paid", ())]
        is_whole = all(are_lists) and bool(parts) and all(parts)
    except (ValueError, LookupError, TypeError, AttributeError):
        is_whole = False
    if not is_whole:
        expected, step = "a manifest as harness data writes them", "remove it, or write it again"
        raise UserError(readers.display_path(str(file)), "a damaged manifest", expected, step)
    return manifest
