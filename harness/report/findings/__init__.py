"""Page of a data check: findings, the worst first, each with rows, an example and what fixes it.

Invariant: terminal, HTML and JSON show the same findings; a file's text is cleaned or escaped.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from harness.data.check import Finding
from harness.errors import Problem, UserError, as_argument
from harness.formatting import count, percent, pluralize
from harness.report.document import ResultDocument, Section
from harness.report.escape import page_environment, shorten
from harness.report.findings.command_chain import fill_commands, order_commands

_SHOWN = 5  # places of a finding on the page
_BRIEFLY = 3  # alarms that are said in a line each
_WIDEST = 95  # characters of a line that stands in another table
_KEPT, _BY_ROW = 1_000, ("rows", "labels", "beside")  # in JSON
_GENERATOR = '<meta name="generator" content="harness data check">'
_HEAD = 1_000  # bytes of a page in which that stands


def data_document(findings: Sequence[Finding], title: str) -> ResultDocument:
    """Lay findings out as the terminal shows them: alarms with all they say, then figures in a line each."""
    alarms = [row for f in findings if f.severity != "note" for row in _alarm_rows(f)]
    notes = [(f.check, f"{_title_line(f)}  {f.example}".rstrip()) for f in findings if f.severity == "note"]
    sections = [Section(rows=rows) for rows in (alarms, notes) if rows]
    return ResultDocument(title, sections, summary(findings))


def short_lines(findings: Sequence[Finding]) -> Iterator[str]:
    """Yield the worst alarms in a line each of at most 100 characters, then how many there are.

    What is too long for a line loses its first row, then its amount, and then the end of its title.
    """
    alarms = [f for f in findings if f.severity != "note"]
    for f in alarms[:_BRIEFLY]:
        amount = f", {share_text(f)}" if f.of else ""
        first = f", first {Path(f.rows[0]).name}" if f.rows else ""
        title = f"{f.severity}: {f.title}"
        fitting = (line for line in (title + amount + first, title + amount) if len(line) <= _WIDEST)
        yield next(fitting, shorten(title, _WIDEST, 0))
    worst = f"; these are the worst {_BRIEFLY}" if len(alarms) > _BRIEFLY else ""
    yield summary(findings).partition("; next: ")[0] + worst


def summary(findings: Sequence[Finding]) -> str:
    """Say how many alarms there are, and the commands that fix them, in the order in which they are run."""
    n = Counter(f.severity for f in findings)
    if not n["error"] + n["warning"]:
        return "no alarm: nothing was found that would make results wrong or harm a training"
    worst = next(f for f in findings if f.severity != "note")
    chain = " && ".join(order_commands(findings)) or worst.command
    step = f"; next: {chain}" if chain else ""
    return f"{pluralize(n['error'], 'error')}, {pluralize(n['warning'], 'warning')}{step}"


def places(finding: Finding, most: int = _SHOWN) -> str:
    """Name the first places of a finding, the file once: `rows.csv:3, 17, 29, …`."""
    out, before = [], ""
    for place in finding.rows[:most]:
        head = place.rstrip("0123456789")
        out.append(place[len(head) :] if head == before else place)
        before = head
    return ", ".join([*out, *(["…"] if len(finding.rows) > most else [])])


def data_json(findings: Sequence[Finding], files: Sequence[str], n: int) -> dict[str, Any]:
    """Turn findings into plain types; of places the first thousand, `count` says how many rows there are."""
    cut = [{part: getattr(f, part)[:_KEPT] for part in _BY_ROW} for f in findings]
    plain = [asdict(f) | {"share": f.share} | of for f, of in zip(findings, cut, strict=True)]
    return {"files": list(files), "n": n, "summary": summary(findings), "findings": plain}


def refuse_page(file: Path) -> None:
    """Refuse to write a page over a file that is no such page, as rows are, also by a link.

    Raises:
        UserError: another file is there already, or no folder for a new one.
    """
    if not file.parent.is_dir():
        step = f"mkdir -p {as_argument(str(file.parent))}"
        found, expected = f"no folder {file.parent}", "a folder that is there"
        raise UserError(Problem(f"--html {file}", found, expected, step))
    if file.exists() and not (file.is_file() and _GENERATOR.encode() in file.read_bytes()[:_HEAD]):
        found, step = "a file that is there already", "name another file, or remove that one"
        raise UserError(Problem(f"--html {file}", found, "a new file, or an earlier page of a check", step))


def data_html(findings: Sequence[Finding], title: str) -> str:
    """Render the page as one file of HTML, which loads nothing."""
    from markupsafe import Markup

    folder = Path(__file__).parent
    environment = page_environment(folder)
    environment.globals |= {"places": places, "amount": share_text}
    return environment.get_template("page.html").render(
        title=title,
        generator=Markup(_GENERATOR),
        summary=summary(findings),
        alarms=[f for f in findings if f.severity != "note"],
        notes=[f for f in findings if f.severity == "note"],
        colours=Markup((folder.parent / "page.css").read_text(encoding="utf-8")),
    )


def share_text(f: Finding) -> str:
    """Print the share of the rows that show a finding: `3.2 % (2 of 62)`; empty where it is not of rows."""
    return f"{percent(f.share)} % ({count(f.count)} of {count(f.of)})" if f.of else ""


def _alarm_rows(f: Finding) -> Iterator[tuple[str, str]]:
    yield f.severity, _title_line(f)
    where = ("rows", places(f)) if f.rows else None
    for pair in (where, ("e.g.", f.example), ("means", f.meaning), ("next", f.command)):
        if pair and pair[1]:
            yield "", f"  {pair[0]}: {pair[1]}"


def _title_line(f: Finding) -> str:
    return f"{f.title}  {share_text(f)}" if f.of else f.title
