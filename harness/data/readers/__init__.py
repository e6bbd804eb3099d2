"""Files to rows: JSON Lines, JSON, CSV and TSV (also gzipped), Parquet, and data sets in the hub's layout.

Invariant: every row knows where it was written; a file with a malformed row is refused with
all of its malformed rows.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from harness.data.csv_header import is_csv, refuse_certain_row
from harness.data.readers.csv_rows import find_header_line, read_csv
from harness.data.readers.hub_rows import hub_source, list_parts, read_parquet, stream_set
from harness.data.readers.json_rows import read_json_array, read_json_lines
from harness.data.readers.text_file import (
    BEGINNING,
    ENDINGS,
    Row,
    Rows,
    cap_problems,
    display_path,
    kind_of,
    open_bytes,
    open_text,
    refuse_bomb,
)
from harness.errors import Problem, UserError, as_argument
from harness.spec import HUB

__all__ = [
    "Row",
    "Rows",
    "cap_problems",
    "display_path",
    "file_of",
    "find_repeated",
    "hub_source",
    "list_parts",
    "open_text",
    "phrase_no_rows",
    "read",
    "refuse_bomb",
    "refuse_no_header",
    "stream",
]

_PLACE = re.compile(r"(?P<head>.+?)(?::(?P<line>\d+)| row \d+)")
_READERS: dict[str, Callable[[Path, str], Iterable[Row]]] = {
    ".jsonl": read_json_lines,
    ".json": read_json_array,
    ".csv": read_csv,
    ".tsv": read_csv,
    ".parquet": read_parquet,
}


def read(path: str, split: str) -> Rows:
    """Read a file, a folder in the hub's layout, or `hub:owner/name[:config[:split]]`.

    `split` names the part of a folder or of a hub id that names none.

    Raises:
        UserError: the file is missing, empty, malformed, not UTF-8 or of an unknown kind.
    """
    file = Path(path)
    shown = display_path(path)
    is_set = path.startswith(HUB) or file.is_dir()
    found = Rows(shown, split if is_set else file.name.split(".")[0], list(stream(path, split)))
    if not found.rows:
        raise UserError(
            phrase_no_rows(path, f"at least one row of {split}", "add rows, or leave the file out")
        )
    refuse_no_header(path, found.rows)
    return found


def phrase_no_rows(path: str, expected: str, next_step: str) -> Problem:
    """Phrase a file without a row: an empty one, or one that has but a header line."""
    return Problem(
        display_path(path),
        "a header line alone" if _has_header(path) else "an empty file",
        expected,
        next_step,
    )


def _has_header(path: str) -> bool:
    """Tell whether anything stands in a file of separated values."""
    file = Path(path)
    if path.startswith(HUB) or not (is_csv(path) and file.is_file()):
        return False
    with open_bytes(file, display_path(path)) as raw:
        return bool(raw.read(BEGINNING).strip())


def refuse_no_header(path: str, rows: Sequence[Row]) -> None:
    """Refuse a CSV file whose first line is certainly a row."""
    file, shown = Path(path), display_path(path)
    if is_csv(path) and not path.startswith(HUB) and not file.is_dir():
        where = f"{shown}:{find_header_line(file, shown)}"
        refuse_certain_row(where, list(rows[0].fields), [row.fields for row in rows])


def stream(path: str, split: str) -> Iterator[Row]:
    """Yield the rows that `read` returns, one after the other; of a long file only a part is in memory.

    JSON Lines and separated values are read line by line, Parquet by groups of rows, a data set of the hub as
    it streams; a JSON list, and parts of a data set such as `train[:100]` or `train+test`, are read whole.
    Whether the first line of a CSV file is a row is not checked.

    Raises:
        UserError: as `read`, but for an empty file; malformed rows are listed at the end of the file.
    """
    file = Path(path)
    shown = display_path(path)
    if path.startswith(HUB) or file.is_dir():
        yield from stream_set(path, split)
    elif not file.exists():
        raise UserError(Problem(shown, "no such file", "a file of rows", "correct the path"))
    elif not file.is_file():
        found, expected = "a pipe or a device", "a file whose name says its kind, such as rows.jsonl"
        raise UserError(Problem(shown, found, expected, "write what it gives to a file first"))
    else:
        yield from _reader(file, shown)(file, shown)


def find_repeated(files: Sequence[str]) -> list[str]:
    """List the files that are named twice, by whatever spelling, each name once."""
    places = [file if file.startswith(HUB) else str(Path(file).expanduser().resolve()) for file in files]
    return list(dict.fromkeys(file for file, at in zip(files, places, strict=True) if places.count(at) > 1))


def clean_command(file: str, option: str) -> str:
    """Write the command that fixes a file's rows by an option, into a file beside it."""
    kind = "".join(Path(file).suffixes[-2:] if file.lower().endswith(".gz") else Path(file).suffixes[-1:])
    out = as_argument(f"{file.removesuffix(kind)}.clean{kind or '.jsonl'}")
    return f"harness data clean {as_argument(file)} --out {out} {option}"


def file_of(where: str) -> str:
    """Return the file or data set, as it was named, of a row's place; empty of what is no such place."""
    found = _PLACE.fullmatch(where)
    if not found or found["line"]:
        return found["head"] if found else ""
    head = found["head"]
    if head.startswith(HUB):
        return head.partition(" ")[0]
    is_file = head.lower().removesuffix(".gz").endswith(ENDINGS)
    return head if is_file else head.rpartition(" ")[0]  # a folder in the hub's layout, and its part


def _reader(file: Path, shown: str) -> Callable[[Path, str], Iterable[Row]]:
    if kind := kind_of(file):
        return _READERS[kind]
    expected = "a file named *.jsonl, *.json, *.csv, *.tsv (each also .gz) or *.parquet"
    step = "convert it to JSON Lines"
    if file.suffix.lower() in (".xlsx", ".xls", ".ods"):
        step = f"soffice --headless --convert-to csv {as_argument(shown)}, or save it as CSV"
    raise UserError(Problem(shown, f"a file of the kind {file.suffix!r}", expected, step))
