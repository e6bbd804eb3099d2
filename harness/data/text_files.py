"""Text files, CSV and TSV rows in them, and values of cells: types, text forms, times, special tokens.

Invariant: nothing is decoded by a guess; a row has the place where it is written, as errors name it. Times
without a zone are UTC; the special tokens that are found are those that are removed. `<s>` is one only at the
start of a text and `</s>` at its end, unless the tokenizer has them: HTML and code contain them.
"""

import ast
import codecs
import csv
import gzip
import io
import json
import math
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, KeysView, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time
from decimal import Decimal
from functools import cache, partial
from itertools import chain, count, islice, zip_longest
from pathlib import Path
from typing import IO, Any, NamedTuple, TextIO, cast

from harness.errors import Problem, UserError, as_argument, refuse
from harness.formatting import pluralize
from harness.spec import HUB

LONGEST_LINE = 2**26  # bytes
_SMALL, _MOST_RATIO = 2**24, 200  # gzip itself packs texts up to some hundred times
BEGINNING = 4_096  # bytes that show whether a file is packed
_WIDE_MARKS = {  # UTF-32 marks begin like UTF-16 marks
    "UTF-32": (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE),
    "UTF-16": (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE),
}
_BROKEN = (EOFError, gzip.BadGzipFile, zlib.error)  # raised by reading a damaged gzip file


@contextmanager
def open_text(file: Path, shown_path: str, newline: str = "") -> Iterator[TextIO]:
    """Open a text file, gzipped or not; an unreadable file is refused with its place."""
    try:
        with open_bytes(file, shown_path) as raw, io.TextIOWrapper(raw, "utf-8-sig", newline=newline) as text:
            beginning = raw.read(BEGINNING)
            encoding = next((name for name, marks in _WIDE_MARKS.items() if beginning.startswith(marks)), "")
            n_zeros = [beginning[start::2].count(0) for start in (0, 1)]
            if not encoding and 4 * max(n_zeros) > len(beginning):  # every other byte is mostly 0
                encoding = "UTF-16BE" if n_zeros[0] > n_zeros[1] else "UTF-16LE"
            if encoding:
                step = _recode_command(shown_path, encoding)
                raise UserError(shown_path, f"text in {encoding}", "text in UTF-8", step)
            raw.seek(0)
            yield text
    except _BROKEN as error:
        step = f"fetch or pack it again; gzip -cd {as_argument(shown_path)} gives what is left of it"
        raise UserError(shown_path, f"a broken gzip file ({error})", "a whole file", step) from None
    except UnicodeDecodeError:
        where, found = shown_path, "bytes that are not UTF-8"
        with open_bytes(file, shown_path) as raw:
            for number, line in enumerate(raw, start=1):
                try:
                    line.decode()
                except UnicodeDecodeError as error:
                    where = f"{shown_path}:{number}"
                    found = f"byte 0x{line[error.start]:02x}, which is not UTF-8"
                    break
        step = f"save it as UTF-8; from Windows-1252: {_recode_command(shown_path, 'WINDOWS-1252')}"
        raise UserError(where, found, "text in UTF-8", step) from None


def open_bytes(file: Path, shown_path: str) -> IO[bytes]:
    """Open a file for reading, unpacked if it ends with `.gz`; its lines and size are bounded."""
    opener = gzip.open if file.suffix.lower() == ".gz" else open
    return io.BufferedReader(_BoundedLines(opener(file, "rb"), file, shown_path), 2**16)


def refuse_bomb(shown_path: str, n_unpacked: float, n_packed: int, next_step: str) -> None:
    """Refuse a file that unpacks to more than 200 times its size, from 16 MiB on."""
    if n_unpacked > _SMALL and n_unpacked > _MOST_RATIO * n_packed:
        found = f"{n_packed:,} bytes that take more than {_MOST_RATIO} times as many in memory"
        raise UserError(shown_path, found, f"{_MOST_RATIO} times at most", next_step)


class _BoundedLines(io.RawIOBase):
    """Bytes of a file, up to the longest line and size that are allowed."""

    def __init__(self, raw: io.BufferedReader | gzip.GzipFile, file: Path, shown_path: str) -> None:
        self._raw, self._shown = raw, shown_path
        self._longest = LONGEST_LINE * (8 if kind_of(file) == ".json" else 1)  # JSON has one line or few
        self._n_bytes = self._n_lines = self._line = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self._raw.seekable()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._n_bytes = self._n_lines = self._line = 0
        return self._raw.seek(offset, whence)

    def readinto(self, buffer: Any) -> int:
        content = self._raw.read1(len(buffer))
        buffer[: len(content)] = content
        self._n_bytes += len(content)
        self._n_lines += content.count(b"\n")
        self._line = len(content) - content.rfind(b"\n") - 1 + (0 if b"\n" in content else self._line)
        if self._line > self._longest:
            found = f"a line of more than {self._longest >> 20} MiB"
            step = "shorten or split the row; a long list of JSON is read as JSON Lines, one object a line"
            raise UserError(f"{self._shown}:{self._n_lines + 1}", found, "rows that memory holds", step)
        if isinstance(self._raw, gzip.GzipFile):
            step = f"where that is meant: gzip -dk {as_argument(self._shown)}, and name the plain file"
            refuse_bomb(self._shown, self._n_bytes, cast("IO[bytes]", self._raw.fileobj).tell(), step)
        return len(content)

    def close(self) -> None:
        self._raw.close()
        super().close()


def _recode_command(shown_path: str, encoding: str) -> str:
    is_gzip = shown_path.lower().endswith(".gz")
    path = Path(shown_path).with_suffix("") if is_gzip else Path(shown_path)
    file, new_file = as_argument(shown_path), as_argument(str(path.with_suffix(f".utf8{path.suffix}")))
    convert = f"iconv -f {encoding} -t UTF-8"
    return f"gzip -cd {file} | {convert} > {new_file}" if is_gzip else f"{convert} {file} > {new_file}"


ENDINGS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
SHOWN = 10
_SHOWN_EQUAL = 3  # equal problems


class Row(NamedTuple):
    """One row: its place, such as `file:line`, and its fields."""

    where: str
    fields: dict[str, Any]


class Rows(NamedTuple):
    """The rows of a file; `stem` begins the ids of rows that have none."""

    shown: str
    stem: str
    rows: list[Row]

    @property
    def names(self) -> KeysView[str]:
        """The names of all columns, in their order."""
        return dict.fromkeys(name for row in self.rows for name in row.fields).keys()


def display_path(path: str) -> str:
    """Shorten a path below the working directory; a hub id stays."""
    file = Path(path)
    is_below = not path.startswith(HUB) and file.is_relative_to(Path.cwd())
    return str(file.relative_to(Path.cwd())) if is_below else path


def kind_of(file: Path) -> str:
    """Return the ending of a row file without `.gz`; empty for other files."""
    name = file.name.lower().removesuffix(".gz")
    return next((ending for ending in ENDINGS if name.endswith(ending)), "")


def cap_problems(problems: list[Problem], where: str, kind: str) -> list[Problem]:
    """Keep at most three equal problems and ten in all, and say how many there are."""
    by_content: dict[tuple[str, str, str], list[Problem]] = {}
    for problem in problems:
        by_content.setdefault((problem.found, problem.expected, problem.next_step), []).append(problem)
    shown_problems = [problem for group in by_content.values() for problem in group[:_SHOWN_EQUAL]][:SHOWN]
    if len(shown_problems) == len(problems):
        return problems
    found = f"{len(problems):,} {kind}; {len(shown_problems)} are shown"
    return [*shown_problems, Problem(where, found, "none", "fix these; the next call names the others")]


# Columns whose lists hold all labels of a row, not alternative answers.
_SETS = {
    *("tags", "labels", "topics", "categories", "genres", "classes", "keywords", "keyphrases", "hashtags"),
    *("emotions", "intents", "tag", "label", "topic", "category", "genre", "class", "emotion", "intent"),
}
_PYTHON_LIST = re.compile(r"\s*\[\s*'.*\]\s*", re.DOTALL)
_ENTRY = r"""(?:'[^']*'|"[^"]*"|-?\d+)"""
_NUMPY_LIST = re.compile(rf"\[\s*{_ENTRY}(?:\s+{_ENTRY})+\s*\]")  # without commas
_TRIED = 100  # lines after the first that show the separator
_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_NAMED_SEPARATOR = re.compile(r"sep=([,;\t|])\r?\n")  # the first line of some exports


def read_csv(file: Path, shown_path: str) -> Iterator[Row]:
    """Yield CSV or TSV rows, also of spreadsheet exports: other separators, empty lines, odd headers."""
    csv.field_size_limit(LONGEST_LINE)  # the csv module alone refuses more than 131,072 characters
    problems: list[Problem] = []
    with open_text(file, shown_path) as text:
        first_line = text.readline()
        marker = _NAMED_SEPARATOR.match(first_line)
        head = [*([] if marker else [first_line]), *islice(text, _TRIED)]
        is_tsv = file.name.lower().removesuffix(".gz").endswith(".tsv")
        unquoted_header = re.sub(r'"[^"]*"', "", first_line)
        separators = [separator for separator in _SEPARATORS if separator in unquoted_header] or [","]
        delimiter = marker[1] if marker else "\t" if is_tsv else separators[0]
        if not (marker or is_tsv) and len(separators) > 1:
            # The separator that gives most of the first rows the header's width.
            parsed = {s: filter(any, csv.reader(head, delimiter=s)) for s in separators}
            widths = {s: list(map(len, rows)) for s, rows in parsed.items()}
            delimiter = max(separators, key=lambda s: widths[s].count(widths[s][0]) if widths[s] else 0)
        escaped = re.escape(delimiter)
        # Without quoted fields, a quote after a blank opens a field, as in `1, "a, b"`.
        unquoted_lines = [re.sub(rf'(?:^|(?<={escaped}))"(?:[^"]|"")*"', "", line) for line in head]
        skips_blanks = delimiter != "\t" and any(re.search(rf'{escaped} +"', line) for line in unquoted_lines)
        read = partial(csv.reader, delimiter=delimiter, skipinitialspace=skips_blanks)
        reader, list_columns = read(chain(head, text), strict=True), _list_columns(read(head))
        line, header = 1, list[str]()
        try:
            for position, cell in enumerate(next(reader, []), start=1):  # numbered if names repeat
                name = stem = cell.strip() or f"column {position}"
                names = chain([name], (f"{stem} {number}" for number in count(2)))
                header.append(next(name for name in names if name not in header))
            line = reader.line_num + 1  # a row with line breaks is placed at its first line
            for cells in reader:
                where, line = f"{shown_path}:{line + bool(marker)}", reader.line_num + 1
                if not any(cells):
                    continue
                if len(cells) != len(header):
                    expected = f"the {len(header)} fields of the first line"
                    step = f"quote fields with {_SEPARATORS[delimiter]}, or name all columns in line 1"
                    problems.append(Problem(where, pluralize(len(cells), "field"), expected, step))
                values = [_read_list(cell) if i in list_columns else cell for i, cell in enumerate(cells)]
                yield Row(where, dict(zip(header, values, strict=False)))
        except csv.Error as error:
            expected = f"values separated by {_SEPARATORS[delimiter]}"
            problems.append(Problem(f"{shown_path}:{line + bool(marker)}", str(error), expected, "quote it"))
    refuse(cap_problems(problems, shown_path, "malformed lines"))


def names_labels(column: str) -> bool:
    """Tell from the last word of a column's name whether its lists hold labels."""
    return re.split(r"[\W_]", column.lower())[-1] in _SETS


def _list_columns(first_rows: Iterator[list[str]]) -> set[int]:
    """Return the places of the columns whose first cells are lists of labels, or Python lists of texts."""
    indices = set[int]()
    with suppress(csv.Error):  # read_csv reports it
        names = next(first_rows, [])
        for index, (name, *cells) in enumerate(zip_longest(names, *first_rows, fillvalue="")):
            lists = [_read_list(cell) for cell in cells if cell.strip()]
            are_lists = all(isinstance(entries, list) for entries in lists)
            if are_lists and any(lists) and (names_labels(name) or any(map(_PYTHON_LIST.fullmatch, cells))):
                indices.add(index)
    return indices


def _read_list(cell: str) -> Any:
    """Read a list of texts or whole numbers, such as `['a', "it's"]` or NumPy's `[0 2]`, else the cell."""
    text = cell.strip()
    if not text.startswith("["):
        return cell
    if _NUMPY_LIST.fullmatch(text):  # Python would join its texts
        text = f"[{', '.join(re.findall(_ENTRY, text))}]"
    with suppress(ValueError, SyntaxError, RecursionError, MemoryError):
        entries = ast.literal_eval(text)
        return entries if {*map(type, entries)} in ({str}, {int}, set()) else cell
    return cell


def is_csv(path: str) -> bool:
    """Tell from its name whether a file is CSV or TSV."""
    return path.lower().removesuffix(".gz").endswith((".csv", ".tsv"))


_FIRST = 1_000  # stored places of a column's empty cells, and of each type's cells


@dataclass(slots=True)
class ColumnCells:
    """Cells of a column: its rows, types of values, and the first places of each type and of empty cells."""

    n: int = 0
    empty: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    places: list[str] = field(default_factory=list)
    of_kind: dict[str, list[str]] = field(default_factory=dict)


def count_cells(cells: dict[str, ColumnCells], row: Row) -> None:
    """Add a row's cells to the counts of its columns."""
    for name, value in row.fields.items():
        column = cells.setdefault(name, ColumnCells())
        column.n += 1
        if value is None or (isinstance(value, str | list | dict) and not value):
            column.empty += 1
            if len(column.places) < _FIRST:
                column.places.append(row.where)
        else:
            kinds = {bool: "true or false", int: "number", float: "number", list: "list", dict: "object"}
            kind = kinds.get(type(value), "text")
            column.kinds[kind] += 1
            places = column.of_kind.setdefault(kind, [])
            if len(places) < _FIRST:
                places.append(row.where)


def find_mixed_columns(cells: Mapping[str, ColumnCells]) -> list[Problem]:
    """List columns with lists or objects in some rows and texts or numbers in others, by type."""
    problems = []
    for name, column in cells.items():
        if {"list", "object"} & column.kinds.keys() and len(column.kinds) > 1:
            ranked = column.kinds.most_common()
            kinds = " and ".join(f"{kind} ({pluralize(n, 'row')})" for kind, n in ranked)
            for kind, _ in ranked[1:]:
                step = f"write the {kind} as in the other rows"
                where = column.of_kind[kind][0]
                problems.append(Problem(where, f"{name!r} of mixed types: {kinds}", "one type", step))
    return problems


def is_object(value: Any) -> bool:
    """Tell whether a value is a non-empty object, or a list of objects or lists."""
    entries = value if isinstance(value, list) else [value]
    return bool(entries) and all(isinstance(entry, dict | list) and entry for entry in entries)


def find_objects(
    columns: Iterable[str], rows: Iterable[Row], n_first: int | None = None
) -> tuple[set[str], Iterator[Row]]:
    """Find the columns with objects in the first rows (default: all); return them with the rows."""
    remaining_rows = iter(rows)
    first_rows = list(islice(remaining_rows, n_first))
    object_columns = {name for name in columns if any(is_object(row.fields.get(name)) for row in first_rows)}
    return object_columns, chain(first_rows, remaining_rows)


def write_empty_lists(column: str, rows: Iterable[Row], n_first: int | None = None) -> Iterator[Row]:
    """Write an empty list as JSON if other rows have lists of objects: there it is an answer."""
    objects, rows = find_objects([column], rows, n_first)
    for row in rows:
        is_empty = objects and row.fields.get(column) == []
        yield row._replace(fields={**row.fields, column: "[]"}) if is_empty else row


_WRITTEN_FLAGS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
_JSON = re.compile(r"\s*(?:\[\s*[\[{\"']|\{\s*[\"'])")


def write_json(value: Any) -> str:
    """Write a value as JSON, with decimals as numbers, and dates and times in ISO 8601."""

    def write_cell(cell: Any) -> Any:
        if isinstance(cell, Decimal):
            return int(cell) if cell == cell.to_integral_value() else float(cell)
        return text_of_cell(cell) or f"<{type(cell).__name__}>"

    return json.dumps(value, ensure_ascii=False, default=write_cell)


def text_of_cell(value: Any) -> str | None:
    """Write a number, a decimal, a date or a time as a text; None for another value."""
    if isinstance(value, date | time):
        return value.isoformat()
    return str(value) if isinstance(value, str | int | float | Decimal) else None


def read_flag(value: object) -> bool | None:
    """Read true or 1, false or 0, also as texts from CSV; None for other values."""
    if isinstance(value, str):
        return _WRITTEN_FLAGS.get(value.strip().lower())
    return bool(value) if value in (0, 1) else None


def find_known_fields(row: Row) -> set[str]:
    """Return the names of the fields that have a value."""
    return {name for name, value in row.fields.items() if value is not None}


def is_plain(value: Any) -> bool:
    """Tell whether a value is a number or a text that is not JSON of a list or object."""
    return isinstance(value, int | float) or (isinstance(value, str) and not _JSON.match(value))


FORMS = "2024-05-31, 2024-05, 20240531, 2024-05-31T10:00:00Z or seconds since 1970"
_NUMBER, EIGHT_DIGITS = re.compile(r"-?\d+(?:\.\d+)?"), re.compile(r"\d{8}")
_MONTH = re.compile(r"\d{4}-\d{2}")


def read_moment(value: Any, form: str | None = None, *, with_days: bool = True) -> tuple[float, bool]:
    """Parse a time as ISO 8601, as a month, as a number, or in a `form` of strptime; else a ValueError.

    Returns seconds since 1970, or the number, and whether it is one. Eight digits are a day if `with_days`.
    """
    if isinstance(value, bool) or value is None or (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError(value)
    is_int = isinstance(value, float) and value.is_integer()
    text = value.isoformat() if hasattr(value, "isoformat") else str(int(value) if is_int else value).strip()
    is_number = isinstance(value, int | float) or _NUMBER.fullmatch(text)
    if form is None and is_number and not (with_days and is_day(text)):
        return float(value if isinstance(value, int | float) else text), True
    text = f"{text}-01" if form is None and _MONTH.fullmatch(text) else text
    moment = datetime.strptime(text, form) if form else datetime.fromisoformat(text)  # noqa: DTZ007
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp(), False


def is_day(text: str) -> bool:
    """Tell whether a text is a day in eight digits."""
    try:
        return bool(EIGHT_DIGITS.fullmatch(text) and datetime.fromisoformat(text))
    except ValueError:
        return False


_FAMILIES = (
    r"<[|｜][^\s|｜<>]{1,40}[|｜]>|</?(?:bos|eos|pad|(?:start|end)_of_\w+)>|<</?SYS>>"
    r"|\[/?(?:INST|SYSTEM_PROMPT)\]|\A\s*<s>|</s>\s*\Z"
)
# Role that templates write after the token that begins a turn.
_ROLE = (
    r"(?:(?<=<\|im_start\|>)|(?<=<\|start_header_id\|>)|(?<=<start_of_turn>))"
    r"(?:system|user|assistant|model|tool)"
)


@cache
def compile_special(own_tokens: tuple[str, ...] = ()) -> re.Pattern[str]:
    """Compile a pattern of special tokens, of known families or a tokenizer, with the role after them."""
    alternatives = "|".join([*map(re.escape, sorted(own_tokens, key=len, reverse=True)), _FAMILIES])
    return re.compile(rf"(?P<token>{alternatives})(?:{_ROLE})?")


def find_special(texts: Iterable[str], own_tokens: tuple[str, ...] = ()) -> str:
    """Return the first special token in texts as written, or ""."""
    special = compile_special(own_tokens)
    return next((match["token"].strip() for text in texts for match in special.finditer(text)), "")


def cut_special(text: str, own_tokens: tuple[str, ...] = ()) -> str:
    """Return an answer without the special tokens around it; `own_tokens` are only cut at its end."""
    leading, trailing = (compile_special(t).pattern.replace("?P<token>", "?:") for t in ((), own_tokens))
    return re.sub(rf"(?:\s*(?:{trailing}))+\s*\Z", "", re.sub(rf"\A(?:\s*(?:{leading}))+\s*", "", text))
