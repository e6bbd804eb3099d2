"""Commands on stored runs: list, show, diff, remove, score again, query; and lists of what can be written.

Invariant: none of them loads a model.
"""

import sys
from typing import TYPE_CHECKING, Annotated, Any

from harness.cli.app import (
    NAMES,
    STORED,
    app,
    print_document,
    print_json,
    print_scores,
    print_value,
    runs_app,
    say,
)
from harness.cli.options import Argument, ExperimentFile, Json, Option, StoredRuns, verb
from harness.errors import UserError
from harness.formatting import UNKNOWN, change, size

if TYPE_CHECKING:
    from harness.records import Run
    from harness.store import TrialRun


@verb(runs_app, "harness runs list", "harness runs list --json", name="list")
def runs_list(kept: StoredRuns, as_json: Json = False) -> None:
    """List stored runs and their trials, with their disk use.

    Beside each stands what removing it would free.
    """
    from harness import store
    from harness.report import trial_line

    at = store.Store(kept.folder)
    found, (_, unreadable) = store.list_runs(at), store.runs_on_disk(at)
    trials = store.trials_by_run(at, found)
    used, freed = store.disk_use(at), store.count_freed_bytes(at, found)
    listed: dict[str, Any] = {}
    if as_json:  # facts without rows, recipe and measurements
        listed = {run.run_id: _facts(run) | {"frees_bytes": freed[run.run_id]} for run in found}
        for run_id, tried in trials.items():
            for trial in tried:
                own = {"trial_of": run_id, "frees_bytes": freed.get(trial.run.run_id, 0)}
                listed[trial.run.run_id] = _facts(trial.run) | _trial_facts(trial) | own
    else:  # below each run the trials that it was chosen among, and last those of no run
        for run in found:
            state = run.error if run.state == "failed" else run.state
            made = f"{run.created}  {run.method} × {run.prompting}, seed {run.seed}, {run.base_model}"
            listed[run.run_id] = f"{made}: {state}, {size(freed[run.run_id])}"
            for trial in trials.get(run.run_id, ()):
                chosen = ", chosen" if trial.trial.fit_key == run.training.fit_key else ""
                line = f"trial of {trial.run.candidate}, {trial_line(trial)}{chosen}"
                listed[f"  {trial.run.run_id}"] = line
        for trial in trials.get("", ()):
            line = f"trial of {trial.run.candidate} for a run that is not stored, {trial_line(trial)}"
            listed[trial.run.run_id] = f"{line}, {size(freed.get(trial.run.run_id, 0))}"
    print_value(listed, as_json)
    for problem in unreadable:
        say(f"left out, as damaged: {problem}; next: repair or delete it")
    if not found:
        step = f"{kept.command_line().command('compare')}, or name another folder with --runs"
        say(f"no run is stored in {kept.folder}; next: {step}")
    by_kind = ", ".join(f"{kind} {size(n_bytes)}" for kind, n_bytes in used.items())
    say(f"{kept.folder}: {size(sum(used.values()))} on the disk: {by_kind}")
    shared = store.base_rows_use()
    say(f"{shared.path}: {size(shared.n_bytes)} of base models' answers, for all experiments on this machine")


@verb(runs_app, "harness runs show RUN", name="show")
def runs_show(
    run_id: Annotated[str, Argument("A run's id.", "RUN")], kept: StoredRuns, as_json: Json = False
) -> None:
    """Show one run's record, and the folder of its weights."""
    from harness import store

    at = store.Store(kept.folder)
    run, trial = store.get_run(at, run_id), store.find_trial(at, run_id)
    folder = store.weights_folder(at, run)
    shown = run.to_plain() | (_trial_facts(trial) if trial else {})
    print_value(shown | ({"weights_folder": str(folder)} if folder else {}), as_json)


@verb(runs_app, "harness runs diff RUN OTHER", name="diff")
def runs_diff(
    a: Annotated[str, Argument("A run's id.", "RUN")],
    b: Annotated[str, Argument("Another run's id.", "OTHER")],
    kept: StoredRuns,
    as_json: Json = False,
) -> None:
    """Show the differences of two runs: recipe, scores and more."""
    from harness.analysis.run_diff import differences, to_json
    from harness.formatting import score as printed
    from harness.store import Store

    def show(value: object) -> str:
        return UNKNOWN if value in (None, "") else str(value)

    def pairs(of: Any) -> dict[str, str]:
        return {name: f"{show(a)} → {show(b)}" for name, (a, b) in of.items()}

    def score(s: Any) -> str:
        if s.a is None and s.b is None:
            return str(s.why_not)
        c = s.difference
        percent, pp = (" %", " pp") if s.unit.is_rate else ("", f" {s.unit.name}")
        tail = f"{change(c.unit, c.delta, c.low, c.high)}{pp}" if c else s.why_not
        return f"{printed(s.unit, s.a)} → {printed(s.unit, s.b)}{percent}, {tail}"

    found = differences(Store(kept.folder), a, b)
    if as_json:
        shown = to_json(found)
    else:  # each as `a → b`, a score with its paired difference or why there is none
        shown = {name: pairs(getattr(found, name)) for name in ("recipe", "run", "environment")}
        shown |= {f"rows {key}": pairs(rows) for key, rows in found.rows.items()}
        for key, scores in found.scores.items():
            shown[f"scores {key}"] = {metric: score(s) for metric, s in scores.items()}
        shown = {name: lines for name, lines in shown.items() if lines}
    print_value(shown, as_json)
    if not any(found):
        say(f"nothing that is stored differs between {a} and {b}")


@verb(
    runs_app, "harness runs rm RUN", "harness runs rm --unused", "harness runs rm --unused --yes", name="rm"
)
def runs_rm(
    run_id: Annotated[str | None, Argument("A run's id.", "RUN")] = None,
    *,
    unused: Annotated[bool, Option("List rows, weights and exports that nothing refers to.")] = False,
    unfinished: Annotated[bool, Option("With --unused: also what unfinished work would go on from.")] = False,
    yes: Annotated[bool, Option("With --unused: remove what is listed.")] = False,
    kept: StoredRuns,
) -> None:
    """Remove a run, or rows, weights and exports that nothing refers to.

    A champion is never removed, nor is an earlier one that `champions.keep` keeps. With --unused nothing is
    removed before --yes.
    """
    from harness import store
    from harness.lifecycle import champions

    if (run_id is None) != unused or ((unfinished or yes) and not unused):
        given = f"{run_id or 'no run'}{' with' if unused or unfinished or yes else ' and no'} options"
        step = "harness runs rm RUN, or harness runs rm --unused [--unfinished] [--yes]"
        raise UserError("harness runs rm", given, "a run, or --unused", step)
    at = store.Store(kept.folder)
    if run_id is not None:
        champions.remove_run(at, run_id)
        say(f"removed {run_id}")
        return
    shared = store.base_rows_use()
    look = champions.remove_unreferenced if yes else champions.list_unreferenced
    found = look(at, unfinished=unfinished)
    listed = {str(one.path.relative_to(at.folder)): size(one.n_bytes) for one in found.removable}
    if shared.n_bytes:  # they are computed again when needed
        listed[str(shared.path)] = f"{size(shared.n_bytes)}, of every folder on this machine"
    print_value(listed, as_json=False)
    if yes:
        store.remove(shared.path.parent, [shared.path])
    if found.kept:
        left, names = size(sum(one.n_bytes for one in found.kept)), ", ".join(found.wanted_by)
        say(f"kept: {left} of unfinished work{f' ({names})' if names else ''}; --unfinished removes that too")
    total = size(sum(one.n_bytes for one in [*found.removable, shared]))
    say(f"removed {total}" if yes else f"would free {total}; nothing is removed without --yes")


@verb(app, "harness ls metrics", "harness ls keys", "harness ls lm-eval", heading=NAMES)
def ls(
    what: Annotated[
        str, Argument("methods, prompting, metrics, regularizers, keys, suites, tasks or lm-eval")
    ] = "methods",
    as_json: Json = False,
) -> None:
    """List methods, metrics, suites, keys and other names."""
    from harness.experiment.catalog import map_purposes

    print_value(map_purposes(what), as_json)


@verb(app, "harness reindex", heading=STORED)
def reindex(kept: StoredRuns, as_json: Json = False) -> None:
    """Rebuild the DuckDB index from the stored runs."""
    from harness import store

    if not kept.folder.is_dir():
        step = "name it with --runs, or its experiment with -c"
        raise UserError(str(kept.folder), "no such folder", "a folder of stored runs", step)
    print_value(store.reindex(store.Store(kept.folder))._asdict(), as_json)


def _facts(run: "Run") -> dict[str, Any]:
    return {name: value for name, value in run.to_plain().items() if not isinstance(value, dict)}


def _trial_facts(one: "TrialRun") -> dict[str, Any]:
    names = ("params", "validation", "forgetting", "pruned_at", "fit_key")
    return {"state": one.state, "metric": one.metric} | {name: getattr(one.trial, name) for name in names}


@verb(app, "harness score lora", heading=STORED)
def score(
    run: Annotated[str, Argument("A run's id, or a candidate (all its seeds).")],
    at: ExperimentFile,
    as_json: Json = False,
) -> None:
    """Score stored answers again, without the model.

    The metrics are those that harness.yaml names now.
    """
    from harness.lifecycle import release

    session, loaded = at.open_session()
    out = {}
    for before in release.candidate_runs(release.load_study(loaded), run):
        again, scores = release.rescore_run(session, before)
        unchanged = again.run_id == before.run_id
        say(f"{before.run_id}: " + ("scored so already" if unchanged else f"now {again.run_id}"))
        out[again.run_id] = scores
    print_scores(out, as_json)


@verb(app, "harness schema > harness.schema.json", heading=NAMES)
def schema() -> None:
    """Print the JSON schema of harness.yaml, for editors."""
    from harness.config import json_schema

    print_json(json_schema())


_WIDEST = 60  # characters of a cell


@verb(app, "harness sql --tables", 'harness sql "SELECT candidate, outcome FROM verdicts"', heading=STORED)
def sql(
    query: Annotated[str, Argument("One SELECT, in DuckDB's SQL.", "SELECT")] = "",
    *,
    tables: Annotated[bool, Option("List the tables with their columns, units and meanings.")] = False,
    as_csv: Annotated[bool, Option("Print CSV, with cells uncut.", "--csv")] = False,
    kept: StoredRuns,
    as_json: Json = False,
) -> None:
    """Query everything that is stored, in DuckDB's SQL."""
    from harness import store
    from harness.report import ResultDocument, Section, to_plain
    from harness.report.escape import write_csv

    if tables == bool(query) or (as_csv and as_json):
        given = "both" if tables else "neither a query nor --tables"
        found = "both --csv and --json" if as_csv and as_json else given
        step = 'harness sql "SELECT * FROM runs", or harness sql --tables'
        raise UserError("harness sql", found, "a query or --tables, in one form", step)
    if tables:
        columns = [(table.name, *column[:4]) for table in store.TABLES for column in table.columns]
        answer = store.QueryResult(("table", "column", "type", "unit", "meaning"), columns)
    else:
        answer = store.query(store.Store(kept.folder), query)
    for name in answer.unread:
        say(f"left out, as damaged: {kept.folder / name}; next: repair or delete it")
    if as_json:
        # Name columns of one name apart, as DuckDB does in a subquery: `n`, `n_1`.
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
