"""Commands that release a run and watch it: promotion, champions, export, serving, nights, rescue, monitor.

Invariant: only `regressions confirm`, `export`, `serve`, `promote` of a run of sampled items, `rescue` and
`nightly run` load a model; `monitor` writes nothing.
"""

import json
import os
import shlex
import signal
import sys
from contextlib import suppress
from dataclasses import asdict, replace
from datetime import date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.cli.app import (
    RELEASE,
    app,
    champions_app,
    format_score,
    nightly_app,
    print_result,
    print_value,
    regressions_app,
    say,
)
from harness.cli.options import CONFIG, Argument, Config, ExperimentFile, Json, Option, config_option, verb
from harness.errors import IncompatibleRuns, UserError
from harness.formatting import RATE, count, points, seconds, size

if TYPE_CHECKING:
    from harness.experiment.rescue import PreparedRescue
    from harness.experiment.rescue_trials import Rescue
    from harness.lifecycle.scheduler import Scheduler
    from harness.store import ChampionEntry, History


By = Annotated[str, Option("Who does it; by default whom git signs commits as.", metavar="NAME")]
Reason = Annotated[str, Option("Why; kept in the history.", metavar="TEXT")]
Number = Annotated[int | None, Argument("The number of an entry, as `champions list` shows it.", "[N]")]
_ENTRY = ("event", "promoted", "when", "who", "why")


@verb(champions_app, "")
def champions_list(config: Config = CONFIG, as_json: Json = False) -> None:
    """List the promotions, rollbacks and retirements of the target.

    The oldest comes first. For each promotion: whether its files are kept, and which are missing.
    """
    from harness.lifecycle import promotion
    from harness.store import Store

    history, listed = _read_history(ExperimentFile(config=config)), dict[str, Any]()
    for entry in history.entries:
        facts: dict[str, Any] = {name: getattr(entry, name) for name in _ENTRY}
        facts |= {name: getattr(entry.champion, name) for name in ("candidate", "run_id", "verdict")}
        if entry.event == "promotion":
            facts |= {"present": entry == history.present, "kept": entry in history.kept}
            facts["missing"] = promotion.missing_files(Store(config.parent / "runs"), entry.champion)
        filled_facts = {name: value for name, value in facts.items() if value not in (None, "", [], ())}
        listed[str(entry.number)] = facts if as_json else filled_facts
    print_value(listed, as_json)


@verb(champions_app, "", "1 --json")
def champions_show(number: Number = None, config: Config = CONFIG, as_json: Json = False) -> None:
    """Show the present champion, or an entry of the history."""
    at = ExperimentFile(config=config)
    history = _read_history(at)
    chosen = [entry for entry in history.entries if entry.number == number]
    shown_entry = history.present if number is None else next(iter(chosen), None)
    if shown_entry is None:
        found = "no present one" if number is None else f"no entry {number}"
        step = f"{at.command_line().command('champions', 'list')} shows them"
        raise UserError("champions", found, f"one of {len(history.entries)} entries", step)
    print_value(asdict(shown_entry), as_json)


@verb(champions_app, "", "1")
def champions_rollback(
    number: Number = None, config: Config = CONFIG, reason: Reason = "", by: By = "", as_json: Json = False
) -> None:
    """Return to an earlier champion, by default the one before.

    Gates compare with it from then on. The rollback is an entry of the history too.
    """
    from harness.lifecycle import promotion
    from harness.store import Store

    entry = promotion.record_again(config, "rollback", number, reason, by)
    if missing := promotion.missing_files(Store(config.parent / "runs"), entry.champion):
        step = ExperimentFile(config=config).command_line().command("compare")
        say(f"no {', no '.join(missing)}; next: {step}, which makes it again")
    _print_entry(entry, config, as_json)


@verb(champions_app, "", "1")
def champions_retire(
    number: Number = None, config: Config = CONFIG, reason: Reason = "", by: By = "", as_json: Json = False
) -> None:
    """Retire the present champion, or that of an entry.

    Its files may go then, and no rollback returns to it. Without a champion gates compare with the base.
    """
    from harness.lifecycle import promotion

    entry = promotion.record_again(config, "retirement", number, reason, by)
    _print_entry(entry, config, as_json)
    step = ExperimentFile(config=config).command_line().command("runs", "rm", entry.champion.run_id)
    say(f"next: {step} removes its run with its files, which stay until then")


def _print_entry(entry: "ChampionEntry", config: "Path", as_json: bool) -> None:
    say_registered(ExperimentFile(config=config))
    facts = {name: getattr(entry, name) for name in ("number", *_ENTRY)}
    facts |= {name: getattr(entry.champion, name) for name in ("target", "candidate", "run_id", "verdict")}
    print_value({name: value for name, value in facts.items() if value}, as_json)


def _read_history(at: ExperimentFile) -> "History":
    from harness import store

    loaded = at.load()
    target = loaded.experiment.target.name
    store.read_champion(loaded.folder, target)
    history = store.read_history(loaded.folder, target)
    say(*history.notes)
    if not history.entries:
        say(f"{target} never had a champion; next: {at.command_line().command('promote', 'RUN')}")
    return history


def say_registered(at: ExperimentFile) -> None:
    """Register the present champion with MLflow if results are sent to it, and print where it is."""
    history, experiment = _read_history(at), at.load().experiment
    if "mlflow" in experiment.report_to:
        from harness.report import trackers

        say(trackers.register_champion(experiment.target.name, history.present, at.reports))


_PROMOTED = ("run_id", "target", "verdict", "despite", "first_base", "cumulative", "scores")


@verb(app, "lora", 'lora --force --reason "tested by hand"', heading=RELEASE)
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
    from harness.cli.progress_bar import TerminalProgress
    from harness.lifecycle import release

    if force != bool(reason):
        given_option, missing_option = ("--force", "--reason") if force else ("--reason", "--force")
        raise UserError(given_option, f"no {missing_option}", "both of them", "add --force --reason REASON")
    path, champion = release.promote_named(
        at.config, run, at.settings, despite=reason, by=by, progress=TerminalProgress()
    )
    say(f"wrote {path}")
    if champion.verdict != "pass":
        say(f"forced: {champion.sentence}")
    elif family := release.family_note(at.config, champion, at.settings):
        say(family)
    say_registered(at)
    say(*release.list_failed_exports(at.config, champion.run_id, at.settings))
    facts = {name: getattr(champion, name) for name in _PROMOTED}
    if not as_json:
        units, loss = champion.units, champion.cumulative
        change = f"{points(*loss[:3])} pp against the first base, n = {count(loss[3])}" if loss else ""
        scores = {key: format_score(units.get(key, RATE), *n) for key, n in champion.scores.items()}
        facts |= {"cumulative": change, "scores": scores}
    print_value({name: value for name, value in facts.items() if value}, as_json)


@verb(regressions_app, "lora chat_facts/capital-austria")
def regressions_add(
    run: Annotated[str, Argument("The run that lost the items, or its candidate.")],
    items: Annotated[list[str], Argument("Items, each as task/item.")],
    config: Config = CONFIG,
) -> None:
    """Pin items that a run lost.

    From then on the gate fails every candidate that loses one of them.
    """
    from harness.lifecycle import release

    path, added, listed = release.pin(config, run, items)
    say(f"{path}: {added} new, {len(items) - added} were pinned already")
    if not listed:
        step = f"harness compare{config_option(config)}"
        say(f"add {path.stem} to suites: in {config}, then {step} measures the base on it")


@verb(regressions_app, "lora")
def regressions_confirm(
    run: Annotated[str, Argument("The run whose lost pinned items are in doubt.")], config: Config = CONFIG
) -> None:
    """Score a run's pinned items again in fp32.

    So the gate can tell a loss from rounding.
    """
    from harness.experiment.run_candidate import rescore_pinned
    from harness.lifecycle import release

    session, loaded = ExperimentFile(config=config).open_session()
    study = release.load_study(loaded)
    for stored_run in release.candidate_runs(study, run):
        if tasks := rescore_pinned(session, stored_run):
            say(f"{stored_run.run_id}: {', '.join(tasks)} in fp32")
            with suppress(IncompatibleRuns):  # the base has not answered the pinned items yet
                say(f"{stored_run.run_id}: {release.judge_run(study, stored_run, None).verdict.sentence}")
        else:
            step = f"harness regressions add {run} TASK/ITEM{config_option(config)}"
            say(f"{stored_run.run_id}: no suite pins items; next: {step}")


_EXPORTED = ("format", "quantization", "run_id", "weights_digest", "types", "limits", "versions", "notes")


@verb(app, "lora --to merged", "lora --to gguf --quantize q4_k_m --dry-run", heading=RELEASE)
def export(
    run: Annotated[str, Argument("A run's id, a candidate (its best seed), or the target of a champion.")],
    at: ExperimentFile,
    to: Annotated[str, Option("merged, gguf, onnx or hub: `harness ls exports` says what they are.")],
    quantize: Annotated[str, Option("The type of the weights, such as bf16, q8_0 or q4_k_m.")] = "",
    out: Annotated[Path | None, Option("The new folder; by default below runs/exports.")] = None,
    dry_run: Annotated[bool, Option("Print size and time, and write nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Write a run's weights in a format of other programs.

    The folder appears whole or not at all, with the chat template and the limits that prompted the run, and
    export.json: checksums, versions, and the types that the tensors really got. Nothing is uploaded.
    """
    from harness import exports
    from harness.lifecycle import release

    session, loaded = at.open_session()
    stored_run = release.find_run(release.load_study(loaded), run)
    plan = exports.plan_export(session, stored_run, to, quantize, out)
    say(*(f"note: {note}" for note in plan.notes))
    if dry_run:
        summary = {"folder": str(plan.folder), "format": plan.format, "quantization": plan.quantization}
        estimated = {"n_bytes": round(plan.n_bytes), "seconds": round(plan.seconds)}
        about = {"size": f"about {size(plan.n_bytes)}", "time": f"about {seconds(plan.seconds)}"}
        print_value(summary | (estimated if as_json else about), as_json)
        return
    folder, record, is_new = exports.export_run(session, plan)
    say(f"wrote {folder}" if is_new else f"{folder}: exported before, and whole")
    facts = {name: getattr(record, name) for name in _EXPORTED}
    files = {name: file.bytes if as_json else size(file.bytes) for name, file in record.files.items()}
    total = record.n_bytes if as_json else size(record.n_bytes)
    print_value({"folder": str(folder)} | facts | {"files": files, "size": total}, as_json)


@verb(
    app,
    "lora --to gguf",
    "support --host 0.0.0.0 --port 8080 --api-key-env SERVE_KEY --to gguf",
    heading=RELEASE,
)
def serve(
    run: Annotated[str, Argument("A run's id, a candidate (its best seed), or the target of a champion.")],
    at: ExperimentFile,
    to: Annotated[str | None, Option("gguf (llama.cpp), merged (transformers serve) or vllm.")] = None,
    host: Annotated[str, Option("Where it listens; beyond this machine it needs a key.")] = "127.0.0.1",
    port: Annotated[int, Option("The port.", min=1, max=65535)] = 8000,
    api_key_env: Annotated[str | None, Option("The variable that holds the key to ask for.")] = None,
    print_: Annotated[bool, Option("Print command and compose file only.", "--print")] = False,
) -> None:
    """Serve a run at one address of OpenAI's protocol.

    It runs until Ctrl-C. If there is no export yet, it is created first. Its files are hashed again. It is
    ready once the server gives the stored answers to 20 items of the target; else it ends with exit code 1
    and the first differences.
    """
    from harness import exports
    from harness.lifecycle import release

    session, loaded = at.open_session()
    stored_run = release.find_run(release.load_study(loaded), run)
    plan = exports.plan_serving(session, stored_run, to, exports.Address(host, port, api_key_env))
    if print_:
        print(f"{plan.program.as_shell()}\n\n# compose.yaml\n{plan.program.compose}")
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the server ends first
    running, (n_same, n, sent) = exports.start(session, plan)
    export, address, model = plan.export, plan.address, plan.program.model
    match_text = f"{n_same} of {n} answers are the stored ones"
    match_text += ", the others within rounding" if n_same < n else ""
    description = f"{plan.program.name}, {export.format} {export.quantization}"
    print(f"ready: {address.url}/v1, model {model} ({description}); {match_text}", flush=True)
    if other_promptings := [name for name in export.prompt["prompting"] if name != "zero_shot"]:
        readme = plan.folder / "README.md"
        where = f"{readme} has the lines that do" if readme.exists() else "harness.yaml says how"
        request_note = f"{', '.join(other_promptings)} makes each request's prompt"
        print(f"served are the weights alone: {request_note}; {where}", flush=True)
    body = {"model": model, "messages": list(sent.messages)}
    key = f' -H "Authorization: Bearer ${address.api_key_env}"' if address.api_key_env else ""
    request_body = shlex.quote(json.dumps(body, ensure_ascii=False))
    headers = f"-H 'Content-Type: application/json'{key}"
    print(f"curl {address.url}/v1/chat/completions {headers} -d {request_body}", flush=True)
    say("Ctrl-C ends it")
    exports.wait(running)


_AT = "02:30"
_DAY, _DATE = ("%Y-%m-%d",), "YYYY-MM-DD"


@verb(nightly_app, "")
def nightly_run(
    at: ExperimentFile,
    night: Annotated[datetime | None, Option("Its date, if not today.", formats=_DAY, metavar=_DATE)] = None,
    webhook: Annotated[str, Option("Send new alarms there, as Slack takes them.", env=True)] = "",
    as_json: Json = False,
) -> None:
    """Run tonight's evaluation; the exit code is the worst verdict.

    Nothing is evaluated twice. Exit codes: 0 ok, 1 error, 3 regression, 4 suspect or harness-drift.
    """
    from harness import report
    from harness.cli.progress_bar import TerminalProgress
    from harness.lifecycle import nightly, nightly_alarm

    def publish(new_report: nightly_alarm.NightReport) -> None:
        say(*(f"wrote {path}" for path in nightly_alarm.write(new_report, at.reports)))
        if summary := os.environ.get("GITHUB_STEP_SUMMARY"):
            with Path(summary).open("a", encoding="utf-8") as page:
                page.write(report.markdown(nightly_alarm.night_document(new_report)))

    if webhook:
        nightly_alarm.refuse_webhook(webhook)  # before the night runs, not after it
    day, progress = night.date() if night else _today(), TerminalProgress()
    night_report = nightly.run_night(at.config, at.settings, night=day, progress=progress, publish=publish)
    if webhook and (error := nightly.send(at.config, webhook, night_report.night)):
        say(error)
    print_result(nightly_alarm.to_json(night_report), nightly_alarm.night_document(night_report), as_json)
    raise typer.Exit(night_report.exit_code)


@verb(nightly_app, "")
def nightly_status(config: Config = CONFIG, as_json: Json = False) -> None:
    """Show the last night, open alarms and missed nights."""
    from harness.lifecycle import nightly, nightly_alarm
    from harness.report import ResultDocument, Section, to_plain

    state = nightly.status(config, _today().isoformat())
    unfinished = f"begun and not finished: {', '.join(state.unfinished)}; the same night goes on"
    missed = f"missed: {', '.join(state.missed)}"
    gaps = Section(notes=[unfinished] * bool(state.unfinished) + [missed] * bool(state.last and state.missed))
    if state.last is None:
        step = f"harness nightly run{config_option(config)}"
        document = ResultDocument("", [gaps], f"no night was run yet; next: {step}")
    else:
        last = nightly_alarm.night_document(state.last)
        document = replace(last, sections=[gaps, *last.sections])
    print_result(to_plain(state), document, as_json)


@verb(nightly_app, "lora", "lora --new-reference")
def nightly_ack(
    about: Annotated[str | None, Argument("A candidate, or harness; without it all alarms.")] = None,
    config: Config = CONFIG,
    new_reference: Annotated[bool, Option("Compare with the newest stored run from now on.")] = False,
    as_json: Json = False,
) -> None:
    """Close open alarms.

    Evidence starts again from the next night.
    """
    from harness.lifecycle import nightly

    closed = nightly.acknowledge(config, about, new_reference=new_reference)
    print_value({"closed": [f"{a.about}: {a.verdict} of {a.night}" for a in closed]}, as_json)


@verb(nightly_app, "--cron --at 02:30", "--systemd --write")
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

    schedulers: dict[Scheduler, bool] = {"cron": cron, "systemd": systemd, "github": github}
    chosen_names = [name for name, on in schedulers.items() if on]
    if len(chosen_names) != 1:
        found = " and ".join(chosen_names) or "no scheduler"
        raise UserError("nightly install", found, "one of --cron, --systemd, --github", "choose one")
    scheduler = chosen_names[0]
    files = install.units(scheduler, config, at)
    if write:
        say(*(f"wrote {path}" for path in install.write(files)))
    else:
        for path, text in files.items():
            print(f"# {path}\n{text}" if len(files) > 1 else text, end="")
    options = [*(["--at", at] if at != _AT else []), *(["-c", str(config)] if config != CONFIG else [])]
    say(f"next: {install.next_step(scheduler, files, options, written=write)}")


def _today() -> date:
    return datetime.now().astimezone().date()


@verb(app, "lora --dry-run", "lora", heading=RELEASE)
def rescue(
    run: Annotated[str, Argument("A candidate whose gate does not pass, or a run's id.")],
    at: ExperimentFile,
    dry_run: Annotated[bool, Option("Print what would be tried and its cost, and stop.")] = False,
    as_json: Json = False,
) -> None:
    """Search for a version of a fine-tune that forgets less.

    Cheapest first. Exit codes: 0 one passes, 3 none does, 4 none does and some are UNDECIDED.
    """
    from harness.experiment import Estimates, rescue_trials
    from harness.experiment.rescue import prepare
    from harness.report import to_plain

    session, loaded = at.open_session(dry_run=dry_run)
    prepared = prepare(session, loaded.selected, run)
    if dry_run:
        left_out = prepared.schedule.left_out
        plan = Estimates(prepared.session).trials(prepared.schedule, prepared.case.run.seed)
        plain = {"trials": to_plain(plan), "not_tried": list(left_out)}
        print_result(plain, rescue_trials.plan_document(plan, left_out), as_json)
        say("nothing was run; the tokens are estimated from the length of the texts, generated ones at most")
        return
    result = run_rescue(prepared, loaded.folder / "reports")
    print_result(rescue_trials.to_json(result), rescue_trials.rescue_document(result), as_json)
    raise typer.Exit(rescue_trials.exit_code(result, session.experiment.gate))


def run_rescue(prepared: "PreparedRescue", folder: Path) -> "Rescue":
    """Run a rescue and write its files."""
    from harness.experiment import rescue_trials
    from harness.experiment.rescue import run

    names = ", ".join(trial.says for trial in prepared.schedule.trials)
    say(f"rescue of {prepared.case.facts.label}, one after the other until one passes: {names}")
    result = run(prepared)
    say(*(f"wrote {path}" for path in rescue_trials.write(result, folder)))
    return result


@verb(app, "", "--since 2026-11-01 --json", heading=RELEASE)
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

    drift = production.monitor(at.config, at.settings, since=f"{since:%Y-%m-%d}" if since else "")
    print_result(to_plain(drift), production.drift_document(drift), as_json)
