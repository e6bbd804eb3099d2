"""Missing header of a CSV file: signs that the first line is a row, whose values became names of columns.

Invariant: a line is refused for certain only where its cell stands in the same column again and another of
its cells is a sentence; a header that stands in a file once more, as where files were joined, is no sign.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from harness.errors import Problem, UserError

_FEWEST_AGAIN = 2  # one value may be the column's name by chance
_SENTENCE_WORDS, _LONGEST_NAME = 3, 100


def is_csv(path: str) -> bool:
    """Tell from its name whether a file holds separated values."""
    return path.lower().removesuffix(".gz").endswith((".csv", ".tsv"))


def name_column(place: int) -> str:
    """Name a column without a name by its place, from 1."""
    return f"column {place}"


def refuse_certain_row(where: str, names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Refuse a first line that is certainly a row.

    Raises:
        UserError: one of its cells is a value of its column, and another is a sentence.
    """
    problem = _value_problem(where, names, rows, "")
    if problem and any(map(_is_sentence, names)):
        raise UserError(problem)


def probable_row(
    where: str, names: Sequence[str], rows: Sequence[Mapping[str, Any]], step: str
) -> Problem | None:
    """Phrase a first line that is probably a row: a cell is a value of its column, or all look like data.

    `step` is what else there is to do where it is the header after all.
    """
    problem = _value_problem(where, names, rows, step)
    if problem is None and any(map(_is_sentence, names)) and all(map(_is_data, names)):
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


def _is_data(cell: str) -> bool:
    return _is_sentence(cell) or cell.replace(".", "", 1).isdigit()


def _excerpt(cell: str) -> str:
    return cell if len(cell) <= 60 else f"{cell[:59]}…"
