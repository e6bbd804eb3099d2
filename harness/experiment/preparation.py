"""Preparation of a session from harness.yaml: data read and checked, machine probed, bases resolved.

Invariant: problems are reported before a model is loaded or anything is written, all of one kind together:
first those of the files, then of the data, then of the candidates.
A candidate of another experiment judges by the weights stored there and is never trained here.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, get_args

from harness import config, plugins
from harness.config import LoadedExperiment
from harness.config.rubrics import JudgingCandidate
from harness.data import SPLITS, PartName, TaskItems, load_task, readers
from harness.data.contamination import open_encoder
from harness.data.edit.row_files import name_output
from harness.data.text_files import cut_special, find_special
from harness.errors import CandidateFailed, Problem, UserError, as_argument, did_you_mean, gather, refuse
from harness.evaluation.candidate_rows import (
    read_folds,
    read_training_rows,
    refuse_or_note,
    regularization_problems,
)
from harness.evaluation.candidates import add_lineage, base_weights, names_whole_model, resolve_candidates
from harness.evaluation.judges import list_local_judges, read_judged_metrics
from harness.evaluation.lm_eval import bridge
from harness.evaluation.session import Fold, MeasuredTask, Session, join_items
from harness.experiment.bases import choose_quantization
from harness.experiment.candidate_problems import find_unwritable_rows, list_engine_problems, weight_problems
from harness.experiment.candidate_weights import choose_prompts, ensure_weights, find_stored_weights
from harness.experiment.trials import search_problems
from harness.formatting import pluralize, quote
from harness.metrics import refuse_goals
from harness.models import hub, set_templates
from harness.models.devices import Room, free_room
from harness.models.hardware import Machine, probe
from harness.models.hub import ModelSource, expect_unpacking_s, list_special_tokens, resolve, set_switches
from harness.progress import Progress
from harness.records import FEWER
from harness.report import trackers
from harness.spec import Experiment, ItemLimits, Recipe, Role, Suite, Task
from harness.store import Store
from harness.training import Weights


def train_judges(session: Session) -> Session:
    """Train this experiment's judging candidates without weights; if that fails, their grades fail."""
    judging = dict(session.judging)
    for judge in list_local_judges(_metrics(session.experiment, session.tasks))[1]:
        if judge.experiment or not isinstance(judging[judge.label], str):
            continue
        try:
            weights = ensure_weights(session, session.candidates[judge.candidate], session.first_seed)
            judging[judge.label] = _require_pinned(judge, weights, f"candidate {judge.candidate}")
        except CandidateFailed as error:
            judging[judge.label] = f"{judge.candidate}, which judges, cannot be trained: {error.reason}"
    return session if judging == session.judging else _add_judging(replace(session, judging=judging))


def _metrics(experiment: Experiment, tasks: Iterable[MeasuredTask]) -> list[str]:
    return [*(metric for m in tasks for metric in m.task.metrics), experiment.gate.target.by]


def _add_judging(session: Session) -> Session:
    def add_judges(m: MeasuredTask) -> MeasuredTask:
        judged = read_judged_metrics(m.task, m.items, session.store, session.judging, session.machine)
        return m._replace(judged=judged)

    targets, suites = (tuple(map(add_judges, tasks)) for tasks in (session.more_targets, session.suites))
    return replace(session, target=add_judges(session.target), more_targets=targets, suites=suites)


def _weights_of(session: Session, judge: JudgingCandidate, where: str) -> Weights | str:
    # Returns the reason as a text if this experiment has no weights yet.
    candidate = session.candidates.get(judge.candidate)
    if candidate is None:
        expected = f"a candidate of {judge.experiment or 'this experiment'}"
        hint = did_you_mean(judge.candidate, {*session.candidates})
        raise UserError(where, f"unknown {judge.candidate!r}", expected, hint)
    if candidate.is_remote:
        found, expected = f"{candidate.name}, an endpoint", "a candidate whose weights are here"
        step = "judge: {base_url: …, model: …}, the parameters of that candidate"
        raise UserError(where, found, expected, step)
    if not candidate.method.makes_language_model:
        found = f"{candidate.name}, whose method {candidate.source.method} makes no language model"
        raise UserError(where, found, "a candidate that generates text", "name another one")
    tried = [name for name, recipe in candidate.lineage.items() if recipe.tried]
    if tried and not judge.experiment:
        found = f"{candidate.name}, and a sweep or search of {tried[0]}, which would hang on its own grades"
        step = "the chosen params in place of it, or the judge in an experiment of its own"
        raise UserError(where, found, "weights that no grade of theirs chose", step)
    weights = find_stored_weights(session, candidate, session.first_seed)
    command = f"harness train {judge.candidate}" + (f" -c {judge.experiment}" if judge.experiment else "")
    if weights is None and judge.experiment:
        raise UserError(where, f"{judge.label}, which is not trained yet", "its weights", command)
    if weights is None:
        return f"{judge.candidate}, which judges, is not trained yet; next: {command}"
    return _require_pinned(judge, weights._replace(source=weights.source or candidate.served_base), where)


def _require_pinned(judge: JudgingCandidate, weights: Weights, where: str) -> Weights:
    if not weights.digest.startswith(judge.weights):
        found = f"{judge.label} with the weights {weights.digest[: max(8, len(judge.weights))]}"
        step = f"weights: {weights.digest[:8]} where these are meant; all answers are then graded again"
        raise UserError(where, found, f"weights: {judge.weights}, as the rubric pins", step)
    return weights


SMOKE_LIMITS = ItemLimits(train=24, validation=8, test=8)
SMOKE_ITEMS, SMOKE_PAIRS = 4, 16


class Scope(NamedTuple):
    """Part of an experiment to run: `limit` test items of each task, a `quick` smoke run, or `fewer` items.

    A `dry_run` computes nothing and loads no model. `renew_probe` measures the machine again. `embeddings`
    names a sentence-transformers model for a second contamination check.
    """

    limit: int | None = None
    quick: bool = False
    fewer: bool = False
    dry_run: bool = False
    renew_probe: bool = False
    embeddings: str = ""

    @property
    def smoke(self) -> bool:
        """Whether the numbers are not evidence."""
        return self.quick or self.limit is not None


def narrow(experiment: Experiment, scope: Scope) -> Experiment:
    """Return the experiment cut to a scope: fewer items, or a short training, and perhaps another name."""
    cuts = [option for option, is_set in (("--quick", scope.quick), ("--limit", scope.limit)) if is_set]
    if scope.fewer and cuts:
        found, step = f"{' and '.join(cuts)} as well", "--all-items, or leave the other out"
        raise UserError("--sequential", found, "whole tasks, from which the items are sampled", step)
    if scope.fewer:
        experiment = experiment.model_copy(update={"name": f"{experiment.name}{FEWER}"})
    if scope.quick:
        candidates = dict(experiment.candidates)
        for name, recipe in experiment.candidates.items():
            if plugins.method(recipe.method).trains:
                short = {**recipe.params, "num_train_epochs": 1.0}
                candidates[name] = recipe.model_copy(update={"params": short})
        experiment = _cap(experiment, SMOKE_LIMITS, SMOKE_ITEMS).model_copy(update={"candidates": candidates})
    if scope.limit:
        limits, name = ItemLimits(test=scope.limit), f"{experiment.name}-limit{scope.limit}"
        experiment = _cap(experiment, limits, scope.limit).model_copy(update={"name": name})
    return experiment


def _cap(experiment: Experiment, item_limits: ItemLimits, n: int) -> Experiment:
    # Caps the targets' items, and the suites' tasks at n items.
    targets, suites = list[Task](), list[Suite]()
    for target in (experiment.target, *experiment.more_targets):
        # Each split gets the lower limit of both.
        before, caps = target.data.limits.model_dump(), item_limits.model_dump()
        bounds = {split: [n for n in (before[split], caps[split]) if n is not None] for split in before}
        limits = ItemLimits(**{split: min(values, default=None) for split, values in bounds.items()})
        data = target.data.model_copy(update={"limits": limits})
        targets.append(target.model_copy(update={"data": data}))
    for suite in experiment.suites:
        tasks = tuple(t.model_copy(update={"limit": min(n, t.limit or n)}) for t in suite.tasks)
        suites.append(suite.model_copy(update={"tasks": tasks}))
    capped = {"target": targets[0], "more_targets": tuple(targets[1:]), "suites": tuple(suites)}
    return experiment.model_copy(update=capped)


def prepare_session(
    loaded: LoadedExperiment,
    scope: Scope,
    progress: Progress,
    machine: Machine | None = None,
    room: Room | None = None,
) -> Session:
    """Read all data, find the base model, and probe the machine and its free memory unless given.

    Raises UserError with the problems of all tasks at once.
    """
    session = _prepare_without_judges(loaded, scope, progress, machine, room)
    refuse_goals(session.experiment.gate.target, session.target.primary)
    judging, problems = dict[str, Weights | str](), list[Problem]()
    judging |= {name: base_weights(source) for name, source in session.sources.items()}
    for judge, where in list_local_judges(_metrics(session.experiment, session.tasks))[1].items():
        with gather(problems):
            judge_session = session
            if judge.experiment:
                loaded_judge = config.load(Path(judge.experiment), (), ())
                judge_session = _prepare_without_judges(loaded_judge, Scope(), progress, None, None)
            judging[judge.label] = _weights_of(judge_session, judge, where)
    refuse(problems)
    session = _add_judging(replace(session, judging=judging))
    candidates, experiment, seed = session.candidates, session.experiment, session.first_seed
    problems += trackers.problems(loaded.experiment.report_to)
    needed = [candidates[name] for name in add_lineage(loaded.selected, candidates)]
    for candidate in needed:
        items = session.training_data(candidate.source).items
        problems += weight_problems(experiment, session.source, session.target, items, candidate)
        problems += regularization_problems(candidate.recipe, session.mix_context(candidate.recipe, seed))
        problems += search_problems(session.suites, seed, candidate)
    problems += find_unwritable_rows((*session.tasks, *session.training.values()), needed)
    placed = [(loaded.places[name], candidates[name]) for name in loaded.selected]
    problems += list_engine_problems(experiment, session.machine.device, placed, needed)
    # File and line precede the name of the candidate.
    places = {f"candidate {name}": place for name, place in loaded.places.items()}
    for i, problem in enumerate(problems):
        if place := places.get(problem.where.partition(":")[0]):
            problems[i] = replace(problem, where=f"{place}: {problem.where}")
    refuse(problems)
    session.candidates = {**candidates, **choose_prompts(session.reading(), candidates)}
    return session


def _prepare_without_judges(
    loaded: LoadedExperiment, scope: Scope, progress: Progress, machine: Machine | None, room: Room | None
) -> Session:
    experiment = narrow(loaded.experiment, scope)
    if experiment.target.data.source("validation") is None and experiment.target.data.source("train") is None:
        where, found = f"task {experiment.target.name}", "no data.validation and no data.train"
        step = "name a file under data: {validation: …}, or data: {train: …}; a part of it is then set aside"
        raise UserError(where, found, "rows other than the test rows, to choose and time candidates on", step)
    first, *more = (
        task.model_copy(update={"chat_template": False}) if task.kind == "bits_per_byte" else task
        for task in (experiment.target, *experiment.more_targets)
    )
    targets = {"target": first, "more_targets": tuple(more)}
    experiment, catalogue = find_lm_eval_tasks(experiment.model_copy(update=targets))
    seed, items, problems = experiment.seeds[0], dict[str, TaskItems](), list[Problem]()
    of_targets = (experiment.target, *experiment.more_targets)
    tasks_with_role: list[tuple[Role, str, Task]] = [("target", task.name, task) for task in of_targets]
    tasks_with_role += [(suite.role, suite.name, task) for suite in experiment.suites for task in suite.tasks]
    for task in (task for _, _, task in tasks_with_role if not task.lm_eval):
        with gather(problems):
            items[task.name] = load_task(task, seed)
    refuse(problems)
    encode = open_encoder(scope.embeddings, "--embeddings") if scope.embeddings else None
    items[experiment.target.name] = refuse_or_note(experiment.target, items, catalogue, encode=encode)
    n_pairs = SMOKE_PAIRS if scope.quick else None
    first_pairs = items[experiment.target.name].pairs[:n_pairs]
    items[experiment.target.name] = replace(items[experiment.target.name], pairs=first_pairs)
    training = read_training_rows(experiment, items, catalogue, n_pairs, encode)
    folds = read_folds(experiment, items, catalogue, n_pairs)
    tasks = [
        join_lm_eval_task(catalogue[task.name], role, suite)
        if task.lm_eval
        else join_items(task, role, suite, items[task.name])
        for role, suite, task in tasks_with_role
    ]
    refuse(problem for measured in tasks for problem in _find_unread(measured))
    sources = set_templates(experiment, _resolve_models(experiment, progress, unpacks=not scope.dry_run))
    source = sources[experiment.base_model]
    at = Store(loaded.folder / "runs" / "smoke" if scope.quick else loaded.folder / "runs")
    probe_arguments = experiment.device, experiment.precision, hub.shape(source)
    with progress.stage("measuring short steps of training, reading and generating, once"):
        machine = machine or probe(*probe_arguments, renew=scope.renew_probe)
    if machine.device == "cuda" and experiment.engine == "transformers":
        room = free_room(machine) if room is None else room
        sources = choose_quantization(experiment, sources, machine, room)
    # Special tokens around answers and labels are cut, because generated answers have none.
    special = sorted({token for base in sources.values() for token in list_special_tokens(base)})
    cut = partial(_cut_task, tokens=tuple(special), base=source.name)
    tasks_with_notes = [cut(measured) for measured in tasks]
    target, *other_tasks = (measured for measured, _ in tasks_with_notes)
    return Session(
        experiment,
        at,
        sources[experiment.base_model],
        machine,
        _add_notes(target, (note for _, notes in tasks_with_notes for note in notes)),
        tuple(m for m in other_tasks if m.role != "target"),
        progress,
        sources,
        resolve_candidates(experiment, sources),
        training={key: _add_notes(*cut(rows)) for key, rows in training.items()},
        folds=[
            Fold(cut(fold.target)[0], {key: cut(rows)[0] for key, rows in fold.training.items()})
            for fold in folds
        ],
        dry_run=scope.dry_run,
        more_targets=tuple(m for m in other_tasks if m.role == "target"),
        trackers=loaded.folder / "reports" / "trackers",
    )


def _resolve_models(experiment: Experiment, progress: Progress, *, unpacks: bool) -> dict[str, ModelSource]:
    where_by_model = {experiment.base_model: "base_model"}
    for candidate, recipe in experiment.candidates.items():
        if recipe.base_model:
            where_by_model.setdefault(recipe.base_model, "base_model")
        if recipe.path and names_whole_model(recipe):
            where_by_model.setdefault(recipe.path, f"candidate {candidate}: path")
    judged = [metric for task in experiment.tasks for metric in task.metrics]
    where_by_model = list_local_judges([*judged, experiment.gate.target.by])[0] | where_by_model
    resolved, problems = dict[str, ModelSource](), list[Problem]()
    for name, where in where_by_model.items():
        expected_s = expect_unpacking_s(name) if unpacks else 0.0
        with gather(problems), progress.stage(f"getting {name} ready, once", expected_s):
            source = resolve(name, unpacks=unpacks, where=where)
            resolved[name] = set_switches(source, experiment.chat_template_kwargs)
            if hub.is_encoder_decoder(source):
                expected, step = "a causal language model", "another one, or this one by method: endpoint"
                problems.append(Problem(f"{where} {name}", "an encoder with a decoder", expected, step))
    refuse(problems)
    return resolved


def _find_unread(measured: MeasuredTask) -> Iterator[Problem]:
    # Yields a problem if a primary metric can read none of the references.
    items, metric = [*measured.items.validation, *measured.items.test], measured.primary
    if not items or any(map(metric.reads, items)):
        return
    first = quote(items[0].references[0]) if items[0].references else "none"
    found = f"references that it cannot read, of all {pluralize(len(items), 'item')} (the first is {first})"
    step = "put another metric first in metrics: of the task, such as chrf, which reads any script"
    yield Problem(f"task {measured.task.name}: metric {metric.name}", found, "such as it can score", step)


def find_lm_eval_tasks(experiment: Experiment) -> tuple[Experiment, dict[str, bridge.LmEvalTask]]:
    """Load the suites' lm-eval tasks, and fill in their settings from lm-eval."""
    tasks = [task for suite in experiment.suites for task in suite.tasks if task.lm_eval]
    if not tasks:
        return experiment, {}
    catalogue = bridge.load(tasks, bridge.datasets_folder(experiment.datasets_dir))
    suites = []
    for suite in experiment.suites:
        filled_in = tuple(catalogue[t.name].task if t.lm_eval else t for t in suite.tasks)
        suites.append(suite.model_copy(update={"tasks": filled_in}))
    return experiment.model_copy(update={"suites": tuple(suites)}), catalogue


def join_lm_eval_task(task: bridge.LmEvalTask, role: Role, suite: str) -> MeasuredTask:
    """Join an lm-eval task with its documents, and the functions that encode and evaluate them."""
    versions = dict.fromkeys(SPLITS, task.version)
    measured = MeasuredTask(task.task, role, suite, task.items, versions, task.metrics)
    return measured._replace(encode=task.encode, evaluate=task.evaluate, n_documents=task.n_documents)


def _add_notes(measured: MeasuredTask, notes: Iterable[str]) -> MeasuredTask:
    return measured._replace(items=replace(measured.items, overlap=(*measured.items.overlap, *notes)))


def _cut_task(measured: MeasuredTask, tokens: tuple[str, ...], base: str) -> tuple[MeasuredTask, list[str]]:
    if measured.task.lm_eval:
        return measured, []
    cuts = {
        where: token
        for part in get_args(PartName)
        for example, where, _ in measured.items.list_sourced(part)
        if (token := find_special((*example.references, *example.choices, example.rejected), tokens))
    }
    if not cuts:
        return measured, []

    def cut(*texts: str) -> tuple[str, ...]:
        return tuple(cut_special(text, tokens) or text for text in texts)

    parts: dict[str, Any] = {}
    for name in get_args(PartName):
        parts[name] = tuple(
            replace(e, references=cut(*e.references), choices=cut(*e.choices), rejected=cut(e.rejected)[0])
            for e in getattr(measured.items, name)
        )
    first, token = next(iter(cuts.items()))
    option = "" if all(find_special([token]) for token in cuts.values()) else f" --base {as_argument(base)}"
    commands = [
        f"harness data clean {as_argument(file)} --out {as_argument(name_output({}, file, 'clean'))} "
        f"--special-tokens{option}"
        for file in dict.fromkeys(map(readers.file_of, cuts))
    ]
    note = (
        f"{pluralize(len(cuts), 'row')} with special tokens in answers, such as {token!r} at {first}, are "
        f"trained and compared without those around them; next: {' && '.join(commands)}"
    )
    return measured._replace(items=replace(measured.items, **parts)), [note]
