"""Escaping and shortening of foreign text: names, ids and messages from models and files.

Invariant: the result has no control characters, and different names stay different when shortened.
"""

import csv
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any, TextIO

from rich.cells import cell_len

# Control and direction characters, surrogates, private and unassigned ones.
_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn"})
_ANSI = re.compile(
    r"(?:\x9b|\x1b\[)[0-?]*[ -/]*[@-~]"  # colours, cursor
    r"|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?"  # titles, links
    r"|\x1b[@-Z\\-_]"
)
_MARKDOWN = re.compile(r"[\\|`*~]|(?<!\w)_|_(?!\w)|(?<=\])[(\[]")
_FORMULA = tuple("=+-@＝＋－＠")
_KEYS = re.compile(r"(?<=[\[,])[\w.]+=")  # keys in grid names: few-shot[select=knn,shots=4]
_BLOCK_START = re.compile(r"^(?=[#>+-]|\d+[.)]\s)")


def clean(text: str) -> str:
    """Drop ANSI sequences and control or direction characters; collapse whitespace to one line."""
    visible = text if text.isprintable() else "".join(filter(_visible, _ANSI.sub("", text)))
    return " ".join(visible.split())


def clean_lines(text: str) -> str:
    """Clean like `clean`, but keep lines and spaces: for prompts and answers."""
    lines = _ANSI.sub("", text).splitlines()
    visible = (filter(_visible, line.expandtabs(4)) for line in lines)
    return "\n".join("".join(" " if c.isspace() else c for c in line) for line in visible)


def _visible(character: str) -> bool:
    return character.isspace() or unicodedata.category(character) not in _HIDDEN


def markdown(text: str) -> str:
    """Clean a text and escape Markdown and HTML markup, including `|`."""
    html = clean(text).replace("&", "&amp;").replace("<", "&lt;")
    return _MARKDOWN.sub(lambda match: f"\\{match[0]}", html)


def markdown_line(text: str) -> str:
    """Escape a text that begins a line or a list item, where `#` or `1.` would open a block."""
    return _BLOCK_START.sub(lambda _: "\\", markdown(text))


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table with escaped cells."""
    head, *body = (f"| {' | '.join(map(markdown, cells))} |" for cells in (columns, *rows))
    return [head, "|---" * len(columns) + "|", *body]


def write_csv(stream: TextIO, columns: Sequence[str], rows: Iterable[Iterable[Any]]) -> None:
    """Write rows as CSV in which a spreadsheet reads no text as a formula."""
    writer = csv.writer(stream, lineterminator="\n")
    for cells in (columns, *rows):
        writer.writerow(spreadsheet_lines(cell) if isinstance(cell, str) else cell for cell in cells)


def spreadsheet_lines(text: str) -> str:
    """Clean the lines of a text for a spreadsheet's cell, so that none is read as a formula."""
    cell = clean_lines(text).strip()
    return f"'{cell}" if cell.startswith(_FORMULA) else cell


def shorten(text: str, width: int, n_tail: int | None = None) -> str:
    """Replace the middle of a text by `…`: at most `width` cells, `n_tail` of them at the end."""
    if cell_len(text) <= width:
        return text
    tail = _shorten_to(text[::-1], (width - 1) // 2 if n_tail is None else n_tail)[::-1]
    head = _shorten_to(text, width - 1 - cell_len(tail))
    return f"{head}…{tail}"


def _shorten_to(text: str, width: int) -> str:
    text = text[: 4 * width]  # so that a huge text is not shortened character by character
    while cell_len(text) > width:
        text = text[:-1]
    return text


def shorten_for_picture(names: Sequence[str], width: int) -> list[str]:
    """Shorten names to a width in cells; names that would become equal are numbered: `a name th… long 2`."""
    suffixes = {name: f" {i}" for i, name in enumerate(dict.fromkeys(names), 1)}
    numbered = [shorten(name, width - cell_len(suffixes[name])) + suffixes[name] for name in names]
    return shorten_all(names, width) or numbered


def shorten_all(names: Sequence[str], width: int) -> list[str] | None:
    """Shorten names, those of a grid by its keys first; None if different names would become equal."""
    without_keys = [_KEYS.sub("", name) for name in names]
    for short in (list(names), without_keys, [shorten(name, width) for name in without_keys]):
        if max(map(cell_len, short), default=0) <= width and len(set(short)) == len(set(names)):
            return short
    return None
