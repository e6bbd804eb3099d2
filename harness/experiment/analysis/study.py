"""Study: what is stored of one experiment, from which every verdict on its runs is made.

Invariant: it names what there is and reads each thing once; it holds no model and no data, so the same store
and the same file give the same verdicts, whichever command opens them.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from harness import gating, plugins, store
from harness.config import CommandLine, LoadedExperiment
from harness.evaluation.lm_eval import LmEvalTask
from harness.evaluation.session import Session
from harness.experiment.preparation import find_lm_eval_tasks
from harness.experiment.runs.stored_rows import Reader, StoredRows, find_measured_arm
from harness.gating import AdmittedTasks, ComparedArms, Measurement
from harness.metrics import Metric, load_metrics
from harness.models.openai_api import WHO_ANSWERS
from harness.records import Run, canonical_json
from harness.spec import Experiment, Recipe, Role, Task
from harness.store import Store

_PLAIN = CommandLine()

Weights = Mapping[str, Mapping[str, float]]


class SuiteTask(NamedTuple):
    """One task of a suite, as rules tell tasks apart."""

    task: Task
    role: Role
    suite: str


class ArmsOfPair(NamedTuple):
    """Both arms of a run and a baseline, how they compare, and notes on what was left out of them."""

    measured: list[Measurement]
    compared: ComparedArms
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Study:
    """An experiment as its runs are judged, with its store and the metrics of each task.

    `weights` maps a run to the inclusion weights of the items of tasks that were sampled for it, `base_arm`
    to its base's rows of each task, as far as an open session knows them. `first_base` is the digest of the
    base that the first champion was judged against, empty without one. `typed` is what a next step
    repeats, `selected` its candidates, and `settled` maps runs to the verdict of an interim analysis.
    `compared`, `admitted` and `untrained` keep what verdicts share.
    """

    experiment: Experiment
    store: Store
    metrics: Mapping[str, Mapping[str, Metric]]
    rows: StoredRows
    weights: Callable[[Run], Weights]
    base_arm: Callable[[Run], Mapping[str, str]] = lambda run: {}
    first_base: str = ""
    typed: CommandLine = _PLAIN
    selected: tuple[str, ...] = ()
    compared: dict[tuple[str, ...], ArmsOfPair] = field(default_factory=dict)
    admitted: dict[tuple[str, ...], AdmittedTasks] = field(default_factory=dict)
    untrained: dict[tuple[str, str], Run | None] = field(default_factory=dict)
    settled: Mapping[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """The folder of the experiment's file."""
        return self.store.folder.parent

    @property
    def seed(self) -> int:
        """The seed by which tasks are cut into halves."""
        return self.experiment.seeds[0]

    @property
    def target(self) -> Task:
        """The target that decides."""
        return self.experiment.target

    def primary(self, task: Task) -> Metric:
        """Return the metric that decides on a task."""
        return self.metrics[task.name][task.primary_metric]

    def suite_tasks(self) -> Iterator[SuiteTask]:
        """Yield the tasks of all suites, in the order of the file."""
        for suite in self.experiment.suites:
            yield from (SuiteTask(task, suite.role, suite.name) for task in suite.tasks)

    def is_judged(self, task: Task) -> bool:
        """Tell whether the policy judges a task, or only reports it."""
        return gating.is_judged(task.name, self.experiment.gate)


def load_study(loaded: LoadedExperiment) -> Study:
    """Return the study of an experiment's stored runs, as its file is written now.

    Metrics of tasks of lm-eval come with `add_lm_eval`, for lm-eval reads all their items.
    """
    experiment, at = loaded.experiment, Store(loaded.folder / "runs")
    return Study(
        experiment,
        at,
        {task.name: load_metrics(task) for task in experiment.tasks if not task.lm_eval},
        StoredRows(at, texts=experiment.gate.mode_collapse is not None),
        lambda run: {},
        first_base=store.find_first_base(loaded.folder, experiment.target.name),
        typed=loaded.typed,
        selected=loaded.selected,
    )


def add_lm_eval(study: Study) -> tuple[Study, Mapping[str, LmEvalTask]]:
    """Return a study that knows its tasks of lm-eval, and what lm-eval says of these."""
    experiment, catalogue = find_lm_eval_tasks(study.experiment)
    if not catalogue:
        return study, catalogue
    metrics = {**study.metrics, **{name: found.metrics for name, found in catalogue.items()}}
    return replace(study, experiment=experiment, metrics=metrics), catalogue


def study_session(session: Session, reader: Reader) -> Study:
    """Return the study of an open experiment; a run that is settled keeps the items of its own analysis."""
    current = {m.task.name: m.weights for m in session.suites if m.weights is not None}
    return Study(
        session.experiment,
        session.store,
        {m.task.name: m.metrics for m in session.tasks},
        reader,
        partial(_find_weights, session, current),
        lambda run: find_measured_arm(session, session.candidates[run.candidate].base) or {},
        store.find_first_base(session.store.folder.parent, session.target.task.name),
        settled=session.settled,
    )


def _find_weights(session: Session, current: Weights, run: Run) -> Weights:
    settled = store.read_sampling(session.store, run.run_id) if run.run_id in session.settled else None
    return settled.weights if settled else current


def is_target_only(method: str, recipe: Mapping[str, Any]) -> bool:
    """Tell whether a candidate is measured on the target only: a baseline with weights of its own."""
    return recipe.get("role") == "baseline" and plugins.find_method(method).tunes


def is_of_recipe(run: Run, recipe: Recipe) -> bool:
    """Tell whether a run is of a recipe as it is written: of a search of prompts, with the one it chose."""
    try:
        own = Recipe.model_validate(run.recipe)
    except ValidationError:  # of another version, or damaged
        return False
    if recipe.tried and not plugins.find_method(recipe.method).trains and _has_tried(run, recipe):
        recipe = next((recipe.with_prompt(one.params) for one in run.training.sweep if one.chosen), recipe)
    now = Recipe.model_validate(recipe.stored_form())
    return _strip_unasked(own) == _strip_unasked(now)


def _has_tried(run: Run, recipe: Recipe) -> bool:
    """Tell whether a run's prompt was chosen among those of a recipe: all of a sweep, some of a search."""
    params = [one.params for one in run.training.sweep]
    if recipe.sweep:
        return set(map(canonical_json, params)) == set(map(canonical_json, recipe.points))
    known = all(of.get(name) in values for of in params for name, values in recipe.search.items())
    return known and len(params) <= recipe.trials


def _strip_unasked(recipe: Recipe) -> Recipe:
    """Return a recipe without what changes no answer of an endpoint: prices, patience, the key's variable."""
    if not plugins.find_method(recipe.method).is_remote:
        return recipe
    named = {name: recipe.params[name] for name in WHO_ANSWERS if name in recipe.params}
    return recipe.model_copy(update={"params": named})
