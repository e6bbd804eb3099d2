"""Scope of a run: a limit of test items, a quick smoke or fewer items, and the experiment cut to it."""

from typing import NamedTuple

from harness import plugins
from harness.errors import Problem, UserError
from harness.records import FEWER
from harness.spec import Experiment, ItemLimits, Recipe, Suite, Task

SMOKE_LIMITS = ItemLimits(train=64, validation=16, test=24)
SMOKE_ITEMS, SMOKE_PAIRS = 12, 32


class Scope(NamedTuple):
    """Part of an experiment that is run: `limit` test items of each task, a quick smoke, or fewer items.

    A `dry_run` runs none of it, and loads no model. `renew_probe` measures the machine again. `embeddings`
    names a sentence-transformers model by which contamination is looked for as well.
    """

    limit: int | None = None
    quick: bool = False
    fewer: bool = False
    dry_run: bool = False
    renew_probe: bool = False
    embeddings: str = ""

    @property
    def smoke(self) -> bool:
        """Whether the numbers are no evidence."""
        return self.quick or self.limit is not None


def narrow(experiment: Experiment, scope: Scope) -> Experiment:
    """Return the experiment with fewer items, and for a smoke with a short training as well.

    A name of its own keeps such runs and reports apart from the full ones; which items a `fewer` run asks
    is known once the base is measured.
    """
    if scope.fewer:
        experiment = experiment.model_copy(update={"name": f"{experiment.name}{FEWER}"})
    if scope.quick:
        candidates = {name: _short(recipe) for name, recipe in experiment.candidates.items()}
        experiment = _cap(experiment, SMOKE_LIMITS, SMOKE_ITEMS).model_copy(update={"candidates": candidates})
    if scope.limit:
        of, name = ItemLimits(test=scope.limit), f"{experiment.name}-limit{scope.limit}"
        experiment = _cap(experiment, of, scope.limit).model_copy(update={"name": name})
    return experiment


def _cap(experiment: Experiment, most: ItemLimits, n: int) -> Experiment:
    """Lower the limits of an experiment's targets, and those of its suites' tasks to n items."""
    target, *more = (_cap_target(one, most) for one in (experiment.target, *experiment.more_targets))
    suites = tuple(_cap_suite(suite, n) for suite in experiment.suites)
    return experiment.model_copy(update={"target": target, "more_targets": tuple(more), "suites": suites})


def refuse_two_ways(scope: Scope) -> None:
    """Refuse a cut of the items from which more would be drawn: the delta is that of whole tasks."""
    given = [name for name, there in (("--quick", scope.quick), ("--limit", scope.limit)) if there]
    if scope.fewer and given:
        expected = "whole tasks, from which the items are sampled"
        step = "--all-items, or leave the other out"
        raise UserError(Problem("--sequential", f"{' and '.join(given)} as well", expected, step))


def _cap_target(task: Task, most: ItemLimits) -> Task:
    """Lower the limits of a target's splits where they are higher, or where there are none."""
    own, caps = task.data.limits.model_dump(), most.model_dump()
    known = {split: [n for n in (own[split], caps[split]) if n is not None] for split in own}
    limits = ItemLimits(**{split: min(of, default=None) for split, of in known.items()})
    return task.model_copy(update={"data": task.data.model_copy(update={"limits": limits})})


def _cap_suite(suite: Suite, n: int) -> Suite:
    tasks = tuple(t.model_copy(update={"limit": min(n, t.limit or n)}) for t in suite.tasks)
    return suite.model_copy(update={"tasks": tasks})


def _short(recipe: Recipe) -> Recipe:
    """Train for one epoch where a method has epochs."""
    if not plugins.method(recipe.method).trains:
        return recipe
    return recipe.model_copy(update={"params": {**recipe.params, "num_train_epochs": 1.0}})
