"""Preparation of a session from harness.yaml: data read and checked, machine probed, bases resolved.

Invariant: every problem of the files is reported at once, before a model is loaded or anything is
written.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from harness import plugins, store
from harness.config import Loaded
from harness.data import SPLITS, TaskItems, load_task
from harness.errors import Problem, UserError
from harness.evaluation import costs, lm_eval
from harness.evaluation.candidate_rows import read_training_rows, training_data
from harness.evaluation.candidates import ResolvedCandidate, base_weights, resolve_candidates
from harness.evaluation.contamination.leaks import refuse_or_note
from harness.evaluation.costs import Work
from harness.evaluation.judges import judged_metrics, judging_models
from harness.evaluation.regularization import regularization_problems
from harness.evaluation.rows.row_sets import suite_sets, target_sets, total_work, work_of
from harness.evaluation.session import Measured, Session, join_items
from harness.experiment.curves.tracking import tracking_problems, tracking_work
from harness.experiment.preparation.base_fit import marker_problems, quantization_problems
from harness.experiment.weights import proposals
from harness.experiment.weights.candidate_weights import fit_work
from harness.metrics import Metric, load_metrics
from harness.models import openai_api, vllm
from harness.models.adapters import CONFIG
from harness.models.hardware import Machine, probe
from harness.models.hub import (
    ModelSource,
    architecture_difference,
    expected_s,
    has_chat_template,
    has_tokenizer,
    is_packed,
    resolve,
    with_switches,
)
from harness.progress import Progress
from harness.records import FEWER, parse_json
from harness.spec import Experiment, ItemLimits, Recipe, Role, Suite, Task
from harness.store import Store
from harness.training import reward_problems

SMOKE_LIMITS = ItemLimits(train=64, validation=16, test=24)
SMOKE_ITEMS, SMOKE_PAIRS = 12, 32
BASE_ARM = "capability suite of the base"


class Scope(NamedTuple):
    """Part of an experiment that is run: `limit` test items of each task, a quick smoke, or fewer items.

    A `dry_run` runs none of it, and loads no model. `renew_probe` measures the machine anew.
    """

    limit: int | None = None
    quick: bool = False
    fewer: bool = False
    dry_run: bool = False
    renew_probe: bool = False

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
        target = _with_limits(experiment.target, SMOKE_LIMITS)
        suites = tuple(_cap_suite(suite, SMOKE_ITEMS) for suite in experiment.suites)
        candidates = {name: _short(recipe) for name, recipe in experiment.candidates.items()}
        return experiment.model_copy(update={"target": target, "suites": suites, "candidates": candidates})
    if scope.limit:
        old = experiment.target.data.limits
        limits = ItemLimits(
            train=old.train, validation=old.validation, test=min(scope.limit, old.test or scope.limit)
        )
        suites = tuple(_cap_suite(suite, scope.limit) for suite in experiment.suites)
        name = f"{experiment.name}-limit{scope.limit}"
        target = _with_limits(experiment.target, limits)
        return experiment.model_copy(update={"name": name, "target": target, "suites": suites})
    return experiment


def prepare_session(
    loaded: Loaded, scope: Scope, progress: Progress, machine: Machine | None = None
) -> Session:
    """Read all data, probe the machine unless that is given, find the base model.

    Raises:
        UserError: with the problems of all tasks at once, or two ways to ask fewer items are wanted.
    """
    _refuse_two_ways(scope)
    experiment = narrow(loaded.experiment, scope)
    _refuse_without_train(experiment.target)
    experiment, catalogue = with_lm_eval(experiment)
    seed = experiment.seeds[0]
    named: list[tuple[Role, str, Task]] = [("target", experiment.target.name, experiment.target)]
    named += [(suite.role, suite.name, task) for suite in experiment.suites for task in suite.tasks]
    items = _load_all((task for _, _, task in named if not task.lm_eval), seed)
    items[experiment.target.name] = refuse_or_note(experiment.target, items, catalogue)
    n_pairs = SMOKE_PAIRS if scope.quick else None
    few = items[experiment.target.name].pairs[:n_pairs]
    items[experiment.target.name] = replace(items[experiment.target.name], pairs=few)
    training = read_training_rows(experiment, items, catalogue, n_pairs)
    target, *suites = (
        of_lm_eval(catalogue[task.name], role, suite)
        if task.lm_eval
        else join_items(task, role, suite, items[task.name])
        for role, suite, task in named
    )
    sources = _resolve_models(experiment, progress, unpacks=not scope.dry_run)
    _refuse_without_template(experiment, sources.values())
    source = sources[experiment.base_model]
    at = Store(loaded.folder / "runs" / "smoke" if scope.quick else loaded.folder / "runs")
    reached_gflops = _reached_gflops(at, experiment.name, source)
    wanted = experiment.device, experiment.precision
    machine = machine or probe(*wanted, renew=scope.renew_probe, reached_gflops=reached_gflops)
    target, *suites = (
        m._replace(judged=judged_metrics(m.task, m.items, at, sources, machine)) for m in (target, *suites)
    )
    session = Session(
        experiment,
        at,
        source,
        machine,
        target,
        tuple(suites),
        progress,
        sources,
        resolve_candidates(experiment, sources),
        training=training,
        dry_run=scope.dry_run,
    )
    _refuse_weights(session, loaded)
    return session


def _refuse_two_ways(scope: Scope) -> None:
    """Refuse a cut of the items from which more would be drawn: the delta is that of whole tasks."""
    given = [name for name, there in (("--quick", scope.quick), ("--limit", scope.limit)) if there]
    if scope.fewer and given:
        expected = "whole tasks, from which the items are drawn"
        step = "--all-items, or leave the other out"
        raise UserError(Problem("--sequential", f"{' and '.join(given)} as well", expected, step))


def _resolve_models(experiment: Experiment, progress: Progress, *, unpacks: bool) -> dict[str, ModelSource]:
    """Find every model that an experiment names: bases, judges, and those made elsewhere."""
    named = {experiment.base_model: "base_model"}
    for candidate, recipe in experiment.candidates.items():
        if recipe.base_model:
            named.setdefault(recipe.base_model, "base_model")
        if recipe.path and plugins.method(recipe.method).makes == "model":
            named.setdefault(recipe.path, f"candidate {candidate}: path")
    named = judging_models(experiment.tasks) | named
    out: dict[str, ModelSource] = {}
    problems: list[Problem] = []
    for name, where in named.items():
        try:
            with progress.stage(f"getting {name} ready, once", expected_s(name) if unpacks else 0.0):
                found = resolve(name, unpacks=unpacks, where=where)
                out[name] = with_switches(found, experiment.chat_template_kwargs)
        except UserError as error:
            problems.extend(error.problems)
    if problems:
        raise UserError(problems)
    return out


def _reached_gflops(at: Store, experiment: str, source: ModelSource) -> float:
    """Return the matrix speed that the quickest stored training on a base needed; 0 without one."""
    runs = [run for run in store.list_runs(at, experiment) if run.base_digest == source.weights_digest]
    speeds = (costs.training_gflops(source.n_parameters, run.training.tokens_per_s or 0.0) for run in runs)
    return max(speeds, default=0.0)


def _refuse_weights(session: Session, loaded: Loaded) -> None:
    """Refuse candidates whose weights cannot be made or opened here."""
    problems: list[Problem] = []
    known, selected = session.candidates, loaded.selected
    names = dict.fromkeys(at for name in selected for at in (name, *known[name].lineage))
    needed = [known[name] for name in names]
    for candidate in needed:
        recipe, where = candidate.recipe, f"candidate {candidate.name}"
        problems += plugins.method(recipe.method).problems(_with_found_path(candidate), candidate.base, where)
        if (
            any(base.quantization for base in (candidate.served_base, candidate.trained_base))
            and find_spec("bitsandbytes") is None
        ):
            found = "a quantised base, and no package bitsandbytes"
            step = "pip install 'harness-evals[qlora]', or leave the candidate out"
            problems.append(Problem(where, found, "the package that quantises", step))
        problems += quantization_problems(candidate)
        problems += marker_problems(candidate, chat=session.target.task.chat_template)
        problems += _other_weights(session, candidate)
        problems += _unusable_reward(session, candidate)
        problems += _unusable_pairs(session, candidate)
        problems += _merge_problems(candidate)
        problems += regularization_problems(session, recipe)
        problems += [*tracking_problems(candidate), *proposals.problems(candidate)]
    problems += engine_problems(session, selected, needed)
    problems += endpoint_problems(session, {name: loaded.places[name] for name in selected})
    if problems:
        raise UserError(problems)


def _with_found_path(candidate: ResolvedCandidate) -> Recipe:
    """Return the recipe with the folder that a whole model was found in, so that the hub is asked once."""
    if not (candidate.given and candidate.recipe.path):
        return candidate.recipe
    return candidate.recipe.model_copy(update={"path": str(candidate.given.path)})


def _merge_problems(candidate: ResolvedCandidate) -> Iterator[Problem]:
    """Yield what forbids merging: adapters for several bases, or of kinds that the method cannot merge."""
    where, bases = f"candidate {candidate.name}", {one.name: one.served_base for one in candidate.merges}
    if len({base.weights_digest for base in bases.values()}) > 1:
        named = (
            f"{name} (on {' in '.join(filter(None, (b.name, b.quantization)))})" for name, b in bases.items()
        )
        found = f"adapters for several bases: {', '.join(named)}"
        yield Problem(where, found, "adapters of one base", "merge those of the same base")
    elif bases:
        adapters = {one.name: _adapter_config(one) for one in candidate.merges}
        yield from candidate.method.merge_problems(candidate.source, adapters, where)


def _adapter_config(candidate: ResolvedCandidate) -> dict[str, Any]:
    """Return what is known of a candidate's adapter before it is made: not what its sweep decides."""
    while candidate.init:
        candidate = candidate.init
    known = _adapter(candidate.source)
    return {name: value for name, value in known.items() if name not in candidate.source.tried}


def _other_weights(session: Session, candidate: ResolvedCandidate) -> Iterator[Problem]:
    """Yield that a base of the experiment's architecture would be compared with itself."""
    own, base, recipe = candidate.base, session.source, candidate.recipe
    if candidate.given != own or own.weights_digest == base.weights_digest or recipe.role == "baseline":
        return
    if is_packed(own) or is_packed(base) or architecture_difference(own.path, base.path):
        return
    found = f"base_model: {own.name}, other weights of the architecture of {base.name}"
    step = f"method: model and path: {own.name} to judge it against {base.name}; role: baseline to beat it"
    yield Problem(f"candidate {candidate.name}", found, "what these weights are here", step)


def _unusable_reward(session: Session, candidate: ResolvedCandidate) -> Iterator[Problem]:
    """Yield what forbids training a candidate on the reward that it names."""
    written, where = candidate.recipe.reward, f"candidate {candidate.name}: reward"
    if written is None:
        return
    if candidate.reward is None:
        target = session.target
        rows = training_data(session, candidate.source).items.train
        yield from reward_problems(written, target.task, rows, where)
    elif candidate.reward.base.template_digest != candidate.base.template_digest:
        found = f"{written}, a reward model on {candidate.reward.base.name}, whose tokenizer is another"
        step = f"base_model: {candidate.base.name} on {written}"
        yield Problem(where, found, f"the tokenizer of {candidate.base.name}", step)


def _unusable_pairs(session: Session, candidate: ResolvedCandidate) -> Iterator[Problem]:
    """Yield what forbids training on the rows of `pairs:`: thumbs in place of pairs, or all of one kind."""
    method = candidate.method
    if method.draws_from != "pairs" or candidate.recipe.weights_of:
        return
    pairs = training_data(session, candidate.source).items.pairs
    where, name = f"candidate {candidate.name}", candidate.recipe.method
    thumbs = [pair for pair in pairs if not (pair.references and pair.rejected)]
    if thumbs and not method.unpaired:
        found = f"{name}, and {len(thumbs):,} of {len(pairs):,} rows in pairs: with a thumb"
        able = " or ".join(plugins.methods(unpaired=True))
        yield Problem(where, found, "a chosen and a rejected answer in each", f"method: {able}")
    elif pairs and not (any(p.references for p in pairs) and any(p.rejected for p in pairs)):
        found, expected = f"{name}, and thumbs that all point one way", "thumbs up and thumbs down"
        yield Problem(where, found, expected, "add rows of the other kind, with label: true or false")


def estimate_work(session: Session, selected: Collection[str]) -> dict[str, Work]:
    """Estimate what each selected candidate trains, reads and generates, as if nothing were there yet."""
    candidates = [session.candidates[name] for name in selected]
    suites = total_work(suite_sets(session, base_weights(session.source)))
    out = {arm_label(session, source): suites for source in measured_bases(candidates)}
    made: set[str] = set()
    judged: set[tuple[str, str]] = set()
    for candidate in candidates:
        makes = [at for at in candidate.lineage if at not in made]
        made.update(makes)
        making = sum((_making_work(session, session.candidates[at]) for at in makes), Work())
        weights = (candidate.source_name, candidate.served_base.weights_digest)
        gated = candidate.method.tunes and not candidate.is_target_only and weights not in judged
        once = _evaluation_work(session, candidate) + making + (suites if gated else Work())
        judged.add(weights)
        out[candidate.name] = sum([once] * len(candidate.seeds), Work())
    return out


def seconds_planned(session: Session, work: Mapping[str, Work]) -> dict[str, float]:
    """Say how long planned work takes here: on its own base, or on the experiment's where it has none.

    An endpoint takes no time here.
    """
    candidates = session.candidates.values()
    remote = {candidate.name for candidate in candidates if candidate.is_remote}
    bases = {candidate.name: candidate.base for candidate in candidates}
    bases |= {arm_label(session, source): source for source in measured_bases(candidates)}
    return {name: session.seconds(one, bases.get(name)) for name, one in work.items() if name not in remote}


def measured_bases(candidates: Collection[ResolvedCandidate]) -> list[ModelSource]:
    """List the bases that gated candidates are measured against: as published, then as served otherwise."""
    gated = [c for c in candidates if not c.is_target_only]
    return list(dict.fromkeys([*(c.base for c in gated), *(c.served_base for c in gated)]))


def arm_label(session: Session, source: ModelSource) -> str:
    """Name the measurement of a base on the capability suite."""
    other = "" if source.name == session.experiment.base_model else f" {source.name}"
    return f"{BASE_ARM}{other}{' in ' * bool(source.quantization)}{source.quantization.upper()}"


def _making_work(session: Session, candidate: ResolvedCandidate) -> Work:
    """Estimate all trials, each with its answers to the validation rows; or the one fit."""
    trials = candidate.trials
    fits = [fit_work(session, trial.source, session.experiment.seeds[0]) for trial in trials]
    if candidate.source.tried:
        validation = target_sets(session, candidate.source, base_weights(session.source), 0)[0]
        fits += [work_of(validation.job())] * (len(trials) - 1)
    return sum(fits, tracking_work(session, candidate.source))


def _evaluation_work(session: Session, candidate: ResolvedCandidate) -> Work:
    if not plugins.method(candidate.recipe.method).makes_language_model:
        return Work()
    return total_work(target_sets(session, candidate.recipe, base_weights(session.source), 0))


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


def with_lm_eval(experiment: Experiment) -> tuple[Experiment, dict[str, lm_eval.Found]]:
    """Find the suites' tasks of lm-eval, and fill in what lm-eval says of them."""
    asked = [task for suite in experiment.suites for task in suite.tasks if task.lm_eval]
    if not asked:
        return experiment, {}
    found = lm_eval.load(asked, lm_eval.datasets_folder(experiment.datasets_dir))
    suites = tuple(
        suite.model_copy(update={"tasks": tuple(found[t.name].task if t.lm_eval else t for t in suite.tasks)})
        for suite in experiment.suites
    )
    return experiment.model_copy(update={"suites": suites}), found


def metrics_of(task: Task, catalogue: Mapping[str, lm_eval.Found]) -> dict[str, Metric]:
    """Return the metrics of a task, ours or one that was found in lm-eval's catalogue."""
    return catalogue[task.name].metrics if task.lm_eval else load_metrics(task)


def of_lm_eval(found: lm_eval.Found, role: Role, suite: str) -> Measured:
    """Join a task of lm-eval with its documents and how they are asked."""
    versions = dict.fromkeys(SPLITS, found.version)
    return Measured(found.task, role, suite, found.items, versions, found.metrics, found.evaluate)


def _refuse_without_train(target: Task) -> None:
    if target.data.source("train") is None:
        expected, step = "examples to train on and to take shots from", "name a file under data: {train: …}"
        raise UserError(Problem(f"task {target.name}", "no data.train", expected, step))


def _refuse_without_template(experiment: Experiment, sources: Iterable[ModelSource]) -> None:
    in_chat = [task.name for task in experiment.tasks if task.chat_template and task.kind != "bits_per_byte"]
    problems = [
        Problem(
            f"base_model {source.name}",
            f"a tokenizer without a chat template, and tasks asked in chat: {', '.join(in_chat)}",
            "an instruction-tuned model",
            "choose an instruct model, or set chat_template: false on these tasks",
        )
        for source in sources
        if in_chat
        and not is_packed(source)
        and has_tokenizer(source.path)
        and not has_chat_template(source.path)
    ]
    if problems:
        raise UserError(problems)


def _with_limits(task: Task, limits: ItemLimits) -> Task:
    return task.model_copy(update={"data": task.data.model_copy(update={"limits": limits})})


def _cap_suite(suite: Suite, n: int) -> Suite:
    tasks = tuple(t.model_copy(update={"limit": min(n, t.limit or n)}) for t in suite.tasks)
    return suite.model_copy(update={"tasks": tasks})


def _short(recipe: Recipe) -> Recipe:
    """Train for one epoch where a method has epochs."""
    if not plugins.method(recipe.method).trains:
        return recipe
    return recipe.model_copy(update={"params": {**recipe.params, "num_train_epochs": 1.0}})


def engine_problems(
    session: Session, selected: Iterable[str], needed: Iterable[ResolvedCandidate]
) -> Iterator[Problem]:
    """Yield what vLLM cannot serve of the selected candidates and of the adapters made for them."""
    if session.experiment.engine == "transformers":
        return
    if vllm.installed_version() is None:
        yield vllm.absent()
    for name in selected:
        if session.candidates[name].served_base.quantization:
            step = f"serve_on: bf16, or {vllm.OTHERWISE}"
            yield Problem(f"candidate {name}", "a quantised base, and engine: vllm", "a base as it was", step)
        if session.candidates[name].method.makes == "delta":
            found = "weights of a form of our own, and engine: vllm"
            yield Problem(f"candidate {name}", found, "an adapter or a whole model", vllm.OTHERWISE)
    for candidate in needed:
        name, adapters = candidate.name, [_adapter(trial.source) for trial in candidate.trials]
        if any(adapter.get("use_dora") for adapter in adapters):
            found, step = "DoRA, and engine: vllm", f"use_dora: false, or {vllm.OTHERWISE}"
            yield Problem(f"candidate {name}", found, "a plain low-rank adapter", step)
        rank = max(adapter.get("r", 0) for adapter in adapters)
        if rank > vllm.MAX_RANK:
            found, step = f"an adapter of rank {rank}, and engine: vllm", f"a lower r, or {vllm.OTHERWISE}"
            yield Problem(f"candidate {name}", found, f"a rank of at most {vllm.MAX_RANK}", step)


def key_problems(session: Session, places: Mapping[str, str]) -> Iterator[Problem]:
    """Yield what forbids to ask candidates over HTTP now; `places` says where each is written."""
    sensitive = "sensitive_data" in session.experiment.decide.needs
    for name, where in places.items():
        if not session.candidates[name].is_remote:
            continue
        settings = _settings(session, name)
        yield from openai_api.problems(settings, where)
        if sensitive and settings.leaves_machine:
            found, step = f"{name} on somebody else's server, {settings.name}", "--candidates without it"
            expected = "sensitive data to stay here, as decide.needs: [sensitive_data] says"
            yield Problem(where, found, expected, f"{step}, or remove it or sensitive_data")


def endpoint_problems(session: Session, places: Mapping[str, str]) -> Iterator[Problem]:
    """Yield what no server could answer of candidates; `places` says where each is written."""
    task = session.experiment.target
    for name, where in places.items():
        candidate = session.candidates[name]
        if not candidate.is_remote:
            continue
        settings = _settings(session, name)
        if settings.protocol == "chat" and (
            candidate.recipe.answer == "rank" or not openai_api.can_chat(task)
        ):
            found = f"{name}, asked by chat, and a target that needs token ids or their log-probabilities"
            expected = "a target that is answered in chat, and answer: generate"
            yield Problem(where, found, expected, "protocol: completions, where the server has it")


def _settings(session: Session, name: str) -> openai_api.Settings:
    return openai_api.Settings(**session.candidates[name].source.params)


def _adapter(recipe: Recipe) -> dict[str, Any]:
    """Return what is known of a recipe's adapter: its parameters, or of one made elsewhere its file."""
    if not recipe.path:
        params: dict[str, Any] = plugins.method(recipe.method).params(**recipe.params).model_dump()
        return params
    try:
        config = parse_json((Path(recipe.path) / CONFIG).read_text("utf-8"))
    except (OSError, ValueError):
        return {}  # the method says what is wrong with it
    return config if isinstance(config, dict) else {}
