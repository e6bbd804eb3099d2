"""Problems of candidates: why their weights cannot be made or opened here, or a server not be asked.

Invariant: everything is found before a model is loaded.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, get_args

from harness import plugins
from harness.cache import memo
from harness.config import LoadedExperiment
from harness.data import PartName, TaskItems, readers
from harness.data.text_files import cap_problems
from harness.errors import CandidateFailed, Problem, UserError, refuse
from harness.evaluation import wrap_prompt
from harness.evaluation.candidate_rows import regularization_problems
from harness.evaluation.candidates import ResolvedCandidate, add_lineage
from harness.evaluation.runner import sensitive_problems
from harness.evaluation.session import MeasuredTask, Session
from harness.experiment import trials
from harness.experiment.bases import marker_problems, quantization_problems
from harness.experiment.training_fit import processes_of, shards_of
from harness.experiment.validation_scores import scoring_problems
from harness.models import find_left_out, hub, openai_api, vllm
from harness.models.hardware import visible_gpus
from harness.models.hub import ModelSource, architecture_difference, chat_template, is_packed, load_tokenizer
from harness.models.weight_files import CONFIG, describe_beside_low_rank
from harness.prompting import PromptingContext, compose
from harness.provenance import versions_of
from harness.records import Message, digest, read_object
from harness.regularizers import layer_problems
from harness.report import trackers
from harness.spec import AcceleratePolicy, Experiment, Recipe, Task
from harness.training import encoder_of, is_of_bitsandbytes, reward_problems, rows_of_each, unknown_names


def refuse_weights(session: Session, loaded: LoadedExperiment) -> None:
    """Refuse candidates whose weights cannot be made or opened here."""
    problems = [*trackers.problems(loaded.experiment.report_to)]
    known, selected = session.candidates, loaded.selected
    needed = [known[name] for name in add_lineage(selected, known)]
    policy = session.experiment.training.accelerate
    for candidate in needed:
        recipe, where = candidate.recipe, f"candidate {candidate.name}"
        checks = plugins.method(recipe.method).checks
        if candidate.given and recipe.path:  # found in a folder, so that the hub is asked once
            recipe = recipe.model_copy(update={"path": str(candidate.given.path)})
        problems += checks.problems(recipe, candidate.base, where)
        if (
            any(base.quantization for base in (candidate.served_base, candidate.trained_base))
            and find_spec("bitsandbytes") is None
        ):
            found = "a quantised base, and no package bitsandbytes"
            step = "pip install 'harness-evals[qlora]', or leave the candidate out"
            problems.append(Problem(where, found, "the package that quantises", step))
        problems += quantization_problems(candidate)
        problems += _name_problems(candidate)
        problems += marker_problems(candidate, chat=session.target.task.chat_template)
        problems += _refuse_other_weights(session.source, candidate)
        items = session.training_data(candidate.source).items
        problems += _unusable_rows(session.target.task, items, candidate)
        problems += _check_prompt_use(session.target, candidate)
        problems += [*_init_problems(candidate), *_merge_problems(candidate)]
        context = session.mix_context(candidate.recipe, session.first_seed)
        problems += [*regularization_problems(candidate.recipe, context), *_layer_problems(candidate)]
        problems += [
            *scoring_problems(session.suites, session.first_seed, candidate),
            *trials.search_problems(candidate),
        ]
        problems += check_sharing(policy, candidate)
    problems += _find_unwritable_rows((*session.tasks, *session.training.values()), needed)
    problems += check_gpus(session.experiment, session.machine.device)
    problems += engine_problems(session.experiment, [known[name] for name in selected], needed)
    for name in selected:
        problems += _check_merging(session.experiment.engine, known[name])
    problems += endpoint_problems(
        session.experiment, [(loaded.places[name], known[name]) for name in selected]
    )
    # File and line go before the candidate that a problem names.
    places = {f"candidate {name}": place for name, place in loaded.places.items()}
    named = [(problem, places.get(problem.where.partition(":")[0])) for problem in problems]
    refuse(
        replace(problem, where=f"{place}: {problem.where}") if place else problem for problem, place in named
    )


def _name_problems(candidate: ResolvedCandidate) -> Iterator[Problem]:
    if (
        candidate.recipe.weights_of
        or candidate.init
        or is_packed(candidate.base)
        or not candidate.method.trains
    ):
        return
    for trial in candidate.trials:
        params = trial.method.params(**trial.source.params)
        if getattr(params, "encoder", None):
            continue  # of another model than the base
        if found := unknown_names(params, candidate.base, f"candidate {candidate.name}"):
            yield from found
            return


def _init_problems(candidate: ResolvedCandidate) -> Iterator[Problem]:
    if candidate.init is None or candidate.recipe.weights_of:
        return
    where, adapter = f"candidate {candidate.name}", find_adapter_config(candidate)
    params = candidate.method.params(**candidate.source.params)
    init = plugins.InitWeights(candidate.init.source, adapter)
    yield from candidate.method.checks.of_init(params, init, where)
    known = plugins.penalties(candidate.method, candidate.source.params)
    able = [name for name in known if not plugins.refuses(name, adapter)]
    for name in candidate.source.regularize:
        if found := plugins.refuses(name, adapter):
            step = f"remove {name}" + (f", or take {' or '.join(able)}" if able else "")
            yield Problem(where, f"{name} with {found}", "an adapter that is added to weight matrices", step)


def _layer_problems(candidate: ResolvedCandidate) -> Iterator[Problem]:
    source = candidate.source
    if not source.regularize or candidate.recipe.weights_of:
        return
    try:
        read = encoder_of(source.params.get("encoder"), candidate.base)
    except UserError:
        return  # said by the method
    if (shape := hub.shape(read)) is None:
        return
    for found in layer_problems(source.regularize, shape.n_layers):
        expected, step = f"at most {shape.n_layers - 1} of them", "a smaller number in regularize"
        yield Problem(f"candidate {candidate.name}", found, expected, step)


def _merge_problems(candidate: ResolvedCandidate) -> Iterator[Problem]:
    where, bases = f"candidate {candidate.name}", {one.name: one.served_base for one in candidate.merges}
    if len({base.weights_digest for base in bases.values()}) > 1:
        named = (
            f"{name} (on {' in '.join(filter(None, (b.name, b.quantization)))})" for name, b in bases.items()
        )
        found = f"adapters for several bases: {', '.join(named)}"
        yield Problem(where, found, "adapters of one base", "merge those of the same base")
    elif bases:
        adapters = {one.name: find_adapter_config(one) for one in candidate.merges}
        yield from candidate.method.checks.of_merges(candidate.source, adapters, where)


def _refuse_other_weights(base: ModelSource, candidate: ResolvedCandidate) -> Iterator[Problem]:
    own, recipe = candidate.base, candidate.recipe
    if candidate.given != own or own.weights_digest == base.weights_digest or recipe.role == "baseline":
        return
    if is_packed(own) or is_packed(base) or architecture_difference(own.path, base.path):
        return
    found = f"base_model: {own.name}, other weights of the architecture of {base.name}"
    step = f"method: model and path: {own.name} to judge it against {base.name}; role: baseline to beat it"
    yield Problem(f"candidate {candidate.name}", found, "what these weights are here", step)


def _unusable_rows(task: Task, items: TaskItems, candidate: ResolvedCandidate) -> Iterator[Problem]:
    written, method, name = candidate.recipe.reward, candidate.method, candidate.recipe.method
    where, pairs = f"candidate {candidate.name}", items.pairs
    if written is not None and candidate.reward is None:
        yield from reward_problems(written, task, items.train, f"{where}: reward")
    elif (
        written
        and candidate.reward
        and candidate.reward.base.template_digest != candidate.base.template_digest
    ):
        found = f"{written}, a reward model on {candidate.reward.base.name}, whose tokenizer is another"
        step = f"base_model: {candidate.base.name} on {written}"
        yield Problem(f"{where}: reward", found, f"the tokenizer of {candidate.base.name}", step)
    if method.draws_from != "pairs" or candidate.recipe.weights_of:
        return
    thumbs = [pair for pair in pairs if not (pair.references and pair.rejected)]
    if thumbs and not method.unpaired:
        found = f"{name}, and {len(thumbs):,} of {len(pairs):,} rows in pairs: with a thumb"
        able = " or ".join(plugins.methods(unpaired=True))
        yield Problem(where, found, "a chosen and a rejected answer in each", f"method: {able}")
    elif pairs and not (any(p.references for p in pairs) and any(p.rejected for p in pairs)):
        found, expected = f"{name}, and thumbs that all point one way", "thumbs up and thumbs down"
        yield Problem(where, found, expected, "add rows of the other kind, with label: true or false")


def _check_prompt_use(target: MeasuredTask, candidate: ResolvedCandidate) -> Iterator[Problem]:
    recipe, task, items = candidate.recipe, target.task, target.items
    evaluated, ranks = [*items.validation, *items.test], "rank" in _answers_tried(candidate.recipe)
    if ranks and task.kind == "generate" and not any(example.choices for example in evaluated):
        found = f"answer: rank, and {len(evaluated):,} items of {task.name}, none with labels"
        step = f"labels: [..] in {task.name}, or answer: generate"
        yield Problem(f"candidate {candidate.name}", found, "labels to rank", step)
    needing = [] if set(recipe.prompting) <= {"zero_shot"} else ["prompting"]
    needing += ["answer: rank"] if ranks else []
    if needing and task.kind == "bits_per_byte":
        found = f"{' and '.join(needing)}, and kind: bits_per_byte of {task.name}, whose texts are read alone"
        step = "leave it out, or give the rows prompts and answers"
        yield Problem(f"candidate {candidate.name}", found, "a target of kind generate or choice", step)


def _answers_tried(recipe: Recipe) -> list[Any]:
    return [recipe.answer, *recipe.tried.get("answer", ())]


def engine_problems(
    experiment: Experiment, selected: Iterable[ResolvedCandidate], needed: Iterable[ResolvedCandidate]
) -> Iterator[Problem]:
    """Yield what vLLM cannot serve of the selected candidates and of the adapters made for them."""
    if experiment.engine == "transformers":
        return
    yield from vllm.problems(experiment.vllm)
    for candidate in selected:
        where = f"candidate {candidate.name}"
        if candidate.makes == "adapter" and not experiment.vllm.enable_lora:
            found, expected = "an adapter, and vllm.enable_lora: false", "a vLLM that takes adapters"
            yield Problem(where, found, expected, "leave enable_lora out")
        if candidate.served_base.quantization:
            step = f"serve_on: bf16, or {vllm.OTHERWISE}"
            yield Problem(where, "a quantised base, and engine: vllm", "a base as it was", step)
        if candidate.makes == "delta":
            found = "weights of a form of our own, and engine: vllm"
            yield Problem(where, found, "an adapter or a whole model", vllm.OTHERWISE)
    # What vLLM does not compute of an adapter, or leaves out without a word.
    for candidate in needed:
        where, adapters = (
            f"candidate {candidate.name}",
            [read_recipe_config(trial.source) for trial in candidate.trials],
        )
        beside = [_describe_unmergeable(adapter) or _describe_beside(adapter) for adapter in adapters]
        rank = max(adapter.get("r", 0) for adapter in adapters)
        if any(adapter.get("use_dora") for adapter in adapters):
            found, step = "DoRA, and engine: vllm", f"use_dora: false, or {vllm.OTHERWISE}"
            yield Problem(where, found, "a plain low-rank adapter", step)
        elif named := next(filter(None, beside), ""):
            found = f"an adapter {named}, and engine: vllm"
            yield Problem(where, found, "low-rank matrices alone, of one rank and scale", vllm.OTHERWISE)
        elif rank > vllm.MAX_RANK:
            found, step = f"an adapter of rank {rank}, and engine: vllm", f"a lower r, or {vllm.OTHERWISE}"
            yield Problem(where, found, f"a rank of at most {vllm.MAX_RANK}", step)


def _check_merging(engine: str, candidate: ResolvedCandidate) -> Iterator[Problem]:
    if not candidate.recipe.serve_merged:
        return
    where = f"candidate {candidate.name}"
    if "adapter" not in candidate.makes.split(plugins.OR):
        found = f"serve_merged, and weights of the kind {candidate.makes}"
        yield Problem(where, found, "weights_of that name an adapter", "remove serve_merged")
    elif more := _describe_unmergeable(find_adapter_config(candidate)):
        found = f"serve_merged, and an adapter {more}"
        yield Problem(where, found, "one of low-rank matrices alone", "remove serve_merged")
    if candidate.served_base.quantization:
        found = f"serve_merged, and a base in {candidate.served_base.quantization}"
        yield Problem(where, found, "a base as it was", "serve_on: bf16, or remove serve_merged")
    if engine != "transformers":
        found = f"serve_merged, and engine: {engine}"
        yield Problem(where, found, "the engine that merges", "engine: transformers, or remove serve_merged")


def _describe_unmergeable(adapter: Mapping[str, Any]) -> str:
    """Name the part of an adapter that cannot be merged (see `merge_layers`); empty if unknown."""
    if (family := adapter.get("peft_type", "LORA")) != "LORA":
        return f"of the family {family}"
    return next((f"with {name}" for name in ("use_dora", "lora_bias") if adapter.get(name)), "")


def _describe_beside(adapter: Mapping[str, Any]) -> str:
    """Name what an adapter has besides low-rank matrices of one rank and scale; empty if nothing."""
    # vLLM scales every layer by lora_alpha / r.
    patterns = (name for name in ("rank_pattern", "alpha_pattern") if adapter.get(name))
    beside = describe_beside_low_rank(adapter) or next(patterns, "")
    return f"with {beside}" if beside else ""


Placed = Sequence[tuple[str, ResolvedCandidate]]  # where each candidate is written, and the candidate


def key_problems(experiment: Experiment, placed: Placed) -> Iterator[Problem]:
    """Yield what forbids to ask candidates over HTTP now."""
    for where, candidate in placed:
        if candidate.is_remote:
            yield from openai_api.problems(_settings(candidate), where)
    yield from sensitive_endpoints(experiment, placed)


def sensitive_endpoints(experiment: Experiment, placed: Placed) -> Iterator[Problem]:
    """Yield the candidates that would send sensitive rows to other people's servers."""
    step = "--candidates without it, or remove it or sensitive_data"
    for where, candidate in placed:
        if candidate.is_remote:
            yield from sensitive_problems(experiment, _settings(candidate), candidate.name, where, step)


def endpoint_problems(experiment: Experiment, placed: Placed) -> Iterator[Problem]:
    """Yield what no server could answer of candidates."""
    for where, candidate in placed:
        if not candidate.is_remote:
            continue
        settings, ranks = _settings(candidate), "rank" in _answers_tried(candidate.recipe)
        if settings.protocol == "chat" and (ranks or not openai_api.can_chat(experiment.target)):
            name = candidate.name
            found = f"{name}, asked by chat, and a target that needs token ids or their log-probabilities"
            expected = "a target that is answered in chat, and answer: generate"
            yield Problem(where, found, expected, "protocol: completions, where the server has it")


def _settings(candidate: ResolvedCandidate) -> openai_api.Settings:
    return openai_api.Settings(**candidate.source.params)


_ACCELERATE = "training.accelerate"


def check_sharing(policy: AcceleratePolicy, candidate: ResolvedCandidate) -> list[Problem]:
    """List what forbids processes to share a candidate's training, of its first trial with a problem."""
    where, problems = f"candidate {candidate.name}", list[Problem]()
    for trial in candidate.trials:
        processes, shards = processes_of(policy, trial.source), shards_of(policy, trial.source)
        try:
            if processes > 1:
                rows_of_each(trial.method.params(**trial.source.params), processes)
        except ValueError as error:
            step = "another per_device_train_batch_size or gradient_accumulation_steps, or num_processes"
            return [Problem(where, str(error), "as many rows for each process", step)]
        if not shards:
            continue
        # These need whole weights, which no process has.
        kind, whole = f"distributed_type: {shards.partition('/')[0]}", "distributed_type: MULTI_GPU"
        optim, quantization = trial.source.params.get("optim"), trial.trained_base.quantization
        if trial.source.track:
            found = f"track, and {kind}, whose weights are put together at the end alone"
            problems.append(Problem(where, found, "one of the two", f"leave out track, or {whole}"))
        if is_of_bitsandbytes(optim):
            found = f"optim: {optim}, which is bitsandbytes', and {kind}"
            expected = "an optimiser of torch's, which shards can have"
            problems.append(Problem(where, found, expected, "optim: adamw_torch"))
        if quantization and (quantization, shards) != ("nf4", "FSDP"):
            found, expected = (
                f"a base in {quantization}, and {kind}",
                "nf4 by FSDP, which shards its four bits",
            )
            problems.append(Problem(where, found, f"{expected} as floats", whole))
        if trial.method.draws_from == "pairs":
            found = f"{trial.source.method}, which reads its reference before weights are sharded, and {kind}"
            problems.append(Problem(where, found, "one of the two", whole))
        if problems:
            return problems
    return []


def check_gpus(experiment: Experiment, device: str) -> Iterator[Problem]:
    """Yield that there are fewer GPUs here than processes to share a training, or workers, with one each."""
    policy, executor = experiment.training.accelerate, experiment.execution.executor
    wanted, on_gpu = policy.num_processes, device == "cuda"
    if wanted == 1:
        return
    kind = f"distributed_type: {policy.distributed_type}"
    if executor != "in_process":
        found = f"num_processes: {wanted}, and executor: {executor}, whose workers are one process each"
        yield Problem(_ACCELERATE, found, "one of the two", "num_processes: 1, or no executor")
    elif on_gpu and (n_gpus := len(visible_gpus())) < wanted:
        found = f"num_processes: {wanted}, and {n_gpus} GPU{'s' * (n_gpus > 1)} for each training"
        yield Problem(_ACCELERATE, found, "a GPU for each process", "fewer processes")
    if policy.shards and not on_gpu:
        expected = "a GPU for each process, as accelerate shards on GPUs alone"
        yield Problem(_ACCELERATE, f"{kind}, and no GPU here", expected, "distributed_type: MULTI_GPU")
    if policy.distributed_type == "DEEPSPEED" and find_spec("deepspeed") is None:
        step = "pip install 'harness-evals[deepspeed]', or distributed_type: FSDP"
        yield Problem(_ACCELERATE, f"{kind}, and no package deepspeed", "the package that shards", step)


def find_adapter_config(candidate: ResolvedCandidate) -> dict[str, Any]:
    """Return the known configuration of a candidate's adapter, without values that a sweep decides.

    An adapter that starts from another candidate's has its shape.
    """
    while candidate.init:
        candidate = candidate.init
    known = read_recipe_config(candidate.source)
    return {name: value for name, value in known.items() if name not in candidate.source.tried}


def read_recipe_config(recipe: Recipe) -> dict[str, Any]:
    """Return the parameters of a recipe's adapter; empty if the file of one made elsewhere is unreadable."""
    if not recipe.path:
        params: dict[str, Any] = plugins.method(recipe.method).params(**recipe.params).model_dump()
        return params
    return read_object(Path(recipe.path) / CONFIG)


_NO_ROW = "a row that its chat template writes"


class _Row(NamedTuple):
    """Conversation of a row, and the row's place."""

    messages: Sequence[Message]
    where: str


def _find_unwritable_rows(
    tasks: Sequence[MeasuredTask], candidates: Iterable[ResolvedCandidate]
) -> Iterator[Problem]:
    """Yield the rows that the chat template of a candidate's base does not write, at most ten of a file."""
    bases = {
        base
        for one in candidates
        if one.method.makes_language_model and not one.is_remote
        for base in (one.base, one.trained_base)
        if not is_packed(base) and chat_template(base)
    }
    rows = [row for measured in tasks for row in _list_rows(measured)]
    texts = [list(row.messages) for row in rows]
    texts_digest = digest(texts) if bases else ""

    def try_rows(base: ModelSource) -> dict[str, str]:
        # What went wrong, by the place of the row.
        tokenizer, found = load_tokenizer(base), dict[str, str]()
        for place, messages in enumerate(texts):
            try:
                if role := find_left_out(tokenizer, messages):
                    found[str(place)] = f"a turn of {role!r} that the chat template leaves out"
            except CandidateFailed as error:
                found[str(place)] = error.reason
        return found

    for base in sorted(bases, key=lambda base: base.name) if rows else ():
        key = digest([base.template_digest, texts_digest, versions_of("tokenization")])
        reasons = memo("unwritable_rows", key, partial(try_rows, base))
        if len(reasons) == len(rows):  # of all of them once
            step = "correct its chat template, choose another base, or set chat_template: false on the tasks"
            yield Problem(f"base_model {base.name}", next(iter(reasons.values())), _NO_ROW, step)
            continue
        by_file: dict[str, list[Problem]] = {}
        for place, reason in reasons.items():
            where = rows[int(place)].where
            step = "change its turns to such as the template takes, remove the row, or choose another base"
            problem = Problem(where, f"{reason}, {base.name}'s", _NO_ROW, step)
            by_file.setdefault(readers.file_of(where), []).append(problem)
        for file, problems in by_file.items():
            yield from cap_problems(problems, file, "rows that the chat template does not write")


def _list_rows(measured: MeasuredTask) -> Iterator[_Row]:
    task = measured.task
    if not task.chat_template or task.lm_eval or task.kind == "bits_per_byte":
        return
    shots = {"few_shot": {"select": "fixed", "shots": task.num_fewshot}} if task.num_fewshot else {}
    step = compose(shots, PromptingContext(task, measured.items.train, (), 0))
    for part in get_args(PartName):
        for example, where, _ in measured.items.list_sourced(part):
            sampled = step(example) if part == "test" else example
            yield _Row(wrap_prompt(sampled, task.system, None).messages, where)
