"""Commands on stored runs: report, decide, gate, dashboard, list, diff, remove, score, query; lists of names.

Invariant: none of them loads a model. Streamlit replaces the process of the dashboard command, and listens at
the given address only. Visitors from other machines need a token.
"""

import os
import secrets
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.cli.app import (
    EXPERIMENT,
    NAMES,
    RELEASE,
    STORED,
    app,
    print_document,
    print_json,
    print_report,
    print_result,
    print_scores,
    print_value,
    runs_app,
    say,
    write_report,
)
from harness.cli.options import (
    CONFIG,
    Argument,
    Candidates,
    Config,
    ExperimentFile,
    Json,
    Option,
    StoredRuns,
    Verbose,
    verb,
)
from harness.errors import HarnessError, UserError
from harness.formatting import UNKNOWN, change, size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.analysis.gate_verdict import GateResult
    from harness.records import Run
    from harness.store import TrialRun


@verb(app, "", "--candidates prompt,lora", heading=EXPERIMENT)
def report(
    at: ExperimentFile, candidates: Candidates = None, verbose: Verbose = False, as_json: Json = False
) -> None:
    """Write the report again from stored runs; compute nothing."""
    from harness import experiment

    session, loaded = at.open_session(*(candidates or ()))
    experiment_report = experiment.report_stored(session, loaded.selected)
    experiment_report = write_report(experiment_report, at, candidates or [], session)
    print_report(experiment_report, as_json, verbose)


@verb(app, "", "decide.requests_per_month=1000000", heading=EXPERIMENT)
def decide(at: ExperimentFile, candidates: Candidates = None, as_json: Json = False) -> None:
    """Say what to ship, with the reasons, from stored runs."""
    from harness import experiment
    from harness.analysis.candidate_facts import gain, gain_text
    from harness.cli.progress_bar import console
    from harness.lifecycle.production import compare_thumbs, describe_thumbs
    from harness.report import arithmetic_lines, print_last, to_plain
    from harness.store import read_feedback

    session, loaded = at.open_session(*(candidates or ()))
    stored = experiment.report_stored(session, loaded.selected)
    decision = stored.decision
    if decision is None:
        step = at.command_line(candidates or ()).command("compare")
        raise HarnessError(f"no decision: found no finished candidate; next: {step}")
    thumbs = compare_thumbs(read_feedback(session.store, texts=False))
    gains = {fact.label: gain_text(gain(fact.vs_untrained)) for fact in stored.facts if fact.vs_untrained}
    lines = [*decision.reasons, *arithmetic_lines(decision, stored.unit), *describe_thumbs(thumbs, gains)]
    print_result({**to_plain(decision), "production": thumbs}, lines, as_json)
    if not as_json:
        print_last(replace(stored, typed=at.command_line(candidates or ())), console())


@verb(
    app,
    "--candidate lora --junit gate.xml",
    "--base out/base --candidate out/tuned gate.macro=0.02",
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

    config_source = context.get_parameter_source("config")
    if base is not None and config_source is not None and config_source.name == "COMMANDLINE":
        raise UserError(release.phrase_with_base("-c"))
    judged = release.gate(at.config, candidate, at.settings, baseline=baseline, base=base)
    code = release.combine_exit_codes(judged)
    release.write(judged, junit, os.environ.get("GITHUB_STEP_SUMMARY"))
    if as_json:
        print_json([release.gate_json(j) for j in judged])
    else:
        for i, judged_run in enumerate(judged):
            print("\n" * bool(i), end="")
            print_document(release.gate_document(judged_run))
        if base is None:
            say(f"next: {next_step(judged, candidate, at)}")
    raise typer.Exit(code)


def next_step(judged: "Sequence[GateResult]", candidate: str, at: ExperimentFile) -> str:
    """Phrase the next step after the verdicts of all seeds."""
    from harness.lifecycle import release

    verdicts, typed = [judged_run.verdict for judged_run in judged], at.command_line()
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
    "runner.postScriptGC": "false",  # a full collection every two seconds, during which no page is drawn
    "theme.primaryColor": "#0072b2",
    "theme.dark.primaryColor": "#2a86c7",
}


@verb(app, "", "-c tickets/harness.yaml --port 8502", heading=EXPERIMENT)
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
    url_host = f"[{host}]" if ":" in host else host
    address = f"http://{url_host}:{port}{f'/?token={token}' if token else ''}"
    say(f"{address} shows {config.resolve().parent}; Ctrl-C ends it")
    if token:
        say("anyone with this address sees every prompt and answer, and can rate; it is sent unencrypted")
    # Open a browser only if a person uses the screen of this machine.
    has_display = bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
    has_screen = sys.stderr.isatty() and (sys.platform in ("darwin", "win32") or has_display)
    environment = server_environment(config, token, address if has_screen else "")
    os.execve(sys.executable, server_command(host, port), environment)


def server_command(host: str, port: int) -> list[str]:
    """Return the command that starts Streamlit."""
    settings = {**_SETTINGS, "server.address": host, "server.port": str(port)}
    flags = [f"--{name}={value}" for name, value in settings.items()]
    return [sys.executable, "-m", "streamlit", "run", str(app_file()), *flags]


def server_environment(config: Path, token: str, opens: str = "") -> dict[str, str]:
    """Return the environment of the server: its experiment, the required token, the address to open."""
    variables = {"CONFIG": str(config.resolve()), "DASHBOARD_TOKEN": token, "DASHBOARD_OPENS": opens}
    return {**os.environ, **{f"HARNESS_{name}": value for name, value in variables.items()}}


def app_file() -> Path:
    """Find the server of the pages: inside an installed package, next to the package in a checkout."""
    folders = (_PACKAGE / "dashboards", _PACKAGE.parent / "dashboards")
    return next((folder / _SERVER for folder in folders if folder.is_dir()), folders[0] / _SERVER)


@verb(runs_app, "", "--json")
def runs_list(stored: StoredRuns, as_json: Json = False) -> None:
    """List stored runs and their trials, with their disk use.

    Each line shows how much space removal would free.
    """
    from harness import store
    from harness.report import trial_line

    run_store = store.Store(stored.folder)
    stored_runs, (_, unreadable) = store.list_runs(run_store), store.runs_on_disk(run_store)
    trials = store.trials_by_run(run_store, stored_runs)
    used, freed = store.disk_use(run_store), store.count_freed_bytes(run_store, stored_runs)
    listed: dict[str, Any] = {}
    if as_json:  # facts without rows, recipe and measurements
        listed = {run.run_id: _facts(run) | {"frees_bytes": freed[run.run_id]} for run in stored_runs}
        for run_id, trial_runs in trials.items():
            for trial in trial_runs:
                extra_facts = {"trial_of": run_id, "frees_bytes": freed.get(trial.run.run_id, 0)}
                listed[trial.run.run_id] = _facts(trial.run) | _trial_facts(trial) | extra_facts
    else:  # each run with the trials that it was chosen from; last the trials without a run
        for run in stored_runs:
            state = run.error if run.state == "failed" else run.state
            description = f"{run.created}  {run.method} × {run.prompting}, seed {run.seed}, {run.base_model}"
            listed[run.run_id] = f"{description}: {state}, {size(freed[run.run_id])}"
            for trial in trials.get(run.run_id, ()):
                chosen = ", chosen" if trial.trial.fit_key == run.training.fit_key else ""
                line = f"trial of {trial.run.candidate}, {trial_line(trial)}{chosen}"
                listed[f"  {trial.run.run_id}"] = line
        for trial in trials.get("", ()):
            line = f"trial of {trial.run.candidate} for a run that is not stored, {trial_line(trial)}"
            listed[trial.run.run_id] = f"{line}, {size(freed.get(trial.run.run_id, 0))}"
    print_value(listed, as_json)
    say(*(f"left out, as damaged: {problem}; next: repair or delete it" for problem in unreadable))
    if not stored_runs:
        step = f"{stored.command_line().command('compare')}, or name another folder with --runs"
        say(f"no run is stored in {stored.folder}; next: {step}")
    by_kind = ", ".join(f"{kind} {size(n_bytes)}" for kind, n_bytes in used.items())
    say(f"{stored.folder}: {size(sum(used.values()))} on the disk: {by_kind}")
    shared = store.base_rows_use()
    say(f"{shared.path}: {size(shared.n_bytes)} of base models' answers, for all experiments on this machine")


@verb(runs_app, "RUN")
def runs_show(
    run_id: Annotated[str, Argument("A run's id.", "RUN")], stored: StoredRuns, as_json: Json = False
) -> None:
    """Show one run's record, and the folder of its weights."""
    from harness import store

    run_store = store.Store(stored.folder)
    run, trial = store.get_run(run_store, run_id), store.find_trial(run_store, run_id)
    folder = store.weights_folder(run_store, run)
    facts = run.to_plain() | (_trial_facts(trial) if trial else {})
    print_value(facts | ({"weights_folder": str(folder)} if folder else {}), as_json)


@verb(runs_app, "RUN OTHER")
def runs_diff(
    a: Annotated[str, Argument("A run's id.", "RUN")],
    b: Annotated[str, Argument("Another run's id.", "OTHER")],
    stored: StoredRuns,
    as_json: Json = False,
) -> None:
    """Show the differences of two runs: recipe, scores and more."""
    from harness.analysis.run_diff import differences, to_json
    from harness.formatting import score as printed
    from harness.store import Store

    def show(value: object) -> str:
        return UNKNOWN if value in (None, "") else str(value)

    def pairs(value: Any) -> dict[str, str]:
        return {name: f"{show(a)} → {show(b)}" for name, (a, b) in value.items()}

    def score(s: Any) -> str:
        if s.a is None and s.b is None:
            return str(s.why_not)
        c = s.difference
        percent, pp = (" %", " pp") if s.unit.is_rate else ("", f" {s.unit.name}")
        tail = f"{change(c.unit, c.delta, c.low, c.high)}{pp}" if c else s.why_not
        return f"{printed(s.unit, s.a)} → {printed(s.unit, s.b)}{percent}, {tail}"

    run_diff = differences(Store(stored.folder), a, b)
    if as_json:
        changes = to_json(run_diff)
    else:  # each as `a → b`, a score with its paired difference or why there is none
        changes = {name: pairs(getattr(run_diff, name)) for name in ("recipe", "run", "environment")}
        changes |= {f"rows {key}": pairs(rows) for key, rows in run_diff.rows.items()}
        for key, scores in run_diff.scores.items():
            changes[f"scores {key}"] = {metric: score(s) for metric, s in scores.items()}
        changes = {name: lines for name, lines in changes.items() if lines}
    print_value(changes, as_json)
    if not any(run_diff):
        say(f"nothing that is stored differs between {a} and {b}")


@verb(runs_app, "RUN", "--unused", "--unused --yes")
def runs_rm(
    run_id: Annotated[str | None, Argument("A run's id.", "RUN")] = None,
    *,
    unused: Annotated[bool, Option("List rows, weights and exports that nothing refers to.")] = False,
    unfinished: Annotated[bool, Option("With --unused: also what unfinished work would go on from.")] = False,
    yes: Annotated[bool, Option("With --unused: remove what is listed.")] = False,
    stored: StoredRuns,
) -> None:
    """Remove a run, or rows, weights and exports that nothing refers to.

    A champion is never removed, nor is an earlier one that `champions.keep` keeps. With --unused nothing is
    removed before --yes.
    """
    from harness import store
    from harness.lifecycle import removal

    if (run_id is None) != unused or ((unfinished or yes) and not unused):
        arguments = f"{run_id or 'no run'}{' with' if unused or unfinished or yes else ' and no'} options"
        step = "harness runs rm RUN, or harness runs rm --unused [--unfinished] [--yes]"
        raise UserError("harness runs rm", arguments, "a run, or --unused", step)
    run_store = store.Store(stored.folder)
    if run_id is not None:
        removal.remove_run(run_store, run_id)
        say(f"removed {run_id}")
        return
    shared = store.base_rows_use()
    list_or_remove = removal.remove_unreferenced if yes else removal.list_unreferenced
    leftovers = list_or_remove(run_store, unfinished=unfinished)
    listed = {str(e.path.relative_to(run_store.folder)): size(e.n_bytes) for e in leftovers.removable}
    if shared.n_bytes:  # they are computed again when needed
        listed[str(shared.path)] = f"{size(shared.n_bytes)}, of every folder on this machine"
    print_value(listed, as_json=False)
    if yes:
        store.remove(shared.path.parent, [shared.path])
    if leftovers.kept:
        room, names = size(sum(e.n_bytes for e in leftovers.kept)), ", ".join(leftovers.wanted_by)
        say(f"kept: {room} of unfinished work{f' ({names})' if names else ''}; --unfinished removes that too")
    total = size(sum(entry.n_bytes for entry in [*leftovers.removable, shared]))
    say(f"removed {total}" if yes else f"would free {total}; nothing is removed without --yes")


@verb(app, "metrics", "keys", "lm-eval", heading=NAMES)
def ls(
    what: Annotated[
        str, Argument("methods, prompting, metrics, regularizers, keys, suites, tasks or lm-eval")
    ] = "methods",
    as_json: Json = False,
) -> None:
    """List methods, metrics, suites, keys and other names."""
    from harness.cli.catalog import map_purposes

    print_value(map_purposes(what), as_json)


@verb(app, "", heading=STORED)
def reindex(stored: StoredRuns, as_json: Json = False) -> None:
    """Rebuild the DuckDB index from the stored runs."""
    from harness import store

    if not stored.folder.is_dir():
        step = "name it with --runs, or its experiment with -c"
        raise UserError(str(stored.folder), "no such folder", "a folder of stored runs", step)
    print_value(store.reindex(store.Store(stored.folder))._asdict(), as_json)


def _facts(run: "Run") -> dict[str, Any]:
    return {name: value for name, value in run.to_plain().items() if not isinstance(value, dict)}


def _trial_facts(trial_run: "TrialRun") -> dict[str, Any]:
    names = ("params", "validation", "forgetting", "pruned_at", "fit_key")
    chosen = {name: getattr(trial_run.trial, name) for name in names}
    return {"state": trial_run.state, "metric": trial_run.metric} | chosen


@verb(app, "lora", heading=STORED)
def score(
    run: Annotated[str, Argument("A run's id, or a candidate (all its seeds).")],
    at: ExperimentFile,
    as_json: Json = False,
) -> None:
    """Score stored answers again, without the model.

    The metrics are those that harness.yaml names now.
    """
    from harness.experiment import rescore_run
    from harness.lifecycle import release

    session, loaded = at.open_session()
    scores_by_run = {}
    for stored_run in release.candidate_runs(release.load_study(loaded), run):
        rescored_run, scores = rescore_run(session, stored_run)
        unchanged = rescored_run.run_id == stored_run.run_id
        say(f"{stored_run.run_id}: " + ("scored so already" if unchanged else f"now {rescored_run.run_id}"))
        scores_by_run[rescored_run.run_id] = scores
    print_scores(scores_by_run, as_json)


@verb(app, "> harness.schema.json", heading=NAMES)
def schema() -> None:
    """Print the JSON schema of harness.yaml, for editors."""
    from harness.config import json_schema

    print_json(json_schema())


_WIDEST = 60  # characters of a cell


@verb(app, "--tables", '"SELECT candidate, outcome FROM verdicts"', heading=STORED)
def sql(
    query: Annotated[str, Argument("One SELECT, in DuckDB's SQL.", "SELECT")] = "",
    *,
    tables: Annotated[bool, Option("List the tables with their columns, units and meanings.")] = False,
    as_csv: Annotated[bool, Option("Print CSV, with cells uncut.", "--csv")] = False,
    stored: StoredRuns,
    as_json: Json = False,
) -> None:
    """Query everything that is stored, in DuckDB's SQL."""
    from harness import store
    from harness.report import ResultDocument, Section, to_plain
    from harness.report.escape import write_csv

    if tables == bool(query) or (as_csv and as_json):
        query_problem = "both" if tables else "neither a query nor --tables"
        found = "both --csv and --json" if as_csv and as_json else query_problem
        step = 'harness sql "SELECT * FROM runs", or harness sql --tables'
        raise UserError("harness sql", found, "a query or --tables, in one form", step)
    if tables:
        columns = [(table.name, *column[:4]) for table in store.TABLES for column in table.columns]
        answer = store.QueryResult(("table", "column", "type", "unit", "meaning"), columns)
    else:
        answer = store.query(store.Store(stored.folder), query)
    for name in answer.unread:
        say(f"left out, as damaged: {stored.folder / name}; next: repair or delete it")
    if as_json:
        # Number columns of the same name, as DuckDB does in a subquery: `n`, `n_1`.
        names: list[str] = []
        for column in answer.columns:
            repeated = answer.columns[: len(names)].count(column)
            names.append(f"{column}_{repeated}" if repeated else column)
        print_json([dict(zip(names, map(to_plain, row), strict=True)) for row in answer.rows])
    elif as_csv:
        write_csv(sys.stdout, answer.columns, answer.rows)
    else:
        rows = [list(map(_cell, row)) for row in answer.rows]
        print_document(ResultDocument("", [Section(columns=answer.columns, rows=rows)], ""))
        say(f"{len(answer.rows):,} rows")


def _cell(value: object) -> str:
    from harness.report.escape import clean

    text = "" if value is None else f"{value:.6g}" if isinstance(value, float) else clean(str(value))
    return text if len(text) <= _WIDEST else text[: _WIDEST - 1] + "…"
