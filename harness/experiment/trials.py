"""Trials of a sweep or search: the points to try, their validation scores and forgetting, and their work.

    runs/weights/<key>/forgetting.json      forgetting of the weights, by digest of the answers it is based on

Invariant: proposals depend only on the space, the seed and earlier results, so an interrupted search repeats
its points, whose results are stored, and continues. A pruned trial frees its budget: a search trains as much
as its number of complete trials would. Forgetting is the mean loss against the base on general items for
validation, which share no item, question or cluster with a suite's test. Points along a training answer the
target's validation rows, and general items of the half that a rescue searches.
Source: the tree-structured Parzen estimator of Bergstra et al. 2011, *Algorithms for Hyper-Parameter
Optimization*, and the pruners of Optuna (Akiba et al. 2019, arXiv:1907.10902)
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from math import ceil, log10
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from harness import plugins, store
from harness.analysis import comparison
from harness.analysis.admission import Measurement, cluster_name, cut_to_half, name_admitted_tasks, split
from harness.analysis.estimators import Comparison, mean_change, rescale
from harness.data import load_task, task_version
from harness.data.contamination import key as question_of
from harness.errors import CandidateFailed, Problem, SharedFailure
from harness.evaluation import costs
from harness.evaluation.candidate_rows import find_shipped, regularization_work
from harness.evaluation.candidates import ResolvedCandidate, base_weights, read_weights
from harness.evaluation.costs import Work, times
from harness.evaluation.row_sets import suite_sets, target_sets, total_work, work_of
from harness.evaluation.session import MeasuredTask, Session
from harness.evaluation.stored_scores import answer_and_score
from harness.metrics import Metric, extremes
from harness.plugins import methods
from harness.records import Example, SampleResult, TrackedPoint, Trial, digest
from harness.regularizers import has_hook
from harness.spec import Recipe, SubjectTo, is_span, span_of
from harness.store import write_whole
from harness.training import TRACKED, Weights, map_tracked_folders
from harness.training.sft import joins_rows_of

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution
    from optuna.pruners import BasePruner


_RANDOM = 5  # initial random trials; half of Optuna's number, as each is a training
_MOST_REPEATS = 100  # consecutive repeated proposals after which the space counts as exhausted
_DIGITS = 3  # significant digits of a proposed number, short enough to copy


ShouldPrune = Callable[[int, float], bool]  # arguments: the number of a tracked point, and its score


class TrialProposal(NamedTuple):
    """A point to try."""

    params: dict[str, Any]
    should_prune: ShouldPrune | None = None


def proposals(
    candidate: ResolvedCandidate, seed: int, sign: int, tried: Sequence[Trial]
) -> Iterator[TrialProposal]:
    """Yield the points to try; the caller appends the trial of each point to `tried`.

    `sign` is −1 if lower is better. Repeated proposals of a prompt search are not trials.
    """
    source, counts_repeats = candidate.source, not candidate.searches_prompts
    if not source.search:
        yield from map(TrialProposal, candidate.points)
        return
    import optuna
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    space: dict[str, BaseDistribution] = {}
    for name, values in source.search.items():
        span = span_of(values) if is_span(values) else None
        if span is None:
            space[name] = CategoricalDistribution(range(len(values)))  # by index, as a value may be a list
        elif span.is_whole:
            space[name] = IntDistribution(int(span.low), int(span.high), log=span.is_log)
        else:
            space[name] = FloatDistribution(span.low, span.high, log=span.is_log)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=_RANDOM)
    # Hyperband's brackets depend on the name, which is random by default.
    study = optuna.create_study(
        study_name="search", direction="maximize", sampler=sampler, pruner=_pruner(source)
    )

    def should_prune(trial: optuna.Trial, step: int, score: float) -> bool:
        trial.report(sign * score, step)
        return bool(trial.should_prune())

    n_points = source.track.points if source.prune and source.track else 1
    points_left, n_repeats = source.trials * n_points, 0
    while points_left >= n_points and n_repeats < _MOST_REPEATS:
        proposed = study.ask(space)
        point = {name: _value(values, proposed.params[name]) for name, values in source.search.items()}
        same_trial = None if counts_repeats else next((t for t in tried if t.params == point), None)
        if same_trial:  # its result is known, so it costs no trial
            _tell(study, proposed, same_trial, sign)
            n_repeats += 1
            continue
        yield TrialProposal(point, partial(should_prune, proposed) if source.prune else None)
        *earlier, last = tried
        if not counts_repeats and last.asked and any(t.asked == last.asked for t in earlier):
            n_repeats += 1  # the same prompt in other words of the recipe
        else:
            n_repeats = 0
            points_left -= len(last.points) if last.is_pruned else n_points
        _tell(study, proposed, last, sign)


def searcher(source: Recipe) -> str:
    """Name the sampler of a search, and its pruners."""
    pruned = "".join(f", pruned by its {_pruner_class(name).__name__}" for name in source.prune)
    return f"TPE of Optuna {version('optuna')}{pruned}"


def search_problems(
    suites: Sequence[MeasuredTask], seed: int, candidate: ResolvedCandidate
) -> Iterator[Problem]:
    """Yield a problem if a search lacks its package, a valid pruner, general items, or checkpoints."""
    where, recipe, bound = f"candidate {candidate.name}", candidate.recipe, candidate.recipe.subject_to
    if recipe.track and not (candidate.method.trains and candidate.method.makes_language_model):
        found = f"track with the method {recipe.method}, which keeps no weights along its training"
        expected = f"one of the methods {', '.join(methods(trains=True, makes_language_model=True))}"
        yield Problem(where, found, expected, "remove track")
    if bound and not general_items(suites, seed, bound.items):
        found = "subject_to: {forgetting: …}, and no general item outside the tests"
        expected = "items of the capability suites for validation"
        step = "data: {validation: FILE} at a task of a capability suite, or a limit below its items"
        yield Problem(where, found, expected, step)
    source = candidate.source
    if source.search and find_spec("optuna") is None:
        step = "pip install 'harness-evals[search]', or sweep: a few values"
        yield Problem(where, "search, and no package optuna", "Optuna", step)
    elif source.prune:
        try:
            _pruner(source)
        except (ArithmeticError, TypeError, ValueError) as error:
            ((name, pruner_params),) = source.prune.items()
            found = f"prune: {{{name}: {pruner_params}}} ({str(error).partition('__init__() ')[2] or error})"
            expected = f"parameters of Optuna's {_pruner_class(name).__name__}"
            yield Problem(where, found, expected, "see optuna.readthedocs.io")


def _tell(study: "optuna.Study", proposed: "optuna.Trial", finished_trial: Trial, sign: int) -> None:
    from optuna.trial import TrialState

    if finished_trial.forgetting is not None and finished_trial.most_forgetting is not None:
        proposed.set_constraint("forgetting", finished_trial.forgetting - finished_trial.most_forgetting)
    if finished_trial.is_pruned:
        study.tell(proposed, state=TrialState.PRUNED)
    elif finished_trial.validation is None:
        study.tell(proposed, state=TrialState.FAIL)
    else:
        study.tell(proposed, sign * finished_trial.validation)


def _pruner_class(name: str) -> "type[BasePruner]":
    from optuna import pruners

    pruner_class: type[BasePruner] = getattr(pruners, f"{name.title().replace('_', '')}Pruner")
    return pruner_class


def _pruner(source: Recipe) -> "BasePruner":
    import optuna

    if not source.prune or not source.track:
        return optuna.pruners.NopPruner()
    ((name, pruner_params),) = source.prune.items()
    resource = {
        "successive_halving": {"min_resource": 1},
        "hyperband": {"min_resource": 1, "max_resource": source.track.points},
    }
    return _pruner_class(name)(**{**resource.get(name, {}), **pruner_params})


def _value(values: Sequence[Any], proposed: Any) -> Any:
    if not is_span(values):
        return values[proposed]
    span = span_of(values)
    shared = int(log10(max(abs(span.low), abs(span.high)) / (span.high - span.low)))  # digits of both ends
    rounded = proposed if span.is_whole else float(f"{proposed:.{_DIGITS + max(0, shared)}g}")
    return min(max(rounded, span.low), span.high)


def validate(session: Session, trial: ResolvedCandidate, weights: Weights) -> tuple[float, str]:
    """Return a trial's score on the target's validation rows, and the digest of its prompts.

    Raises CandidateFailed if no answer can be scored, NotStored if some are missing on a read-only session.
    """
    rows = target_sets(session, trial.source, weights, session.first_seed)[0]
    if not rows.is_there(session.store):
        session.refuse_if_reading(f"answers of {trial.name} to validation rows")
        answer_and_score(session, weights, [rows], "sweep", trial.base)
    answered = rows.read(session.store)
    score = mean_score(session.target.primary, answered)
    if score is None:
        session.refuse_if_reading(f"scored answer of {trial.name} to validation rows")
        knob = f"other {'values' if trial.method.trains else 'prompts'} to try"
        raise CandidateFailed("no answer to the validation rows could be scored", knob)
    return score, digest_prompts(weights.digest, trial.source, answered)


def digest_prompts(weights_digest: str, recipe: Recipe, answered: Sequence[SampleResult]) -> str:
    """Digest the prompts of a recipe as sent and answered; empty if any prompt is unknown."""
    prompts = [row.prompt_digest for row in answered]
    sampling = recipe.sampling.model_dump(mode="json") if recipe.sampling else {}
    return digest([weights_digest, recipe.answer, sampling, prompts]) if prompts and all(prompts) else ""


def mean_score(metric: Metric, rows: Iterable[SampleResult]) -> float | None:
    """Return the score of rows (None without any); failed answers get the metric's worst value, if any."""
    parts = []
    for row in rows:
        scored = row.parts.get(metric.name)
        if scored is None and (row.status == "error" or row.error):
            bounds = extremes(metric, row.references)
            scored = bounds.worst if bounds else None
        parts += [scored] if scored is not None else []
    return float(metric.aggregate(np.array(parts), np.ones(len(parts)))) if parts else None


_KEPT = "forgetting.json"
_FEW = 10  # minimum items of a task


def score_forgetting(session: Session, trial: ResolvedCandidate, weights: Weights, bound: SubjectTo) -> float:
    """Return how much worse the weights are than their base on general items.

    Raises NotStored if answers are missing and the session only reads, SharedFailure if no task counts.
    """
    assert weights.folder
    tasks, file = general_items(session.suites, session.first_seed, bound.items), weights.folder / _KEPT
    arms = [suite_sets(session, arm_weights, tasks) for arm_weights in (base_weights(trial.base), weights)]
    key = digest([rows.identity.digest for arm in arms for rows in arm])
    forgetting_by_key: dict[str, float] = json.loads(file.read_text("utf-8")) if file.exists() else {}
    if key not in forgetting_by_key:
        session.refuse_if_reading("answers to general items for validation")
        for arm_weights, sets in zip((base_weights(trial.base), weights), arms, strict=True):
            base = None if arm_weights.digest == trial.base.weights_digest else trial.base
            answer_and_score(session, arm_weights, sets, "general items for validation", base)
        of_tasks = zip(tasks, *arms, strict=True)
        read = [(m, base.read(session.store), new.read(session.store)) for m, base, new in of_tasks]
        alike = [Measurement(m.task, m.role, m.suite, m.metrics, base, base) for m, base, _ in read]
        counting = name_admitted_tasks(alike, session.first_seed)
        changes = [_compare_capability(m, base, new) for m, base, new in read if m.task.name in counting]
        if not changes:
            n = sum(m.size("test") for m in tasks)
            found = f"subject_to: of {n} general items for validation no task shows what the base can lose"
            raise SharedFailure(found, "more items for validation, or tasks that the base is better at")
        forgetting_by_key[key] = -mean_change(changes).score
        write_whole(session.store, file, json.dumps(forgetting_by_key))
    return forgetting_by_key[key]


def _compare_capability(
    measured: MeasuredTask, base: Sequence[SampleResult], new: Sequence[SampleResult]
) -> Comparison:
    # Compares two arms of a task, as a share of the metric's range.
    difference = comparison.compare_rows(measured.primary, base, new, base_errors="bounds")
    return rescale(difference, measured.primary.range.span)


def general_items(suites: Sequence[MeasuredTask], seed: int, n_items: int) -> list[MeasuredTask]:
    """Return the capability tasks with `n_items` spare items for validation, spread evenly.

    Tasks with fewer than ten spare items count only if all have fewer, because tasks weigh the same.
    """
    tasks = [m for m in suites if not m.task.lm_eval]
    tests = {m.task.name: load_task(m.task, seed).test for m in tasks}
    clusters = {e.cluster for examples in tests.values() for e in examples if e.cluster != e.id}
    questions = {question_of(e) for examples in tests.values() for e in examples}
    ids = {name: {e.id for e in examples} for name, examples in tests.items()}
    spare = dict[str, list[Example]]()
    for m in (m for m in tasks if m.role == "capability"):
        rows = (row for split in ("validation", "test") for row in m.items.evaluated.get(split, ()))
        others = (row.example for row in rows if row.example.id not in ids[m.task.name])
        others = (e for e in others if e.cluster not in clusters and question_of(e) not in questions)
        spare[m.task.name] = list(others)
    min_items = min(_FEW, max(map(len, spare.values()), default=0)) or 1
    tasks_with_items = [m for m in tasks if len(spare.get(m.task.name, ())) >= min_items]
    n_each = -(-n_items // max(1, len(tasks_with_items)))
    limited = []
    for m in tasks_with_items:
        of_task = spare[m.task.name]
        validation = {row.example.id for row in m.items.evaluated.get("validation", ())}
        validation_items = [e for e in of_task if e.id in validation] or of_task
        drawn_items = sorted(validation_items, key=lambda e: (digest([seed, e.cluster]), e.id))[:n_each]
        items = replace(m.items, test=tuple(sorted(drawn_items, key=lambda e: e.id)))
        versions = {**m.versions, "test": task_version(m.task, items, "test")}  # which names the items
        limited.append(m._replace(items=items, versions=versions, weights=None))
    return limited


def read_kept_points(candidate: ResolvedCandidate, folder: Path | None) -> dict[int, Weights]:
    """Read the weights kept along a training, by step, from the folder of its weights or its job."""
    points = map_tracked_folders(folder / TRACKED) if candidate.source.track and folder else {}
    weights_by_step = {step: read_weights(candidate, point) for step, point in points.items()}
    return {step: weights for step, weights in weights_by_step.items() if weights}


def measure_points(
    session: Session, candidate: ResolvedCandidate, weights: Weights, seed: int, base_rows: Mapping[str, str]
) -> tuple[TrackedPoint, ...]:
    """Measure the points along a training; `base_rows` maps the suites' tasks to the base's row sets."""
    source, weights_by_step = candidate.source, read_kept_points(candidate, weights.folder)
    if not source.track or not weights_by_step:
        return ()
    measured, general_seed = [m for m in session.suites if m.task.name in base_rows], session.first_seed
    rows, alike = dict[str, list[SampleResult]](), list[Measurement]()
    for m in measured:
        base = store.read_rows(session.store, base_rows[m.task.name], m.size("test"))
        rows[m.task.name] = base
        alike.append(Measurement(m.task, m.role, m.suite, m.metrics, base, base))
    search_half = cut_to_half(alike, split(rows, general_seed), "search")
    counting = name_admitted_tasks(search_half)
    base_rows_of = {m.task.name: m.base for m in search_half if m.task.name in counting}
    n_each, sampled = -(-source.track.items // max(1, len(base_rows_of))), []
    for m in (m for m in measured if m.task.name in base_rows_of):
        of_task = base_rows_of[m.task.name]
        order = {row.example_id: digest([general_seed, cluster_name(row)]) for row in of_task}
        base = sorted(of_task, key=lambda row: (order[row.example_id], row.example_id))[:n_each]
        ids = sorted(row.example_id for row in base)
        items = replace(m.items, test=tuple(e for e in m.items.test if e.id in set(ids)))
        versions = {**m.versions, "test": digest([m.versions["test"], ids])}  # which names the items
        sampled.append((m._replace(items=items, versions=versions, weights=None), base))
    points = weights_by_step.items()
    return tuple(measure_point(session, candidate, step, at, seed, sampled) for step, at in points)


def fit_work(session: Session, source: Recipe, seed: int) -> Work:
    """Estimate the tokens and steps of one fit; zero for methods that do not train."""
    method = plugins.method(source.method)
    if not method.trains:
        return Work()
    params = method.params(**source.params)
    step_rows = params.per_device_train_batch_size * params.gradient_accumulation_steps
    items, step = session.training_data(source).items, session.prompting_step(source, seed)
    base = session.sources.get(source.base_model or "", session.source)
    n_answers = getattr(params, "num_generations", 1)  # sampled per row; each is a training row
    n_rows = len(items.pairs if method.draws_from == "pairs" else items.train) * n_answers
    epochs = params.num_train_epochs
    if params.max_steps > 0:
        epochs = params.max_steps * step_rows / max(n_rows, 1)
    if method.draws_from == "pairs":
        plain = costs.preference(list(map(step, items.pairs)), epochs)
    else:
        prompted = list(map(step, items.train))
        apart = (
            session.machine.device != "cpu"
            or getattr(params, "packing", False)
            or getattr(params, "lora_dropout", 0.0)
            or getattr(params, "peft_type", "LORA") != "LORA"
            or has_hook(source.regularize, "DRAWS")
        )
        joins = "sft" in method.loops and not apart and any(e.has_system for e in prompted)
        batch_size = params.per_device_train_batch_size if joins and joins_rows_of(base) else 1
        plain = costs.training(prompted, epochs * n_answers, batch_size)
    read, generated = method.extra_tokens(params, base, round(n_rows * epochs), plain.trained)
    extra = Work(read=read, generated=generated)
    plain = plain._replace(steps=ceil(ceil(n_rows / step_rows) * epochs))
    is_shipped = partial(find_shipped, session.target.task, base)
    context, sizes = session.mix_context(source, seed), (n_rows, step_rows)
    whole = plain + extra + regularization_work(source, context, is_shipped, plain, sizes)
    return whole._replace(steps=params.max_steps if params.max_steps > 0 else whole.steps, fits=1)


def estimate_tracking(session: Session, source: Recipe) -> Work:
    """Estimate the work of the answers at the points along a training."""
    if not source.track:
        return Work()
    base = base_weights(session.source)
    once = work_of(target_sets(session, source, base, 0)[0].job())
    tasks = [m for m in session.suites if m.role == "capability"]
    n_items = sum(m.size("test") for m in tasks)
    share = min(source.track.items, n_items / 2) / n_items if n_items else 0.0
    general = Work(*(round(share * amount) for amount in total_work(suite_sets(session, base, tasks))))
    return times(once + general + Work(opened=1), source.track.points)


def measure_point(
    session: Session,
    candidate: ResolvedCandidate,
    step: int,
    weights: Weights,
    seed: int,
    sampled: Sequence[tuple[MeasuredTask, list[SampleResult]]] = (),
) -> TrackedPoint:
    """Measure the weights at a step on the target's validation rows, and on sampled general items."""
    validation = target_sets(session, candidate.source, weights, seed)[0]
    general = suite_sets(session, weights, [measured for measured, _ in sampled])
    name = f"{candidate.source_name} at step {step}"
    answer_and_score(session, weights, [validation, *general], name, candidate.base)
    target = mean_score(session.target.primary, validation.read(session.store))
    if not sampled:
        return TrackedPoint(step=step, target=target)
    pairs = zip(sampled, general, strict=True)
    mean = mean_change([_compare_capability(m, base, new.read(session.store)) for (m, base), new in pairs])
    return TrackedPoint(
        step=step, target=target, capability=mean.score, low=mean.low, high=mean.high, n_general=mean.n
    )
