"""Document of results: a first page, sections with a table and notes, and an appendix.

Invariant: every format shows the same document; texts from models and files are cleaned or escaped here.
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

ERROR = "ERROR"  # shown instead of a verdict for a failed run
# Colour class of each verdict, on pages and in pictures.
CLASSES = {"PASS": "passes", "FAIL": "fails", "UNDECIDED": "undecided", "DRIFT": "undecided", ERROR: "fails"}
_COLOURS = {"passes": "green", "fails": "red", "undecided": "yellow"}
STYLES = {word: _COLOURS[class_] for word, class_ in CLASSES.items()}  # on the terminal
PICTURE = "What each candidate gains on the task against what it keeps of its other capabilities"
CAPTION = (
    "Further right: better at the task. Further up: kept more of what it could do before. A ring marks what"
    " to ship. Grey: another candidate is at least as good on both. Lines are 95 % intervals."
)
_NUMBER = re.compile(r"[+−-]?\d[\d,.]*(e[+-]?\d+)?|–|")
_WORD = re.compile(r"(?:\[[^\]]*\]|\S)+")  # an interval is one word


@dataclass(frozen=True, slots=True)
class Section:
    """Table with a `lead` and `notes` below it; a `detail` is left out on the terminal."""

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
    """Reason of a decision: its topic, in a word or two, and the sentence."""

    about: str
    sentence: str


class Command(NamedTuple):
    """Next command and its purpose; `line` is empty if no command does it."""

    line: str
    purpose: str

    @property
    def text(self) -> str:
        """Command and purpose on one line."""
        return f"{self.line} {self.purpose}".strip()


@dataclass(frozen=True, slots=True)
class FirstPage:
    """First page of a document; the decision is its last line.

    `table.notes` explain the columns. `picture` is an SVG, and `picture_file` the name of its file next to
    the document; both are empty if there is nothing to draw.
    """

    reasons: Sequence[Reason]
    table: Section
    next_steps: Sequence[Command]
    picture: str = ""
    picture_file: str = ""


@dataclass(frozen=True, slots=True)
class ResultDocument:
    """Results of one command; `mark` is added to every heading if the results are not evidence."""

    title: str
    sections: Sequence[Section]
    last_line: str
    lead: str = ""
    mark: str = ""
    first: FirstPage | None = None


def markdown(document: ResultDocument, level: int = 1) -> str:
    """Render the document as Markdown, the last line first; `level` is that of its heading."""
    mark = f" ({document.mark})" if document.mark else ""
    lines = [f"{'#' * level} {escape(document.title)}{mark}", "", f"**{escape(document.last_line)}**", ""]
    if page := document.first:
        lines += [f"- **{escape(r.about)}:** {escape(r.sentence)}" for r in page.reasons] + [""]
        lines += [*markdown_table(page.table.columns, page.table.rows), ""] if page.table.rows else []
        lines += [line for note in page.table.notes for line in (f"<sub>{escape(note)}</sub>", "")]
        if page.picture_file:
            lines += [f"![{escape(PICTURE)}]({quote(page.picture_file)})", ""]
            lines += [f"<sub>{escape(CAPTION)}</sub>", ""]
        commands = ((f"`{clean(step.line)}` " if step.line else "", step) for step in page.next_steps)
        steps = [f"- {line}{escape(step.purpose)}".rstrip() for line, step in commands]
        lines += ["**What to do next**", "", *steps, ""] if steps else []
    lines += [escape(document.lead), ""] if document.lead else []
    for section in (s for s in document.sections if not s.appendix):
        lines += _markdown_section(section, mark, level + 1)
    if appendix := [s for s in document.sections if s.appendix]:
        lines += [f"{'#' * (level + 1)} Appendix{mark}", ""]
        lines += [line for section in appendix for line in _markdown_section(section, mark, level + 2)]
    return "\n".join(lines).rstrip("\n") + "\n"


def _markdown_section(section: Section, mark: str, level: int) -> list[str]:
    heading = [f"{'#' * level} {escape(section.title)}{mark}", ""] if section.title else []
    table = [*markdown_table(section.columns, section.rows), ""] if section.rows else []
    lead = [escape(section.lead), ""] if section.lead else []
    notes = [f"- {markdown_line(note)}" for note in section.notes]
    return [*heading, *table, *lead, *notes, *([""] if notes else ())]


def terminal_lines(document: ResultDocument, width: int | None = None) -> Iterator[Text]:
    """Yield the lines of the document without details, tables within a width, the last line in bold."""
    yield from (Text(clean(text)) for text in (document.title, document.lead) if text)
    for i, section in enumerate(s for s in document.sections if not s.detail):
        if section.rows:
            yield from [Text()] if i else []
            yield from align(section.columns, section.rows, width)
        yield from (Text(clean(text)) for text in (section.lead, *section.notes) if text)
    yield from [Text(clean(document.last_line), style="bold")] if document.last_line else []


def print_document(document: ResultDocument, console: Console) -> None:
    """Print the document without breaking lines: the terminal wraps text, tables wrap their cells."""
    for line in terminal_lines(document, console.width if console.is_terminal else None):
        console.print(line, soft_wrap=True)


def align(columns: Sequence[str], rows: Sequence[Sequence[str]], width: int | None = None) -> Iterator[Text]:
    """Align cells in columns, numbers to the right; verdicts are coloured."""
    cells = [[clean(cell) for cell in row] for row in ([columns, *rows] if columns else rows)]
    numbers = [all(map(_NUMBER.fullmatch, column[1:])) for column in zip(*cells, strict=True)]
    widths, gap = _fit(cells, width)
    for row in cells:
        wrapped: list[list[str]] = []
        for cell, room in zip(row, widths, strict=True):
            lines = [cell] if cell_len(cell) <= room else []
            for word in () if lines else _words(cell):
                if lines and cell_len(lines[-1]) + 1 + cell_len(word) <= room:
                    lines[-1] += f" {word}"
                else:
                    lines.append(word)
            wrapped.append(lines)
        for i in range(max(map(len, wrapped))):
            line = Text()
            for parts, room, number in zip(wrapped, widths, numbers, strict=True):
                piece = parts[i] if i < len(parts) else ""
                blanks = " " * (room - cell_len(piece))
                line.append(blanks if number else "").append(piece, STYLES.get(piece, ""))
                line.append(" " * gap if number else blanks + " " * gap)
            line.rstrip()
            yield line


def _fit(cells: Sequence[Sequence[str]], width: int | None) -> tuple[list[int], int]:
    """Choose column widths and the gap between them; the widest columns wrap until the table fits."""
    columns = list(zip(*cells, strict=True))
    widest = [max(map(cell_len, column)) for column in columns]
    min_widths = [max(cell_len(word) for cell in column for word in _words(cell)) for column in columns]
    for gap in (2, 1):
        free = (width or 0) - gap * (len(columns) - 1)
        if width is None or sum(widest) <= free:
            return widest, gap
        if sum(min_widths) <= free:
            while sum(widest) > free:  # a column is at least as wide as its longest word
                i = max((i for i, w in enumerate(widest) if w > min_widths[i]), key=widest.__getitem__)
                widest[i] -= 1
            return widest, gap
    return widest, 2


def _words(cell: str) -> list[str]:
    """Split a cell at spaces outside of intervals."""
    return _WORD.findall(cell) or [""]
