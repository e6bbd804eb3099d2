"""A table as aligned lines of text, its cells wrapped where it is wider than the terminal.

Invariant: no cell loses a word; without a width, or where no wrapping does, each row is one line.
"""

import re
from collections.abc import Iterator, Sequence

from rich.cells import cell_len
from rich.text import Text

from harness.report.escape import clean
from harness.report.labels import STYLES

_NUMBER = re.compile(r"[+−-]?\d[\d,.]*(e[+-]?\d+)?|–|")
_WORD = re.compile(r"(?:\[[^\]]*\]|\S)+")  # an interval is one


def align(columns: Sequence[str], rows: Sequence[Sequence[str]], width: int | None = None) -> Iterator[Text]:
    """Lay cells out in columns, numbers to the right; a word of a verdict has its colour."""
    cells = [[clean(cell) for cell in row] for row in ([columns, *rows] if columns else rows)]
    numbers = [all(map(_NUMBER.fullmatch, column[1:])) for column in zip(*cells, strict=True)]
    widths, gap = _fit(cells, width)
    for row in cells:
        wrapped = [_wrap(cell, room) for cell, room in zip(row, widths, strict=True)]
        for i in range(max(map(len, wrapped))):
            yield _join([of[i] if i < len(of) else "" for of in wrapped], widths, numbers, gap)


def _join(cells: Sequence[str], widths: Sequence[int], numbers: Sequence[bool], gap: int) -> Text:
    line = Text()
    for cell, width, number in zip(cells, widths, numbers, strict=True):
        room = " " * (width - cell_len(cell))
        line.append(room if number else "").append(cell, STYLES.get(cell, ""))
        line.append(" " * gap if number else f"{room}{' ' * gap}")
    line.rstrip()
    return line


def _fit(cells: Sequence[Sequence[str]], width: int | None) -> tuple[list[int], int]:
    """Find the widths of columns and the gap between them: the widest columns wrap until the table fits."""
    columns = list(zip(*cells, strict=True))
    widest = [max(map(cell_len, column)) for column in columns]
    least = [max(cell_len(word) for cell in column for word in _words(cell)) for column in columns]
    for gap in (2, 1):
        free = (width or 0) - gap * (len(columns) - 1)
        if width is None or sum(widest) <= free:
            return widest, gap
        if sum(least) <= free:
            return _shrink(widest, least, free), gap
    return widest, 2


def _shrink(widths: list[int], least: Sequence[int], free: int) -> list[int]:
    """Take the widest columns down, none below its longest word."""
    while sum(widths) > free:
        i = max((i for i, w in enumerate(widths) if w > least[i]), key=widths.__getitem__)
        widths = [*widths[:i], widths[i] - 1, *widths[i + 1 :]]
    return widths


def _wrap(cell: str, width: int) -> list[str]:
    """Break a cell into lines of a width, if it is wider."""
    if cell_len(cell) <= width:
        return [cell]
    lines: list[str] = []
    for word in _words(cell):
        if lines and cell_len(lines[-1]) + 1 + cell_len(word) <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def _words(cell: str) -> list[str]:
    """Split a cell where it may be broken: at blanks outside of an interval."""
    return _WORD.findall(cell) or [""]
