"""Remarks on the candidates of a night: what labels say of a verdict by a judge, and what was not watched.

Invariant: no verdict changes; sentences alone do, those of alarms with them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from harness.config import CommandLine, LoadedExperiment
from harness.nightly.alarm import NightReport, build_report
from harness.nightly.judged_changes import describe_judged_change
from harness.nightly.state import Night, NightCandidate, State

_HERE = CommandLine()  # typed in the project's folder, as on the dashboard


def report_nights(loaded: LoadedExperiment, nights: Sequence[Night], state: State) -> NightReport:
    """Report the last of some nights, with its remarks."""
    experiment = loaded.experiment
    report = build_report(experiment.name, experiment.nightly, nights, state)
    return add_remarks(report, nights[-1], loaded.typed)


def add_remarks(report: NightReport, night: Night, typed: CommandLine = _HERE) -> NightReport:
    """Return a night's report with the remarks on each candidate in its sentence; commands as `typed`."""
    more = {one.name: "".join(f"; {said}" for said in _remarks(one, typed)) for one in night.candidates}
    lines = tuple(
        replace(line, sentence=typed.complete(line.sentence) + more.get(line.name, ""))
        for line in report.lines
    )
    raised = {line.name: line.sentence for line in lines}
    new = tuple(replace(a, sentence=raised.get(a.about, a.sentence)) for a in report.new)
    return replace(report, lines=lines, new=new)


def _remarks(one: NightCandidate, typed: CommandLine) -> Iterator[str]:
    """Yield what people's labels say of a night, and which targets were not watched."""
    if one.judged and (said := describe_judged_change(one.judged)):
        yield said
    if one.unwatched:
        lacking = f"{', '.join(one.unwatched)}, which the reference holds no rows of"
        yield f"not watched: {lacking}; next: {typed.command('compare')}, then {_pin_again(one, typed)}"


def _pin_again(one: NightCandidate, typed: CommandLine) -> str:
    if one.name.startswith("champion "):
        return typed.command("promote")
    return typed._replace(overrides=()).command("nightly", "ack", one.name, "--new-reference")
