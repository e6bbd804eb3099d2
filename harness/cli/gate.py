"""Commands that judge stored runs: report, decide, gate, promote, regressions.

Invariant: only `regressions confirm` loads a model, and `promote` of a run of sampled items.
"""

import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.cli.app import (
    EXPERIMENT,
    RELEASE,
    app,
    format_score,
    print_document,
    print_json,
    print_lines,
    print_report,
    print_value,
    regressions_app,
    say,
    write_report,
)
from harness.cli.champions import By, say_registered
from harness.cli.options import (
    CONFIG,
    Argument,
    Candidates,
    Config,
    ExperimentFile,
    Json,
    Option,
    Verbose,
    config_option,
    verb,
)
from harness.errors import HarnessError, IncompatibleRuns, Problem, UserError
from harness.formatting import RATE, count, points

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.gating import GateResult


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
    from harness.production import compare_thumbs, describe_thumbs
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
    from harness import release

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
    from harness import release

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


_SHOWN = ("run_id", "target", "verdict", "despite", "first_base", "cumulative", "scores")


@verb(app, "harness promote lora", 'harness promote lora --force --reason "tested by hand"', heading=RELEASE)
def promote(
    run: Annotated[str, Argument("A run's id, or a candidate (its best seed on validation).")],
    at: ExperimentFile,
    force: Annotated[bool, Option("Promote a run that does not pass; needs --reason.")] = False,
    reason: Annotated[str, Option("Why it is forced; kept in the champion's file.", metavar="TEXT")] = "",
    by: By = "",
    as_json: Json = False,
) -> None:
    """Make a run that passes the gate the champion.

    Gates compare with the champion from then on, no longer with the base.
    """
    from harness import release
    from harness.cli.progress_bar import TerminalProgress

    if force != bool(reason):
        given, missing = ("--force", "--reason") if force else ("--reason", "--force")
        raise UserError(Problem(given, f"no {missing}", "both of them", "add --force --reason REASON"))
    progress = TerminalProgress()
    path, champion = release.promote_named(
        at.config, run, at.settings, despite=reason, by=by, progress=progress
    )
    say(f"wrote {path}")
    if champion.verdict != "pass":
        say(f"forced: {champion.sentence}")
    elif said := release.family_note(at.config, champion, at.settings):
        say(said)
    say_registered(at)
    for failed in release.list_failed_exports(at.config, champion.run_id, at.settings):
        say(failed)
    shown = {name: getattr(champion, name) for name in _SHOWN}
    if not as_json:
        named = champion.scores.items()
        loss = champion.cumulative
        shown["cumulative"] = (
            f"{points(*loss[:3])} pp against the first base, n = {count(loss[3])}" if loss else ""
        )
        shown["scores"] = {
            key: format_score(champion.units.get(key, RATE), *numbers) for key, numbers in named
        }
    print_value({name: value for name, value in shown.items() if value}, as_json)


@verb(regressions_app, "harness regressions add lora chat_facts/capital-austria", name="add")
def regressions_add(
    run: Annotated[str, Argument("The run that lost the items, or its candidate.")],
    items: Annotated[list[str], Argument("Items, each as task/item.")],
    config: Config = CONFIG,
) -> None:
    """Pin items that a run lost.

    From then on the gate fails every candidate that loses one of them.
    """
    from harness import release

    path, added, listed = release.pin(config, run, items)
    say(f"{path}: {added} new, {len(items) - added} were pinned already")
    if not listed:
        step = f"harness compare{config_option(config)}"
        say(f"add {path.stem} to suites: in {config}, then {step} measures the base on it")


@verb(regressions_app, "harness regressions confirm lora", name="confirm")
def regressions_confirm(
    run: Annotated[str, Argument("The run whose lost pinned items are in doubt.")], config: Config = CONFIG
) -> None:
    """Score a run's pinned items again in fp32.

    So the gate can tell a loss from rounding.
    """
    from harness import release
    from harness.release import rescore_pinned

    session, loaded = ExperimentFile(config=config).open_session()
    stored = release.load_study(loaded)
    for found in release.candidate_runs(stored, run):
        if tasks := rescore_pinned(session, found):
            say(f"{found.run_id}: {', '.join(tasks)} in fp32")
            with suppress(IncompatibleRuns):  # the base has not answered the pinned items yet
                say(f"{found.run_id}: {release.judge_run(stored, found, None).verdict.sentence}")
        else:
            step = f"harness regressions add {run} TASK/ITEM{config_option(config)}"
            say(f"{found.run_id}: no suite pins items; next: {step}")
