"""Bound of a proposal's time: fewer rows and a smaller sweep, until the dry run's estimate is below it.

Invariant: the time is that of `harness compare --dry-run`, from nothing on this machine; rows to train on
go first, then the sweep, and test items, on which every verdict rests, last.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from harness import config
from harness.config import LoadedExperiment
from harness.data import SPLITS, TaskItems, load_task
from harness.evaluation.session import join_items
from harness.experiment.preparation import prepare_session
from harness.experiment.preparation.plan import estimate_seconds, estimate_work
from harness.experiment.preparation.scope import Scope
from harness.experiment.scaffold.recognition import Request
from harness.experiment.scaffold.yaml_text import experiment_text, suite_text
from harness.formatting import seconds
from harness.models.hardware import Machine
from harness.progress import SilentProgress
from harness.spec import ItemLimits, Recipe, Task

Candidates = Mapping[str, Mapping[str, Any]]


class BoundStep(NamedTuple):
    """Rows of each split at most, and whether sweeps keep all their values, and prompts all their texts."""

    train: int
    validation: int
    test: int
    sweeps: bool
    prompts: bool = True

    def keeps(self, key: str) -> bool:
        """Tell whether all values of a swept key are tried."""
        return self.prompts if key == "system" else self.sweeps


STEPS = (
    BoundStep(2000, 200, 400, sweeps=True),
    BoundStep(1000, 200, 400, sweeps=True),
    BoundStep(500, 200, 400, sweeps=True),
    BoundStep(500, 100, 400, sweeps=False),
    BoundStep(250, 100, 400, sweeps=False),
    BoundStep(250, 50, 200, sweeps=False),
    BoundStep(120, 40, 100, sweeps=False, prompts=False),
)


class BoundedSetup(NamedTuple):
    """A task and its candidates within a bound, their estimated time, and what was left out.

    `cuts` says each part with how much of how much it is; empty where all is kept. `folds_s` is the time that
    folds would take, where they were left out for it.
    """

    task: Task
    candidates: dict[str, dict[str, Any]]
    time_s: float
    cuts: tuple[str, ...]
    folds_s: float = 0.0


def bound_time(
    request: Request, task: Task, candidates: Candidates, machine: Machine, minutes: float
) -> BoundedSetup:
    """Take the first step whose estimate is within the bound, or the last one.

    Folds, which test on all of a few rows, stay as long as one value of each sweep keeps them in the bound.

    Raises:
        UserError: `compare` could not run this proposal.
    """
    steps = (STEPS[0], STEPS[0]._replace(sweeps=False)) if task.data.folds else STEPS
    loaded = load_proposal(request, task, candidates)
    session = replace(prepare_session(loaded, Scope(dry_run=True), SilentProgress()), machine=machine)
    whole = load_task(_limit_task(task, {}), session.first_seed)
    for step in steps:
        limits: dict[str, int] = {
            split: getattr(step, split)
            for split in SPLITS
            if getattr(step, split) < len(getattr(whole, split))
        }
        narrow = _limit_task(task, limits)
        kept = {name: _keep_swept(recipe, step) for name, recipe in candidates.items()}
        rows = [f"{n:,} of {len(getattr(whole, split)):,} {_ROWS[split]}" for split, n in limits.items()]
        swept = [item for recipe in candidates.values() for item in recipe.get("sweep", {}).items()]
        tried = [
            f"one system text instead of {len(values)}"
            if key == "system"
            else f"{key} {values[0]:g} alone instead of {' and '.join(f'{value:g}' for value in values)}"
            for key, values in swept
            if not step.keeps(key)
        ]
        recipes = {name: Recipe.model_validate(recipe) for name, recipe in kept.items()}
        experiment = session.experiment.model_copy(update={"target": narrow})
        target = join_items(narrow, "target", narrow.name, _spread(whole, limits))
        bounded = replace(session, experiment=experiment, target=target).with_candidates(recipes)
        time_s = sum(estimate_seconds(bounded, estimate_work(bounded, list(recipes))).values())
        found = BoundedSetup(narrow, kept, time_s, (*rows, *tried))
        if found.time_s <= 60 * minutes:
            return found
    if not task.data.folds:
        return found
    once = task.model_copy(update={"data": task.data.model_copy(update={"folds": None})})
    return bound_time(request, once, candidates, machine, minutes)._replace(folds_s=found.time_s)


def load_proposal(request: Request, task: Task, candidates: Candidates) -> LoadedExperiment:
    """Load a proposal as a comparison does, from files that are gone afterwards."""
    with TemporaryDirectory() as name:
        folder, at = Path(name), request._replace(folder=Path(name))
        (folder / "suites").mkdir()
        (folder / "suites" / f"{task.name}.yaml").write_text(suite_text(at, task, folder / "suites"), "utf-8")
        (folder / "harness.yaml").write_text(experiment_text(at, task.name, candidates), "utf-8")
        return config.load(folder / "harness.yaml")


_ROWS = {"train": "rows to train on", "validation": "for validation", "test": "for test"}


def _spread(whole: TaskItems, limits: Mapping[str, int]) -> TaskItems:
    """Take as many rows of each split as its limit allows, from all over the file: as long as those drawn."""
    rows = {split: getattr(whole, split) for split in limits}
    return replace(whole, **{split: rows[split][:: -(-len(rows[split]) // n)] for split, n in limits.items()})


def _limit_task(task: Task, limits: Mapping[str, int]) -> Task:
    data = task.data.model_copy(update={"limits": ItemLimits(**limits)})
    return task.model_copy(update={"data": data})


def _keep_swept(recipe: Mapping[str, Any], step: BoundStep) -> dict[str, Any]:
    """Keep what a step sweeps; of the rest the first value, or the task's prompt."""
    sweep = recipe.get("sweep", {})
    kept = {key: values for key, values in sweep.items() if step.keeps(key)}
    first = {key: values[0] for key, values in sweep.items() if key not in kept and key != "system"}
    whole = {key: value for key, value in recipe.items() if key != "sweep"}
    params = {"params": {**recipe.get("params", {}), **first}} if first else {}
    return {**whole, **params, **({"sweep": kept} if kept else {})}


def time_sentence(bounded: BoundedSetup, minutes: float) -> str:
    """Say how long a comparison takes here, and what was left out for it."""
    if not bounded.cuts:
        return f"about {seconds(bounded.time_s)} on this machine"
    within = bounded.time_s <= 60 * minutes
    bound = f"bounded to {minutes:g} min" if within else "as short as these rows allow"
    return (
        f"about {seconds(bounded.time_s)} on this machine, {bound} by {', '.join(bounded.cuts)}; "
        "--minutes sets another bound"
    )
