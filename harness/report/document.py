"""A document of results: a title, sections of a table with what is said of it, and a last line.

Invariant: every format shows the same document; texts that models and files chose are cleaned or escaped
here, so a `|` in a name never opens a cell, and nothing is read as markup.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from harness.report.escape import clean, markdown_line, markdown_table
from harness.report.escape import markdown as escape
from harness.report.labels import STYLES

_NUMBER = re.compile(r"[+−-]?\d[\d,.]*(e[+-]?\d+)?|–|")


@dataclass(frozen=True, slots=True)
class Section:
    """A table and what is said of it below: `lead`, then `notes`.

    Without `columns` the table has no head. `kind` says what it shows and `label` of which run; a `detail`
    is left out on the terminal.
    """

    kind: str = ""
    title: str = ""
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    lead: str = ""
    notes: Sequence[str] = ()
    label: str = ""
    detail: bool = False


@dataclass(frozen=True, slots=True)
class ResultDocument:
    """The results of one command; `mark` stands at every heading, where the results are no evidence."""

    title: str
    sections: Sequence[Section]
    last_line: str
    lead: str = ""
    mark: str = ""


def markdown(document: ResultDocument, level: int = 1) -> str:
    """Render the document with the last line first; `level` is that of its heading."""
    mark = f" ({document.mark})" if document.mark else ""
    lead = [escape(document.lead), ""] if document.lead else []
    body = (line for section in document.sections for line in _markdown_section(section, mark, level + 1))
    title = f"{'#' * level} {escape(document.title)}{mark}"
    return "\n".join([title, "", f"**{escape(document.last_line)}**", "", *lead, *body]).rstrip("\n") + "\n"


def _markdown_section(section: Section, mark: str, level: int) -> list[str]:
    """Write a heading and a table where there are rows, then what is said of it."""
    heading = [f"{'#' * level} {escape(section.title)}{mark}", ""] if section.title and section.rows else []
    table = [*markdown_table(section.columns, section.rows), ""] if section.rows else []
    lead = [escape(section.lead), ""] if section.lead else []
    notes = [f"- {markdown_line(note)}" for note in section.notes]
    return [*heading, *table, *lead, *notes, *([""] if notes else ())]


def terminal_lines(document: ResultDocument) -> Iterator[Text]:
    """Yield the lines of the document without its details, the last line in bold."""
    yield from (Text(clean(text)) for text in (document.title, document.lead) if text)
    for i, section in enumerate(s for s in document.sections if not s.detail):
        if section.rows:
            yield from [Text()] if i else []
            yield from align(section.columns, section.rows)
        yield from (Text(clean(text)) for text in (section.lead, *section.notes) if text)
    yield from [Text(clean(document.last_line), style="bold")] if document.last_line else []


def print_document(document: ResultDocument, console: Console) -> None:
    """Print the document, no line broken in two: a terminal wraps, and a file keeps them whole."""
    for line in terminal_lines(document):
        console.print(line, soft_wrap=True)


def align(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[Text]:
    """Lay cells out in columns, numbers to the right; a word of a verdict has its colour."""
    cells = [[clean(cell) for cell in row] for row in ([columns, *rows] if columns else rows)]
    widths = [max(map(cell_len, column)) for column in zip(*cells, strict=True)]
    numbers = [all(map(_NUMBER.fullmatch, column[1:])) for column in zip(*cells, strict=True)]
    for row in cells:
        line = Text()
        for cell, width, number in zip(row, widths, numbers, strict=True):
            room = " " * (width - cell_len(cell))
            line.append(room if number else "").append(cell, STYLES.get(cell, ""))
            line.append("  " if number else f"{room}  ")
        line.rstrip()
        yield line
