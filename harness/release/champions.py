"""Promotion of a run to the champion of its target, and what a champion without suites is compared on.

Invariant: a champion that answers no suites, a classifier or a baseline, has no capabilities to compare with:
those of a run are judged against the base, and only the target is compared with the champion.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness import comparison, decision, formatting, plugins, store
from harness.comparison import Estimate
from harness.experiment import (
    Study,
    add_lm_eval,
    compare_on,
    count_missing,
    is_target_only,
    reached_on_target,
)
from harness.formatting import RATE
from harness.records import Run
from harness.store import Champion, champion_file


def best_run(stored: Study, runs: list[Run]) -> Run:
    """Return the run that is best on validation."""
    if len(runs) == 1:
        return runs[0]
    facts = [reached_on_target(stored, run) for run in runs]
    best = decision.best(facts)
    return next((run for run in runs if best and run.run_id == best.run_id), runs[0])


def promote(
    stored: Study,
    run: Run,
    *,
    verdict: str,
    sentence: str,
    despite: str,
    first_base: str = "",
    cumulative: Sequence[float] = (),
) -> tuple[Path, Champion]:
    """Write a run as the champion of the target, with what the gate said of it; returns the file.

    Raises:
        HarnessError: rows of the run are missing.
    """
    scores = _scores(stored, run)
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
        verdict=verdict,
        sentence=sentence,
        despite=despite,
        units={key: e.unit for key, e in scores.items() if e.unit != RATE},
        first_base=first_base or run.base_digest,
        cumulative=[round(x, 6) for x in cumulative],
    )
    path = champion_file(stored.folder, champion.target)
    path.parent.mkdir(parents=True, exist_ok=True)
    store.write_record(stored.store, path, champion)
    return path, champion


def _scores(stored: Study, run: Run) -> dict[str, Estimate]:
    study, _ = add_lm_eval(stored)
    out: dict[str, Estimate] = {}
    for task in study.experiment.tasks:
        if f"{task.name}/test" in run.rows:
            metric = study.primary(task)
            own = reached_on_target(study, run).target if task.name == study.target.name else None
            whole = study.rows.whole(run.rows[f"{task.name}/test"])
            out[f"{task.name} {metric.name}"] = own or comparison.estimate(metric, whole)
    return out


def answers_suites(recipe: Mapping[str, Any]) -> bool:
    """Tell whether a candidate of this recipe answers the suites: a language model that is not a baseline."""
    method = recipe["method"]
    return plugins.find_method(method).makes_language_model and not is_target_only(method, recipe)


def champion_note(study: Study, run: Run, champion: Champion) -> str:
    """Say that only the target is compared with a champion, and what the run reaches there over it."""
    task = study.target
    who = f"the champion {champion.candidate} ({champion.run_id})"
    only = f"{who} answers no task of the suites: those are judged against the base"
    return f"{only}, and {task.name} against the champion: {_gain_text(study, run, champion)}"


def _gain_text(study: Study, run: Run, champion: Champion) -> str:
    """Say what a run gains over the champion on the target, or why that is not known."""
    at, task = study.store, study.target
    key = f"{task.name}/test"
    other = next((one for one in store.list_runs(at) if one.run_id == champion.run_id), None)
    if other is None:
        return f"unknown, for its run is no longer in {at.folder}"
    for one in (run, other):
        if key not in one.rows or not at.parquet(one.rows[key]).exists():
            return f"unknown, for the answers of {one.label} are not in {at.folder}"
    versions = {store.read_identity(at, one.rows[key]).task_version for one in (run, other)}
    if len(versions) > 1:
        return f"unknown, for {champion.candidate} answered other items or was scored by other code"
    if missing := count_missing(study, run, other):
        return f"unknown, for its judge's grades need {formatting.pluralize(missing, 'more label')} of people"
    gain = compare_on(study, run, other)
    if gain is None:
        return "unknown, for they share no item with a score"
    c = comparison.orient(gain)
    refused = f" ({c.refused})" if c.refused else ""
    found = formatting.change(c.unit, c.delta, c.low, c.high)
    return f"{found} {'pp ' if c.unit.is_rate else ''}{c.metric}, n = {formatting.count(c.n)}{refused}"
