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
from contextlib import ExitStack, contextmanager, suppress
from datetime import date, datetime, time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple, TextIO, cast

from harness.data import readers
from harness.data.text_files import Row, is_csv
from harness.errors import Problem, UserError
from harness.records import checksum, parse_json
from harness.spec import HUB

if TYPE_CHECKING:
    import pyarrow

KINDS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
_BATCH = 10_000

OutputNames = dict[tuple[str, str], str]  # output by input file and verb


def row_suffix(name: str) -> str:
    """Return the suffix of a row file, such as `.csv.gz`, in lower case; "" for other files."""
    name = name.lower()
    kind = next((kind for kind in KINDS if name.removesuffix(".gz").endswith(kind)), "")
    gz = ".gz" if name.endswith(".gz") else ""
    return "" if kind == ".parquet" and gz else kind and kind + gz


def new_name(file: str, verb: str, taken: Collection[str] = ()) -> str:
    """Return a new name for a verb's output next to its input: a file of its kind, or a split's folder."""
    return _free(f"{_stem(file)}.{verb}", "" if verb == "split" else row_suffix(file) or ".jsonl", taken)


def name_output(names: OutputNames, file: str, verb: str) -> str:
    """Name a verb's output unlike the outputs of other commands."""
    if (file, verb) not in names:
        names[file, verb] = new_name(file, verb, names.values())
    return names[file, verb]


def free_folders(files: Iterable[str]) -> dict[str, str]:
    """Name a new folder in the working directory for an experiment on each file of rows."""
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
    """Write rows in the format of a suffix; `sources` are the files that they come from.

    JSON is written row by row, and so are CSV and Parquet if the rows come from one file of that kind.

    Raises:
        UserError: a row has a value that the format cannot store.
    """
    if suffix == ".parquet":
        _write_parquet(file, rows, sources)
        return
    with _text(file, suffix.endswith(".gz")) as out:
        if suffix.startswith((".csv", ".tsv")):
            are_read = [is_csv(source) for source in sources]
            rows = iter(rows) if are_read == [True] else list(rows)
            first = list(itertools.islice(rows, 1)) if isinstance(rows, Iterator) else rows
            names = list(dict.fromkeys(name for row in first for name in row.fields))
            writer = csv.writer(out, delimiter="\t" if suffix.startswith(".tsv") else ",")
            writer.writerow(names)
            for row in itertools.chain(first, rows) if isinstance(rows, Iterator) else rows:
                writer.writerow([_cell(row, name, is_read=any(are_read) and all(are_read)) for name in names])
        elif suffix.startswith(".jsonl"):
            out.writelines(f"{_json(row)}\n" for row in rows)
        else:
            lines = (f"{',' if i else ''}\n{_json(row)}" for i, row in enumerate(rows))
            out.writelines(itertools.chain("[", lines, "\n]\n"))


@contextmanager
def _text(file: Path, gz: bool) -> Iterator[TextIO]:
    """Open a text file for writing; gzip files get neither name nor date."""
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
        step = "write a .parquet file" if isinstance(error, TypeError) else "fix the row"
        found = f"a value that JSON cannot hold ({error})"
        raise UserError(Problem(row.where, found, "texts and numbers", step)) from None


def _as_text(value: Any) -> str:
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    raise TypeError(f"a {type(value).__name__}")


def _cell(row: Row, name: str, *, is_read: bool) -> str:
    value = row.fields.get(name)
    if value is None:
        return ""
    if is_read and isinstance(value, list):  # read from a Python literal
        return str(value)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str | int | float):
        return str(value)
    try:
        return _as_text(value)
    except TypeError as error:
        found, expected = f"{error} in {name!r}", "values that CSV can hold"
        raise UserError(Problem(row.where, found, expected, "write a .jsonl file")) from None


def _write_parquet(file: Path, rows: Iterable[Row], sources: Sequence[str]) -> None:
    """Write rows with the types of their Parquet sources, or else of their values."""
    import pyarrow
    import pyarrow.parquet

    batches: Iterator[list[Row]]
    if sources and all(source.lower().endswith(".parquet") for source in sources):
        try:
            schema = pyarrow.unify_schemas([pyarrow.parquet.read_schema(source) for source in sources])
        except pyarrow.ArrowException as error:
            found = f"columns of other types ({str(error).splitlines()[0]})"
            shown = ", ".join(sources)
            raise UserError(Problem(shown, found, "equal types", "write a .jsonl file")) from None
        first = list(itertools.islice(rows := iter(rows), _BATCH))
        names = list(dict.fromkeys(itertools.chain(schema.names, *(row.fields for row in first[:1]))))
        for name in names[len(schema.names) :]:
            schema = schema.append(pyarrow.field(name, pyarrow.string()))
        batches = itertools.chain([first], iter(lambda: list(itertools.islice(rows, _BATCH)), []))
    else:
        first = list(rows)
        columns = dict.fromkeys(name for row in first for name in row.fields)
        schema = pyarrow.schema([(name, _column_type(first, name)) for name in columns])
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


def _column_type(rows: Sequence[Row], name: str) -> "pyarrow.DataType":
    import pyarrow

    values = [row.fields.get(name) for row in rows]
    try:
        return pyarrow.array(values).type
    except (OverflowError, pyarrow.ArrowException) as error:
        found = f"values in {name!r} that Parquet cannot hold ({str(error).splitlines()[0]})"
        step = "fix the rows, or write a .jsonl file"
        raise UserError(Problem(rows[0].where, found, "one type a column", step)) from None


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
    part = min(max(share, 0.0), 1.0)
    return tuple(payment._replace(share=payment.share * part) for payment in payments if part)


def join_payments(payments: Iterable[Payment]) -> tuple[Payment, ...]:
    """Join payments for the same rows, at most the whole payment."""
    joined: dict[str, Payment] = {}
    for payment in payments:
        earlier = joined.get(payment.rows)
        share = min(1.0, payment.share + (earlier.share if earlier else 0.0))
        joined[payment.rows] = payment._replace(share=share)
    return tuple(joined.values())


def total_usd(payments: Iterable[Payment]) -> float:
    """Add up payments in USD, those for the same rows once."""
    return sum(one.cost_usd * one.share for one in join_payments(payments))


class _SplitPart(NamedTuple):
    """File that an edit wrote, with its number of rows and the digest of its content."""

    file: str
    rows: int
    sha256: str


def manifest_of(path: str) -> dict[str, Any] | None:
    """Read the manifest of a file, of the file it was compressed from, or of its split.

    A split's manifest covers the files that it names and files with the same content. For a link, the
    manifest next to the link is used, or else that of its target.

    Raises:
        UserError: the manifest cannot be read.
    """
    if path.startswith(HUB):
        return None
    for file in dict.fromkeys((Path(path), Path(path).resolve())):
        for name in dict.fromkeys((file.name, file.name.removesuffix(".gz"))):
            if (there := file.with_name(name + MANIFEST)).is_file():
                return _read_manifest(there)
        if (there := file.with_name(SPLIT_MANIFEST)).is_file():
            found = _read_manifest(there)
            if _part_of(file, found):
                return found
    return None


def licenses_of(path: str) -> list[str]:
    """List the licences of a file by its manifest, or of a data set by its card."""
    if found := manifest_of(path):
        return list(found["licenses"])
    if not (path.startswith(HUB) or Path(path).is_dir()):
        return []
    from huggingface_hub import hf_hub_download, metadata_load

    # The metadata in the data set's README.md.
    source, card = readers.hub_source(path)[0] if path.startswith(HUB) else path, dict[str, Any]()
    file = Path(source, "README.md")
    with suppress(OSError, ValueError):  # an unreadable card does not matter
        if not Path(source).is_dir():
            file = Path(hf_hub_download(source, file.name, repo_type="dataset"))
        card = metadata_load(file) or {}
    stated = card.get("license") or []
    stated = stated if isinstance(stated, list) else [stated]
    return [str(card.get("license_name") or one) if one == "other" else str(one) for one in stated]


def is_taught(path: str) -> bool:
    """Tell from the manifest whether a teacher labelled every row of a file."""
    return (manifest_of(path) or {}).get("labels") == TAUGHT


def payments_for(path: str) -> tuple[Payment, ...]:
    """List the payments for a file's rows by its manifest; a part of a split has its share."""
    found = manifest_of(path)
    if not found:
        return ()
    parts, own = _parts(found), _part_of(Path(path), found)
    share = own.rows / sum(part.rows for part in parts) if own and len(parts) > 1 else 1.0
    return take_share(_payments(found), share)


def n_rows_of(path: str) -> int | None:
    """Return the number of rows of a file by its manifest; None without one."""
    found = manifest_of(path)
    if not found:
        return None
    return (_part_of(Path(path), found) or _parts(found)[0]).rows


def find_grouping_column(path: str) -> str | None:
    """Return the column by which a split kept rows together, if the file is a part of one."""
    found = manifest_of(path) or {}
    is_split = found.get("command") == "harness data split"
    return (found.get("parameters") or {}).get("group") if is_split else None


def _part_of(file: Path, found: dict[str, Any]) -> _SplitPart | None:
    parts = _parts(found)
    named = next((part for part in parts if part.file == file.name), None)
    if named is None and file.is_file():
        content = checksum(file)
        named = next((part for part in parts if part.sha256 == content), None)
    return named


def _parts(found: dict[str, Any]) -> tuple[_SplitPart, ...]:
    return tuple(_SplitPart(**one) for one in found["outputs"])


def _payments(found: dict[str, Any]) -> tuple[Payment, ...]:
    return tuple(Payment(**one) for one in found.get("paid", ()))


def _read_manifest(there: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = parse_json(there.read_bytes())
        lists = [found["licenses"], found["notes"], found["outputs"]] if _parts(found) else []
        _payments(found)
    except (ValueError, LookupError, TypeError):
        lists = []
    if not lists or not all(isinstance(value, list) for value in lists):
        expected, step = "a manifest as harness data writes them", "remove it, or write it again"
        raise UserError(Problem(readers.display_path(str(there)), "a damaged manifest", expected, step))
    return found
