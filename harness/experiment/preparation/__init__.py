"""Preparation of a session from harness.yaml: data read and checked, machine probed, bases resolved.

Invariant: every problem of the files is reported at once, before a model is loaded or anything is written.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial

from harness.config import LoadedExperiment
from harness.data import SPLITS, TaskItems, load_task
from harness.data.contamination import open_encoder
from harness.errors import Problem, UserError, gather, refuse
from harness.evaluation import lm_eval
from harness.evaluation.candidate_rows import read_folds, read_training_rows, refuse_or_note
from harness.evaluation.candidates import names_whole_model, resolve_candidates
from harness.evaluation.judges import list_judging_models
from harness.evaluation.session import MeasuredTask, Session, join_items
from harness.experiment.candidate_weights import choose_prompts
from harness.experiment.preparation.bases import choose_quantization
from harness.experiment.preparation.candidate_problems import refuse_weights
from harness.experiment.preparation.judge_weights import attach_judges
from harness.experiment.preparation.scope import SMOKE_PAIRS, Scope, narrow, refuse_two_ways
from harness.experiment.preparation.written_rows import cut_special_tokens
from harness.formatting import pluralize, quote
from harness.models import hub, set_templates
from harness.models.devices import Room, free_room
from harness.models.embedded_model import expect_unpacking_s
from harness.models.hardware import Machine, probe
from harness.models.hub import ModelSource, resolve, set_switches
from harness.progress import Progress
from harness.spec import Experiment, Role, Task
from harness.store import Store


def prepare_session(
    loaded: LoadedExperiment,
    scope: Scope,
    progress: Progress,
    machine: Machine | None = None,
    room: Room | None = None,
) -> Session:
    """Read all data, probe the machine and its free memory unless they are given, find the base model.

    Raises:
        UserError: with the problems of all tasks at once, or two ways to ask fewer items are wanted.
    """
    session = _prepare_without_judges(loaded, scope, progress, machine, room)
    others = partial(_prepare_without_judges, scope=Scope(), progress=progress, machine=None, room=None)
    session = attach_judges(session, others)
    refuse_weights(session, loaded)
    chosen = choose_prompts(session.reading(), session.candidates)
    session.candidates = {**session.candidates, **chosen}
    return session


def _prepare_without_judges(
    loaded: LoadedExperiment, scope: Scope, progress: Progress, machine: Machine | None, room: Room | None
) -> Session:
    """Read all data, and find machine and bases; what judges score has no judges yet."""
    refuse_two_ways(scope)
    experiment = narrow(loaded.experiment, scope)
    _refuse_without_validation(experiment.target)
    experiment, catalogue = find_lm_eval_tasks(_read_plain_texts(experiment))
    seed = experiment.seeds[0]
    targets = (experiment.target, *experiment.more_targets)
    named: list[tuple[Role, str, Task]] = [("target", task.name, task) for task in targets]
    named += [(suite.role, suite.name, task) for suite in experiment.suites for task in suite.tasks]
    items = _load_all((task for _, _, task in named if not task.lm_eval), seed)
    encode = open_encoder(scope.embeddings, "--embeddings") if scope.embeddings else None
    items[experiment.target.name] = refuse_or_note(experiment.target, items, catalogue, encode=encode)
    n_pairs = SMOKE_PAIRS if scope.quick else None
    few = items[experiment.target.name].pairs[:n_pairs]
    items[experiment.target.name] = replace(items[experiment.target.name], pairs=few)
    training = read_training_rows(experiment, items, catalogue, n_pairs, encode)
    folds = read_folds(experiment, items, catalogue, n_pairs)
    tasks = [
        join_lm_eval_task(catalogue[task.name], role, suite)
        if task.lm_eval
        else join_items(task, role, suite, items[task.name])
        for role, suite, task in named
    ]
    refuse(problem for measured in tasks for problem in _find_unread(measured))
    sources = set_templates(experiment, _resolve_models(experiment, progress, unpacks=not scope.dry_run))
    source = sources[experiment.base_model]
    at = Store(loaded.folder / "runs" / "smoke" if scope.quick else loaded.folder / "runs")
    wanted = experiment.device, experiment.precision, hub.shape(source)
    with progress.stage("measuring short steps of training, reading and generating, once"):
        machine = machine or probe(*wanted, renew=scope.renew_probe)
    if machine.device == "cuda" and experiment.engine == "transformers":
        sources = choose_quantization(
            experiment, sources, machine, free_room(machine) if room is None else room
        )
        source = sources[experiment.base_model]
    target, *others = tasks
    session = Session(
        experiment,
        at,
        source,
        machine,
        target,
        tuple(m for m in others if m.role != "target"),
        progress,
        sources,
        resolve_candidates(experiment, sources),
        training=training,
        folds=folds,
        dry_run=scope.dry_run,
        more_targets=tuple(m for m in others if m.role == "target"),
        trackers=loaded.folder / "reports" / "trackers",
    )
    return cut_special_tokens(session)


def _resolve_models(experiment: Experiment, progress: Progress, *, unpacks: bool) -> dict[str, ModelSource]:
    """Find every model that an experiment names: bases, judges, and those made elsewhere."""
    named = {experiment.base_model: "base_model"}
    for candidate, recipe in experiment.candidates.items():
        if recipe.base_model:
            named.setdefault(recipe.base_model, "base_model")
        if recipe.path and names_whole_model(recipe):
            named.setdefault(recipe.path, f"candidate {candidate}: path")
    judged = [metric for task in experiment.tasks for metric in task.metrics]
    named = list_judging_models([*judged, experiment.gate.target.by]) | named
    out: dict[str, ModelSource] = {}
    problems: list[Problem] = []
    for name, where in named.items():
        expected = expect_unpacking_s(name) if unpacks else 0.0
        with gather(problems), progress.stage(f"getting {name} ready, once", expected):
            found = resolve(name, unpacks=unpacks, where=where)
            out[name] = set_switches(found, experiment.chat_template_kwargs)
    refuse(problems)
    return out


def _find_unread(measured: MeasuredTask) -> Iterator[Problem]:
    """Find that a task's primary metric reads none of its items, so that no answer to them has a score."""
    items, metric = [*measured.items.validation, *measured.items.test], measured.primary
    if not items or any(map(metric.reads, items)):
        return
    shown = quote(items[0].references[0]) if items[0].references else "none"
    found = f"references that it cannot read, of all {pluralize(len(items), 'item')} (the first is {shown})"
    step = "put another metric first in metrics: of the task, such as chrf, which reads any script"
    yield Problem(f"task {measured.task.name}: metric {metric.name}", found, "such as it can score", step)


def _load_all(tasks: Iterable[Task], seed: int) -> dict[str, TaskItems]:
    problems: list[Problem] = []
    items: dict[str, TaskItems] = {}
    for task in tasks:
        with gather(problems):
            items[task.name] = load_task(task, seed)
    refuse(problems)
    return items


def find_lm_eval_tasks(experiment: Experiment) -> tuple[Experiment, dict[str, lm_eval.LmEvalTask]]:
    """Find the suites' tasks of lm-eval, and fill in what lm-eval says of them."""
    tasks = [task for suite in experiment.suites for task in suite.tasks if task.lm_eval]
    if not tasks:
        return experiment, {}
    found = lm_eval.load(tasks, lm_eval.datasets_folder(experiment.datasets_dir))
    suites = tuple(
        suite.model_copy(update={"tasks": tuple(found[t.name].task if t.lm_eval else t for t in suite.tasks)})
        for suite in experiment.suites
    )
    return experiment.model_copy(update={"suites": suites}), found


def join_lm_eval_task(found: lm_eval.LmEvalTask, role: Role, suite: str) -> MeasuredTask:
    """Join a task of lm-eval with its documents and how they are prompted."""
    versions = dict.fromkeys(SPLITS, found.version)
    return MeasuredTask(
        found.task,
        role,
        suite,
        found.items,
        versions,
        found.metrics,
        found.encode,
        found.evaluate,
        n_documents=found.n_documents,
    )


def _read_plain_texts(experiment: Experiment) -> Experiment:
    """Return the experiment whose targets of texts are read and trained on without a chat template."""
    plain = {"chat_template": False}
    target, *more = (
        task.model_copy(update=plain) if task.kind == "bits_per_byte" else task
        for task in (experiment.target, *experiment.more_targets)
    )
    return experiment.model_copy(update={"target": target, "more_targets": tuple(more)})


def _refuse_without_validation(target: Task) -> None:
    if target.data.source("validation") is None and target.data.source("train") is None:
        expected = "rows other than the test rows, to choose and time candidates on"
        step = "name a file under data: {validation: …}, or data: {train: …}; a part of it is then set aside"
        found = "no data.validation and no data.train"
        raise UserError(Problem(f"task {target.name}", found, expected, step))
