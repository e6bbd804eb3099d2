"""Commands after a release: nightly tests, the rescue of a fine-tune, and the monitor of production.

Invariant: of the nightly commands only `run` loads a model; `monitor` loads none and writes nothing.
"""

import os
from dataclasses import replace
from datetime import date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.cli.app import RELEASE, app, nightly_app, print_result, print_value, say
from harness.cli.options import CONFIG, Argument, Config, ExperimentFile, Json, Option, config_option, verb
from harness.errors import UserError

if TYPE_CHECKING:
    from harness.lifecycle.rescue import PreparedRescue, Rescue
    from harness.lifecycle.scheduler import Scheduler

_AT = "02:30"
_DAY, _DATE = ("%Y-%m-%d",), "YYYY-MM-DD"


@verb(nightly_app, "harness nightly run", name="run")
def nightly_run(
    at: ExperimentFile,
    night: Annotated[datetime | None, Option("Its date, if not today.", formats=_DAY, metavar=_DATE)] = None,
    webhook: Annotated[str, Option("Send new alarms there, as Slack takes them.", env=True)] = "",
    as_json: Json = False,
) -> None:
    """Evaluate tonight, and exit by what it shows.

    Nothing is evaluated twice. Exit codes: 0 ok, 1 error, 3 regression, 4 suspect or harness-drift.
    """
    from harness import report
    from harness.cli.progress_bar import TerminalProgress
    from harness.lifecycle import nightly

    def publish(found: nightly.NightReport) -> None:
        for path in nightly.write(found, at.reports):
            say(f"wrote {path}")
        if summary := os.environ.get("GITHUB_STEP_SUMMARY"):
            with Path(summary).open("a", encoding="utf-8") as page:
                page.write(report.markdown(nightly.night_document(found)))

    if webhook:
        nightly.refuse_webhook(webhook)  # before the night runs, not after it
    day, shown = night.date() if night else _today(), TerminalProgress()
    found = nightly.run_night(at.config, at.settings, night=day, progress=shown, publish=publish)
    if webhook and (error := nightly.send(at.config, webhook, found.night)):
        say(error)
    print_result(nightly.to_json(found), nightly.night_document(found), as_json)
    raise typer.Exit(found.exit_code)


@verb(nightly_app, "harness nightly status", name="status")
def nightly_status(config: Config = CONFIG, as_json: Json = False) -> None:
    """Show the last night, open alarms and missed nights."""
    from harness.lifecycle import nightly
    from harness.report import ResultDocument, Section, to_plain

    found = nightly.status(config, _today().isoformat())
    begun = f"begun and not finished: {', '.join(found.unfinished)}; the same night goes on"
    missed = f"missed: {', '.join(found.missed)}"
    missing = Section(notes=[begun] * bool(found.unfinished) + [missed] * bool(found.last and found.missed))
    if found.last is None:
        step = f"harness nightly run{config_option(config)}"
        document = ResultDocument("", [missing], f"no night was run yet; next: {step}")
    else:
        last = nightly.night_document(found.last)
        document = replace(last, sections=[missing, *last.sections])
    print_result(to_plain(found), document, as_json)


@verb(nightly_app, "harness nightly ack lora", "harness nightly ack lora --new-reference", name="ack")
def nightly_ack(
    about: Annotated[str | None, Argument("A candidate, or harness; without it all alarms.")] = None,
    config: Config = CONFIG,
    new_reference: Annotated[bool, Option("Compare with the newest stored run from now on.")] = False,
    as_json: Json = False,
) -> None:
    """Close open alarms.

    Evidence is collected afresh from the next night.
    """
    from harness.lifecycle import nightly

    closed = nightly.acknowledge(config, about, new_reference=new_reference)
    print_value({"closed": [f"{a.about}: {a.verdict} of {a.night}" for a in closed]}, as_json)


@verb(
    nightly_app,
    "harness nightly install --cron --at 02:30",
    "harness nightly install --systemd --write",
    name="install",
)
def nightly_install(
    cron: Annotated[bool, Option("A line for crontab.")] = False,
    systemd: Annotated[bool, Option("A service and a timer of the user.")] = False,
    github: Annotated[bool, Option("A workflow with a schedule.")] = False,
    at: Annotated[str, Option("The time of day, hh:mm; in GitHub's workflow UTC.")] = _AT,
    write: Annotated[bool, Option("Write the files instead of printing them.")] = False,
    config: Config = CONFIG,
) -> None:
    """Print or write the schedule that runs a night every day.

    For cron, systemd or GitHub Actions.
    """
    from harness.lifecycle import scheduler as install

    wanted: dict[Scheduler, bool] = {"cron": cron, "systemd": systemd, "github": github}
    chosen = [name for name, on in wanted.items() if on]
    if len(chosen) != 1:
        found = " and ".join(chosen) or "no scheduler"
        raise UserError("nightly install", found, "one of --cron, --systemd, --github", "choose one")
    scheduler = chosen[0]
    files = install.units(scheduler, config, at)
    if write:
        for path in install.write(files):
            say(f"wrote {path}")
    else:
        for path, text in files.items():
            print(f"# {path}\n{text}" if len(files) > 1 else text, end="")
    options = [*(["--at", at] if at != _AT else []), *(["-c", str(config)] if config != CONFIG else [])]
    say(f"next: {install.next_step(scheduler, files, options, written=write)}")


def _today() -> date:
    return datetime.now().astimezone().date()


@verb(app, "harness rescue lora --dry-run", "harness rescue lora", heading=RELEASE)
def rescue(
    run: Annotated[str, Argument("A candidate whose gate does not pass, or a run's id.")],
    at: ExperimentFile,
    dry_run: Annotated[bool, Option("Print what would be tried and its cost, and stop.")] = False,
    as_json: Json = False,
) -> None:
    """Search for a version of a fine-tune that forgets less.

    Cheapest first. Exit codes: 0 one passes, 3 none does, 4 none does and some are UNDECIDED.
    """
    from harness.lifecycle import rescue as rescuing
    from harness.report import to_plain

    session, loaded = at.open_session(dry_run=dry_run)
    prepared = rescuing.prepare(session, loaded.selected, run)
    if dry_run:
        left_out = prepared.schedule.left_out
        plan = rescuing.estimate_trials(prepared.session, prepared.schedule, prepared.case.run.seed)
        plain = {"trials": to_plain(plan), "not_tried": list(left_out)}
        print_result(plain, rescuing.plan_document(plan, left_out), as_json)
        say("nothing was run; the tokens are estimated from the length of the texts, generated ones at most")
        return
    found = run_rescue(prepared, loaded.folder / "reports")
    print_result(rescuing.to_json(found), rescuing.rescue_document(found), as_json)
    raise typer.Exit(rescuing.exit_code(found, session.experiment.gate))


def run_rescue(prepared: "PreparedRescue", folder: Path) -> "Rescue":
    """Run a rescue and write its files."""
    from harness.lifecycle import rescue as rescuing

    names = ", ".join(trial.says for trial in prepared.schedule.trials)
    say(f"rescue of {prepared.case.facts.label}, one after the other until one passes: {names}")
    found = rescuing.run(prepared)
    for path in rescuing.write(found, folder):
        say(f"wrote {path}")
    return found


@verb(app, "harness monitor", "harness monitor --since 2026-11-01 --json", heading=RELEASE)
def monitor(
    at: ExperimentFile,
    since: Annotated[
        datetime | None, Option("Only requests since then.", formats=_DAY, metavar=_DATE)
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what moved in production since the model was measured.

    Stored feedback is compared with the test items, and its answers with the champion's.
    """
    from harness.lifecycle import production
    from harness.report import to_plain

    found = production.monitor(at.config, at.settings, since=f"{since:%Y-%m-%d}" if since else "")
    print_result(to_plain(found), production.drift_document(found), as_json)
