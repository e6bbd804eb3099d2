"""Champions of a target: promotion, the way back to an earlier one, and retirement.

Invariant: each of the three is an entry of the target's history, and no entry is changed later. Whoever adds
one holds the champions from reading who is the champion until the entry is written.
"""

from dataclasses import replace
from pathlib import Path

from harness import comparison, config, exports, provenance, store
from harness.comparison import Estimate
from harness.errors import Problem, UserError
from harness.experiment import Study, add_lm_eval, load_study, reached_on_target
from harness.formatting import RATE
from harness.gating import Verdict, cumulative_of
from harness.records import Run
from harness.store import Champion, ChampionEntry, History, Store


def promote(
    stored: Study, run: Run, judged: Verdict | str, despite: str, first_base: str = "", *, by: str = ""
) -> tuple[Path, Champion]:
    """Write a run as the champion of the target; returns the file.

    `judged` is what the gate said of it, or why it could not judge it.

    Raises:
        HarnessError: rows of the run are missing.
    """
    study, _ = add_lm_eval(stored)
    scores: dict[str, Estimate] = {}
    for task in study.experiment.tasks:
        if f"{task.name}/test" in run.rows:
            metric = study.primary(task)
            own = reached_on_target(study, run).target if task.name == study.target.name else None
            whole = study.rows.whole(run.rows[f"{task.name}/test"])
            scores[f"{task.name} {metric.name}"] = own or comparison.estimate(metric, whole)
    # The macro against the first base as [delta, low, high, n], where it is known.
    cumulative: list[float] = []
    if isinstance(judged, Verdict) and (rule := cumulative_of(judged)):
        numbers = [rule.numbers.get(name) for name in ("delta", "low", "high", "n_items")]
        cumulative = [float(x) for x in numbers if isinstance(x, float | int)]
    elif isinstance(judged, Verdict) and judged.macro:
        cumulative = list(judged.macro[:4])
    champion = Champion(
        target=stored.experiment.target.name,
        run_id=run.run_id,
        candidate=run.candidate,
        seed=run.seed,
        experiment=run.experiment,
        base_model=Path(run.base_model).name,
        weights_digest=run.weights_digest,
        base_digest=run.base_digest,
        created=run.created,
        rows=dict(sorted(run.rows.items())),
        scores={key: [round(x, 6) for x in e[:4]] for key, e in scores.items()},
        recipe=run.recipe,
        verdict=judged.outcome if isinstance(judged, Verdict) else "",
        sentence=judged.sentence if isinstance(judged, Verdict) else judged,
        despite=despite,
        units={key: e.unit for key, e in scores.items() if e.unit != RATE},
        first_base=first_base or run.base_digest,
        cumulative=[round(x, 6) for x in cumulative] if len(cumulative) == 4 else [],
        fit_key=run.training.fit_key,
        files=store.hash_weights(stored.store, run.training.fit_key),
    )
    history, at = store.read_history(stored.folder, champion.target), stored.store
    number = len(history.entries) + 1
    entry = ChampionEntry(
        number,
        "promotion",
        provenance.timestamp(),
        by or provenance.git_user(stored.folder),
        despite or champion.sentence,
        promoted=number,
        champion=champion,
        keep=stored.experiment.champions.keep,
        code={name: run.provenance.get(name) for name in ("harness", "git_sha", "git_dirty")},
        data={key: store.read_identity(at, rows).task_version for key, rows in champion.rows.items()},
        exports=_hash_exports(at, run.run_id),
    )
    return store.record_champion(at, entry), champion


def roll_back(path: Path, number: int | None = None, *, why: str = "", by: str = "") -> ChampionEntry:
    """Make an earlier champion the champion again: that of an entry, by default the one before this one.

    Raises:
        UserError: no such champion is left, it is the champion already, or its rows are gone.
    """
    stored = load_study(config.load(path))
    with store.hold_champions(stored.store):
        history = _read(stored)
        earlier = _find(stored, history, number, next(iter(history.way_back), None))
        name = f"champion {earlier.number} of {stored.experiment.target.name}"
        if earlier.champion == history.champion:
            step = f"name another one, as {stored.typed.command('champions', 'list')} numbers them"
            raise UserError(Problem(name, "the present champion", "an earlier one", step))
        if lost := [one for one in missing_files(stored.store, earlier.champion) if one.startswith("rows")]:
            step = f"{stored.typed.command('compare')}, then {stored.typed.command('promote', 'RUN')}"
            raise UserError(Problem(name, f"no {', no '.join(lost)}", "all that a gate compares with", step))
        return _repeat(stored, history, replace(earlier, event="rollback", why=why), by)


def retire(path: Path, number: int | None = None, *, why: str = "", by: str = "") -> ChampionEntry:
    """Retire a champion, by default the present one: no rollback returns to it, and its files may go.

    Raises:
        UserError: there is no such champion, or it is retired already.
    """
    stored = load_study(config.load(path))
    with store.hold_champions(stored.store):
        history = _read(stored)
        retired = _find(stored, history, number, history.present.number if history.present else None)
        return _repeat(stored, history, replace(retired, event="retirement", why=why), by)


def missing_files(at: Store, champion: Champion) -> list[str]:
    """Name what is no longer in a store of a champion's files: its rows, its weights."""
    rows = [f"rows of {key}" for key, of in champion.rows.items() if not at.parquet(of).exists()]
    trained = champion.fit_key and not at.weights(champion.fit_key).exists()
    return [*rows, *([f"weights {champion.fit_key}"] if trained else [])]


def _read(stored: Study) -> History:
    """Read the history of the experiment's target, once the champion's file agrees with it."""
    store.read_champion(stored.folder, stored.experiment.target.name)
    return store.read_history(stored.folder, stored.experiment.target.name)


def _find(stored: Study, history: History, number: int | None, default: int | None) -> ChampionEntry:
    """Return the promotion that an entry is about, by its number or the default, unless it is retired."""
    asked, target = default if number is None else number, stored.experiment.target.name
    entry = next((one for one in history.entries if one.number == asked), None)
    if entry is None or entry.promoted not in history.recent:
        found = f"{asked}, which is retired" if entry else f"no {asked or 'such champion'}"
        numbers = ", ".join(map(str, sorted(history.recent))) or "none so far"
        step = stored.typed.command("champions", "list") if history.entries else ""
        step = step or f"{stored.typed.command('promote', 'RUN')} makes a run the champion"
        raise UserError(Problem(f"champions of {target}", found, f"one of the numbers: {numbers}", step))
    return history.entries[entry.promoted - 1]


def _repeat(stored: Study, history: History, entry: ChampionEntry, by: str) -> ChampionEntry:
    """Record an entry about an earlier promotion, under the next number."""
    entry = replace(
        entry,
        number=len(history.entries) + 1,
        when=provenance.timestamp(),
        who=by or provenance.git_user(stored.folder),
        keep=stored.experiment.champions.keep,
        exports=_hash_exports(stored.store, entry.champion.run_id),
    )
    store.record_champion(stored.store, entry)
    return entry


def _hash_exports(at: Store, run_id: str) -> dict[str, dict[str, str]]:
    """Map each export of a run, by its folder's name, to the SHA-256 that it says of each file."""
    return {
        folder.name: {name: file.sha256 for name, file in made.files.items()}
        for folder, made in exports.exports_of(at, run_id).items()
    }
