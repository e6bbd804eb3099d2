"""Values of cells: types, text forms, dates and times, and special tokens.

Invariant: times without a zone are UTC; the special tokens that are found are those that are removed. `<s>`
is one only at the start of a text and `</s>` at its end, unless the tokenizer has them: HTML and code do.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time
from decimal import Decimal
from functools import cache
from itertools import chain, islice
from typing import Any, NamedTuple

from harness.data.text_files import Row
from harness.errors import Problem
from harness.formatting import pluralize

_FIRST = 1_000  # kept places of a column's empty cells, and of each type's cells


@dataclass(slots=True)
class ColumnCells:
    """Cells of a column: the rows that have it, the types of its values, and the first places of each.

    `places` are those of empty cells.
    """

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
            kind = _kind(value)
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


def _kind(value: Any) -> str:
    if isinstance(value, dict):
        return "object"
    if isinstance(value, bool):
        return "true or false"
    return "number" if isinstance(value, int | float) else "list" if isinstance(value, list) else "text"


def is_object(value: Any) -> bool:
    """Tell whether a value is a non-empty object, or a list of objects or lists."""
    entries = value if isinstance(value, list) else [value]
    return bool(entries) and all(isinstance(entry, dict | list) and entry for entry in entries)


def find_objects(
    columns: Iterable[str], rows: Iterable[Row], n_first: int | None = None
) -> tuple[set[str], Iterator[Row]]:
    """Find the columns with objects in the first rows (default: all); return them with the rows."""
    left = iter(rows)
    first = list(islice(left, n_first))
    found = {name for name in columns if any(is_object(row.fields.get(name)) for row in first)}
    return found, chain(first, left)


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
    return json.dumps(value, ensure_ascii=False, default=_write_cell)


def _write_cell(value: Any) -> Any:
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    return text_of_cell(value) or f"<{type(value).__name__}>"


def text_of_cell(value: Any) -> str | None:
    """Write a number, a decimal, a date or a time as a text; None of another value."""
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
    """Tell whether a value is a number or a text that is no JSON of a list or object."""
    return isinstance(value, int | float) or (isinstance(value, str) and not _JSON.match(value))


FORMS = "2024-05-31, 2024-05, 20240531, 2024-05-31T10:00:00Z or seconds since 1970"
_NUMBER, _EIGHT_DIGITS = re.compile(r"-?\d+(?:\.\d+)?"), re.compile(r"\d{8}")
_MONTH = re.compile(r"\d{4}-\d{2}")


class Moment(NamedTuple):
    """Time to sort by: seconds since 1970, or a plain number."""

    at: float
    is_number: bool


def read_moment(value: Any, form: str | None = None, *, with_days: bool = True) -> Moment:
    """Parse a time as ISO 8601, as a month, as a number, or in a `form` of strptime.

    Eight digits are a day if `with_days`, otherwise a number.

    Raises:
        ValueError: it is not a time.
    """
    if isinstance(value, bool) or value is None:
        raise ValueError(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(value)
    whole = isinstance(value, float) and value.is_integer()
    text = value.isoformat() if hasattr(value, "isoformat") else str(int(value) if whole else value).strip()
    is_number = isinstance(value, int | float) or _NUMBER.fullmatch(text)
    if form is None and is_number and not (with_days and _is_day(text)):
        return Moment(float(value if isinstance(value, int | float) else text), is_number=True)
    text = f"{text}-01" if form is None and _MONTH.fullmatch(text) else text
    read = datetime.strptime(text, form) if form else datetime.fromisoformat(text)  # noqa: DTZ007
    return Moment((read if read.tzinfo else read.replace(tzinfo=UTC)).timestamp(), is_number=False)


def are_days(values: Iterable[Any]) -> bool:
    """Tell whether all values of eight digits, if any, are days."""
    return all(map(_is_day, filter(_EIGHT_DIGITS.fullmatch, map(str, values))))


def _is_day(text: str) -> bool:
    try:
        return bool(_EIGHT_DIGITS.fullmatch(text) and datetime.fromisoformat(text))
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
def compile_special(own: tuple[str, ...] = ()) -> re.Pattern[str]:
    """Compile a pattern of special tokens, of known families or a tokenizer, with the role after them."""
    written = "|".join([*map(re.escape, sorted(own, key=len, reverse=True)), _FAMILIES])
    return re.compile(rf"(?P<token>{written})(?:{_ROLE})?")


def find_special(texts: Iterable[str], own: tuple[str, ...] = ()) -> str:
    """Return the first special token in texts as written, or ""."""
    special = compile_special(own)
    return next((found["token"].strip() for text in texts for found in special.finditer(text)), "")


def remove_special(text: str, own: tuple[str, ...] = ()) -> str:
    """Return a text without special tokens."""
    return compile_special(own).sub("", cut_special(text, own))


def cut_special(text: str, own: tuple[str, ...] = ()) -> str:
    """Return an answer without the special tokens around it, of `own` only those at its end."""
    started = re.sub(rf"\A(?:\s*(?:{_pattern(())}))+\s*", "", text)
    return re.sub(rf"(?:\s*(?:{_pattern(own)}))+\s*\Z", "", started)


def _pattern(own: tuple[str, ...]) -> str:
    return compile_special(own).pattern.replace("?P<token>", "?:")
