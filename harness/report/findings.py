"""Page of a data check: findings, the worst first, each with rows, an example and the commands that fix it.

Rows are cleaned first, then deduplicated, then split; each verb is one command. Several files are joined if a
row of one repeats a row of another, or if they are to be split.
"""

import re
import shlex
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from harness.data.check import Finding
from harness.data.edit.row_files import OutputNames, free_folders, name_output
from harness.data.readers import file_of
from harness.errors import UserError, as_argument
from harness.formatting import count, percent, pluralize
from harness.report.document import ResultDocument, Section
from harness.report.escape import shorten
from harness.report.html_page import page_environment
from harness.spec import HUB

_SHOWN = 5  # places of a finding on the page
_BRIEFLY = 3  # alarms in the brief listing, one line each
_WIDEST = 95  # characters of a line within another table
_KEPT, _BY_ROW = 1_000, ("rows", "labels", "related")  # in JSON
_GENERATOR = '<meta name="generator" content="harness data check">'
_HEAD = 1_000  # bytes at the start of a page that hold the generator's tag
_STEP = re.compile(r"harness data (?P<verb>clean|dedup|split) FILE(?P<before>.*?) --out OUT(?P<after>.*)")
_VERBS = ("clean", "mix", "dedup", "split")  # in the order in which they are run
_DASHBOARD, _DECISIONS = "harness dashboard", " --decisions DECISIONS"
_SOURCES = ("source", "file", "from_file", "mixed_from")  # columns that may say which file a row is from


def data_document(findings: Sequence[Finding], title: str) -> ResultDocument:
    """Return findings for the terminal: alarms with all details, then figures on a line each."""
    alarms: list[tuple[str, str]] = []
    notes: list[tuple[str, str]] = []
    for f in findings:
        line = f"{f.title}  {share_text(f)}" if f.of else f.title
        if f.severity == "note":
            notes.append((f.check, f"{line}  {f.example}".rstrip()))
            continue
        alarms.append((f.severity, line))
        sentence = {"rows": places(f), "e.g.": f.example, "means": f.meaning, "next": f.command}
        alarms += [("", f"  {name}: {text}") for name, text in sentence.items() if text]
    sections = [Section(rows=rows) for rows in (alarms, notes) if rows]
    return ResultDocument(title, sections, summary(findings))


def short_lines(findings: Sequence[Finding]) -> Iterator[str]:
    """Yield the worst alarms on a line each of at most 100 characters, then how many there are."""
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
    """Summarize the numbers of alarms, and the commands that fix them, in the order in which they are run."""
    n = Counter(f.severity for f in findings)
    if not n["error"] + n["warning"]:
        return "no alarm: nothing was found that would make results wrong or harm a training"
    worst = next(f for f in findings if f.severity != "note")
    chain = " && ".join(order_commands(findings)) or worst.command
    step = f"; next: {chain}" if chain else ""
    return f"{pluralize(n['error'], 'error')}, {pluralize(n['warning'], 'warning')}{step}"


def places(finding: Finding, limit: int = _SHOWN) -> str:
    """Name the first places of a finding, the file once: `rows.csv:3, 17, 29, …`."""
    texts, previous = [], ""
    for row in finding.rows[:limit]:
        head = row.rstrip("0123456789")
        texts.append(row[len(head) :] if head == previous else row)
        previous = head
    return ", ".join([*texts, *(["…"] if len(finding.rows) > limit else [])])


def data_json(findings: Sequence[Finding], files: Sequence[str], n: int) -> dict[str, Any]:
    """Convert findings to plain types, with the first thousand places."""
    cut = [{name: getattr(f, name)[:_KEPT] for name in _BY_ROW} for f in findings]
    plain = [asdict(f) | {"share": f.share} | lists for f, lists in zip(findings, cut, strict=True)]
    return {"files": list(files), "n": n, "summary": summary(findings), "findings": plain}


def refuse_page(file: Path) -> None:
    """Refuse to write a page over any file but an earlier page of a check, also by a link."""
    if not file.parent.is_dir():
        step = f"mkdir -p {as_argument(str(file.parent))}"
        found, expected = f"no folder {file.parent}", "a folder that is there"
        raise UserError(f"--html {file}", found, expected, step)
    if file.exists() and not (file.is_file() and _GENERATOR.encode() in file.read_bytes()[:_HEAD]):
        found, step = "a file that is there already", "name another file, or remove that one"
        raise UserError(f"--html {file}", found, "a new file, or an earlier page of a check", step)


def data_html(findings: Sequence[Finding], title: str) -> str:
    """Render the page as one file of HTML, which loads nothing."""
    from markupsafe import Markup

    folder = Path(__file__).parent
    environment = page_environment(folder)
    environment.globals |= {"places": places, "amount": share_text}
    return environment.get_template("findings.html").render(
        title=title,
        generator=Markup(_GENERATOR),
        summary=summary(findings),
        alarms=[f for f in findings if f.severity != "note"],
        notes=[f for f in findings if f.severity == "note"],
        colours=Markup((folder / "page.css").read_text(encoding="utf-8")),
    )


def share_text(f: Finding) -> str:
    """Print the share of rows with a finding: `3.2 % (2 of 62)`; empty if it is not about rows."""
    return f"{percent(f.share)} % ({count(f.count)} of {count(f.of)})" if f.of else ""


class _CommandStep(NamedTuple):
    """Verb that fixes a finding, with its options before and after the output."""

    verb: str
    before: tuple[str, ...]
    after: tuple[str, ...]


class _Steps(NamedTuple):
    """Commands of the chain by verb and file; those of joined files are listed under each file."""

    of: dict[tuple[str, str], tuple[str, ...]]
    cleaned: dict[str, tuple[str, ...]]  # options of the file's cleaning
    written: dict[str, str]  # what the file's cleaning writes
    folders: dict[str, str]  # of an experiment on the file
    names: OutputNames


def fill_commands(
    findings: Sequence[Finding],
    files: Sequence[str],
    args: Sequence[str] = (),
    args_of_all: Sequence[str] = (),
    columns: Container[str] = (),
    pages: Mapping[str, str] = MappingProxyType({}),
) -> list[Finding]:
    """Put files and the options that name columns into commands; `pages` has files of the dashboard."""
    alarms = [f for f in findings if f.severity != "note"]
    by_file: dict[tuple[str, str], list[_CommandStep]] = {}
    for finding in alarms:
        if step := _step(finding):
            for file in _files(finding, files):
                by_file.setdefault((step.verb, file), []).append(step)
    chain, now, cleaned = dict[tuple[str, str], tuple[str, ...]](), {file: file for file in files}, {}
    names: OutputNames = {}
    for file in files:
        if of_file := by_file.get(("clean", file)):
            step = _join("clean", of_file)
            cleaned[file] = step.after
            chain["clean", file] = (_command(step, file, args, names),)
            now[file] = name_output(names, file, "clean")
    steps = _Steps(chain, cleaned, dict(now), free_folders(files), names)
    is_split = any(verb == "split" for verb, _ in by_file)
    # A row that repeats one of another file cannot be dropped by `data dedup` of one file.
    within = [f for f in alarms if "dedup FILE" in f.command and "--against" not in f.command]
    pairs = ((file_of(row), other) for f in within for row, other in zip(f.rows, f.related, strict=False))
    is_across = any(not other.startswith((f"{file}:", f"{file} ")) for file, other in pairs)
    if len(files) > 1 and (is_split or is_across):
        # The first command on joined files follows the command that joins them.
        mixed = name_output(names, now[files[0]], "mixed")
        column = next(name for name in _SOURCES if name not in columns)
        joined = " ".join(as_argument(now[file]) for file in files)
        first: tuple[str, ...] = (f"harness data mix {joined} --column {column} --out {as_argument(mixed)}",)
        for verb in ("dedup", "split"):
            if of_all := [step for file in files for step in by_file.get((verb, file), ())]:
                commands = (*first, _command(_join(verb, of_all), mixed, args_of_all or args, names))
                chain |= {(verb, file): commands for file in files}
                first, mixed = (), name_output(names, mixed, verb)
        return [_fill(f, files, steps, args, pages) for f in findings]
    for verb, file in product(("dedup", "split"), files):
        if of_file := by_file.get((verb, file)):
            chain[verb, file] = (_command(_join(verb, of_file), now[file], args, names),)
            now[file] = name_output(names, now[file], verb)
    return [_fill(f, files, steps, args, pages) for f in findings]


def order_commands(findings: Iterable[Finding]) -> list[str]:
    """List the commands that fix all alarms, in order; a check that reads more columns comes alone."""
    steps = dict.fromkeys(step for f in findings if f.severity != "note" for step in f.steps)
    checks = [step for step in steps if step.startswith("harness data check ")]
    return checks or sorted(steps, key=lambda step: _VERBS.index(step.split()[2]))


def _fill(
    finding: Finding, files: Sequence[str], steps: _Steps, args: Sequence[str], pages: Mapping[str, str]
) -> Finding:
    paths = _files(finding, files)
    if _DECISIONS in finding.command:
        texts: list[str] = []
        for path in paths:
            # If no experiment reads the rows, make one from the cleaned rows: `init` refuses some raw ones.
            dashboard, options = f"{_DASHBOARD}{pages.get(path, '')}", steps.cleaned.get(path, ())
            file = path
            if path not in pages:
                file, options = steps.written.get(path, path), ()
                setup: list[str] = []
                if file.startswith(HUB):
                    setup = [_command(_CommandStep("clean", (), ()), path, args, steps.names)]
                    file = name_output(steps.names, path, "clean")
                folder = as_argument(steps.folders[path])
                words = ("harness init", folder, "--data", as_argument(file), shlex.join(args))
                init = " ".join(filter(None, words))
                dashboard = " && ".join((*setup, init, f"{_DASHBOARD} -c {folder}/harness.yaml"))
            options = (*options, "--decisions", as_argument(f"{file}.decisions.json"))
            lead = finding.command.partition("harness data clean")[0].replace(_DASHBOARD, dashboard)
            text = lead + _command(_CommandStep("clean", (), options), file, args, steps.names)
            texts.append(f"; {path}: {text.replace('  #', ',')}" if texts else text)
        return replace(finding, command="".join(texts))
    step = _step(finding)
    if step is None:
        return finding
    commands = tuple(dict.fromkeys(c for file in paths for c in steps.of.get((step.verb, file), ())))
    options = (*step.before, *step.after)
    if not commands or not all(option in " ".join(commands) for option in options):  # a figure, not an alarm
        commands = tuple(_command(step, file, args, steps.names) for file in paths)
    comment = finding.command.partition("  # ")[2]
    command = " && ".join(commands)
    return replace(finding, command=f"{command}  # {comment}" if comment else command, steps=commands)


def _step(finding: Finding) -> _CommandStep | None:
    """Read the verb of a finding's command; None for other commands and words."""
    match = _STEP.fullmatch(finding.command.partition("  # ")[0])
    return _CommandStep(match["verb"], _options(match["before"]), _options(match["after"])) if match else None


def _options(text: str) -> tuple[str, ...]:
    options: list[str] = []
    for word in shlex.split(text):
        if word.startswith("--"):
            options.append(word)
        else:
            options[-1] += f" {shlex.quote(word)}"
    return tuple(options)


def _join(verb: str, steps: Iterable[_CommandStep]) -> _CommandStep:
    before: dict[str, None] = {}
    after: dict[str, None] = {}
    for step in steps:
        before |= dict.fromkeys(step.before)
        after |= dict.fromkeys(step.after)
    return _CommandStep(verb, tuple(before), tuple(after))


def _command(step: _CommandStep, file: str, args: Sequence[str], names: OutputNames) -> str:
    output = as_argument(name_output(names, file, step.verb))
    words = (as_argument(file), shlex.join(args), *step.before, "--out", output, *step.after)
    return " ".join(filter(None, ("harness data", step.verb, *words)))


def _files(finding: Finding, files: Sequence[str]) -> list[str]:
    """List the files of a finding's rows; all files if it has no rows."""
    places = set(map(file_of, finding.rows))
    return [file for file in files if file in places] or list(files)
