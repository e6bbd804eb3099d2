"""Study: the stored results of one experiment, with people's labels, from which all verdicts are made.

Invariant: it has no model and no data, so the same store and file give the same verdicts. Labels correct a
judge's score and paired difference before any decision.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from pydantic import ValidationError

from harness import plugins, store
from harness.analysis.admission import AdmittedTasks, Measurement
from harness.analysis.candidate_facts import CandidateFacts, best_untrained
from harness.analysis.comparison import correct_estimate, labels_missing
from harness.analysis.economics import apply_budgets
from harness.analysis.estimators import is_judge
from harness.analysis.gating import ComparedArms
from harness.analysis.labelled_answers import Labels, MetricCalibration, calibrate, latest_labels
from harness.analysis.verdict import is_judged
from harness.config import CommandLine, LoadedExperiment, current_labels
from harness.evaluation.candidates import base_weights
from harness.evaluation.lm_eval import LmEvalTask
from harness.evaluation.row_sets import suite_sets
from harness.evaluation.session import MeasuredTask, Session
from harness.experiment.candidate_result import facts_of, rows_by_slice
from harness.experiment.preparation import find_lm_eval_tasks
from harness.experiment.stored_rows import EdgeCases, Facts, Reader, Runs, StoredRows
from harness.metrics import Metric, load_metrics
from harness.models.openai_api import WHO_ANSWERS
from harness.plugins import find_method
from harness.records import Run, SampleResult, canonical_json
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
    """Both arms of a run and a baseline, their comparisons, and notes on what was left out."""

    measured: list[Measurement]
    compared: ComparedArms
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Study:
    """An experiment as its runs are judged, with its store and the metrics of each task.

    `weights` maps a run to the inclusion weights of sampled items, `base_arm` to its base's rows by task.
    `first_base` is the digest of the base against which the first champion was judged, empty without one.
    `typed` are the options that next commands repeat. `settled` maps runs to an interim analysis's verdict.
    `compared`, `admitted` and `untrained` cache what verdicts share.
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
        return is_judged(task.name, self.experiment.gate)


def load_study(loaded: LoadedExperiment) -> Study:
    """Return the study of stored runs, as the file is written now; `add_lm_eval` adds metrics of lm-eval."""
    experiment, at = loaded.experiment, Store(loaded.folder / "runs")
    return Study(
        experiment,
        at,
        {task.name: load_metrics(task) for task in experiment.tasks if not task.lm_eval},
        StoredRows(at, texts=experiment.gate.mode_collapse is not None),
        weights=lambda run: {},
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
    """Return the study of an open experiment; settled runs keep the items of their analysis."""
    current = {m.task.name: m.weights for m in session.suites if m.weights is not None}

    def find_weights(run: Run) -> Weights:
        settled = store.read_sampling(session.store, run.run_id) if run.run_id in session.settled else None
        return settled.weights if settled else current

    def find_base_arm(run: Run) -> dict[str, str]:
        # Rows of the base's capability suite; none unless it is completely measured.
        sets = suite_sets(session, base_weights(session.candidates[run.candidate].base))
        is_whole = all(rows.is_there(session.store) for rows in sets)
        return {rows.measured.task.name: rows.identity.digest for rows in sets} if is_whole else {}

    return Study(
        session.experiment,
        session.store,
        {m.task.name: m.metrics for m in session.tasks},
        reader,
        find_weights,
        find_base_arm,
        store.find_first_base(session.store.folder.parent, session.target.task.name),
        settled=session.settled,
    )


def is_target_only(method: str, recipe: Mapping[str, Any]) -> bool:
    """Tell whether a candidate is measured only on the target: a baseline with its own weights."""
    return recipe.get("role") == "baseline" and plugins.find_method(method).tunes


def is_of_recipe(run: Run, recipe: Recipe, at: Store) -> bool:
    """Tell whether a run belongs to a recipe as written; for a prompt search, with the chosen prompt."""
    try:
        own = Recipe.model_validate(run.recipe)
    except ValidationError:  # of another version, or damaged
        return False
    if recipe.tried and not plugins.find_method(recipe.method).trains:
        # Its prompt was chosen among those of the recipe: all of a sweep, some of a search.
        params = [one.params for one in run.training.sweep]
        if recipe.sweep:
            is_tried = set(map(canonical_json, params)) == set(map(canonical_json, recipe.points))
        else:
            known = (of.get(name) in values for of in params for name, values in recipe.search.items())
            is_tried = len(params) <= recipe.trials and all(known)
        chosen = (recipe.with_prompt(one.params) for one in run.training.sweep if one.chosen)
        recipe = next(chosen, recipe) if is_tried else recipe
    return _strip_unasked(recipe).is_stored_as(_strip_unasked(own).stored_form(), at.folder.parent)


def _strip_unasked(recipe: Recipe) -> Recipe:
    if not plugins.find_method(recipe.method).is_remote:
        return recipe
    named = {name: recipe.params[name] for name in WHO_ANSWERS if name in recipe.params}
    return recipe.model_copy(update={"params": named})


def describe_reached(session: Session, reader: Reader, runs: Runs) -> list[CandidateFacts]:
    """Return the runs' own results, corrected by labels, by which validation chooses."""
    measured = (facts_of(session, reader, run) for run in runs)
    facts = apply_budgets(measured, session.experiment.decide)
    study, metric, task = study_session(session, reader), session.target.primary, session.target.task
    if not is_judge(metric.name):
        return list(facts)
    labels = judge_labels(study.store, task, metric.name)
    corrected = [
        correct_reached(metric, f, study.rows.with_drawn(run, task), labels, reader.edge_cases)
        if f.target
        else f
        for f, run in zip(facts, runs, strict=True)
    ]
    by_name = {run.candidate: run for run in runs if run.state == "done"}
    best = by_name.get(best_untrained(corrected) or "")
    missing: dict[str, int] = {}  # a recipe is as open as the seed that has the fewest labels
    for f, run in zip(corrected, runs, strict=True):
        if f.target:
            lacks = count_missing(study, *filter(None, (run, best)))
            missing[f.name] = max(missing.get(f.name, 0), lacks)
    return [replace(f, labels_missing=missing.get(f.name, 0)) for f in corrected]


def correct_reached(
    metric: Metric,
    f: CandidateFacts,
    rows: Sequence[SampleResult],
    labels: Labels,
    edge_cases: EdgeCases = MappingProxyType({}),
) -> CandidateFacts:
    """Correct a run's scores on test by labels, and its validation score by the judge's error on test.

    Otherwise a judge that people refute on test would still choose on validation.
    """
    if f.target is None:
        return f
    target, validation = correct_estimate(metric, f.target, rows, labels), f.validation
    if target is not f.target and validation is not None:
        validation = min(max(validation + target.score - f.target.score, 0.0), 1.0)
    parts = rows_by_slice(rows, edge_cases)
    slices = {
        name: correct_estimate(metric, found, parts.get(name, []), labels) for name, found in f.slices.items()
    }
    return replace(f, target=target, validation=validation, slices=slices)


def judge_labels(at: Store, task: Task, metric: str) -> Labels:
    """Return people's labels of answers to a target by a judge's metric; none for any other metric."""
    return read_labels(at, task, metric) if is_judge(metric) else {}


def read_labels(at: Store, task: Task, metric: str) -> Labels:
    """Read people's latest labels of answers to a target by a metric, as its rubric is now."""
    return latest_labels(current_labels(store.list_labels(at, task.name), task), metric)


def count_missing(study: Study, *runs: Run) -> int:
    """Count the items that lack labels for any run before a judge may decide; 0 if it may."""
    if study.experiment.gate.uncalibrated_judge == "allow":
        return 0
    metric = study.primary(study.target).name
    labels = judge_labels(study.store, study.target, metric)
    return labels_missing(metric, labels, *(study.rows.cut(run, study.target) for run in runs))


def calibrations(
    target: MeasuredTask, reader: Reader, runs: Runs, facts: Facts
) -> tuple[MetricCalibration, ...]:
    """Compare the target's labelled metrics with labels; runs are paired with the best untrained one."""
    found = current_labels(store.list_labels(reader.at, target.task.name), target.task)
    if not found:
        return ()
    done = {f.label: run for f, run in zip(facts, runs, strict=True) if f.state == "done"}
    arms = {label: reader.with_drawn(run, target.task) for label, run in done.items()}
    best = best_untrained(facts)
    base = next((f.label for f in facts if f.name == best and f.label in arms), None)
    pairs = [(f.label, base) for f in facts if base and f.label in arms and f.label != base]
    # A judge may favour answers of its own base; an endpoint's base is unknown.
    here = {label: run.base_digest for label, run in done.items() if not find_method(run.method).is_remote}
    made = []
    for metric in target.metrics.values():
        if calibration := calibrate(metric, arms, pairs, found):
            judged = target.judged.get(calibration.metric)
            sources = [judge.weights.source for judge in judged.judges if judge.weights] if judged else []
            bases = {source.weights_digest for source in sources if source}
            own = tuple(label for label, base_digest in here.items() if base_digest in bases)
            made.append(replace(calibration, own=own))
    return tuple(made)
