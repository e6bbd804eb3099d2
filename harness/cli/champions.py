"""Commands on the champions of a target: list, show, roll back, retire.

Invariant: none of them loads a model.
"""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

from harness.cli.app import champions_app, print_value, say
from harness.cli.options import CONFIG, Argument, Config, ExperimentFile, Json, Option, verb
from harness.errors import Problem, UserError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from harness.store import ChampionEntry, History

By = Annotated[str, Option("Who does it; by default whom git signs commits as.", metavar="NAME")]
Reason = Annotated[str, Option("Why; kept in the history.", metavar="TEXT")]
Number = Annotated[int | None, Argument("The number of an entry, as `champions list` shows it.", "[N]")]
_SHOWN = ("event", "promoted", "when", "who", "why")


@verb(champions_app, "harness champions list", name="list")
def champions_list(config: Config = CONFIG, as_json: Json = False) -> None:
    """List the promotions, rollbacks and retirements of the target.

    The oldest comes first. Beside a promotion stands whether its files are kept, and what of them is gone.
    """
    from harness.release import missing_files
    from harness.store import Store

    history, listed = _read_history(ExperimentFile(config=config)), {}
    for entry in history.entries:
        facts: dict[str, Any] = {name: getattr(entry, name) for name in _SHOWN}
        facts |= {name: getattr(entry.champion, name) for name in ("candidate", "run_id", "verdict")}
        if entry.event == "promotion":
            facts |= {"present": entry == history.present, "kept": entry in history.kept}
            facts["missing"] = missing_files(Store(config.parent / "runs"), entry.champion)
        listed[str(entry.number)] = facts if as_json else _write_line(facts)
    print_value(listed, as_json)


def _write_line(facts: "Mapping[str, Any]") -> str:
    """Write an entry of the history on one line."""
    about = f" of {facts['promoted']}" if facts["event"] != "promotion" else ""
    said = [f"{facts['when'][:16]} {facts['event']}{about}: {facts['candidate']} ({facts['run_id']})"]
    said += filter(None, [facts["verdict"], f"by {facts['who']}", facts["why"]])
    if facts["event"] == "promotion":
        files = f"no {', no '.join(facts['missing'])}" if facts["missing"] else ""
        state = "the champion" if facts["present"] else "kept" if facts["kept"] else "not kept"
        said += filter(None, [state, files])
    return "; ".join(said)


@verb(champions_app, "harness champions show", "harness champions show 1 --json", name="show")
def champions_show(number: Number = None, config: Config = CONFIG, as_json: Json = False) -> None:
    """Show the present champion, or an entry of the history."""
    at = ExperimentFile(config=config)
    history = _read_history(at)
    entries: dict[int | None, ChampionEntry] = {one.number: one for one in history.entries}
    shown = history.present if number is None else entries.get(number)
    if shown is None:
        found = f"no {'present one' if number is None else f'entry {number}'}"
        step = f"{at.command_line().command('champions', 'list')} shows them"
        raise UserError(Problem("champions", found, f"one of {len(entries)} entries", step))
    print_value(asdict(shown), as_json)


@verb(champions_app, "harness champions rollback", "harness champions rollback 1", name="rollback")
def champions_rollback(
    number: Number = None, config: Config = CONFIG, reason: Reason = "", by: By = "", as_json: Json = False
) -> None:
    """Return to an earlier champion, by default the one before.

    Gates compare with it from then on. The rollback is an entry of the history too.
    """
    from harness import release
    from harness.store import Store

    entry = release.roll_back(config, number, why=reason, by=by)
    if missing := release.missing_files(Store(config.parent / "runs"), entry.champion):
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
    from harness import release

    entry = release.retire(config, number, why=reason, by=by)
    _print_entry(entry, config, as_json)
    step = ExperimentFile(config=config).command_line().command("runs", "rm", entry.champion.run_id)
    say(f"next: {step} removes its run with its files, which stay until then")


def _print_entry(entry: "ChampionEntry", config: "Path", as_json: bool) -> None:
    say_registered(ExperimentFile(config=config))
    facts = {name: getattr(entry, name) for name in ("number", *_SHOWN)}
    facts |= {name: getattr(entry.champion, name) for name in ("target", "candidate", "run_id", "verdict")}
    print_value({name: value for name, value in facts.items() if value}, as_json)


def _read_history(at: ExperimentFile) -> "History":
    """Read the history of the target, and say which lines of it were cut short, or that there is none."""
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
