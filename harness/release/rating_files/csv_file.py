"""CSV file that people fill in with tools of their own: written whole, read back as spreadsheets leave it.

Invariant: whatever delimiter or encoding a spreadsheet has made of it, and whichever columns it has added,
a row comes back with its line.
"""

import csv
import io
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TextIO

from harness import report
from harness.errors import Problem, UserError
from harness.report.escape import write_csv

_DELIMITERS = ",;\t"
_LONGEST_CELL = 2**30  # of an answer that people read


def refuse_unwritable(file: Path) -> None:
    """Refuse a file that is there, has another ending, or lies in no folder."""
    if file.exists():
        raise UserError(Problem(str(file), "a file", "a new name", "name another file, or remove it"))
    if file.suffix.lower() != ".csv":
        raise UserError(Problem(str(file), "another ending", "a name that ends with .csv", "labels.csv"))
    if not file.parent.is_dir():
        step = "make the folder, or name another one"
        raise UserError(Problem(str(file.parent), "no folder", "the folder of the file", step))


def write_rows(file: Path, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Write the file whole, with the mark by which spreadsheets know UTF-8."""
    stream = io.StringIO()
    write_csv(stream, columns, rows)
    report.write_forms(file.parent, file.stem, {file.suffix: "\ufeff" + stream.getvalue()})


def read_rows(
    file: Path, columns: Sequence[str], needed: Sequence[str]
) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Yield the line of each row with its `needed` cells, whatever a spreadsheet has made of the file.

    Raises:
        UserError: one of them is missing, or there twice.
    """
    with _open(file) as stream:
        above, head = _head(stream)
        stream.seek(0)
        if above:
            stream.readline()
        csv.field_size_limit(_LONGEST_CELL)
        reader = csv.DictReader(stream, delimiter=_delimiter(head, needed))
        reader.fieldnames = _columns(reader.fieldnames or (), f"{file}:{above + 1}", columns, needed)
        line = reader.line_num + above + 1
        for row in reader:
            yield line, tuple((row[name] or "").strip() for name in needed)
            line = reader.line_num + above + 1


def has_column(file: Path, name: str) -> bool:
    """Tell whether a file's first line, or the one below a hint to spreadsheets, names a column."""
    with _open(file) as stream:
        head = _head(stream)[1]
    return name in _cells(head, _delimiter(head, [name]))


def _head(stream: TextIO) -> tuple[int, str]:
    """Read the line that names the columns, and how many stand above it: one where it is a hint."""
    head = stream.readline()
    is_hint = head.strip().strip('"').casefold().startswith("sep=")
    return (1, stream.readline()) if is_hint else (0, head)


def _delimiter(head: str, needed: Sequence[str]) -> str:
    """Return the delimiter by which a line names the columns that are needed, else its commonest."""
    named = (one for one in _DELIMITERS if {*needed} <= {*_cells(head, one)})
    return next(named, max(_DELIMITERS, key=head.count))


def _cells(head: str, delimiter: str) -> list[str]:
    return [cell.strip().lower() for cell in next(csv.reader([head], delimiter=delimiter), [])]


def _open(file: Path) -> io.TextIOWrapper:
    """Open a file in the encoding that a spreadsheet saved it in."""
    with file.open("rb") as raw:
        encoding = "utf-16" if raw.read(2) in (BOM_UTF16_LE, BOM_UTF16_BE) else "utf-8-sig"
    return file.open(encoding=encoding, errors="replace", newline="")


def _columns(written: Sequence[str], where: str, columns: Sequence[str], needed: Sequence[str]) -> list[str]:
    """Read the names of the columns, of which some are needed, each once."""
    found = [(name or "").strip().lower() for name in written]
    for what, n in (("no column", 0), ("more than one column", 2)):
        if wrong := [name for name in needed if min(found.count(name), 2) == n]:
            expected = f"the columns {', '.join(columns)}, as harness rate export writes them"
            step = "remove or rename the others" if n else "keep the first line as it was"
            raise UserError(Problem(where, f"{what} {' and '.join(wrong)}", expected, step))
    return found


def unknown_key(where: str, key: str, what: str) -> Problem:
    """Say that a key stands for no stored answer, or pair of answers."""
    found = f"key {key!r}, which no stored {what} has" if key else "no key"
    step = "keep the column key as it was exported; export again where answers or metrics changed since"
    return Problem(where, found, "a key of harness rate export", step)
