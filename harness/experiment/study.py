"""Study: the stored results of one experiment, with people's labels, from which all verdicts are made.

Invariant: it uses neither a model nor data files, so the same store and file give the same verdicts. Labels
correct a judge's score and paired difference before any decision.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from operator import attrgetter
from pathlib import Path
from statistics import fmean
from types import MappingProxyType
from typing import Any, NamedTuple

from pydantic import ValidationError

from harness import plugins, store
from harness.analysis import comparison
from harness.analysis.admission import AdmittedTasks, Measurement
from harness.analysis.answers import list_each_answer
from harness.analysis.candidate_facts import (
    AnswerFacts,
    CandidateFacts,
    UnderLoad,
    UnreadAnswers,
    best_untrained_facts,
    facts_without_rows,
)
from harness.analysis.comparison import correct_estimate, estimate, labels_missing
from harness.analysis.economics import apply_budgets
from harness.analysis.estimators import is_judge
from harness.analysis.gate_verdict import ComparedArms
from harness.analysis.human_preferences import (
    AnswerPairs,
    Wins,
    map_counted_shares,
    wins_by_judge,
    wins_by_people,
)
from harness.analysis.judge_correction import JudgedPair, bias_of
from harness.analysis.people_labels import Labels, latest_labels
from harness.analysis.verdict import is_judged
from harness.config import CommandLine, LoadedExperiment, current_labels
from harness.data import Split
from harness.errors import CandidateFailed, IncompatibleRuns
from harness.evaluation.judges import read_stored_grades
from harness.evaluation.lm_eval.bridge import LmEvalTask
from harness.evaluation.stored_scores import answers_differ, map_shown_pairs, pair_rows, preferences
from harness.experiment.preparation import find_lm_eval_tasks
from harness.experiment.stored_rows import EdgeCases, Rows, StoredRows, rows_by_slice
from harness.metrics import Metric, load_metrics, refuse_goals
from harness.models.openai_api import WHO_ANSWERS, is_private
from harness.records import Run, TokenCounts, canonical_json
from harness.spec import PEOPLE, Experiment, Recipe, Role, Task, metric_name
from harness.store import Store

_PLAIN, _NONE = CommandLine(), MappingProxyType[str, frozenset[str]]({})

TaskWeights = Mapping[str, Mapping[str, float]]


class SuiteTask(NamedTuple):
    """One task of a suite, with its suite's role and name."""

    task: Task
    role: Role
    suite: str


class ArmsOfPair(NamedTuple):
    """Both arms of a run and a baseline, their comparisons, and notes on omitted items."""

    measured: list[Measurement]
    compared: ComparedArms
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Study:
    """An experiment with its store and the metrics of each task, as needed to judge runs.

    `weights` maps a run to the inclusion weights of sampled items, `base_arm` to its base's rows by task.
    `first_base` is the digest of the base against which the first champion was judged, empty without one.
    `typed` are the options that suggested commands repeat. `settled` maps runs to an interim analysis's
    verdict. `compared`, `admitted` and `untrained` cache results that verdicts share.
    """

    experiment: Experiment
    store: Store
    metrics: Mapping[str, Mapping[str, Metric]]
    rows: StoredRows
    weights: Callable[[Run], TaskWeights]
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
    """Return the study of stored runs by the current file; `add_lm_eval` adds the metrics of lm-eval."""
    experiment, at = loaded.experiment, Store(loaded.folder / "runs")
    metrics = {task.name: load_metrics(task) for task in experiment.tasks if not task.lm_eval}
    target = experiment.target
    refuse_goals(experiment.gate.target, metrics[target.name][target.primary_metric])
    return Study(
        experiment,
        at,
        metrics,
        StoredRows(at, texts=experiment.gate.mode_collapse is not None),
        weights=lambda run: {},
        first_base=store.find_first_base(loaded.folder, experiment.target.name),
        typed=loaded.typed,
        selected=loaded.selected,
    )


def add_lm_eval(study: Study) -> tuple[Study, Mapping[str, LmEvalTask]]:
    """Return the study with its lm-eval tasks filled in, and these tasks by name."""
    experiment, catalogue = find_lm_eval_tasks(study.experiment)
    if not catalogue:
        return study, catalogue
    metrics = {**study.metrics, **{name: task.metrics for name, task in catalogue.items()}}
    return replace(study, experiment=experiment, metrics=metrics), catalogue


def is_target_only(method: str, recipe: Mapping[str, Any]) -> bool:
    """Tell whether a candidate is measured only on the target: a baseline with its own weights."""
    return recipe.get("role") == "baseline" and plugins.find_method(method).tunes


def is_of_recipe(run: Run, recipe: Recipe, at: Store) -> bool:
    """Tell whether a run belongs to a recipe as written; for a prompt search, with the chosen prompt."""
    try:
        stored_recipe = Recipe.model_validate(run.recipe)
    except ValidationError:  # from another version, or damaged
        return False
    if recipe.tried and not plugins.find_method(recipe.method).trains:
        # Its prompt was selected among the recipe's: a sweep tried all, a search some.
        params = [trial.params for trial in run.training.sweep]
        if recipe.sweep:
            is_tried = set(map(canonical_json, params)) == set(map(canonical_json, recipe.points))
        else:
            fits = (point.get(name) in values for point in params for name, values in recipe.search.items())
            is_tried = len(params) <= recipe.trials and all(fits)
        chosen = (recipe.with_prompt(trial.params) for trial in run.training.sweep if trial.chosen)
        recipe = next(chosen, recipe) if is_tried else recipe
    return _strip_unasked(recipe).is_stored_as(_strip_unasked(stored_recipe).stored_form(), at.folder.parent)


def _strip_unasked(recipe: Recipe) -> Recipe:
    if not plugins.find_method(recipe.method).is_remote:
        return recipe
    server_params = {name: recipe.params[name] for name in WHO_ANSWERS if name in recipe.params}
    return recipe.model_copy(update={"params": server_params})


def correct_reached(
    metric: Metric, f: CandidateFacts, rows: Rows, labels: Labels, edge_cases: EdgeCases = _NONE
) -> CandidateFacts:
    """Correct a run's test scores by labels, and its validation score by the judge's error on test.

    Otherwise a judge that people contradict on test would still choose on validation.
    """
    if f.target is None:
        return f
    target, validation = correct_estimate(metric, f.target, rows, labels), f.validation
    if target is not f.target and validation is not None:
        validation = min(max(validation + target.score - f.target.score, 0.0), 1.0)
    parts = rows_by_slice(rows, edge_cases)
    slices = {n: correct_estimate(metric, score, parts.get(n, []), labels) for n, score in f.slices.items()}
    return replace(f, target=target, validation=validation, slices=slices)


def judge_labels(at: Store, task: Task, metric: str) -> Labels:
    """Return people's labels of answers to a target by a judge's metric; empty for other metrics."""
    return read_labels(at, task, metric) if is_judge(metric) else {}


def read_labels(at: Store, task: Task, metric: str) -> Labels:
    """Read people's latest labels of answers to a target by a metric, for its current rubric."""
    return latest_labels(current_labels(store.list_labels(at, task.name), task), metric)


def count_missing(study: Study, *runs: Run) -> int:
    """Count the items of any run that need labels before a judge may decide; 0 if it may."""
    if study.experiment.gate.uncalibrated_judge == "allow":
        return 0
    metric = study.primary(study.target).name
    labels = judge_labels(study.store, study.target, metric)
    return labels_missing(metric, labels, *(study.rows.cut(run, study.target) for run in runs))


def is_answered(study: Study, run: Run, task: Task, split: Split = "test") -> bool:
    """Tell whether a run answered any item of a target."""
    has_rows = f"{task.name}/{split}" in run.rows
    return has_rows and any(row.status != "error" for row in study.rows.cut(run, task, split))


def is_better_on_validation(study: Study, run: Run, base: Run, task: Task) -> bool:
    """Tell whether a run scores higher than another on the validation rows of a target."""
    if not all(is_answered(study, arm, task, "validation") for arm in (base, run)):
        return False
    metric, rows = study.primary(task), study.rows
    old, new = (comparison.estimate(metric, rows.cut(arm, task, "validation")).score for arm in (base, run))
    return metric.unit.sign * (new - old) > 0


def find_prompt(study: Study, runs: Iterable[Run], run: Run) -> Run | None:
    """Find the plain prompt among runs: preferably one on the run's base, else the first."""
    recipes = study.experiment.candidates
    prompts = [r for r in runs if is_prompt(r) and recipes[r.candidate].role != "baseline"]
    prompts.sort(key=lambda prompt: prompt.base_digest != run.base_digest)
    return next(iter(prompts), None)


def answers_on_target(study: Study, run: Run) -> tuple[Rows | None, Rows]:
    """Return the target's test answers of a run's base (None if unknown), and of the run.

    All sampled answers to an item are included if both were sampled in the same way.
    """
    task, rows = study.experiment.target, study.rows
    settings, version = attrgetter("prompting", "answer", "decoding"), _scored_by(study, run)[0]
    newest_first = reversed(store.list_runs(study.store, study.experiment.name))
    finished = (stored_run for stored_run in newest_first if stored_run.state == "done")
    on_base = (r for r in finished if r.weights_digest == r.base_digest == run.base_digest)
    stored = [stored_run for stored_run in on_base if _scored_by(study, stored_run)[0] == version]
    alike_runs = [stored_run for stored_run in stored if settings(stored_run) == settings(run)]
    key, plain = f"{task.name}/test", next(iter([*alike_runs, *filter(is_prompt, stored)]), None)
    are_drawn = bool(run.decoding) and (plain is None or plain.decoding == run.decoding)

    def answers(answered: Run) -> Rows:
        answer_rows = rows.with_drawn(answered, task)
        return (list_each_answer(answer_rows, rows.drawn(answered, key)) if are_drawn else []) or answer_rows

    return answers(plain) if plain else None, answers(run)


def is_prompt(run: Run) -> bool:
    """Tell whether a run is the plain prompt on the base's weights."""
    plain = run.prompting == "zero_shot" and run.answer == "generate"
    return plain and plugins.find_method(run.method).keeps_base


def best_untrained_run(runs: Iterable[Run], facts: Iterable[CandidateFacts]) -> Run | None:
    """Return the run of the best untrained candidate; of several seeds the best on validation."""
    best = best_untrained_facts(facts)
    return next((run for run in runs if best and run.run_id == best.run_id), None)


def find_best_untrained(study: Study, run: Run) -> Run | None:
    """Find the run of the candidate that the decision takes as the best untrained one.

    Runs with other items or grades than this run's are older than a change of the files, and do not count.
    """
    scored_by = _scored_by(study, run)
    if scored_by not in study.untrained:
        experiment, task = study.experiment, study.experiment.target
        runs = [untrained for untrained in list_untrained(study) if _scored_by(study, untrained) == scored_by]
        keys = [f"{task.name}/{split}" for split in ("test", "validation")]
        study.rows.prepare(untrained.rows[key] for untrained in runs for key in keys)
        facts = list[CandidateFacts]()
        for untrained in runs:
            refuse_lost_folds(study, untrained)
            with suppress(CandidateFailed):
                facts.append(reached_on_target(study, untrained))
        study.untrained[scored_by] = best_untrained_run(runs, apply_budgets(facts, experiment.decide))
    best_run = study.untrained[scored_by]
    return best_run if best_run and best_run.run_id != run.run_id else None


def _scored_by(study: Study, run: Run) -> tuple[str, str]:
    rows_digest = run.rows.get(f"{study.experiment.target.name}/test")
    if rows_digest is None:
        return "", ""
    identity = store.read_identity(study.store, rows_digest)
    return identity.task_version, identity.scoring_digest


def reached_on_target(study: Study, run: Run, metric: Metric | None = None) -> CandidateFacts:
    """Return a stored run's target score, by default in the deciding metric, corrected by labels.

    Raises CandidateFailed if every test row is an error.
    """
    task, recipes = study.target, study.experiment.candidates
    metric = metric or study.primary(task)
    test, validation = study.rows.with_drawn(run, task), study.rows.with_drawn(run, task, "validation")
    recipe = recipes.get(run.candidate) or Recipe.model_validate(run.recipe)
    facts = mark_recipe(facts_on_target(run, metric, test, validation), recipe, recipes)
    return correct_reached(metric, facts, test, judge_labels(study.store, task, metric.name))


def list_untrained(study: Study) -> list[Run]:
    """List the newest finished runs of candidates that train no language model, and of baselines, by seed.

    Candidates with randomness have one run per seed of the file, all others one.
    """
    experiment = study.experiment
    seed_order = {seed: at for at, seed in enumerate(experiment.seeds)}
    newest: dict[tuple[str, int], Run] = {}
    for run in store.list_runs(study.store, experiment.name):
        method, recipe = plugins.find_method(run.method), experiment.candidates.get(run.candidate)
        if run.state != "done" or recipe is None or (method.seeded and run.seed not in seed_order):
            continue
        trained = run.weights_digest != run.base_digest and method.makes_language_model
        if (not trained or recipe.role == "baseline") and is_of_recipe(run, recipe, study.store):
            newest[run.candidate, seed_order[run.seed] if method.seeded else 0] = run
    return [newest[key] for key in sorted(newest, key=lambda key: key[1])]


def refuse_lost_folds(study: Study, run: Run) -> None:
    """Refuse test rows that models of folds answered if the fold of each item is not stored."""
    at, test = study.store, run.rows[f"{study.experiment.target.name}/test"]
    if store.read_identity(at, test).weights_digest != run.weights_digest and not store.read_folds(at, test):
        raise IncompatibleRuns(
            f"{run.run_id}: found test rows of several folds without {at.rows(test) / 'folds.json'}; "
            f"expected the fold of each item; next: {study.typed.command('compare')}, which writes it again"
        )


def wins_of(study: Study, run: Run, base: Run) -> Wins:
    """Return the win rate of a run over another on the target."""
    at, policy, task = study.store, study.experiment.gate, study.target
    rows = old_rows, _ = study.rows.cut(base, task), study.rows.cut(run, task)
    matched = list(pair_rows(*rows))
    # Equal answers are a tie, even if both failed.
    clusters = {now.example_id: now.cluster or now.example_id for _, now in matched}
    differing = {now.example_id: clusters[now.example_id] for old, now in matched if answers_differ(old, now)}
    tied = {item: cluster for item, cluster in clusters.items() if item not in differing}
    pairs, digests = AnswerPairs(differing, tied), [arm.rows[f"{task.name}/test"] for arm in (base, run)]
    votes = map_counted_shares(store.list_ratings(at, task.name), map_shown_pairs(*rows), *digests)
    by, max_errors = policy.target.by, policy.max_errors
    if by == PEOPLE:
        return open_where_failed(wins_by_people(base.candidate, pairs, votes), old_rows, max_errors)
    preferred = preferences(read_stored_grades(by, at), *rows)
    wins = wins_by_judge(base.candidate, metric_name(by), pairs, preferred.won, votes)
    judged = dict[str, JudgedPair]()
    for old, now in matched:
        if (item := now.example_id) in preferred.first:
            won, lengths = preferred.won[item], (len(old.text), len(now.text))
            judged[item] = JudgedPair(won, preferred.first[item], lengths, clusters[item], votes.get(item))
    wins = open_where_failed(wins, old_rows, max_errors, preferred.unread)._replace(bias=bias_of(judged))
    return wins._replace(missing=0) if policy.uncalibrated_judge == "allow" else wins


def open_where_failed(wins: Wins, base: Rows, max_errors: float, unread: Collection[str] = ()) -> Wins:
    """Leave a win rate open if more than a share `max_errors` of the items failed or were unreadable."""
    failed = {row.example_id for row in base if row.status == "error"}.union(unread)
    if wins.rate is None or len(failed) <= max_errors * len(base):
        return wins
    return wins._replace(rate=wins.rate._replace(low=0.0, high=1.0), is_open=True)


def refuse_unanswered(test: Rows) -> None:
    """Raise CandidateFailed if every test row is an error."""
    if any(row.status != "error" for row in test):
        return
    if any(row.finish_reason != "error" for row in test):
        raise CandidateFailed(f"no answer could be graded: {test[0].error}", "another judge, or rubric")
    knob = "fewer shots or passages, or a longer context"
    raise CandidateFailed(f"no test row could be answered: {test[0].error}", knob)


def mark_recipe(facts: CandidateFacts, recipe: Recipe, recipes: Mapping[str, Recipe]) -> CandidateFacts:
    """Mark whether a candidate, or the source of its weights, sends rows off this machine."""
    source = recipes.get(recipe.weights_of or "", recipe)
    leaves = plugins.find_method(source.method).is_remote and not is_private(source.params["base_url"])
    return replace(facts, leaves_machine=leaves)


def facts_on_target(run: Run, metric: Metric, test: Rows, validation: Rows) -> CandidateFacts:
    """Return a finished run's facts on the target (scores and speed), by which recipes are chosen.

    Raises CandidateFailed if every test row is an error.
    """
    refuse_unanswered(test)
    busy_s, timed, facts = compute_s(run, test), run.latency, facts_without_rows(run)
    disturbed, under_load, prompt = dict(facts.speed.disturbed), None, fmean(r.n_prompt_tokens for r in test)
    if timed.get("compute_contended") and timed.get("compute_s"):
        disturbed["requests_per_s"] = 1 / timed["compute_s"]
    if "at_once" in timed and not timed.get("at_once_contended"):
        names = "first_token_at_once_p50_s", "first_token_at_once_p95_s", "first_token_s"
        speed = timed["at_once"] / timed["at_once_s"]
        under_load = UnderLoad(round(timed["at_once"]), speed, *map(timed.get, names))
    # None for classifiers, which are not priced by the token, and servers that count no tokens.
    tokens = None
    if plugins.method(run.method).makes_language_model and prompt:
        shared = min(prompt, timed.get("shared_prompt_tokens", 0.0))
        tokens = TokenCounts(prompt, shared, fmean(r.n_output_tokens for r in test))
    cut = [row.n_output_tokens for row in test if row.status == "truncated"]
    unparsable = sum(row.status == "unparsable" for row in test)
    unscored = sum(row.status != "error" and row.parts[metric.name] is None for row in test)
    n, longest_cut = len(test), max(cut, default=0)
    unread = UnreadAnswers(len(cut) / n, unparsable / n, longest_cut, unscored / n)
    requests_per_s = 1 / busy_s if busy_s else None
    return replace(
        facts,
        target=estimate(metric, test),
        validation=estimate(metric, validation).score,
        tokens=tokens,
        speed=facts.speed._replace(requests_per_s=requests_per_s, under_load=under_load, disturbed=disturbed),
        answers=AnswerFacts(unread=unread),
    )


def compute_s(run: Run, test: Rows) -> float | None:
    """Return the seconds of a request in a batch, with prompting; None if other work disturbed them."""
    if run.latency.get("compute_contended"):
        return None
    return run.latency.get("compute_s", fmean(r.compute_s for r in test)) + run.latency.get("prompting_s", 0)
