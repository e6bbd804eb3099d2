"""Files to rows: JSON Lines, JSON, CSV and TSV (also gzipped), Parquet, and data sets in the hub's layout.

Invariant: every row knows where it was written; a file with a malformed row is refused with
all of its malformed rows.
"""

import codecs
import csv
import gzip
import io
import json
import math
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any, NamedTuple, NoReturn, TextIO, cast

from harness.data.csv_header import is_csv, refuse_certain_row
from harness.errors import Problem, UserError, as_argument
from harness.formatting import pluralize
from harness.records import parse_json
from harness.spec import HUB

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_PLACE = re.compile(r"(?P<head>.+?)(?::(?P<line>\d+)| row \d+)")
SHOWN = 10
_LONGEST_REASON = 300
_BEGINNING = 4_096  # bytes by which text is told from what is packed
_WIDE_MARKS = {  # those of UTF-32 begin as those of UTF-16
    "UTF-32": (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE),
    "UTF-16": (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE),
}
_BROKEN = (EOFError, gzip.BadGzipFile, zlib.error)  # what reading a damaged gzip file raises


class Row(NamedTuple):
    """One row: `file:line`, and its fields."""

    where: str
    fields: dict[str, Any]


class Rows(NamedTuple):
    """The rows of a file; `stem` begins the ids of rows that have none."""

    shown: str
    stem: str
    rows: list[Row]


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
    with _binary(file) as raw:
        return bool(raw.read(_BEGINNING).strip())


def refuse_no_header(path: str, rows: Sequence[Row]) -> None:
    """Refuse a CSV file whose first line is certainly a row."""
    file, shown = Path(path), display_path(path)
    if is_csv(path) and not path.startswith(HUB) and not file.is_dir():
        where = f"{shown}:{_header_line(file, shown)}"
        refuse_certain_row(where, list(rows[0].fields), [row.fields for row in rows])


def stream(path: str, split: str) -> Iterator[Row]:
    """Yield the rows that `read` returns, one after the other; of a long file only a part is in memory.

    JSON Lines and separated values are read line by line, Parquet by groups of rows, a data set of the hub as
    it streams; a JSON list, and parts of a data set such as `train[:100]` or `train+test`, are read whole.
    Whether the first line of a CSV file is a row is not asked.

    Raises:
        UserError: as `read`, but for an empty file; malformed rows are listed at the end of the file.
    """
    file = Path(path)
    shown = display_path(path)
    if path.startswith(HUB) or file.is_dir():
        yield from _dataset(path, split)
    elif not file.exists():
        raise UserError(Problem(shown, "no such file", "a file of rows", "correct the path"))
    elif not file.is_file():
        found, expected = "a pipe or a device", "a file whose name says its kind, such as rows.jsonl"
        raise UserError(Problem(shown, found, expected, "write what it gives to a file first"))
    else:
        yield from _reader(file, shown)(file, shown)


def display_path(path: str) -> str:
    """Shorten a path below the working directory; a hub id stays."""
    file = Path(path)
    below = not path.startswith(HUB) and file.is_relative_to(Path.cwd())
    return str(file.relative_to(Path.cwd())) if below else path


def find_repeated(files: Sequence[str]) -> list[str]:
    """List the files that are named twice, by whatever spelling, each name once."""
    places = [file if file.startswith(HUB) else str(Path(file).expanduser().resolve()) for file in files]
    return list(dict.fromkeys(file for file, at in zip(files, places, strict=True) if places.count(at) > 1))


def file_of(where: str) -> str:
    """Return the file or data set, as it was named, of a row's place; empty of what is no such place."""
    found = _PLACE.fullmatch(where)
    if not found or found["line"]:
        return found["head"] if found else ""
    head = found["head"]
    if head.startswith(HUB):
        return head.partition(" ")[0]
    is_file = head.lower().removesuffix(".gz").endswith(tuple(_READERS))
    return head if is_file else head.rpartition(" ")[0]  # a folder in the hub's layout, and its part


def cap_problems(problems: list[Problem], where: str, what: str) -> list[Problem]:
    """Keep the first ten problems and say how many there are."""
    if len(problems) <= SHOWN:
        return problems
    found = f"{len(problems):,} {what}, of which the first {SHOWN} are shown"
    return [*problems[:SHOWN], Problem(where, found, "none", "mend these; the next call names the others")]


def _reader(file: Path, shown: str) -> Callable[[Path, str], Iterable[Row]]:
    if kind := _kind(file):
        return _READERS[kind]
    expected = "a file named *.jsonl, *.json, *.csv, *.tsv (each also .gz) or *.parquet"
    step = "convert it to JSON Lines"
    if file.suffix.lower() in (".xlsx", ".xls", ".ods"):
        step = f"soffice --headless --convert-to csv {as_argument(shown)}, or save it as CSV"
    raise UserError(Problem(shown, f"a file of the kind {file.suffix!r}", expected, step))


def _kind(file: Path) -> str:
    """Return what the name of a file of rows ends with, without `.gz`; empty of another."""
    name = file.name.lower().removesuffix(".gz")
    return next((ending for ending in _READERS if name.endswith(ending)), "")


@contextmanager
def _open_text(file: Path, shown: str, newline: str = "") -> Iterator[TextIO]:
    """Open a file of text, also a gzipped one; what cannot be read is refused with its place."""
    try:
        with _binary(file) as raw, io.TextIOWrapper(raw, "utf-8-sig", newline=newline) as text:
            if encoding := _wide_encoding(raw.read(_BEGINNING)):
                step = _recode_command(shown, encoding)
                raise UserError(Problem(shown, f"text in {encoding}", "text in UTF-8", step))
            raw.seek(0)
            yield text
    except (UnicodeDecodeError, *_BROKEN):
        raise UserError(_find_broken_gzip(file, shown) or _find_not_utf8(file, shown)) from None


def _binary(file: Path) -> IO[bytes]:
    return cast("IO[bytes]", gzip.open(file)) if file.suffix.lower() == ".gz" else file.open("rb")


def _wide_encoding(beginning: bytes) -> str:
    """Tell UTF-16 and UTF-32 by their byte order mark, or by every other byte being 0; empty of another."""
    for name, marks in _WIDE_MARKS.items():
        if beginning.startswith(marks):
            return name
    zeros = [beginning[start::2].count(0) for start in (0, 1)]
    if 4 * max(zeros) <= len(beginning):
        return ""
    return "UTF-16BE" if zeros[0] > zeros[1] else "UTF-16LE"


def _recode_command(shown: str, encoding: str) -> str:
    """Write the command that makes a file in UTF-8 of one in another encoding."""
    packed = shown.lower().endswith(".gz")
    plain = Path(shown).with_suffix("") if packed else Path(shown)
    file, new = as_argument(shown), as_argument(str(plain.with_suffix(f".utf8{plain.suffix}")))
    convert = f"iconv -f {encoding} -t UTF-8"
    return f"gzip -cd {file} | {convert} > {new}" if packed else f"{convert} {file} > {new}"


def _find_not_utf8(file: Path, shown: str) -> Problem:
    """Find the first byte that is not UTF-8."""
    offset = 0
    with _binary(file) as raw:
        for number, line in enumerate(raw, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                found = f"byte 0x{line[error.start]:02x} at offset {offset + error.start}, which is not UTF-8"
                step = f"save it as UTF-8; where Windows wrote it: {_recode_command(shown, 'WINDOWS-1252')}"
                return Problem(f"{shown}:{number}", found, "text in UTF-8", step)
            offset += len(line)
    return Problem(shown, "bytes that are not UTF-8", "text in UTF-8", "save the file as UTF-8")


def _find_broken_gzip(file: Path, shown: str) -> Problem | None:
    """Find the line in which a gzip file breaks off; None of a whole one, and of one that is not packed."""
    # Where only the checksum behind the rows is wrong, the last line is named, and any may be damaged.
    n = 0
    try:
        with _binary(file) as raw:
            for line in raw:
                n += line.endswith(b"\n")
    except _BROKEN as error:
        if not n and (problem := _describe_unpacked(file, shown)):
            return problem
        lines = pluralize(n, "line")
        found = f"a broken gzip file ({error}), of which {lines} can be read"
        where = f"{shown}:{n + 1}"
        if isinstance(
            error, gzip.BadGzipFile
        ):  # what is wrong stands behind the rows, or at the very beginning
            where = f"{shown}:{n}" if n else shown
            found += ", and any of them may be damaged" if n else ""
        step = f"fetch or pack it again; gzip -cd {as_argument(shown)} gives what is left of it"
        return Problem(where, found, "a whole file", step)
    return None


def _describe_unpacked(file: Path, shown: str) -> Problem | None:
    """Tell a file of plain text that is only named as a packed one; None of another."""
    try:
        with file.open("rb") as raw:
            is_text = bool(raw.read(_BEGINNING).decode("utf-8", "strict").strip("\0"))
    except UnicodeDecodeError as error:
        is_text = error.start > _BEGINNING - 4  # a sign that is cut
    step = f"rename it: mv {as_argument(shown)} {as_argument(shown[: -len('.gz')])}"
    found = "plain text in a file named .gz"
    return Problem(shown, found, "a file that gzip packed", step) if is_text else None


def _json_lines(file: Path, shown: str) -> Iterator[Row]:
    problems: list[Problem] = []
    with _open_text(file, shown, "\n") as text:
        for number, line in enumerate(text, start=1):
            if not line.strip():
                continue
            try:
                yield Row(f"{shown}:{number}", _object(line.removesuffix("\n")))
            except ValueError as error:
                found = f"malformed JSON ({error})"
                problems.append(
                    Problem(f"{shown}:{number}", found, "one JSON object a line", "mend the line")
                )
    if problems:
        raise UserError(cap_problems(problems, shown, "malformed lines"))


def _json_array(file: Path, shown: str) -> list[Row]:
    try:
        with _open_text(file, shown) as opened:
            text = opened.read()
        rows = parse_json(text, parse_constant=_no_number, object_pairs_hook=_once)
        _refuse_half_signs(text, rows)
    except json.JSONDecodeError as error:
        found = f"malformed JSON ({error.msg} at column {error.colno})"
        expected = "a list of objects (one object a line is a .jsonl file)"
        raise UserError(
            Problem(f"{shown}:{error.lineno}", found, expected, "mend or rename the file")
        ) from None
    except ValueError as error:
        raise UserError(Problem(shown, f"malformed JSON ({error})", "a list of objects", "mend it")) from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        found = "JSON that is no list of objects"
        raise UserError(Problem(shown, found, "[{…}, {…}]", "convert it to JSON Lines"))
    return [Row(f"{shown} row {i}", fields) for i, fields in enumerate(rows)]


def _object(line: str) -> dict[str, Any]:
    try:
        value = parse_json(line, parse_constant=_no_number, object_pairs_hook=_once)
    except json.JSONDecodeError as error:
        raise ValueError(f"{error.msg} at column {error.colno}") from None
    if not isinstance(value, dict):
        raise ValueError(f"a {type(value).__name__}, not an object")
    _refuse_half_signs(line, value)
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object of its fields."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in fields if names.count(name) > 1)
        raise ValueError(f"the field {twice!r} twice")
    return fields


def _refuse_half_signs(text: str, value: Any) -> None:
    """Refuse half of a pair of surrogates, which is left where a text was cut inside an emoji."""
    if not _SURROGATE.search(text):
        return
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(error.object[error.start]):04x}"
        raise ValueError(f"{half} is half of a sign, which no encoding can write") from None


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON number")


def _csv(file: Path, shown: str) -> Iterator[Row]:
    """Read separated values, also as spreadsheets export them: other separators, empty lines, odd headers."""
    csv.field_size_limit(_LONGEST_FIELD)
    problems: list[Problem] = []
    with _open_text(file, shown) as text:
        first = text.readline()
        named = _NAMED_SEPARATOR.match(first)
        head = [] if named else [first, *islice(text, _TRIED)]
        is_tsv = file.name.lower().removesuffix(".gz").endswith(".tsv")
        delimiter = named[1] if named else "\t" if is_tsv else _separator(head)
        lines = chain(head, text)
        reader, line = csv.reader(lines, delimiter=delimiter, strict=True), 1
        try:
            header = _column_names(next(reader, []))
            # A row may hold line breaks: its place is its first line.
            line = reader.line_num + 1
            for cells in reader:
                where, line = f"{shown}:{line + bool(named)}", reader.line_num + 1
                if not any(cells):
                    continue
                if len(cells) != len(header):
                    expected = f"the {len(header)} fields of the first line"
                    step = f"quote fields with {_SEPARATORS[delimiter]}"
                    problems.append(Problem(where, "another number of fields", expected, step))
                yield Row(where, dict(zip(header, cells, strict=False)))
        except csv.Error as error:
            expected = f"values separated by {_SEPARATORS[delimiter]}"
            where = f"{shown}:{line + bool(named)}"
            problems.append(Problem(where, str(error), expected, "quote it"))
    if problems:
        raise UserError(cap_problems(problems, shown, "malformed lines"))


def _header_line(file: Path, shown: str) -> int:
    """Return the line of a CSV file that names its columns: the second after one of `sep=`."""
    with _open_text(file, shown) as text:
        return 2 if _NAMED_SEPARATOR.match(text.readline()) else 1


_TRIED = 100  # lines behind the first by which separators are told apart
_LONGEST_FIELD = 2**31 - 1  # the csv module alone refuses more than 131,072 characters
_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_NAMED_SEPARATOR = re.compile(r"sep=([,;\t|])\r?\n")  # the first line of some exports


def _separator(lines: Sequence[str]) -> str:
    """Return the sign among the names of columns, unquoted, that parts most of the first rows likewise."""
    # Of equal ones it is the comma.
    unquoted = re.sub(r'"[^"]*"', "", lines[0])
    signs = [sign for sign in _SEPARATORS if sign in unquoted] or [","]
    return max(signs, key=lambda sign: _n_as_header(lines, sign)) if len(signs) > 1 else signs[0]


def _n_as_header(lines: Sequence[str], separator: str) -> int:
    """Count the rows that have as many fields as the first."""
    widths = [len(cells) for cells in csv.reader(lines, delimiter=separator) if any(cells)]
    return widths.count(widths[0]) if widths else 0


def _column_names(header: list[str]) -> list[str]:
    """Name every column: without spaces around, by its place where it has none, and numbered where twice."""
    names: list[str] = []
    for place, cell in enumerate(header, start=1):
        name = again = cell.strip() or f"column {place}"
        number = 2
        while again in names:
            again, number = f"{name} {number}", number + 1
        names.append(again)
    return names


def _parquet(file: Path, shown: str) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            names = table.schema_arrow.names
            if twice := next((name for name in names if names.count(name) > 1), None):
                found = f"two columns named {twice!r}"
                raise UserError(Problem(shown, found, "every name once", "rename one of them"))
            groups = (fields for batch in table.iter_batches() for fields in batch.to_pylist())
            yield from (Row(f"{shown} row {i}", _replace_nan(fields)) for i, fields in enumerate(groups))
    except pyarrow.ArrowException as error:
        found = f"no Parquet ({str(error).splitlines()[0]})"
        raise UserError(Problem(shown, found, "a Parquet file", "write it again")) from None


def _replace_nan(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row in which NaN, as some tools write a cell without a value, is none."""
    return {
        name: None if isinstance(value, float) and math.isnan(value) else value
        for name, value in fields.items()
    }


_READERS: dict[str, Callable[[Path, str], Iterable[Row]]] = {
    ".jsonl": _json_lines,
    ".json": _json_array,
    ".csv": _csv,
    ".tsv": _csv,
    ".parquet": _parquet,
}


def _dataset(reference: str, split: str) -> Iterator[Row]:
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
            yield Row(f"{where} row {n}", _replace_nan(fields))
            n += 1
    except unreadable as error:
        raise UserError(_unread(error, reference, split, n, is_copy=Path(source).is_dir())) from None
    except StopIteration:  # as the library ends an empty file
        return


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
        next_step = "mend its files, or fetch them again"
    elif not is_hub:
        expected, next_step = "a file of rows, or a folder in the hub's layout", _name_a_file(Path(reference))
    elif is_copy:
        next_step = "name the part that there is, as in hub:owner/name:config:split, or mend its files"
    else:
        next_step = "without a network point HARNESS_DATASETS_DIR at local copies, or name a file"
    return Problem(display_path(reference), f"{found} ({why})", expected, next_step)


def _name_a_file(folder: Path) -> str:
    """Say which files of rows lie in a folder, or in folders of it, to be named one by one."""
    names = sorted(str(file) for at in ("*", "*/*") for file in folder.glob(at) if _kind(file))
    if not names:
        return "name a file of rows; this folder holds none"
    more = f" or {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return f"name a file: {', '.join(map(as_argument, map(display_path, names[:SHOWN])))}{more}"
