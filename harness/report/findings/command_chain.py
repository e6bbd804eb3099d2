"""Commands that fix what was found, as a chain: each reads what the one before it writes.

Invariant: a file's rows are cleaned first, then rid of repetitions, then split; all that findings ask of a
verb stands in one command. Several files are joined where a row of one repeats a row of another, or where
they are to be split.
"""

import re
import shlex
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import NamedTuple

from harness.data.check import Finding
from harness.data.edit import OutputNames, free_folders, name_output
from harness.data.readers import file_of
from harness.errors import as_argument
from harness.spec import HUB

_STEP = re.compile(r"harness data (?P<verb>clean|dedup|split) FILE(?P<before>.*?) --out OUT(?P<after>.*)")
_VERBS = ("clean", "mix", "dedup", "split")  # in the order in which they are run
_DASHBOARD, _DECISIONS = "harness dashboard", " --decisions DECISIONS"
_SOURCES = ("source", "file", "from_file", "mixed_from")  # columns that may say which file a row is from


class _ColumnOptions(NamedTuple):
    """Options that name columns: as the user wrote them, and all of them for rows that were mixed."""

    by_user: Sequence[str] = ()
    by_all: Sequence[str] = ()


class _CommandStep(NamedTuple):
    """A verb that a finding asks for, and its options before and behind the output."""

    verb: str
    before: tuple[str, ...]
    after: tuple[str, ...]


class _Steps(NamedTuple):
    """The commands of the chain by verb and file; what is done to joined files stands under each of them."""

    of: dict[tuple[str, str], tuple[str, ...]]
    cleaned: dict[str, tuple[str, ...]]  # options of the file's cleaning
    written: dict[str, str]  # what the file's cleaning writes
    folders: dict[str, str]  # of an experiment on the file
    names: OutputNames


def fill_commands(
    findings: Sequence[Finding],
    files: Sequence[str],
    named: Sequence[str] = (),
    named_of_all: Sequence[str] = (),
    columns: Container[str] = (),
    pages: Mapping[str, str] = MappingProxyType({}),
) -> list[Finding]:
    """Put files, and the options that name columns, into the commands of findings.

    `named` are the options that the user gave, `named_of_all` those that read rows beside another column.
    `pages` maps a file whose rows the dashboard's Data page shows to the option that names the experiment.
    """
    options = _ColumnOptions(named, named_of_all or named)
    alarms = [f for f in findings if f.severity != "note"]
    steps = _chain(alarms, files, options, columns)
    return [_fill(f, files, steps, options, pages) for f in findings]


def order_commands(findings: Iterable[Finding]) -> list[str]:
    """List the commands that fix all alarms that commands can, in the order in which they are run.

    A check that reads more columns goes alone: what it finds of the rows is something else.
    """
    steps = dict.fromkeys(step for f in findings if f.severity != "note" for step in f.steps)
    again = [step for step in steps if step.startswith("harness data check ")]
    return again or sorted(steps, key=lambda step: _VERBS.index(step.split()[2]))


def _fill(
    finding: Finding, files: Sequence[str], steps: _Steps, named: _ColumnOptions, pages: Mapping[str, str]
) -> Finding:
    of = _files(finding, files)
    if _DECISIONS in finding.command:
        first, *others = (_decide(finding.command, file, steps, named.by_user, pages) for file in of)
        beside = (
            f"; {file}: {command.replace('  #', ',')}" for file, command in zip(of[1:], others, strict=True)
        )
        return replace(finding, command="".join((first, *beside)))
    step = _step(finding)
    if step is None:
        return finding
    commands = tuple(dict.fromkeys(c for file in of for c in steps.of.get((step.verb, file), ())))
    if not commands:  # a figure that is not an alarm
        commands = tuple(_command(step, file, named.by_user, steps.names) for file in of)
    comment = finding.command.partition("  # ")[2]
    command = " && ".join(commands)
    return replace(finding, command=f"{command}  # {comment}" if comment else command, steps=commands)


def _decide(command: str, file: str, steps: _Steps, named: Sequence[str], pages: Mapping[str, str]) -> str:
    """Write the command after which a file's rows are decided on, and the one that makes decisions true."""
    # Where no experiment reads the rows, one is made of the cleaned ones: `init` refuses some that are not.
    dashboard, options = f"{_DASHBOARD}{pages.get(file, '')}", steps.cleaned.get(file, ())
    if file not in pages:
        written, options = steps.written.get(file, file), ()
        is_of_hub, step = written.startswith(HUB), _CommandStep("clean", (), ())
        made = [_command(step, file, named, steps.names)] if is_of_hub else []
        written = name_output(steps.names, file, "clean") if made else written
        folder = as_argument(steps.folders[file])
        words = ("harness init", folder, "--data", as_argument(written), shlex.join(named))
        dashboard = f"{_DASHBOARD} -c {folder}/harness.yaml"
        dashboard, file = " && ".join((*made, " ".join(filter(None, words)), dashboard)), written
    options = (*options, "--decisions", as_argument(f"{file}.decisions.json"))
    lead = command.partition("harness data clean")[0].replace(_DASHBOARD, dashboard)
    return lead + _command(_CommandStep("clean", (), options), file, named, steps.names)


def _chain(
    alarms: Sequence[Finding], files: Sequence[str], named: _ColumnOptions, columns: Container[str]
) -> _Steps:
    """Write the commands of all alarms, each verb once a file."""
    wanted: dict[tuple[str, str], list[_CommandStep]] = {}
    for finding in alarms:
        if step := _step(finding):
            for file in _files(finding, files):
                wanted.setdefault((step.verb, file), []).append(step)
    out, now, cleaned = dict[tuple[str, str], tuple[str, ...]](), {file: file for file in files}, {}
    names: OutputNames = {}
    for file in files:
        if steps := wanted.get(("clean", file)):
            step = _join("clean", steps)
            cleaned[file] = step.after
            out["clean", file] = (_command(step, file, named.by_user, names),)
            now[file] = name_output(names, file, "clean")
    written = dict(now)
    is_split = any(verb == "split" for verb, _ in wanted)
    if len(files) > 1 and (is_split or any(map(_lies_in_two_files, alarms))):
        joining, mixed = _mix([now[file] for file in files], columns, names)
        out |= dict(_join_commands(wanted, files, mixed, joining, named.by_all, names))
        return _Steps(out, cleaned, written, free_folders(files), names)
    for verb, file in ((verb, file) for verb in ("dedup", "split") for file in files):
        if steps := wanted.get((verb, file)):
            out[verb, file] = (_command(_join(verb, steps), now[file], named.by_user, names),)
            now[file] = name_output(names, now[file], verb)
    return _Steps(out, cleaned, written, free_folders(files), names)


def _join_commands(
    wanted: dict[tuple[str, str], list[_CommandStep]],
    files: Sequence[str],
    mixed: str,
    joining: str,
    named: Sequence[str],
    names: OutputNames,
) -> Iterator[tuple[tuple[str, str], tuple[str, ...]]]:
    """Yield the commands on joined files, the first of them behind the one that joins."""
    first: tuple[str, ...] = (joining,)
    for verb in ("dedup", "split"):
        if steps := [step for file in files for step in wanted.get((verb, file), ())]:
            commands = (*first, _command(_join(verb, steps), mixed, named, names))
            yield from (((verb, file), commands) for file in files)
            first, mixed = (), name_output(names, mixed, verb)


def _mix(files: Sequence[str], columns: Container[str], names: OutputNames) -> tuple[str, str]:
    """Return the command that joins files, and the file that it writes."""
    mixed = name_output(names, files[0], "mixed")
    column = next(name for name in _SOURCES if name not in columns)
    named = " ".join(map(as_argument, files))
    return f"harness data mix {named} --column {column} --out {as_argument(mixed)}", mixed


def _step(finding: Finding) -> _CommandStep | None:
    """Read the verb that a finding asks for; None of another command, or of words."""
    found = _STEP.fullmatch(finding.command.partition("  # ")[0])
    return _CommandStep(found["verb"], _options(found["before"]), _options(found["after"])) if found else None


def _options(text: str) -> tuple[str, ...]:
    """Return options, each with its value, as a shell takes them."""
    out: list[str] = []
    for word in shlex.split(text):
        if word.startswith("--"):
            out.append(word)
        else:
            out[-1] += f" {shlex.quote(word)}"
    return tuple(out)


def _join(verb: str, steps: Iterable[_CommandStep]) -> _CommandStep:
    """Make one step of several, with the options of all."""
    before: dict[str, None] = {}
    after: dict[str, None] = {}
    for step in steps:
        before |= dict.fromkeys(step.before)
        after |= dict.fromkeys(step.after)
    return _CommandStep(verb, tuple(before), tuple(after))


def _command(step: _CommandStep, file: str, named: Sequence[str], names: OutputNames) -> str:
    out = as_argument(name_output(names, file, step.verb))
    words = (as_argument(file), shlex.join(named), *step.before, "--out", out, *step.after)
    return " ".join(filter(None, ("harness data", step.verb, *words)))


def _files(finding: Finding, files: Sequence[str]) -> list[str]:
    """List the files of a finding's rows; of one without rows all that are checked."""
    places = set(map(file_of, finding.rows))
    return [file for file in files if file in places] or list(files)


def _lies_in_two_files(finding: Finding) -> bool:
    """Tell whether `data dedup` of one file cannot fix it, for what a row repeats stands in another."""
    if "dedup FILE" not in finding.command or "--against" in finding.command:
        return False
    pairs = zip(finding.rows, finding.beside, strict=False)
    heads = ((file_of(row), other) for row, other in pairs)
    return any(not other.startswith((f"{file}:", f"{file} ")) for file, other in heads)
