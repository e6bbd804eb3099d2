"""Bound of a proposal's time: fewer rows and a smaller sweep, until the dry run's estimate is below it.

Invariant: the time is that of `harness compare --dry-run`, from nothing on this machine; rows to train on
go first, then the sweep, and test items, on which every verdict rests, last.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from harness import config
from harness.data import SPLITS, TaskItems, load_task
from harness.evaluation.session import Session, join_items
from harness.experiment.preparation import prepare_session
from harness.experiment.preparation.planned_work import estimate_seconds, estimate_work
from harness.experiment.preparation.scope import Scope
from harness.experiment.scaffold.recognition import Request
from harness.experiment.scaffold.yaml_text import experiment_text, suite_text
from harness.formatting import seconds
from harness.models.hardware import Machine
from harness.progress import SilentProgress
from harness.spec import ItemLimits, Recipe, Task

Candidates = Mapping[str, Mapping[str, Any]]


class BoundStep(NamedTuple):
    """Rows of each split at most, and whether a sweep keeps all its values."""

    train: int
    validation: int
    test: int
    sweeps: bool


STEPS = (
    BoundStep(2000, 200, 400, sweeps=True),
    BoundStep(1000, 200, 400, sweeps=True),
    BoundStep(500, 200, 400, sweeps=True),
    BoundStep(500, 100, 400, sweeps=False),
    BoundStep(250, 100, 400, sweeps=False),
    BoundStep(250, 50, 200, sweeps=False),
    BoundStep(120, 40, 100, sweeps=False),
)


class BoundedSetup(NamedTuple):
    """A task and its candidates within a bound, their estimated time, and what was left out.

    `cuts` says each part with how much of how much it is; empty where all is kept.
    """

    task: Task
    candidates: dict[str, dict[str, Any]]
    time_s: float
    cuts: tuple[str, ...]


def bound_time(
    request: Request, task: Task, candidates: Candidates, machine: Machine, minutes: float
) -> BoundedSetup:
    """Take the first step whose estimate is within the bound, or the last one.

    Raises:
        UserError: `compare` could not run this proposal.
    """
    session = replace(_open_session(request, task, candidates), machine=machine)
    whole = load_task(_limit_task(task, {}), session.first_seed)
    found = [_bound_by(session, task, candidates, whole, STEPS[0])]
    for step in STEPS[1:]:
        if found[-1].time_s <= 60 * minutes:
            break
        found.append(_bound_by(session, task, candidates, whole, step))
    return found[-1]


def _open_session(request: Request, task: Task, candidates: Candidates) -> Session:
    """Prepare a proposal's session as a dry run does, from files that are gone afterwards."""
    with TemporaryDirectory() as name:
        folder, at = Path(name), request._replace(folder=Path(name))
        (folder / "suites").mkdir()
        (folder / "suites" / f"{task.name}.yaml").write_text(suite_text(at, task, folder / "suites"), "utf-8")
        (folder / "harness.yaml").write_text(experiment_text(at, task.name, candidates), "utf-8")
        return prepare_session(config.load(folder / "harness.yaml"), Scope(dry_run=True), SilentProgress())


def _bound_by(
    session: Session, task: Task, candidates: Candidates, whole: TaskItems, step: BoundStep
) -> BoundedSetup:
    limits: dict[str, int] = {
        split: getattr(step, split) for split in SPLITS if getattr(step, split) < _n(whole, split)
    }
    narrow = _limit_task(task, limits)
    kept = {
        name: dict(recipe) if step.sweeps else _take_first_of_sweep(recipe)
        for name, recipe in candidates.items()
    }
    rows = [f"{n:,} of {_n(whole, split):,} {_ROWS[split]}" for split, n in limits.items()]
    tried = [] if step.sweeps else _list_unused_values(candidates)
    return BoundedSetup(
        narrow, kept, _estimate_s(session, narrow, kept, _spread(whole, limits)), (*rows, *tried)
    )


_ROWS = {"train": "rows to train on", "validation": "for validation", "test": "for test"}


def _n(items: TaskItems, split: str) -> int:
    return len(getattr(items, split))


def _estimate_s(session: Session, task: Task, candidates: Candidates, items: TaskItems) -> float:
    """Estimate the seconds of a comparison of these candidates on this task."""
    recipes = {name: Recipe.model_validate(dict(recipe)) for name, recipe in candidates.items()}
    experiment = session.experiment.model_copy(update={"target": task})
    target = join_items(task, "target", task.name, items)
    narrow = replace(session, experiment=experiment, target=target).with_candidates(recipes)
    return sum(estimate_seconds(narrow, estimate_work(narrow, list(recipes))).values())


def _spread(whole: TaskItems, limits: Mapping[str, int]) -> TaskItems:
    """Take as many rows of each split as its limit allows, from all over the file: as long as those drawn."""
    rows = {split: getattr(whole, split) for split in limits}
    return replace(whole, **{split: rows[split][:: -(-len(rows[split]) // n)] for split, n in limits.items()})


def _limit_task(task: Task, limits: Mapping[str, int]) -> Task:
    data = task.data.model_copy(update={"limits": ItemLimits(**limits)})
    return task.model_copy(update={"data": data})


def _take_first_of_sweep(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Train with the first value of each swept parameter, the most careful one."""
    if "sweep" not in recipe:
        return dict(recipe)
    first = {key: values[0] for key, values in recipe["sweep"].items()}
    kept = {key: value for key, value in recipe.items() if key != "sweep"}
    return {**kept, "params": {**recipe.get("params", {}), **first}}


def _list_unused_values(candidates: Candidates) -> list[str]:
    return [
        f"{key} {values[0]:g} alone instead of {_join(values)}"
        for recipe in candidates.values()
        for key, values in recipe.get("sweep", {}).items()
    ]


def _join(values: Sequence[float]) -> str:
    return " and ".join(f"{value:g}" for value in values)


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
