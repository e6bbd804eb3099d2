"""Rows of separated values, also as spreadsheets export them: other separators, empty lines, odd headers."""

import csv
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path

from harness.data.csv_header import name_column
from harness.data.readers.text_file import LONGEST_LINE, Row, cap_problems, open_text
from harness.errors import Problem, UserError
from harness.formatting import count, pluralize

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
        head = [] if named else [first, *islice(text, _TRIED)]
        is_tsv = file.name.lower().removesuffix(".gz").endswith(".tsv")
        delimiter = named[1] if named else "\t" if is_tsv else _separator(head)
        lines, blanks = chain(head, text), any(_quotes_behind_blank(one, delimiter) for one in head)
        reader = csv.reader(lines, delimiter=delimiter, strict=True, skipinitialspace=blanks)
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
                yield Row(where, dict(zip(header, cells, strict=False)))
        except csv.Error as error:
            expected = f"values separated by {_SEPARATORS[delimiter]}"
            where = f"{shown}:{line + bool(named)}"
            problems.append(Problem(where, str(error), expected, "quote it"))
    if len(problems) > n_trailing and widths.total() > 1 and len(header) < min(widths):
        raise UserError(_title_line(f"{shown}:{1 + bool(named)}", len(header), widths))
    if problems:
        raise UserError(cap_problems(problems, shown, "malformed lines"))


def _quotes_behind_blank(line: str, delimiter: str) -> bool:
    """Tell whether a field is quoted behind blanks, as in `1, "a, b"`."""
    sign = re.escape(delimiter)
    rest = re.sub(rf'(?:^|(?<={sign}))"(?:[^"]|"")*"', "", line)
    return delimiter != "\t" and re.search(rf'{sign} +"', rest) is not None


def _title_line(where: str, n: int, widths: Counter[int]) -> Problem:
    """Phrase a first line with fewer fields than every row behind it, as a title above the header has."""
    usual, n_rows = widths.most_common(1)[0]
    found = f"{pluralize(n, 'field')} in the first line and {usual} in {count(n_rows)} of those behind it"
    expected = "a first line that names the columns"
    return Problem(where, found, expected, "delete the lines above the names of the columns, or name each")


def find_header_line(file: Path, shown: str) -> int:
    """Return the line of a CSV file that names its columns: the second after one of `sep=`."""
    with open_text(file, shown) as text:
        return 2 if _NAMED_SEPARATOR.match(text.readline()) else 1


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
        name = again = cell.strip() or name_column(place)
        number = 2
        while again in names:
            again, number = f"{name} {number}", number + 1
        names.append(again)
    return names
