"""Types of the values in a column: how many rows have which, and columns that mix them.

Invariant: nothing is kept of a row but the places of its empty cells, and of the first cells of each type.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any

from harness.data.formats.turn_parts import text_of_cell
from harness.data.readers import Row
from harness.errors import Problem, UserError
from harness.formatting import pluralize

_FIRST = 1_000  # places of a column's empty cells, and of each type's cells, that are kept


@dataclass(slots=True)
class ColumnCells:
    """Cells of a column: how many rows have it, the kinds of its values, and the first places of each.

    `places` are those of empty cells.
    """

    n: int = 0
    empty: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    places: list[str] = field(default_factory=list)
    of_kind: dict[str, list[str]] = field(default_factory=dict)


def count_cells(cells: dict[str, ColumnCells], row: Row) -> None:
    """Add the cells of a row to what is known of its columns."""
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
    """List columns that hold lists or objects in some rows and texts or numbers in others, by each type."""
    found = []
    for name, column in cells.items():
        if {"list", "object"} & column.kinds.keys() and len(column.kinds) > 1:
            ranked = column.kinds.most_common()
            kinds = " and ".join(f"{kind} ({pluralize(n, 'row')})" for kind, n in ranked)
            found += [
                Problem(
                    column.of_kind[kind][0],
                    f"{name!r} of mixed types: {kinds}",
                    "one type",
                    f"write the {kind} as in the other rows",
                )
                for kind, _ in ranked[1:]
            ]
    return found


def _kind(value: Any) -> str:
    if isinstance(value, dict):
        return "object"
    if isinstance(value, bool):
        return "true or false"
    return "number" if isinstance(value, int | float) else "list" if isinstance(value, list) else "text"


# Columns whose lists hold all that applies to a row, not several answers that are each right.
_SETS = {"tags", "labels", "topics", "categories", "genres", "classes", "keywords", "keyphrases", "hashtags"}


def is_label_list(column: str, value: Any) -> bool:
    """Tell whether a value is a list of labels, by the last word of its column's name."""
    return isinstance(value, list) and re.split(r"[\W_]", column.lower())[-1] in _SETS


def join_labels(where: str, column: str, values: Sequence[Any]) -> str:
    """Join the labels of a row to one answer, `none` where it has none.

    Raises:
        UserError: one of them is neither a text nor a number, or holds a semicolon.
    """
    texts = [text for value in values if (text := text_of_cell(value)) is not None]
    if len(texts) < len(values) or any(";" in text for text in texts):
        found, step = f"{column!r} of another form, or a label with a semicolon", f'such as "{column}": ["…"]'
        raise UserError(Problem(where, found, "a list of labels", step))
    return "; ".join(texts) or "none"


def is_object(value: Any) -> bool:
    """Tell whether a value is an object with some keys, or a list of such or of lists."""
    entries = value if isinstance(value, list) else [value]
    return bool(entries) and all(isinstance(entry, dict | list) and entry for entry in entries)


def find_objects(
    columns: Iterable[str], rows: Iterable[Row], n_first: int | None = None
) -> tuple[set[str], Iterator[Row]]:
    """Find the columns that hold objects in the first rows, by default in all; returns the rows as well.

    An empty list there is an answer: nothing was found.
    """
    left = iter(rows)
    first = list(islice(left, n_first))
    found = {name for name in columns if any(is_object(row.fields.get(name)) for row in first)}
    return found, chain(first, left)


def write_empty_lists(column: str, rows: Iterable[Row], n_first: int | None = None) -> Iterator[Row]:
    """Write an empty list as JSON where other rows hold lists of objects."""
    objects, rows = find_objects([column], rows, n_first)
    for row in rows:
        is_empty = objects and row.fields.get(column) == []
        yield row._replace(fields={**row.fields, column: "[]"}) if is_empty else row
