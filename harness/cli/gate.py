"""Commands that judge and show stored runs: report, decide, gate, dashboard.

Invariant: none of them loads a model. Streamlit replaces the process of the dashboard command, and listens at
the given address only. Visitors from other machines need a token.
"""

import os
import secrets
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.cli.app import (
    EXPERIMENT,
    RELEASE,
    app,
    print_document,
    print_json,
    print_report,
    print_result,
    say,
    write_report,
)
from harness.cli.options import CONFIG, Candidates, Config, ExperimentFile, Json, Option, Verbose, verb
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
    print_result({**to_plain(found), "production": thumbs}, lines, as_json)
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
    candidate: Annotated[str, Option("A candidate, a run's id, or a folder as for --base.", env=True)] = "",
    baseline: Annotated[str | None, Option("champion or base; else champion, if any.", env=True)] = None,
    base: Annotated[Path | None, Option("A folder of lm-eval samples or Inspect logs.", env=True)] = None,
    junit: Annotated[Path | None, Option("Write JUnit XML, a test case for each rule.", env=True)] = None,
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


_PACKAGE, _SERVER = Path(__file__).parents[1], Path("parts", "server.py")
_SETTINGS = {
    "browser.gatherUsageStats": "false",
    "client.toolbarMode": "minimal",
    "client.showErrorDetails": "none",
    "server.headless": "true",
    "server.fileWatcherType": "none",
    "server.maxUploadSize": "1",
    "runner.magicEnabled": "false",
    "runner.postScriptGC": "false",  # a full collection every two seconds, in which no page is drawn
    "theme.primaryColor": "#0072b2",
    "theme.dark.primaryColor": "#2a86c7",
}


@verb(app, "harness dashboard", "harness dashboard -c tickets/harness.yaml --port 8502", heading=EXPERIMENT)
def dashboard(
    config: Config = CONFIG,
    host: Annotated[str, Option("The address to listen on.", env=True)] = "localhost",
    port: Annotated[int, Option("The port to listen on.", env=True, min=1, max=65535)] = 8501,
) -> None:
    """Open the results in the browser.

    Answers, leaderboard, comparisons, forgetting, training, decision, nights, blind rating; Ctrl-C ends it.
    """
    if find_spec("streamlit") is None or find_spec("plotly") is None:
        step = "pip install 'harness-evals[dashboard]'"
        raise UserError("harness dashboard", "no streamlit or no plotly", "both", step)
    if not config.is_file():
        step = "name it with -c, or write one: harness init DIR --data FILE"
        raise UserError(str(config.resolve()), "no such file", "an experiment file", step)
    token = "" if host in ("localhost", "127.0.0.1", "::1") else secrets.token_urlsafe(24)
    shown = f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{port}{f'/?token={token}' if token else ''}"
    say(f"{address} shows {config.resolve().parent}; Ctrl-C ends it")
    if token:
        say("anyone with this address sees every prompt and answer, and can rate; it is sent unencrypted")
    # A browser opens the pages where a person sits at this machine.
    has_display = bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
    has_screen = sys.stderr.isatty() and (sys.platform in ("darwin", "win32") or has_display)
    os.execve(
        sys.executable,
        server_command(host, port),
        server_environment(config, token, address if has_screen else ""),
    )


def server_command(host: str, port: int) -> list[str]:
    """Return how Streamlit is started."""
    settings = {**_SETTINGS, "server.address": host, "server.port": str(port)}
    flags = [f"--{name}={value}" for name, value in settings.items()]
    return [sys.executable, "-m", "streamlit", "run", str(app_file()), *flags]


def server_environment(config: Path, token: str, opens: str = "") -> dict[str, str]:
    """Return the environment of the server: its experiment, the token to ask for, what it opens."""
    own = {"CONFIG": str(config.resolve()), "DASHBOARD_TOKEN": token, "DASHBOARD_OPENS": opens}
    return {**os.environ, **{f"HARNESS_{name}": value for name, value in own.items()}}


def app_file() -> Path:
    """Find the server of the pages: inside the package where it is installed, beside it in a checkout."""
    folders = (_PACKAGE / "dashboards", _PACKAGE.parent / "dashboards")
    return next((folder / _SERVER for folder in folders if folder.is_dir()), folders[0] / _SERVER)
