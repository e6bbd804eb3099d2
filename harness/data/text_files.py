"""Text files, and CSV and TSV rows in them.

Invariant: nothing is decoded by a guess; a row has the place where it is written, as errors name it.
"""

import ast
import codecs
import csv
import gzip
import io
import re
import zlib
from collections.abc import Iterator, KeysView, Sequence
from contextlib import contextmanager, suppress
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import IO, Any, NamedTuple, TextIO, cast

from harness.errors import Problem, UserError, as_argument, refuse
from harness.formatting import pluralize
from harness.spec import HUB

LONGEST_LINE = 2**26  # bytes
_SMALL, _MOST_RATIO = 2**24, 200  # gzip itself packs texts up to some hundred times
BEGINNING = 4_096  # bytes by which text is told from what is packed
_WIDE_MARKS = {  # those of UTF-32 begin as those of UTF-16
    "UTF-32": (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE),
    "UTF-16": (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE),
}
_BROKEN = (EOFError, gzip.BadGzipFile, zlib.error)  # what reading a damaged gzip file raises


@contextmanager
def open_text(file: Path, shown: str, newline: str = "") -> Iterator[TextIO]:
    """Open a text file, gzipped or not; an unreadable file is refused with its place."""
    try:
        with open_bytes(file, shown) as raw, io.TextIOWrapper(raw, "utf-8-sig", newline=newline) as text:
            if encoding := _wide_encoding(raw.read(BEGINNING)):
                step = _recode_command(shown, encoding)
                raise UserError(Problem(shown, f"text in {encoding}", "text in UTF-8", step))
            raw.seek(0)
            yield text
    except _BROKEN as error:
        step = f"fetch or pack it again; gzip -cd {as_argument(shown)} gives what is left of it"
        raise UserError(Problem(shown, f"a broken gzip file ({error})", "a whole file", step)) from None
    except UnicodeDecodeError:
        raise UserError(_find_not_utf8(file, shown)) from None


def open_bytes(file: Path, shown: str) -> IO[bytes]:
    """Open a file for reading, unpacked if it ends with `.gz`; its lines and size are bounded."""
    opened = gzip.open if file.suffix.lower() == ".gz" else open
    return io.BufferedReader(_BoundedLines(opened(file, "rb"), file, shown), 2**16)


def refuse_bomb(shown: str, n_unpacked: float, n_packed: int, next_step: str) -> None:
    """Refuse a file that unpacks to more than 200 times its size, from 16 MiB on."""
    if n_unpacked > _SMALL and n_unpacked > _MOST_RATIO * n_packed:
        found = f"{n_packed:,} bytes that take more than {_MOST_RATIO} times as many in memory"
        raise UserError(Problem(shown, found, f"{_MOST_RATIO} times at most", next_step))


class _BoundedLines(io.RawIOBase):
    """Bytes of a file, up to the longest line and size that are allowed."""

    def __init__(self, raw: io.BufferedReader | gzip.GzipFile, file: Path, shown: str) -> None:
        self._raw, self._shown = raw, shown
        self._longest = LONGEST_LINE * (8 if kind_of(file) == ".json" else 1)  # which is one line or few
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
            where = f"{self._shown}:{self._n_lines + 1}"
            raise UserError(Problem(where, found, "rows that memory holds", step))
        if isinstance(self._raw, gzip.GzipFile):
            step = f"where that is meant: gzip -dk {as_argument(self._shown)}, and name the plain file"
            refuse_bomb(self._shown, self._n_bytes, cast("IO[bytes]", self._raw.fileobj).tell(), step)
        return len(content)

    def close(self) -> None:
        self._raw.close()
        super().close()


def _wide_encoding(beginning: bytes) -> str:
    """Return UTF-16 or UTF-32 by the byte order mark, or UTF-16 if every other byte is mostly 0; else ""."""
    for name, marks in _WIDE_MARKS.items():
        if beginning.startswith(marks):
            return name
    zeros = [beginning[start::2].count(0) for start in (0, 1)]
    if 4 * max(zeros) <= len(beginning):
        return ""
    return "UTF-16BE" if zeros[0] > zeros[1] else "UTF-16LE"


def _recode_command(shown: str, encoding: str) -> str:
    packed = shown.lower().endswith(".gz")
    plain = Path(shown).with_suffix("") if packed else Path(shown)
    file, new = as_argument(shown), as_argument(str(plain.with_suffix(f".utf8{plain.suffix}")))
    convert = f"iconv -f {encoding} -t UTF-8"
    return f"gzip -cd {file} | {convert} > {new}" if packed else f"{convert} {file} > {new}"


def _find_not_utf8(file: Path, shown: str) -> Problem:
    where, found = shown, "bytes that are not UTF-8"
    with open_bytes(file, shown) as raw:
        for number, line in enumerate(raw, start=1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                where, found = f"{shown}:{number}", f"byte 0x{line[error.start]:02x}, which is not UTF-8"
                break
    step = f"save it as UTF-8; from Windows-1252: {_recode_command(shown, 'WINDOWS-1252')}"
    return Problem(where, found, "text in UTF-8", step)


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
    below = not path.startswith(HUB) and file.is_relative_to(Path.cwd())
    return str(file.relative_to(Path.cwd())) if below else path


def kind_of(file: Path) -> str:
    """Return the ending of a row file without `.gz`; empty for other files."""
    name = file.name.lower().removesuffix(".gz")
    return next((ending for ending in ENDINGS if name.endswith(ending)), "")


def cap_problems(problems: list[Problem], where: str, what: str) -> list[Problem]:
    """Keep at most three equal problems and ten in all, and say how many there are."""
    by_content: dict[tuple[str, str, str], list[Problem]] = {}
    for problem in problems:
        by_content.setdefault((problem.found, problem.expected, problem.next_step), []).append(problem)
    shown = [problem for equal in by_content.values() for problem in equal[:_SHOWN_EQUAL]][:SHOWN]
    if len(shown) == len(problems):
        return problems
    found = f"{len(problems):,} {what}; {len(shown)} are shown"
    return [*shown, Problem(where, found, "none", "fix these; the next call names the others")]


# Columns whose lists hold all labels of a row, not alternative answers.
_SETS = {
    *("tags", "labels", "topics", "categories", "genres", "classes", "keywords", "keyphrases", "hashtags"),
    *("emotions", "intents", "tag", "label", "topic", "category", "genre", "class", "emotion", "intent"),
}
_PYTHON_LIST = re.compile(r"\s*\[\s*'.*\]\s*", re.DOTALL)
_ENTRY = r"""(?:'[^']*'|"[^"]*"|-?\d+)"""
_NUMPY_LIST = re.compile(rf"\[\s*{_ENTRY}(?:\s+{_ENTRY})+\s*\]")  # without commas
_TRIED = 100  # lines after the first by which the separator is found
_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_NAMED_SEPARATOR = re.compile(r"sep=([,;\t|])\r?\n")  # the first line of some exports


def read_csv(file: Path, shown: str) -> Iterator[Row]:
    """Yield CSV or TSV rows, also of spreadsheet exports: other separators, empty lines, odd headers."""
    csv.field_size_limit(LONGEST_LINE)  # the csv module alone refuses more than 131,072 characters
    problems: list[Problem] = []
    with open_text(file, shown) as text:
        first_line = text.readline()
        named = _NAMED_SEPARATOR.match(first_line)
        head = [*([] if named else [first_line]), *islice(text, _TRIED)]
        is_tsv = file.name.lower().removesuffix(".gz").endswith(".tsv")
        delimiter = named[1] if named else "\t" if is_tsv else _separator(head)
        skips_blanks = any(_quotes_behind_blank(line, delimiter) for line in head)
        lines = chain(head, text)
        reader = csv.reader(lines, delimiter=delimiter, strict=True, skipinitialspace=skips_blanks)
        listed = _list_columns(csv.reader(head, delimiter=delimiter, skipinitialspace=skips_blanks))
        line = 1
        try:
            header = _column_names(next(reader, []))
            line = reader.line_num + 1  # a row with line breaks is placed at its first line
            for cells in reader:
                where, line = f"{shown}:{line + bool(named)}", reader.line_num + 1
                if not any(cells):
                    continue
                if len(cells) != len(header):
                    expected = f"the {len(header)} fields of the first line"
                    step = f"quote fields with {_SEPARATORS[delimiter]}, or name all columns in line 1"
                    problems.append(Problem(where, pluralize(len(cells), "field"), expected, step))
                values = [_read_list(cell) if i in listed else cell for i, cell in enumerate(cells)]
                yield Row(where, dict(zip(header, values, strict=False)))
        except csv.Error as error:
            expected = f"values separated by {_SEPARATORS[delimiter]}"
            problems.append(Problem(f"{shown}:{line + bool(named)}", str(error), expected, "quote it"))
    refuse(cap_problems(problems, shown, "malformed lines"))


def names_labels(column: str) -> bool:
    """Tell from the last word of a column's name whether its lists hold labels."""
    return re.split(r"[\W_]", column.lower())[-1] in _SETS


def _list_columns(first_rows: Iterator[list[str]]) -> set[int]:
    """Return the places of the columns whose first cells are lists of labels, or Python lists of texts.

    One cell does not show it: `["it's"]` is JSON too.
    """
    places = set[int]()
    with suppress(csv.Error):  # the reading that follows names it
        names = next(first_rows, [])
        for place, (name, *cells) in enumerate(zip_longest(names, *first_rows, fillvalue="")):
            lists = [_read_list(cell) for cell in cells if cell.strip()]
            are_lists = all(isinstance(entries, list) for entries in lists)
            if are_lists and any(lists) and (names_labels(name) or any(map(_PYTHON_LIST.fullmatch, cells))):
                places.add(place)
    return places


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


def _quotes_behind_blank(line: str, delimiter: str) -> bool:
    """Tell whether a quoted field follows a blank, as in `1, "a, b"`."""
    sign = re.escape(delimiter)
    rest = re.sub(rf'(?:^|(?<={sign}))"(?:[^"]|"")*"', "", line)
    return delimiter != "\t" and re.search(rf'{sign} +"', rest) is not None


def _separator(lines: Sequence[str]) -> str:
    """Return the separator in the header that gives most of the first rows the header's width."""
    unquoted = re.sub(r'"[^"]*"', "", lines[0])
    signs = [sign for sign in _SEPARATORS if sign in unquoted] or [","]
    if len(signs) == 1:
        return signs[0]
    widths = {s: [len(cells) for cells in csv.reader(lines, delimiter=s) if any(cells)] for s in signs}
    return max(signs, key=lambda s: widths[s].count(widths[s][0]) if widths[s] else 0)


def _column_names(header: list[str]) -> list[str]:
    """Return the columns' names: stripped, numbered if they repeat, `column 2` if the header has none."""
    names: list[str] = []
    for place, cell in enumerate(header, start=1):
        name = stem = cell.strip() or f"column {place}"
        number = 2
        while name in names:
            name, number = f"{stem} {number}", number + 1
        names.append(name)
    return names


def is_csv(path: str) -> bool:
    """Tell from its name whether a file is CSV or TSV."""
    return path.lower().removesuffix(".gz").endswith((".csv", ".tsv"))
