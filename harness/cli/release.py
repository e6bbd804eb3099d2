"""Commands that release a run: promote, champions, pinned regressions, export and serve.

Invariant: only `regressions confirm`, `export`, `serve` and `promote` of a run of sampled items load a model.
"""

import json
import shlex
import signal
import sys
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from harness.cli.app import RELEASE, app, champions_app, format_score, print_value, regressions_app, say
from harness.cli.options import CONFIG, Argument, Config, ExperimentFile, Json, Option, config_option, verb
from harness.errors import IncompatibleRuns, UserError
from harness.formatting import RATE, count, points, seconds, size

if TYPE_CHECKING:
    from harness.store import ChampionEntry, History

By = Annotated[str, Option("Who does it; by default whom git signs commits as.", metavar="NAME")]
Reason = Annotated[str, Option("Why; kept in the history.", metavar="TEXT")]
Number = Annotated[int | None, Argument("The number of an entry, as `champions list` shows it.", "[N]")]
_ENTRY = ("event", "promoted", "when", "who", "why")


@verb(champions_app, "harness champions list", name="list")
def champions_list(config: Config = CONFIG, as_json: Json = False) -> None:
    """List the promotions, rollbacks and retirements of the target.

    The oldest comes first. Beside a promotion stands whether its files are kept, and what of them is gone.
    """
    from harness.lifecycle import champions
    from harness.store import Store

    history, listed = _read_history(ExperimentFile(config=config)), dict[str, Any]()
    for entry in history.entries:
        facts: dict[str, Any] = {name: getattr(entry, name) for name in _ENTRY}
        facts |= {name: getattr(entry.champion, name) for name in ("candidate", "run_id", "verdict")}
        if entry.event == "promotion":
            facts |= {"present": entry == history.present, "kept": entry in history.kept}
            facts["missing"] = champions.missing_files(Store(config.parent / "runs"), entry.champion)
        shown = {name: value for name, value in facts.items() if value not in (None, "", [], ())}
        listed[str(entry.number)] = facts if as_json else shown
    print_value(listed, as_json)


@verb(champions_app, "harness champions show", "harness champions show 1 --json", name="show")
def champions_show(number: Number = None, config: Config = CONFIG, as_json: Json = False) -> None:
    """Show the present champion, or an entry of the history."""
    at = ExperimentFile(config=config)
    history = _read_history(at)
    chosen = [entry for entry in history.entries if entry.number == number]
    shown = history.present if number is None else next(iter(chosen), None)
    if shown is None:
        found = "no present one" if number is None else f"no entry {number}"
        step = f"{at.command_line().command('champions', 'list')} shows them"
        raise UserError("champions", found, f"one of {len(history.entries)} entries", step)
    print_value(asdict(shown), as_json)


@verb(champions_app, "harness champions rollback", "harness champions rollback 1", name="rollback")
def champions_rollback(
    number: Number = None, config: Config = CONFIG, reason: Reason = "", by: By = "", as_json: Json = False
) -> None:
    """Return to an earlier champion, by default the one before.

    Gates compare with it from then on. The rollback is an entry of the history too.
    """
    from harness.lifecycle import champions
    from harness.store import Store

    entry = champions.record_again(config, "rollback", number, reason, by)
    if missing := champions.missing_files(Store(config.parent / "runs"), entry.champion):
        step = ExperimentFile(config=config).command_line().command("compare")
        say(f"no {', no '.join(missing)}; next: {step}, which makes it again")
    _print_entry(entry, config, as_json)


@verb(champions_app, "harness champions retire", "harness champions retire 1", name="retire")
def champions_retire(
    number: Number = None, config: Config = CONFIG, reason: Reason = "", by: By = "", as_json: Json = False
) -> None:
    """Retire the present champion, or that of an entry.

    Its files may go then, and no rollback returns to it. Without a champion gates compare with the base.
    """
    from harness.lifecycle import champions

    entry = champions.record_again(config, "retirement", number, reason, by)
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
    for note in history.notes:
        say(note)
    if not history.entries:
        say(f"{target} never had a champion; next: {at.command_line().command('promote', 'RUN')}")
    return history


def say_registered(at: ExperimentFile) -> None:
    """Register the present champion with MLflow where results are sent to it, and say where it is."""
    history, experiment = _read_history(at), at.load().experiment
    if "mlflow" in experiment.report_to:
        from harness.report import trackers

        say(trackers.register_champion(experiment.target.name, history.present, at.reports))


_PROMOTED = ("run_id", "target", "verdict", "despite", "first_base", "cumulative", "scores")


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
    from harness.cli.progress_bar import TerminalProgress
    from harness.lifecycle import release

    if force != bool(reason):
        given, missing = ("--force", "--reason") if force else ("--reason", "--force")
        raise UserError(given, f"no {missing}", "both of them", "add --force --reason REASON")
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
    shown = {name: getattr(champion, name) for name in _PROMOTED}
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
    from harness.lifecycle import release

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
    from harness.lifecycle import release
    from harness.lifecycle.release import rescore_pinned

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


_EXPORTED = ("format", "quantization", "run_id", "weights_digest", "types", "limits", "versions", "notes")


@verb(
    app,
    "harness export lora --to merged",
    "harness export lora --to gguf --quantize q4_k_m --dry-run",
    heading=RELEASE,
)
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
    found = release.find_run(release.load_study(loaded), run)
    plan = exports.plan_export(session, found, to, quantize, out)
    for note in plan.notes:
        say(f"note: {note}")
    if dry_run:
        said = {"folder": str(plan.folder), "format": plan.format, "quantization": plan.quantization}
        estimated = {"n_bytes": round(plan.n_bytes), "seconds": round(plan.seconds)}
        about = {"size": f"about {size(plan.n_bytes)}", "time": f"about {seconds(plan.seconds)}"}
        print_value(said | (estimated if as_json else about), as_json)
        return
    folder, record, is_new = exports.export_run(session, plan)
    say(f"wrote {folder}" if is_new else f"{folder}: exported before, and whole")
    shown = {name: getattr(record, name) for name in _EXPORTED}
    files = {name: file.bytes if as_json else size(file.bytes) for name, file in record.files.items()}
    total = record.n_bytes if as_json else size(record.n_bytes)
    print_value({"folder": str(folder)} | shown | {"files": files, "size": total}, as_json)


@verb(
    app,
    "harness serve lora --to gguf",
    "harness serve support --host 0.0.0.0 --port 8080 --api-key-env SERVE_KEY --to gguf",
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

    It runs until Ctrl-C. The export is made first where there is none, and its files are hashed anew. It is
    ready once the server gives the stored answers to 20 items of the target; else it ends with exit code 1
    and the first differences.
    """
    from harness import exports
    from harness.lifecycle import release

    session, loaded = at.open_session()
    found = release.find_run(release.load_study(loaded), run)
    plan = exports.plan_serving(session, found, to, exports.Address(host, port, api_key_env))
    if print_:
        print(f"{plan.program.as_shell()}\n\n# compose.yaml\n{plan.program.compose}")
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the server ends first
    running, (n_same, n, sent) = exports.start(session, plan)
    export, address, model = plan.export, plan.address, plan.program.model
    same = f"{n_same} of {n} answers are the stored ones"
    same += ", the others within rounding" if n_same < n else ""
    what = f"{plan.program.name}, {export.format} {export.quantization}"
    print(f"ready: {address.url}/v1, model {model} ({what}); {same}", flush=True)
    if others := [name for name in export.prompt["prompting"] if name != "zero_shot"]:
        readme = plan.folder / "README.md"
        where = f"{readme} has the lines that do" if readme.exists() else "harness.yaml says how"
        each = f"{', '.join(others)} makes each request's prompt"
        print(f"served are the weights alone: {each}; {where}", flush=True)
    body = {"model": model, "messages": list(sent.messages)}
    key = f' -H "Authorization: Bearer ${address.api_key_env}"' if address.api_key_env else ""
    asked = shlex.quote(json.dumps(body, ensure_ascii=False))
    headers = f"-H 'Content-Type: application/json'{key}"
    print(f"curl {address.url}/v1/chat/completions {headers} -d {asked}", flush=True)
    say("Ctrl-C ends it")
    exports.wait(running)
