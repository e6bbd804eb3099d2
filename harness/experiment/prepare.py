"""From harness.yaml to a bench: data read and checked, machine probed, base model found.

Invariant: everything that can be wrong with the files is said at once, before a model is
loaded or anything is written.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

from harness import capability
from harness.config import Loaded
from harness.data import TaskItems, load_task, suite_leaks
from harness.embedded import ModelSource, expected_s, has_chat_template, resolve
from harness.errors import Problem, UserError
from harness.estimate import Work
from harness.machine import probe
from harness.plugins import load as load_plugin
from harness.progress import Progress
from harness.run import (
    SPLITS,
    Bench,
    Measured,
    base_weights,
    measured,
    suite_sets,
    target_sets,
    training_work,
    work_of,
)
from harness.spec import Experiment, Limits, Recipe, Role, Suite, Task
from harness.store import Store

SMOKE_LIMITS = Limits(train=64, validation=16, test=24)
SMOKE_ITEMS = 12
BASE_ARM = "general ability of the base"


class Scope(NamedTuple):
    """How much of an experiment is run: `limit` test items of each task, or a quick smoke."""

    limit: int | None = None
    quick: bool = False


def narrowed(experiment: Experiment, scope: Scope) -> Experiment:
    """Return the experiment with fewer items, and for a smoke with a short training as well."""
    if scope.quick:
        target = _with_limits(experiment.target, SMOKE_LIMITS)
        suites = tuple(_capped(suite, SMOKE_ITEMS) for suite in experiment.suites)
        candidates = {name: _short(recipe) for name, recipe in experiment.candidates.items()}
        return experiment.model_copy(update={"target": target, "suites": suites, "candidates": candidates})
    if scope.limit:
        old = experiment.target.data.limits
        limits = Limits(
            train=old.train, validation=old.validation, test=min(scope.limit, old.test or scope.limit)
        )
        suites = tuple(_capped(suite, scope.limit) for suite in experiment.suites)
        # A name of its own keeps limited runs and reports apart from the full ones.
        name = f"{experiment.name}-limit{scope.limit}"
        target = _with_limits(experiment.target, limits)
        return experiment.model_copy(update={"name": name, "target": target, "suites": suites})
    return experiment


def bench_of(loaded: Loaded, scope: Scope, progress: Progress) -> Bench:
    """Read all data, probe the machine, find the base model.

    Raises:
        UserError: with the problems of all tasks at once.
    """
    experiment = narrowed(loaded.experiment, scope)
    _refuse_without_test(experiment)
    experiment, catalogue = _with_lm_eval(experiment)
    seed = experiment.seeds[0]
    named: list[tuple[Role, str, Task]] = [("target", experiment.target.name, experiment.target)]
    named += [(suite.role, suite.name, task) for suite in experiment.suites for task in suite.tasks]
    items = _load_all((task for _, _, task in named if not task.lm_eval), seed)
    _refuse_leaks(experiment.target, items, catalogue)
    target, *suites = (
        of_lm_eval(catalogue[task.name], role, suite)
        if task.lm_eval
        else measured(task, role, suite, items[task.name])
        for role, suite, task in named
    )
    machine = probe(experiment.device, experiment.precision)
    with progress.stage(f"getting {experiment.base_model} ready, once", expected_s(experiment.base_model)):
        source = resolve(experiment.base_model)
    _refuse_without_template(experiment, source)
    folder = loaded.folder / "runs" / "smoke" if scope.quick else loaded.folder / "runs"
    return Bench(
        experiment, Store(folder), source, machine, target, tuple(suites), progress, source.n_parameters
    )


def planned(bench: Bench, selected: Collection[str]) -> dict[str, Work]:
    """Estimate what each selected candidate trains, reads and generates, as if nothing were there yet."""
    base, made = base_weights(bench), set(selected)
    out = {BASE_ARM: _suites_work(bench)}
    for name in selected:
        recipe = bench.experiment.candidates[name]
        trains = _training_work(bench, recipe.weights_of or name)
        n_seeds = len(bench.experiment.seeds) if trains.trained else 1
        if recipe.weights_of in made:
            trains = Work()
        made.add(recipe.weights_of or name)
        work = (
            Work()
            if recipe.method == "classifier"
            else sum((work_of(rows.job()) for rows in target_sets(bench, recipe, base, 0)), Work())
        )
        once = work + trains + (_suites_work(bench) if trains.trained else Work())
        out[name] = sum([once] * n_seeds, Work())
    return out


def _training_work(bench: Bench, name: str) -> Work:
    recipe = bench.experiment.candidates[name]
    return training_work(bench.target.items.train, _params(recipe))


def _suites_work(bench: Bench) -> Work:
    return sum((work_of(rows.job()) for rows in suite_sets(bench, base_weights(bench))), Work())


def _params(recipe: Recipe) -> Any:
    return load_plugin("methods", recipe.method).Params(**recipe.params)


def _load_all(tasks: Iterable[Task], seed: int) -> dict[str, TaskItems]:
    problems: list[Problem] = []
    items: dict[str, TaskItems] = {}
    for task in tasks:
        try:
            items[task.name] = load_task(task, seed)
        except UserError as error:
            problems.extend(error.problems)
    if problems:
        raise UserError(problems)
    return items


def _with_lm_eval(experiment: Experiment) -> tuple[Experiment, dict[str, capability.Found]]:
    """Find the suites' tasks of lm-eval, and fill in what lm-eval says of them."""
    asked = [task for suite in experiment.suites for task in suite.tasks if task.lm_eval]
    if not asked:
        return experiment, {}
    found = capability.load(asked, capability.datasets_folder(experiment.datasets_dir))
    suites = tuple(
        suite.model_copy(update={"tasks": tuple(found[t.name].task if t.lm_eval else t for t in suite.tasks)})
        for suite in experiment.suites
    )
    return experiment.model_copy(update={"suites": suites}), found


def of_lm_eval(found: capability.Found, role: Role, suite: str) -> Measured:
    """Join a task of lm-eval with its documents and how they are asked."""
    versions = dict.fromkeys(SPLITS, found.version)
    return Measured(found.task, role, suite, found.items, versions, found.metrics, found.evaluate)


def _refuse_without_test(experiment: Experiment) -> None:
    named = [experiment.target, *(task for suite in experiment.suites for task in suite.tasks)]
    problems = [
        Problem(f"task {task.name}", "no data.test", "items to evaluate", "name a file under data: {test: …}")
        for task in named
        if task.data.test is None and not (task.lm_eval and task is not experiment.target)
    ]
    if experiment.target.data.train is None:
        problems.append(
            Problem(
                f"task {experiment.target.name}",
                "no data.train",
                "examples to train on and to take shots from",
                "name a file under data: {train: …}",
            )
        )
    if problems:
        raise UserError(problems)


def _refuse_without_template(experiment: Experiment, source: ModelSource) -> None:
    tasks = [experiment.target, *(task for suite in experiment.suites for task in suite.tasks)]
    in_chat = [task.name for task in tasks if task.chat_template and task.kind != "bits_per_byte"]
    if in_chat and not has_chat_template(source.path):
        raise UserError(
            Problem(
                f"base_model {source.name}",
                f"a tokenizer without a chat template, and tasks asked in chat: {', '.join(in_chat)}",
                "an instruction-tuned model",
                "choose an instruct model, or set chat_template: false on these tasks",
            )
        )


def _refuse_leaks(
    target: Task, items: Mapping[str, TaskItems], catalogue: Mapping[str, capability.Found]
) -> None:
    others = {name: found.test for name, found in items.items() if name != target.name}
    others |= {name: found.texts for name, found in catalogue.items()}
    if problems := suite_leaks([*items[target.name].train, *items[target.name].pairs], others):
        raise UserError(problems)


def _with_limits(task: Task, limits: Limits) -> Task:
    return task.model_copy(update={"data": task.data.model_copy(update={"limits": limits})})


def _capped(suite: Suite, n: int) -> Suite:
    tasks = tuple(t.model_copy(update={"limit": min(n, t.limit or n)}) for t in suite.tasks)
    return suite.model_copy(update={"tasks": tasks})


def _short(recipe: Recipe) -> Recipe:
    """Train for one epoch where a method has epochs."""
    fields = load_plugin("methods", recipe.method).Params.model_fields
    if "num_train_epochs" not in fields:
        return recipe
    return recipe.model_copy(update={"params": {**recipe.params, "num_train_epochs": 1.0}})
