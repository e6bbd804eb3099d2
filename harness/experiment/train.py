"""The weights of a recipe, found or made: of one fit, or of the trial of a sweep that is best on validation.

Invariant: what is found is what would be made; whatever weights start from or were chosen among is
made first.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from harness import plugins, store
from harness.data import TaskItems
from harness.errors import Diverged
from harness.evaluation import runner
from harness.evaluation.candidates import (
    base_of,
    base_weights,
    fit,
    folder_of,
    read_weights,
    source_of,
    trials,
)
from harness.evaluation.regularization import mix_context
from harness.evaluation.row_sets import is_there, suite_set, target_sets
from harness.evaluation.runner import control_beside, fill, opened
from harness.evaluation.session import Session, measured
from harness.records import Example, SampleResult
from harness.regularizers import Mixture, mixed_rows
from harness.spec import Recipe, Task, TaskData
from harness.training import Weights


def ensure_weights(session: Session, recipe: Recipe, seed: int) -> Weights:
    """Return the weights of a recipe, made now or before."""
    found = _found_or_made(session, recipe, seed, make=True)
    assert found is not None
    return found


def stored_weights(session: Session, recipe: Recipe, seed: int) -> Weights | None:
    """Return the weights of a recipe where they were made before; None also where making them diverged."""
    try:
        return _found_or_made(session, recipe, seed, make=False)
    except Diverged:
        return None


def _found_or_made(session: Session, recipe: Recipe, seed: int, *, make: bool) -> Weights | None:
    """Find weights; without `make`, None where they or what they start from are missing."""
    source = source_of(session, recipe)
    if plugins.method(source.method).makes == "base":
        return base_weights(session, base_of(session, recipe))
    if source.sweep:
        return _swept(session, recipe, source, seed, make=make)
    return _single(session, recipe, source, seed, make=make)


def _single(session: Session, recipe: Recipe, source: Recipe, seed: int, *, make: bool) -> Weights | None:
    init = None
    if source.init_from:
        init = _found_or_made(session, session.experiment.candidates[source.init_from], seed, make=make)
        if init is None:
            return None
    folder = folder_of(session, source, seed, init)
    found = read_weights(session, recipe, folder)
    if found is None and make:
        mixed = _mixed(session, source, seed)
        if session.experiment.engine == "vllm" or session.machine.device == "cuda":
            session.unload()  # training has a base of its own, and a GPU rarely room for two
        fit(session, source, seed, folder, init, mixed)
        found = read_weights(session, recipe, folder)
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


def _mixed(session: Session, source: Recipe, seed: int) -> Sequence[Example]:
    """Return the rows that a recipe's regularisers mix into training."""
    if not source.regularize:
        return ()
    evaluate = partial(_base_answers, session, source)
    return mixed_rows(source.regularize, mix_context(session, seed), evaluate)


def _base_answers(session: Session, source: Recipe, name: str, mixture: Mixture) -> Iterable[SampleResult]:
    """Evaluate the base on the prompts of a regulariser, now or before; its answers are stored rows."""
    task = Task(
        name=name,
        data=TaskData(),
        metrics=("no_refusal",),
        max_new_tokens=mixture.max_new_tokens,
        chat_template=session.target.task.chat_template,
    )
    items = TaskItems((), (), mixture.rows, (), (), ())
    weights = base_weights(session, base_of(session, source))
    wanted = suite_set(session, weights, measured(task, "capability", name, items))
    if lacking := runner.missing(session, [wanted]):
        with opened(session, weights) as base:
            fill(session, base, lacking, "base")
    return store.read_rows(session.store, wanted.identity.digest, len(wanted.ids))


_OF_TRIAL = ("best_validation_loss", "wall_s", "loss", "validation_loss")


def _swept(session: Session, recipe: Recipe, source: Recipe, seed: int, *, make: bool) -> Weights | None:
    """Return the weights of the trial that is best on validation with the first seed.

    Every trial has the same budget; those that lose stay in the store.

    Raises:
        Diverged: every trial did.
    """
    tried: list[dict[str, Any]] = []
    kept: list[Weights] = []
    metric = session.target.primary
    for point, trial in trials(source):
        try:
            found = _single(session, recipe, trial, session.experiment.seeds[0], make=make)
        except Diverged:
            tried.append({"params": point, "validation": None, "wall_s": 0.0})
            continue
        score = None if found is None else _validation(session, trial, found, make=make)
        if found is None or score is None:
            return None
        kept.append(found)
        figures = {name: found.training.get(name) for name in _OF_TRIAL}
        tried.append({"params": point, "validation": score, **figures})
    best = max(tried, key=lambda trial: _rank(trial, metric.unit.sign))
    if best["validation"] is None:
        raise Diverged("the training loss is not a number in any trial of the sweep", "lower values in sweep")
    chosen = next(trial for point, trial in trials(source) if point == best["params"])
    found = _single(session, recipe, chosen, seed, make=make)
    if found is None:
        return None
    again = 0.0 if seed == session.experiment.seeds[0] else found.training.get("wall_s", 0.0)
    wall_s = round(sum(t["wall_s"] for t in tried) + again, 3)
    sweep = [{**t, "chosen": t is best} for t in tried]
    training = {**found.training, "wall_s": wall_s, "sweep": sweep, "stands_on": stands_on(*kept)}
    return found._replace(training=training)


def _rank(trial: Mapping[str, Any], sign: int) -> tuple[float, float]:
    """Order trials by their validation score; of equal ones the lower validation loss is the better."""
    score, loss = trial["validation"], trial.get("best_validation_loss")
    return -np.inf if score is None else float(sign * score), -np.inf if loss is None else -float(loss)


def _validation(session: Session, trial: Recipe, weights: Weights, *, make: bool) -> float | None:
    """Return a trial's score on the validation rows of the target; None where they are missing."""
    rows = target_sets(session, trial, weights, session.experiment.seeds[0])[0]
    if not is_there(session, rows):
        if not make:
            return None
        if lacking := runner.missing(session, [rows]):
            beside = control_beside(session, trial, weights)
            with opened(session, weights) as candidate:
                fill(session, candidate, lacking, "sweep", control=beside)
    metric = session.target.primary
    answered = store.read_rows(session.store, rows.identity.digest, len(rows.ids))
    parts = [p for row in answered if (p := row.parts.get(metric.name)) is not None]
    return float(metric.aggregate(np.array(parts), np.ones(len(parts)))) if parts else None
