"""Commands that judge stored runs: report, decide, gate.

Invariant: none of them loads a model.
"""

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.cli.app import (
    EXPERIMENT,
    RELEASE,
    app,
    print_document,
    print_json,
    print_lines,
    print_report,
    say,
    write_report,
)
from harness.cli.options import Candidates, ExperimentFile, Json, Option, Verbose, verb
from harness.errors import HarnessError, UserError
from harness.formatting import points

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.analysis.gating import GateResult


@verb(app, "harness report", "harness report --candidates prompt,lora", heading=EXPERIMENT)
def report(
    at: ExperimentFile, candidates: Candidates = None, verbose: Verbose = False, as_json: Json = False
) -> None:
    """Write the report again from stored runs; compute nothing."""
    from harness import experiment

    session, loaded = at.open_session(*(candidates or ()))
    found = experiment.report_stored(session, loaded.selected)
    found = write_report(found, at, candidates or [], session)
    print_report(found, as_json, verbose)


@verb(app, "harness decide", "harness decide decide.requests_per_month=1000000", heading=EXPERIMENT)
def decide(at: ExperimentFile, candidates: Candidates = None, as_json: Json = False) -> None:
    """Say what to ship, with the reasons, from stored runs."""
    from harness import experiment
    from harness.cli.progress_bar import console
    from harness.lifecycle.production import compare_thumbs, describe_thumbs
    from harness.report import arithmetic_lines, print_last, to_plain
    from harness.store import read_feedback

    session, loaded = at.open_session(*(candidates or ()))
    stored = experiment.report_stored(session, loaded.selected)
    found = stored.decision
    if found is None:
        step = at.command_line(candidates or ()).command("compare")
        raise HarnessError(f"no decision: found no finished candidate; next: {step}")
    thumbs = compare_thumbs(read_feedback(session.store, texts=False))
    gains = {
        one.label: points(gain.delta, gain.low, gain.high)
        for one in stored.facts
        if (gain := one.vs_untrained) and stored.unit.is_rate
    }
    lines = [*found.reasons, *arithmetic_lines(found, stored.unit), *describe_thumbs(thumbs, gains)]
    print_lines({**to_plain(found), "production": to_plain(thumbs)}, lines, as_json)
    if not as_json:
        print_last(replace(stored, typed=at.command_line(candidates or ())), console())


@verb(
    app,
    "harness gate --candidate lora --junit gate.xml",
    "harness gate --base out/base --candidate out/tuned gate.macro=0.02",
    heading=RELEASE,
)
def gate(
    context: typer.Context,
    at: ExperimentFile,
    candidate: Annotated[
        str,
        Option(
            "A candidate, a run's id, or with --base a folder of lm-eval samples or inspect's logs.", env=True
        ),
    ] = "",
    baseline: Annotated[
        str | None, Option("champion or base; by default the champion if there is one.", env=True)
    ] = None,
    base: Annotated[
        Path | None, Option("A folder of lm-eval samples or inspect's logs to compare with.", env=True)
    ] = None,
    junit: Annotated[
        Path | None, Option("Write JUnit XML to this file, one test case for each rule.", env=True)
    ] = None,
    as_json: Json = False,
) -> None:
    """Judge one candidate; exit by the verdict.

    It reads stored runs, or with --base two folders of lm-eval's samples or of Inspect's logs. Exit codes:
    0 pass, 3 fail, 4 UNDECIDED or DRIFT, 5 no stored run or no baseline.
    """
    from harness.lifecycle import release

    written = context.get_parameter_source("config")
    if base is not None and written is not None and written.name == "COMMANDLINE":
        raise UserError(release.phrase_with_base("-c"))
    judged = release.gate(at.config, candidate, at.settings, baseline=baseline, base=base)
    code = release.combine_exit_codes(judged)
    release.write(judged, junit, os.environ.get("GITHUB_STEP_SUMMARY"))
    if as_json:
        print_json([release.gate_json(j) for j in judged])
    else:
        for i, one in enumerate(judged):
            print("\n" * bool(i), end="")
            print_document(release.gate_document(one))
        if base is None:
            say(f"next: {next_step(judged, candidate, at)}")
    raise typer.Exit(code)


def next_step(judged: "Sequence[GateResult]", candidate: str, at: ExperimentFile) -> str:
    """Say what to type after the verdicts of each seed."""
    from harness.lifecycle import release

    verdicts, typed = [one.verdict for one in judged], at.command_line()
    if all(verdict.outcome == "pass" for verdict in verdicts):
        return f"{typed.command('promote', candidate)} makes it the champion, which later gates compare with"
    failed = {rule.name for verdict in verdicts for rule in verdict.rules if rule.outcome == "fail"}
    if failed & {"macro", "each", "safety", "critical"}:
        return f"{typed.command('rescue', candidate)} searches for a version that forgets less"
    if all(verdict.items_needed for verdict in verdicts if verdict.outcome != "pass"):
        words = ["gate", "--candidate", candidate]
        return release.advise_more_items(at.config, judged, at.settings, typed, words).text
    return f"{typed.command('decide')} says what to ship instead, or what to measure next"
