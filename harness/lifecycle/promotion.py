"""Promotion, rollback and retirement of a target's champions.

Invariant: each adds an entry to the target's history, and none changes an earlier one.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from harness import config, provenance, store
from harness.analysis import comparison
from harness.analysis.estimators import Estimate
from harness.analysis.gate_rules_on_answers import cumulative_of
from harness.analysis.verdict import Verdict
from harness.errors import UserError
from harness.experiment.study import Study, add_lm_eval, load_study, reached_on_target
from harness.formatting import RATE
from harness.records import Run
from harness.store import Champion, ChampionEntry, Store

_OF_RUN = ["run_id", "candidate", "seed", "experiment", "weights_digest", "base_digest", "created", "recipe"]


def promote(
    stored: Study, run: Run, judged: Verdict | str, despite: str, *, by: str = ""
) -> tuple[Path, Champion]:
    """Make a run the champion of the target; return the file.

    `judged` is the gate's result for it, or the reason why it could not be judged.
    """
    study, _ = add_lm_eval(stored)
    scores: dict[str, Estimate] = {}
    for task in study.experiment.tasks:
        if f"{task.name}/test" in run.rows:
            metric = study.primary(task)
            target_score = reached_on_target(study, run).target if task.name == study.target.name else None
            whole = study.rows.whole(run.rows[f"{task.name}/test"])
            scores[f"{task.name} {metric.name}"] = target_score or comparison.estimate(metric, whole)
    numbers: list[Any] = []  # of the macro against the first base: delta, low, high, n
    if isinstance(judged, Verdict):
        rule = cumulative_of(judged)
        names = ("delta", "low", "high", "n_items")
        numbers = [rule.numbers.get(name) for name in names] if rule else list((judged.macro or ())[:4])
    champion = Champion(
        target=stored.experiment.target.name,
        **{name: getattr(run, name) for name in _OF_RUN},
        base_model=Path(run.base_model).name,
        rows=dict(sorted(run.rows.items())),
        scores={key: [round(x, 6) for x in e[:4]] for key, e in scores.items()},
        verdict=judged.outcome if isinstance(judged, Verdict) else "",
        sentence=judged.sentence if isinstance(judged, Verdict) else judged,
        despite=despite,
        units={key: e.unit for key, e in scores.items() if e.unit != RATE},
        first_base=store.find_first_base(stored.folder, stored.experiment.target.name) or run.base_digest,
        cumulative=[] if None in numbers else [round(float(x), 6) for x in numbers],
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


def record_again(
    path: Path, event: Literal["rollback", "retirement"], number: int | None, why: str, by: str
) -> ChampionEntry:
    """Roll back to the champion of an earlier entry, by default the previous one, or retire a champion.

    By default the current champion is retired: no rollback returns to it, and its files may be removed.
    """
    stored = load_study(config.load(path))
    target = stored.experiment.target.name
    with store.hold_champions(stored.store):
        store.read_champion(stored.folder, target)  # the champion's file must agree with the history
        history = store.read_history(stored.folder, target)
        default = history.present.number if history.present else None
        if event == "rollback":
            default = next(iter(history.way_back), None)
        ident = default if number is None else number
        match = next((entry for entry in history.entries if entry.number == ident), None)
        pool = [history.entries[number - 1] for number in sorted(history.recent)]
        if event == "rollback":
            pool = [entry for entry in pool if entry.champion != history.champion]
        if match is None or match.promoted not in {entry.number for entry in pool}:
            reason = "the present champion" if match and match.promoted in history.recent else "retired"
            found = f"{ident}, which is {reason}" if match else "none" if ident is None else f"no {ident}"
            numbers = ", ".join(str(entry.number) for entry in pool)
            expected = f"one of the numbers: {numbers}" if pool else "a run that was promoted and not retired"
            promote = f"{stored.typed.command('promote', 'RUN')} makes a run the champion"
            step = stored.typed.command("champions", "list") if pool else promote
            raise UserError(f"{event}, champions of {target}", found, expected, step)
        earlier = history.entries[match.promoted - 1]
        name = f"champion {earlier.number} of {target}"
        lost = [file for file in missing_files(stored.store, earlier.champion) if file.startswith("rows")]
        if event == "rollback" and lost:
            step = f"{stored.typed.command('compare')}, then {stored.typed.command('promote', 'RUN')}"
            raise UserError(name, f"no {', no '.join(lost)}", "all that a gate compares with", step)
        entry = replace(
            earlier,
            event=event,
            why=why,
            number=len(history.entries) + 1,
            when=provenance.timestamp(),
            who=by or provenance.git_user(stored.folder),
            keep=stored.experiment.champions.keep,
            exports=_hash_exports(stored.store, earlier.champion.run_id),
        )
        store.record_champion(stored.store, entry)
    return entry


def missing_files(at: Store, champion: Champion) -> list[str]:
    """List which rows and weights of a champion a store no longer has."""
    missing = [f"rows of {key}" for key, rows in champion.rows.items() if not at.parquet(rows).exists()]
    if champion.fit_key and not at.weights(champion.fit_key).exists():
        missing.append(f"weights {champion.fit_key}")
    return missing


def _hash_exports(at: Store, run_id: str) -> dict[str, dict[str, str]]:
    exports = store.exports_of(at, run_id).items()
    return {path.name: {name: f.sha256 for name, f in export.files.items()} for path, export in exports}
