"""A document of results: a first page, sections of a table with what is said of it, and an appendix.

Invariant: every format shows the same document; texts that models and files chose are cleaned or escaped
here, so a `|` in a name never opens a cell, and nothing is read as markup.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import quote

from rich.console import Console
from rich.text import Text

from harness.report.escape import clean, markdown_line, markdown_table
from harness.report.escape import markdown as escape
from harness.report.tables.aligned import align


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
