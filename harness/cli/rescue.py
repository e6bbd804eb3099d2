"""Command that searches for a version of a fine-tune that forgets less.

Invariant: it refuses before it computes anything where there is nothing to rescue.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.cli.app import RELEASE, app, print_result, say
from harness.cli.options import Argument, ExperimentFile, Json, Option, verb

if TYPE_CHECKING:
    from harness.rescue import PreparedRescue, Rescue


@verb(app, "harness rescue lora --dry-run", "harness rescue lora", heading=RELEASE)
def rescue(
    run: Annotated[str, Argument("A candidate whose gate does not pass, or a run's id.")],
    at: ExperimentFile,
    dry_run: Annotated[
        bool, Option("Print what would be tried and what each trial takes, and stop.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Search for a version of a fine-tune that forgets less.

    Cheapest first. Exit codes: 0 one passes, 3 none does, 4 none does and some are UNDECIDED.
    """
    from harness import rescue as rescuing

    session, loaded = at.open_session(dry_run=dry_run)
    prepared = rescuing.prepare(session, loaded.selected, run)
    if dry_run:
        _print_plan(prepared, as_json)
        return
    found = run_rescue(prepared, loaded.folder / "reports")
    print_result(rescuing.to_json(found), rescuing.rescue_document(found), as_json)
    raise typer.Exit(rescuing.exit_code(found, session.experiment.gate))


def run_rescue(prepared: "PreparedRescue", folder: Path) -> "Rescue":
    """Run a rescue and write its files."""
    from harness import rescue as rescuing

    names = ", ".join(trial.says for trial in prepared.schedule.trials)
    say(f"rescue of {prepared.case.facts.label}, one after the other until one passes: {names}")
    found = rescuing.run(prepared)
    for path in rescuing.write(found, folder):
        say(f"wrote {path}")
    return found


def _print_plan(prepared: "PreparedRescue", as_json: bool) -> None:
    from harness import rescue as rescuing
    from harness.report import to_plain

    plan, left_out = prepared.plan, prepared.schedule.left_out
    plain = {"trials": to_plain(plan), "not_tried": list(left_out)}
    print_result(plain, rescuing.plan_document(plan, left_out), as_json)
    say("nothing was run; the tokens are estimated from the length of the texts, generated ones at most")
