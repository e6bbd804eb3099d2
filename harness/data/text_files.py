"""Text files of any encoding, and rows of separated values in them, with or without a header.

Invariant: nothing is decoded by a guess; a row has the place where it is written, as errors name it. A line
is refused for certain only where its cell stands in the same column again and another of its cells is a
sentence; a header that stands in a file once more, as where files were joined, is no sign.
"""

import ast
import codecs
import csv
import gzip
import io
import re
import zlib
from collections import Counter
from collections.abc import Iterator, KeysView, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import IO, Any, NamedTuple, TextIO, cast

from harness.errors import Problem, UserError, as_argument, refuse
from harness.formatting import count, pluralize
from harness.spec import HUB

_GUESSED, _SHOWN_ENCODINGS = 1_000_000, 3  # bytes by which encodings are guessed; how many are shown
_UNKNOWN_TO_ICONV = (
    *("cp720", "cp1006", "euc_jis_2004", "hz", "kz1048", "mac_greek", "mac_iceland", "mac_latin2"),
    *("mac_turkish", "ptcp154", "shift_jis_2004", "shift_jisx0213"),
)
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
    """Open a file of text, also a gzipped one; what cannot be read is refused with its place."""
    try:
        with open_bytes(file, shown) as raw, io.TextIOWrapper(raw, "utf-8-sig", newline=newline) as text:
            if encoding := _wide_encoding(raw.read(BEGINNING)):
                step = _recode_command(shown, encoding)
                raise UserError(Problem(shown, f"text in {encoding}", "text in UTF-8", step))
            raw.seek(0)
            yield text
    except (UnicodeDecodeError, *_BROKEN):
        raise UserError(_find_broken_gzip(file, shown) or _find_not_utf8(file, shown)) from None


def open_bytes(file: Path, shown: str) -> IO[bytes]:
    """Open a file for reading, unpacked where it is named as a gzipped one, with a bound of its lines."""
    opened = gzip.open if file.suffix.lower() == ".gz" else open
    return io.BufferedReader(_BoundedLines(opened(file, "rb"), file, shown), 2**16)


def refuse_bomb(shown: str, n_unpacked: float, n_packed: int, next_step: str) -> None:
    """Refuse what takes far more memory than its file says: more than 200 times its size, from 16 MiB on."""
    if n_unpacked > _SMALL and n_unpacked > _MOST_RATIO * n_packed:
        found = f"{n_packed:,} bytes that take more than {_MOST_RATIO} times as many in memory"
        raise UserError(Problem(shown, found, f"{_MOST_RATIO} times at most", next_step))


class _BoundedLines(io.RawIOBase):
    """Bytes of a file, until a line or the whole becomes longer than any that is meant."""

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
    """Tell UTF-16 and UTF-32 by their byte order mark, or by every other byte being 0; empty of another."""
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
    offset = 0
    with open_bytes(file, shown) as raw:
        for number, line in enumerate(raw, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                found = f"byte 0x{line[error.start]:02x} at offset {offset + error.start}, which is not UTF-8"
                step = f"save it as UTF-8; {_guess_encodings(file, line, shown)}"
                return Problem(f"{shown}:{number}", found, "text in UTF-8", step)
            offset += len(line)
    return Problem(shown, "bytes that are not UTF-8", "text in UTF-8", "save the file as UTF-8")


def _guess_encodings(file: Path, line: bytes, shown: str) -> str:
    """Say how a line reads in the encodings that the file is likeliest in, and the command for the first."""
    from charset_normalizer import from_bytes

    from harness.data.check.personal_data import excerpt

    with open_bytes(file, shown) as raw:
        matches = list(from_bytes(raw.read(_GUESSED), cp_exclusion=[*_UNKNOWN_TO_ICONV]))
    # Those that read all alike are one match; of these the usual one is named.
    alike = [min(match.could_be_from_charset, key=lambda name: name != "cp1252") for match in matches]
    likely = sorted(alike, key=lambda name: name != "cp1252")[:_SHOWN_ENCODINGS] or ["cp1252"]
    lines = {name: excerpt(line.decode(name, "replace").strip(), 60) for name in likely}
    read = [f"{_name_encoding(name)} {beginning!r}" for name, beginning in lines.items()]
    command = _recode_command(shown, _name_encoding(likely[0]))
    return f"this line reads in {', in '.join(read)}; as the first: {command}"


def _name_encoding(name: str) -> str:
    named = name.upper().replace("ISO8859", "ISO-8859").replace("_", "-")
    named = {"MAC-ROMAN": "MACINTOSH", "LATIN-1": "LATIN1"}.get(named, named)
    return f"WINDOWS-{named[2:]}" if named.startswith("CP125") else named


def _find_broken_gzip(file: Path, shown: str) -> Problem | None:
    """Find the line in which a gzip file breaks off; None of a whole one, and of one that is not packed."""
    # Where only the checksum behind the rows is wrong, the last line is named, and any may be damaged.
    n = 0
    try:
        with open_bytes(file, shown) as raw:
            for line in raw:
                n += line.endswith(b"\n")
    except _BROKEN as error:
        if not n and (problem := _describe_unpacked(file, shown)):
            return problem
        found = f"a broken gzip file ({error}); {pluralize(n, 'line')} can be read"
        where = f"{shown}:{n + 1}"
        # What is wrong stands behind the rows, or at the very beginning.
        if isinstance(error, gzip.BadGzipFile):
            where = f"{shown}:{n}" if n else shown
            found += ", and any of them may be damaged" if n else ""
        step = f"fetch or pack it again; gzip -cd {as_argument(shown)} gives what is left of it"
        return Problem(where, found, "a whole file", step)
    return None


def _describe_unpacked(file: Path, shown: str) -> Problem | None:
    """Tell a file of plain text that is only named as a packed one; None of another."""
    try:
        with file.open("rb") as raw:
            is_text = bool(raw.read(BEGINNING).decode("utf-8", "strict").strip("\0"))
    except UnicodeDecodeError as error:
        is_text = error.start > BEGINNING - 4  # a sign that is cut
    step = f"rename it: mv {as_argument(shown)} {as_argument(shown[: -len('.gz')])}"
    found = "plain text in a file named .gz"
    return Problem(shown, found, "a file that gzip packed", step) if is_text else None


ENDINGS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
SHOWN = 10
_SHOWN_ALIKE = 3  # of them that say the same


class Row(NamedTuple):
    """One row: `file:line`, and its fields."""

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
    """Return what the name of a file of rows ends with, without `.gz`; empty of another."""
    name = file.name.lower().removesuffix(".gz")
    return next((ending for ending in ENDINGS if name.endswith(ending)), "")


def cap_problems(problems: list[Problem], where: str, what: str) -> list[Problem]:
    """Keep three problems that say the same, ten in all, and say how many there are."""
    places: dict[tuple[str, str, str], list[Problem]] = {}
    for problem in problems:
        places.setdefault((problem.found, problem.expected, problem.next_step), []).append(problem)
    shown = [problem for alike in places.values() for problem in alike[:_SHOWN_ALIKE]][:SHOWN]
    if len(shown) == len(problems):
        return problems
    found = f"{len(problems):,} {what}; {len(shown)} are shown"
    return [*shown, Problem(where, found, "none", "fix these; the next call names the others")]


# Columns whose lists hold all that applies to a row, not several answers that are each right.
_SETS = {
    *("tags", "labels", "topics", "categories", "genres", "classes", "keywords", "keyphrases", "hashtags"),
    *("emotions", "intents", "tag", "label", "topic", "category", "genre", "class", "emotion", "intent"),
}
_PYTHON_LIST = re.compile(r"\s*\[\s*'.*\]\s*", re.DOTALL)
_ENTRY = r"""(?:'[^']*'|"[^"]*"|-?\d+)"""
_NUMPY_LIST = re.compile(rf"\[\s*{_ENTRY}(?:\s+{_ENTRY})+\s*\]")  # without commas
_TRIED = 100  # lines behind the first by which separators are told apart
_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_NAMED_SEPARATOR = re.compile(r"sep=([,;\t|])\r?\n")  # the first line of some exports


def read_csv(file: Path, shown: str) -> Iterator[Row]:
    """Read separated values, also as spreadsheets export them: other separators, empty lines, odd headers."""
    csv.field_size_limit(LONGEST_LINE)  # the csv module alone refuses more than 131,072 characters
    problems: list[Problem] = []
    with open_text(file, shown) as text:
        first = text.readline()
        named = _NAMED_SEPARATOR.match(first)
        head = [*([] if named else [first]), *islice(text, _TRIED)]
        is_tsv = file.name.lower().removesuffix(".gz").endswith(".tsv")
        delimiter = named[1] if named else "\t" if is_tsv else _separator(head)
        lines, blanks = chain(head, text), any(_quotes_behind_blank(one, delimiter) for one in head)
        reader = csv.reader(lines, delimiter=delimiter, strict=True, skipinitialspace=blanks)
        listed = _list_columns(csv.reader(head, delimiter=delimiter, skipinitialspace=blanks))
        line, widths, n_trailing = 1, Counter[int](), 0
        try:
            header = _column_names(next(reader, []))
            # A row may hold line breaks: its place is its first line.
            line = reader.line_num + 1
            for cells in reader:
                where, line = f"{shown}:{line + bool(named)}", reader.line_num + 1
                if not any(cells):
                    continue
                widths[len(cells)] += 1
                if len(cells) != len(header):
                    expected = f"the {len(header)} fields of the first line"
                    step = f"quote fields with {_SEPARATORS[delimiter]}"
                    found = "another number of fields"
                    if not any(cells[len(header) :]) and len(cells) > len(header):
                        found = f"a {delimiter!r} too many at its end"
                        step = "delete it, or name one more column in the first line"
                        n_trailing += 1
                    problems.append(Problem(where, found, expected, step))
                values = [_read_list(cell) if i in listed else cell for i, cell in enumerate(cells)]
                yield Row(where, dict(zip(header, values, strict=False)))
        except csv.Error as error:
            expected = f"values separated by {_SEPARATORS[delimiter]}"
            where = f"{shown}:{line + bool(named)}"
            problems.append(Problem(where, str(error), expected, "quote it"))
    if len(problems) > n_trailing and widths.total() > 1 and len(header) < min(widths):
        # As a title above the header has fewer fields than every row behind it.
        (usual, n_rows), n = widths.most_common(1)[0], pluralize(len(header), "field")
        found = f"{n} in the first line and {usual} in {count(n_rows)} of those behind it"
        step = "delete the lines above the names of the columns, or name each"
        where, expected = f"{shown}:{1 + bool(named)}", "a first line that names the columns"
        raise UserError(Problem(where, found, expected, step))
    refuse(cap_problems(problems, shown, "malformed lines"))


def names_labels(column: str) -> bool:
    """Tell from the last word of its name whether a column's lists hold labels."""
    return re.split(r"[\W_]", column.lower())[-1] in _SETS


def _list_columns(first_rows: Iterator[list[str]]) -> set[int]:
    """Return the places of the columns whose first cells are lists: of labels, or of texts as Python's.

    A cell alone may not show it: `["it's"]` is JSON too. A column that holds other texts is left as it is.
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
    """Read a list of texts or whole numbers, as `['a', "it's"]` and NumPy's `[0 2]`; else return the cell."""
    text = cell.strip()
    if not text.startswith("["):
        return cell
    if _NUMPY_LIST.fullmatch(text):  # whose texts Python would join to one
        text = f"[{', '.join(re.findall(_ENTRY, text))}]"
    with suppress(ValueError, SyntaxError, RecursionError, MemoryError):
        entries = ast.literal_eval(text)
        return entries if {*map(type, entries)} in ({str}, {int}, set()) else cell
    return cell


def _quotes_behind_blank(line: str, delimiter: str) -> bool:
    """Tell whether a field is quoted behind blanks, as in `1, "a, b"`."""
    sign = re.escape(delimiter)
    rest = re.sub(rf'(?:^|(?<={sign}))"(?:[^"]|"")*"', "", line)
    return delimiter != "\t" and re.search(rf'{sign} +"', rest) is not None


def _separator(lines: Sequence[str]) -> str:
    """Return the sign among the names of columns, unquoted, that parts most of the first rows likewise."""
    # Of equal ones it is the comma.
    unquoted = re.sub(r'"[^"]*"', "", lines[0])
    signs = [sign for sign in _SEPARATORS if sign in unquoted] or [","]

    if len(signs) == 1:
        return signs[0]
    widths = {s: [len(cells) for cells in csv.reader(lines, delimiter=s) if any(cells)] for s in signs}
    return max(signs, key=lambda s: widths[s].count(widths[s][0]) if widths[s] else 0)


def _column_names(header: list[str]) -> list[str]:
    """Name every column: without spaces around, by its place where it has none, and numbered where twice."""
    names: list[str] = []
    for place, cell in enumerate(header, start=1):
        name = again = cell.strip() or name_column(place)
        number = 2
        while again in names:
            again, number = f"{name} {number}", number + 1
        names.append(again)
    return names


_FEWEST_AGAIN = 2  # one value may be the column's name by chance
_SENTENCE_WORDS, _LONGEST_NAME = 3, 100


def is_csv(path: str) -> bool:
    """Tell from its name whether a file holds separated values."""
    return path.lower().removesuffix(".gz").endswith((".csv", ".tsv"))


def name_column(place: int) -> str:
    """Name a column without a name by its place, from 1."""
    return f"column {place}"


def refuse_no_header(path: str, rows: Sequence[Row]) -> None:
    """Refuse a CSV file whose first line is certainly a row.

    Raises:
        UserError: one of its cells is a value of its column, and another is a sentence.
    """
    file, shown = Path(path), display_path(path)
    if not is_csv(path) or path.startswith(HUB) or file.is_dir():
        return
    with open_text(file, shown) as text:  # a first line of `sep=` stands above the names of columns
        line = 2 if _NAMED_SEPARATOR.match(text.readline()) else 1
    names = list(rows[0].fields)
    problem = _value_problem(f"{shown}:{line}", names, [row.fields for row in rows], "")
    if problem and any(map(_is_sentence, names)):
        raise UserError(problem)


def probable_row(
    where: str, names: Sequence[str], rows: Sequence[Mapping[str, Any]], step: str
) -> Problem | None:
    """Phrase a first line that is probably a row: a cell is a value of its column, or all look like data.

    `step` is what else there is to do where it is the header after all.
    """
    problem = _value_problem(where, names, rows, step)
    others = [cell for cell in names if not _is_sentence(cell)]
    are_numbers = all(cell.replace(".", "", 1).isdigit() for cell in others)
    if problem is None and len(others) < len(names) and are_numbers:
        problem = _problem(where, f"{_excerpt(names[0])!r} and other data", step)
    return problem


def _value_problem(
    where: str, names: Sequence[str], rows: Sequence[Mapping[str, Any]], step: str
) -> Problem | None:
    others = [row for row in rows if not all(_holds(row, name) for name in names)]
    for name in names:
        n_again = sum(_holds(row, name) for row in others)
        if n_again >= _FEWEST_AGAIN:
            return _problem(where, f"{_excerpt(name)!r}, which {n_again:,} rows hold in that column,", step)
    return None


def _problem(where: str, found: str, step: str) -> Problem:
    expected = "a header line that names the columns, such as text,label"
    return Problem(where, f"{found} where names of columns belong", expected, f"add a header line{step}")


def _holds(row: Mapping[str, Any], name: str) -> bool:
    return str(row.get(name, "")).strip() == name


def _is_sentence(cell: str) -> bool:
    ends = cell.endswith((".", "?", "!")) and len(cell.split()) >= _SENTENCE_WORDS
    return ends or len(cell) > _LONGEST_NAME


def _excerpt(cell: str) -> str:
    from harness.data.check.personal_data import excerpt

    return excerpt(cell, 60) if len(cell) <= 60 else f"{excerpt(cell, 59)}…"
