"""Make other people's text harmless and short: names, ids and messages that a model or a file chose.

Invariant: what comes out has no control characters, and is one line unless lines were requested; what
it means as markup depends on the target, so terminal text is printed as plain `Text`, Markdown
is escaped here, and HTML by its template. Different names stay different when they are shortened.
"""

import csv
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from rich.cells import cell_len

if TYPE_CHECKING:
    from jinja2 import Environment

# Control and direction characters, surrogates, private and unassigned ones.
_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn"})
_ANSI = re.compile(
    r"(?:\x9b|\x1b\[)[0-?]*[ -/]*[@-~]"  # colours, cursor
    r"|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?"  # titles, links
    r"|\x1b[@-Z\\-_]"
)
_MARKDOWN = re.compile(r"[\\|`*~]|(?<!\w)_|_(?!\w)|(?<=\])[(\[]")
_FORMULA = tuple("=+-@＝＋－＠")
_KEYS = re.compile(r"(?<=[\[,])[\w.]+=")  # of a grid's member, as in few-shot[select=knn,shots=4]
_BLOCK_START = re.compile(r"^(?=[#>+-]|\d+[.)]\s)")


def clean(text: str) -> str:
    """Drop ANSI sequences and control or direction characters; collapse whitespace to one line."""
    visible = text if text.isprintable() else "".join(filter(_visible, _ANSI.sub("", text)))
    return " ".join(visible.split())


def clean_lines(text: str) -> str:
    """Drop what `clean` drops, but keep lines and the spaces in them: for prompts and answers."""
    lines = _ANSI.sub("", text).splitlines()
    visible = (filter(_visible, line.expandtabs(4)) for line in lines)
    return "\n".join("".join(" " if c.isspace() else c for c in line) for line in visible)


def _visible(character: str) -> bool:
    return character.isspace() or unicodedata.category(character) not in _HIDDEN


def markdown(text: str) -> str:
    """Clean a text and escape what Markdown or HTML would take as markup, `|` included."""
    html = clean(text).replace("&", "&amp;").replace("<", "&lt;")
    return _MARKDOWN.sub(lambda found: f"\\{found[0]}", html)


def markdown_line(text: str) -> str:
    """Escape a text that begins a line or a list item, where `#` or `1.` would open a block."""
    return _BLOCK_START.sub(lambda _: "\\", markdown(text))


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Write the lines of a table, every cell escaped."""
    head, *body = (f"| {' | '.join(map(markdown, cells))} |" for cells in (columns, *rows))
    return [head, "|---" * len(columns) + "|", *body]


def write_csv(out: TextIO, columns: Sequence[str], rows: Iterable[Iterable[Any]]) -> None:
    """Write rows as CSV in which no text can be taken for a formula by a spreadsheet."""
    writer = csv.writer(out, lineterminator="\n")
    for cells in (columns, *rows):
        writer.writerow(spreadsheet_lines(cell) if isinstance(cell, str) else cell for cell in cells)


def spreadsheet_lines(text: str) -> str:
    """Clean the lines of a text for a cell, where a spreadsheet would take some beginnings for a formula."""
    cell = clean_lines(text).strip()
    return f"'{cell}" if cell.startswith(_FORMULA) else cell


def page_environment(folder: Path) -> "Environment":
    """Make what renders the templates of a folder as HTML: every text is cleaned and escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    return Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: value if isinstance(value, Markup) else clean(str(value)),
    )


def shorten(text: str, width: int, kept: int | None = None) -> str:
    """Cut out the middle of a text for `…`, so that it takes at most `width` cells.

    The end is kept because names of a grid differ there: `few-shot[shots=8]`; it takes `kept` cells,
    by default half of them.
    """
    if cell_len(text) <= width:
        return text
    tail = _shorten_to(text[::-1], (width - 1) // 2 if kept is None else kept)[::-1]
    head = _shorten_to(text, width - 1 - cell_len(tail))
    return f"{head}…{tail}"


def _shorten_to(text: str, width: int) -> str:
    text = text[: 4 * width]  # a text of a megabyte is not taken down character by character
    while cell_len(text) > width:
        text = text[:-1]
    return text


def shorten_for_table(names: Sequence[str], width: int) -> list[str]:
    """Shorten names to a width in cells; where that would make two of them one, they are left to wrap."""
    brief = [_KEYS.sub("", name) for name in names]
    return _shorten_by_source(names, width) or (brief if _are_different(brief, names) else list(names))


def shorten_for_picture(names: Sequence[str], width: int) -> list[str]:
    """Shorten names to a width in cells, which none of them passes; the cut is where they are alike.

    Where no cut tells them apart, they are counted: `a name th… long 2`.
    """
    if found := _shorten_by_source(names, width):
        return found
    # The middle is cut out first, then more and more of either half.
    for kept in sorted(range(width), key=lambda n: abs(2 * n - width)):
        cut = [shorten(name, width, kept) for name in names]
        if _are_different(cut, names):
            return cut
    places = {name: f" {i}" for i, name in enumerate(dict.fromkeys(names), 1)}
    return [shorten(name, width - cell_len(places[name])) + places[name] for name in names]


def _shorten_by_source(names: Sequence[str], width: int) -> list[str] | None:
    """Leave keys out and shorten what stands before the values; None where that does not do."""
    if max(map(cell_len, names), default=0) <= width:
        return list(names)
    short = []
    for name in names:
        source, bracket, values = _KEYS.sub("", name).partition("[")
        room = width - cell_len(bracket + values)
        short.append(shorten(source, max(room, 1)) + bracket + values)
    fits = max(map(cell_len, short)) <= width
    return short if fits and _are_different(short, names) else None


def _are_different(shown: Sequence[str], names: Sequence[str]) -> bool:
    return len(set(shown)) == len(set(names))
