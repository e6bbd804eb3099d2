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

ERROR = "ERROR"  # of a run that failed, which has no verdict
# What the word of a verdict tells: the class of its colour on pages and in pictures.
CLASSES = {"PASS": "passes", "FAIL": "fails", "UNDECIDED": "undecided", "DRIFT": "undecided", ERROR: "fails"}
_COLOURS = {"passes": "green", "fails": "red", "undecided": "yellow"}
STYLES = {word: _COLOURS[class_] for word, class_ in CLASSES.items()}  # on the terminal
PICTURE = "What each candidate gains on the task against what it keeps of its other capabilities"
CAPTION = (
    "Further right: better at the task. Further up: kept more of what it could do before. A ring marks what"
    " to ship. Grey: another candidate is at least as good on both. Lines are 95 % intervals."
)


@dataclass(frozen=True, slots=True)
class Section:
    """A table and what is said of it below: `lead`, then `notes`.

    Without `columns` the table has no head. `kind` says what it shows, `label` names the run; a `detail`
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
    beside the document; both are empty where there is nothing to draw.
    """

    reasons: Sequence[Reason]
    table: Section
    next_steps: Sequence[Command]
    picture: str = ""
    picture_file: str = ""


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
    if behind := [s for s in document.sections if s.appendix]:
        lines += [f"{'#' * (level + 1)} Appendix{mark}", ""]
        lines += [line for section in behind for line in _markdown_section(section, mark, level + 2)]
    return "\n".join(lines).rstrip("\n") + "\n"


def _markdown_section(section: Section, mark: str, level: int) -> list[str]:
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
            line = Text()
            for parts, room, number in zip(wrapped, widths, numbers, strict=True):
                part = parts[i] if i < len(parts) else ""
                blanks = " " * (room - cell_len(part))
                line.append(blanks if number else "").append(part, STYLES.get(part, ""))
                line.append(" " * gap if number else blanks + " " * gap)
            line.rstrip()
            yield line


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
            while sum(widest) > free:  # no column gets narrower than its longest word
                i = max((i for i, w in enumerate(widest) if w > least[i]), key=widest.__getitem__)
                widest[i] -= 1
            return widest, gap
    return widest, 2


def _wrap(cell: str, width: int) -> list[str]:
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
