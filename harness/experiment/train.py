"""The weights of a recipe, found or made: of one fit, or of the trial of a sweep that is best on validation.

Invariant: what is found is what would be made; whatever weights start from or were chosen among is
made first.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from harness import store
from harness.errors import CandidateFailed, Diverged
from harness.evaluation import replay, runner
from harness.evaluation.candidates import (
    base_of,
    base_weights,
    fit,
    folder_of,
    read_weights,
    source_of,
    trials,
)
from harness.evaluation.row_sets import is_there, suite_set, target_sets
from harness.evaluation.runner import control_beside, fill, opened
from harness.evaluation.session import Bench, measured
from harness.records import Example
from harness.spec import Recipe
from harness.training import Weights


def ensure_weights(bench: Bench, recipe: Recipe, seed: int) -> Weights:
    """Return the weights of a recipe, made now or before."""
    found = _found_or_made(bench, recipe, seed, make=True)
    assert found is not None
    return found


def stored_weights(bench: Bench, recipe: Recipe, seed: int) -> Weights | None:
    """Return the weights of a recipe where they were made before; None also where making them diverged."""
    try:
        return _found_or_made(bench, recipe, seed, make=False)
    except Diverged:
        return None


def _found_or_made(bench: Bench, recipe: Recipe, seed: int, *, make: bool) -> Weights | None:
    """Find weights; without `make`, None where they or what they start from are missing."""
    source = source_of(bench, recipe)
    if source.method == "base":
        return base_weights(bench, base_of(bench, recipe))
    if source.sweep:
        return _swept(bench, recipe, source, seed, make=make)
    return _single(bench, recipe, source, seed, make=make)


def _single(bench: Bench, recipe: Recipe, source: Recipe, seed: int, *, make: bool) -> Weights | None:
    init = None
    if source.init_from:
        init = _found_or_made(bench, bench.experiment.candidates[source.init_from], seed, make=make)
        if init is None:
            return None
    folder = folder_of(bench, source, seed, init)
    found = read_weights(bench, recipe, folder)
    if found is None and make:
        replayed = _replayed(bench, source, seed)
        if bench.experiment.engine == "vllm" or bench.machine.device == "cuda":
            bench.unload()  # training has a base of its own, and a GPU rarely room for two
        fit(bench, source, seed, folder, init, replayed)
        found = read_weights(bench, recipe, folder)
    if found is None or init is None:
        return found
    before_s = sum(init.training.get(name, 0.0) for name in ("wall_s", "init_wall_s"))
    began_with = {"init_wall_s": round(before_s, 3), "stands_on": stands_on(init)}
    return found._replace(training={**found.training, **began_with})


def stands_on(*weights: Weights) -> dict[str, str]:
    """Map the keys of weights, and of those that they in turn stand on, to their digests."""
    behind: dict[str, str] = {}
    for one in weights:
        own = one.training.get("fit_key")
        behind |= one.training.get("stands_on", {}) | ({own: one.digest} if own else {})
    return behind


def _replayed(bench: Bench, source: Recipe, seed: int) -> Sequence[Example]:
    """Return the general rows of a recipe's training; the base answers them now, or did before."""
    if source.replay is None:
        return ()
    if source.replay.data:
        return replay.given(bench, source.replay, seed)
    prompts = replay.asked(bench, source.replay)
    task, items = replay.as_task(bench, prompts)
    weights = base_weights(bench, base_of(bench, source))
    wanted = suite_set(bench, weights, measured(task, "capability", "replay", items))
    if lacking := runner.missing(bench, [wanted]):
        with opened(bench, weights) as base:
            fill(bench, base, lacking, "base")
    rows = store.read_rows(bench.store, wanted.identity.digest, len(wanted.ids))
    found = replay.answered(prompts, rows, replay.n_replayed(bench, source.replay))
    if not found:
        reason = f"the base gave no whole answer to any of {len(prompts)} general prompts"
        raise CandidateFailed(reason, "replay: {share: 0.05, data: rows-of-yours.jsonl}")
    return found


_OF_TRIAL = ("best_validation_loss", "wall_s", "loss", "validation_loss")


def _swept(bench: Bench, recipe: Recipe, source: Recipe, seed: int, *, make: bool) -> Weights | None:
    """Return the weights of the trial that is best on validation with the first seed.

    Every trial has the same budget; those that lose stay in the store.

    Raises:
        Diverged: every trial did.
    """
    tried: list[dict[str, Any]] = []
    kept: list[Weights] = []
    metric = bench.target.primary
    for point, trial in trials(source):
        try:
            found = _single(bench, recipe, trial, bench.experiment.seeds[0], make=make)
        except Diverged:
            tried.append({"params": point, "validation": None, "wall_s": 0.0})
            continue
        score = None if found is None else _validation(bench, trial, found, make=make)
        if found is None or score is None:
            return None
        kept.append(found)
        figures = {name: found.training.get(name) for name in _OF_TRIAL}
        tried.append({"params": point, "validation": score, **figures})
    best = max(tried, key=lambda trial: _rank(trial, metric.unit.sign))
    if best["validation"] is None:
        raise Diverged("the training loss is not a number in any trial of the sweep", "lower values in sweep")
    chosen = next(trial for point, trial in trials(source) if point == best["params"])
    found = _single(bench, recipe, chosen, seed, make=make)
    if found is None:
        return None
    again = 0.0 if seed == bench.experiment.seeds[0] else found.training.get("wall_s", 0.0)
    wall_s = round(sum(t["wall_s"] for t in tried) + again, 3)
    sweep = [{**t, "chosen": t is best} for t in tried]
    training = {**found.training, "wall_s": wall_s, "sweep": sweep, "stands_on": stands_on(*kept)}
    return found._replace(training=training)


def _rank(trial: Mapping[str, Any], sign: int) -> tuple[float, float]:
    """Order trials by their validation score; of equal ones the lower validation loss is the better."""
    score, loss = trial["validation"], trial.get("best_validation_loss")
    return -np.inf if score is None else float(sign * score), -np.inf if loss is None else -float(loss)


def _validation(bench: Bench, trial: Recipe, weights: Weights, *, make: bool) -> float | None:
    """Return a trial's score on the validation rows of the target; None where they are missing."""
    rows = target_sets(bench, trial, weights, bench.experiment.seeds[0])[0]
    if not is_there(bench, rows):
        if not make:
            return None
        if lacking := runner.missing(bench, [rows]):
            beside = control_beside(bench, trial, weights)
            with opened(bench, weights) as candidate:
                fill(bench, candidate, lacking, "sweep", control=beside)
    metric = bench.target.primary
    answered = store.read_rows(bench.store, rows.identity.digest, len(rows.ids))
    parts = [p for row in answered if (p := row.parts.get(metric.name)) is not None]
    return float(metric.aggregate(np.array(parts), np.ones(len(parts)))) if parts else None
