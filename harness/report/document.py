"""A document of results: a first page, sections of a table with what is said of it, and an appendix.

Invariant: every format shows the same document; texts that models and files chose are cleaned or escaped
here, so a `|` in a name never opens a cell, and nothing is read as markup. In a table of aligned text no cell
loses a word; without a width, or where no wrapping does, each row is one line.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import quote

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from harness.report.escape import clean, markdown_line, markdown_table
from harness.report.escape import markdown as escape
from harness.report.labels import STYLES


@dataclass(frozen=True, slots=True)
class Section:
    """A table and what is said of it below: `lead`, then `notes`.

    Without `columns` the table has no head. `kind` says what it shows and `label` of which run; a `detail`
    is left out on the terminal, and what stands in the appendix comes after everything else.
    """

    kind: str = ""
    title: str = ""
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    lead: str = ""
    notes: Sequence[str] = ()
    label: str = ""
    detail: bool = False
    appendix: bool = False


class Reason(NamedTuple):
    """One reason of a decision: what it is about, in a word or two, and the sentence."""

    about: str
    sentence: str


class Command(NamedTuple):
    """A command to type next, and what it does; `line` is empty where no command does it."""

    line: str
    purpose: str

    @property
    def text(self) -> str:
        """Both in one line."""
        return f"{self.line} {self.purpose}".strip()


@dataclass(frozen=True, slots=True)
class FirstPage:
    """The part of a document that is seen without turning a page; the decision is its last line.

    `table.notes` say what its columns mean. `picture` is an SVG, and `picture_file` the name of its file
    beside the document; both are empty where there is nothing to draw. `alt` names it, `caption` says how to
    read it.
    """

    reasons: Sequence[Reason]
    table: Section
    next_steps: Sequence[Command]
    picture: str = ""
    picture_file: str = ""
    alt: str = ""
    caption: str = ""


@dataclass(frozen=True, slots=True)
class ResultDocument:
    """The results of one command; `mark` stands at every heading, where the results are no evidence."""

    title: str
    sections: Sequence[Section]
    last_line: str
    lead: str = ""
    mark: str = ""
    first: FirstPage | None = None


def markdown(document: ResultDocument, level: int = 1) -> str:
    """Render the document with the last line first; `level` is that of its heading."""
    mark = f" ({document.mark})" if document.mark else ""
    lead = [escape(document.lead), ""] if document.lead else []
    first = _markdown_first(document.first) if document.first else []
    title = f"{'#' * level} {escape(document.title)}{mark}"
    said = [title, "", f"**{escape(document.last_line)}**", "", *first, *lead]
    for section in (s for s in document.sections if not s.appendix):
        said += _markdown_section(section, mark, level + 1)
    if behind := [s for s in document.sections if s.appendix]:
        said += [f"{'#' * (level + 1)} Appendix{mark}", ""]
        said += [line for section in behind for line in _markdown_section(section, mark, level + 2)]
    return "\n".join(said).rstrip("\n") + "\n"


def _markdown_first(page: FirstPage) -> list[str]:
    """Write the reasons, the table, the picture, and what to do next."""
    reasons = [f"- **{escape(r.about)}:** {escape(r.sentence)}" for r in page.reasons]
    table = [*markdown_table(page.table.columns, page.table.rows), ""] if page.table.rows else []
    notes = [line for note in page.table.notes for line in (f"<sub>{escape(note)}</sub>", "")]
    shown = f"![{escape(page.alt)}]({quote(page.picture_file)})"
    picture = [shown, "", f"<sub>{escape(page.caption)}</sub>", ""] if page.picture_file else []
    steps = [f"- {_markdown_command(step)}" for step in page.next_steps]
    following = ["**What to do next**", "", *steps, ""] if steps else []
    return [*reasons, "", *table, *notes, *picture, *following]


def _markdown_command(step: Command) -> str:
    return " ".join(filter(None, [f"`{clean(step.line)}`" if step.line else "", escape(step.purpose)]))


def _markdown_section(section: Section, mark: str, level: int) -> list[str]:
    """Write a heading, a table where there are rows, then what is said of it."""
    heading = [f"{'#' * level} {escape(section.title)}{mark}", ""] if section.title else []
    table = [*markdown_table(section.columns, section.rows), ""] if section.rows else []
    lead = [escape(section.lead), ""] if section.lead else []
    notes = [f"- {markdown_line(note)}" for note in section.notes]
    return [*heading, *table, *lead, *notes, *([""] if notes else ())]


def terminal_lines(document: ResultDocument, width: int | None = None) -> Iterator[Text]:
    """Yield the lines of the document without its details, tables in a width, the last line in bold."""
    yield from (Text(clean(text)) for text in (document.title, document.lead) if text)
    for i, section in enumerate(s for s in document.sections if not s.detail):
        if section.rows:
            yield from [Text()] if i else []
            yield from align(section.columns, section.rows, width)
        yield from (Text(clean(text)) for text in (section.lead, *section.notes) if text)
    yield from [Text(clean(document.last_line), style="bold")] if document.last_line else []


def print_document(document: ResultDocument, console: Console) -> None:
    """Print the document, no line broken in two: a terminal wraps it, cells of tables by themselves."""
    for line in terminal_lines(document, console.width if console.is_terminal else None):
        console.print(line, soft_wrap=True)


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
