"""Problems of candidates: weights that cannot be made or opened here, endpoints that cannot be used.

Invariant: all problems are found before a model is loaded.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

from harness import plugins
from harness.cache import memo
from harness.data import PartName, TaskItems, readers
from harness.data.text_files import cap_problems
from harness.errors import CandidateFailed, Problem, UserError
from harness.evaluation import wrap_prompt
from harness.evaluation.candidates import ResolvedCandidate
from harness.evaluation.runner import sensitive_problems
from harness.evaluation.session import MeasuredTask
from harness.experiment.bases import quantization_problems
from harness.experiment.candidate_weights import processes_of, shards_of
from harness.models import find_left_out, hub, openai_api, vllm
from harness.models.hardware import visible_gpus
from harness.models.hub import ModelSource, architecture_difference, chat_template, is_packed, load_tokenizer
from harness.models.weight_files import CONFIG, describe_beside_low_rank
from harness.prompting import PromptingContext, compose
from harness.provenance import versions_of
from harness.records import Message, digest, read_object
from harness.regularizers import layer_problems
from harness.spec import AcceleratePolicy, Experiment, Recipe, Task
from harness.training import encoder_of, is_of_bitsandbytes, reward_problems, rows_of_each, unknown_names


def weight_problems(
    experiment: Experiment,
    base: ModelSource,
    target: MeasuredTask,
    items: TaskItems,
    candidate: ResolvedCandidate,
) -> Iterator[Problem]:
    """Yield the problems of making or opening a candidate's weights, which are trained on `items`, here."""
    recipe, where = candidate.recipe, f"candidate {candidate.name}"
    if candidate.given and recipe.path:  # the resolved folder, so that the hub is queried once
        recipe = recipe.model_copy(update={"path": str(candidate.given.path)})
    yield from plugins.method(recipe.method).problems(recipe, candidate.base, where)
    yield from quantization_problems(candidate)
    yield from _base_problems(base, target.task, candidate)
    yield from _row_problems(target, items, candidate)
    source = candidate.source
    is_made = not recipe.weights_of  # borrowed weights are their own candidate's
    if is_made and candidate.method.trains and not candidate.init and not is_packed(candidate.base):
        of_trials = (trial.method.params(**trial.source.params) for trial in candidate.trials)
        on_base = (params for params in of_trials if not getattr(params, "encoder", None))
        yield from next(filter(None, (unknown_names(p, candidate.base, where) for p in on_base)), ())
    if is_made and candidate.init:
        params, adapter = candidate.method.params(**source.params), find_adapter_config(candidate)
        init = plugins.InitWeights(candidate.init.source, adapter)
        yield from candidate.method.init_problems(params, init, where)
        penalties = plugins.penalties(candidate.method, source.params)
        supported = [name for name in penalties if not plugins.refuses(name, adapter)]
        for name in source.regularize:
            if refusal := plugins.refuses(name, adapter):
                step = f"remove {name}" + (f", or take {' or '.join(supported)}" if supported else "")
                expected = "an adapter that is added to weight matrices"
                yield Problem(where, f"{name} with {refusal}", expected, step)
    if is_made and source.regularize:
        with suppress(UserError):  # the method reports it
            shape = hub.shape(encoder_of(source.params.get("encoder"), candidate.base))
            n_layers = shape.n_layers if shape else 0
            for found in layer_problems(source.regularize, n_layers) if shape else ():
                expected, step = f"at most {n_layers - 1} of them", "a smaller number in regularize"
                yield Problem(where, found, expected, step)
    yield from check_sharing(experiment.training.accelerate, candidate)


_MARKED = re.compile(r"\{%-?\s*generation\s*-?%\}")  # the same pattern as in transformers

Placed = Sequence[tuple[str, ResolvedCandidate]]  # location in the file, and candidate


def list_engine_problems(
    experiment: Experiment, device: str, placed: Placed, needed: Iterable[ResolvedCandidate]
) -> Iterator[Problem]:
    """Yield problems of GPUs, engine and endpoints with the selected candidates and all that they need."""
    yield from check_gpus(experiment, device)
    selected = [candidate for _, candidate in placed]
    for candidate in (candidate for candidate in selected if candidate.recipe.serve_merged):
        where, step = f"candidate {candidate.name}", "remove serve_merged"
        if "adapter" not in candidate.makes.split(plugins.OR):
            found = f"serve_merged, and weights of the kind {candidate.makes}"
            yield Problem(where, found, "weights_of that name an adapter", step)
        elif unmergeable := _describe_unmergeable(find_adapter_config(candidate)):
            found = f"serve_merged, and an adapter {unmergeable}"
            yield Problem(where, found, "one of low-rank matrices alone", step)
        if quantization := candidate.served_base.quantization:
            found = f"serve_merged, and a base in {quantization}"
            yield Problem(where, found, "a base as it was", f"serve_on: bf16, or {step}")
        if experiment.engine != "transformers":
            found = f"serve_merged, and engine: {experiment.engine}"
            yield Problem(where, found, "the engine that merges", f"engine: transformers, or {step}")
    yield from _engine_problems(experiment, selected, needed)
    for where, candidate in ((where, candidate) for where, candidate in placed if candidate.is_remote):
        asks_tokens = "rank" in _answers_tried(candidate.recipe) or not openai_api.can_chat(experiment.target)
        if asks_tokens and _settings(candidate).protocol == "chat":
            found = f"{candidate.name}, asked by chat, and a target that needs token ids or their"
            found += " log-probabilities"
            expected = "a target that is answered in chat, and answer: generate"
            yield Problem(where, found, expected, "protocol: completions, where the server has it")


def _base_problems(base: ModelSource, task: Task, candidate: ResolvedCandidate) -> Iterator[Problem]:
    where, model, recipe = f"candidate {candidate.name}", candidate.base, candidate.recipe
    trained_base, step = candidate.trained_base, "leave out assistant_only_loss"
    needs_marks = any(trial.source.params.get("assistant_only_loss") for trial in candidate.trials)
    if needs_marks and not task.chat_template:
        found = "assistant_only_loss, and a target with chat_template: false"
        yield Problem(where, found, "a target prompted in chat", step)
    elif needs_marks and not is_packed(trained_base) and not _MARKED.search(chat_template(trained_base)):
        found = "assistant_only_loss, and a chat template that does not mark the assistant's words"
        expected = "{% generation %} and {% endgeneration %} around them in its chat template"
        step = f"{step}: the model learns from the answer alone, as usual"
        yield Problem(where, f"{found} ({trained_base.name})", expected, step)
    is_quantized = candidate.served_base.quantization or trained_base.quantization
    if is_quantized and find_spec("bitsandbytes") is None:
        step = "pip install 'harness-evals[qlora]', or leave the candidate out"
        found = "a quantised base, and no package bitsandbytes"
        yield Problem(where, found, "the package that quantises", step)
    bases = {merged.name: merged.served_base for merged in candidate.merges}
    if len({source.weights_digest for source in bases.values()}) > 1:
        forms = {name: " in ".join(filter(None, (b.name, b.quantization))) for name, b in bases.items()}
        found = f"adapters for several bases: {', '.join(f'{name} (on {b})' for name, b in forms.items())}"
        yield Problem(where, found, "adapters of one base", "merge those of the same base")
    elif bases:
        adapters = {merged.name: find_adapter_config(merged) for merged in candidate.merges}
        yield from candidate.method.merge_problems(candidate.source, adapters, where)
    if candidate.given != model or model.weights_digest == base.weights_digest or recipe.role == "baseline":
        return
    if is_packed(model) or is_packed(base) or architecture_difference(model.path, base.path):
        return
    found = f"base_model: {model.name}, other weights of the architecture of {base.name}"
    step = f"method: model and path: {model.name} to judge it against {base.name}; role: baseline to beat it"
    yield Problem(where, found, "what these weights are here", step)


def _row_problems(target: MeasuredTask, items: TaskItems, candidate: ResolvedCandidate) -> Iterator[Problem]:
    recipe, where, base = candidate.recipe, f"candidate {candidate.name}", candidate.base
    reward_name, judge, pairs, task = recipe.reward, candidate.reward, items.pairs, target.task
    if reward_name is not None and judge is None:
        yield from reward_problems(reward_name, task, items.train, f"{where}: reward")
    elif reward_name and judge and judge.base.template_digest != base.template_digest:
        found = f"{reward_name}, a reward model on {judge.base.name}, whose tokenizer is another"
        expected, step = f"the tokenizer of {base.name}", f"base_model: {base.name} on {reward_name}"
        yield Problem(f"{where}: reward", found, expected, step)
    if candidate.method.draws_from == "pairs" and not recipe.weights_of:
        thumbs = [pair for pair in pairs if not (pair.references and pair.rejected)]
        if thumbs and not candidate.method.unpaired:
            found = f"{recipe.method}, and {len(thumbs):,} of {len(pairs):,} rows in pairs: with a thumb"
            methods = " or ".join(plugins.methods(unpaired=True))
            yield Problem(where, found, "a chosen and a rejected answer in each", f"method: {methods}")
        elif pairs and not (any(p.references for p in pairs) and any(p.rejected for p in pairs)):
            found = f"{recipe.method}, and thumbs that all point one way"
            step = "add rows of the other kind, with label: true or false"
            yield Problem(where, found, "thumbs up and thumbs down", step)
    evaluated_items, ranks = [*target.items.validation, *target.items.test], "rank" in _answers_tried(recipe)
    if ranks and task.kind == "generate" and not any(example.choices for example in evaluated_items):
        found = f"answer: rank, and {len(evaluated_items):,} items of {task.name}, none with labels"
        yield Problem(where, found, "labels to rank", f"labels: [..] in {task.name}, or answer: generate")
    options = ["prompting"] * (not set(recipe.prompting) <= {"zero_shot"}) + ["answer: rank"] * ranks
    if options and task.kind == "bits_per_byte":
        found = f"{' and '.join(options)}, and kind: bits_per_byte of {task.name}, whose texts are read alone"
        step = "leave it out, or give the rows prompts and answers"
        yield Problem(where, found, "a target of kind generate or choice", step)


def _answers_tried(recipe: Recipe) -> list[Any]:
    return [recipe.answer, *recipe.tried.get("answer", ())]


def _engine_problems(
    experiment: Experiment, selected: Sequence[ResolvedCandidate], needed: Iterable[ResolvedCandidate]
) -> Iterator[Problem]:
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
    # Parts of an adapter that vLLM does not support, or silently ignores.
    for candidate in needed:
        where, unsupported_parts = f"candidate {candidate.name}", list[str]()
        adapters = [read_recipe_config(trial.source) for trial in candidate.trials]
        for adapter in adapters:
            # vLLM scales every layer by lora_alpha / r.
            patterns = (f"with {name}" for name in ("rank_pattern", "alpha_pattern") if adapter.get(name))
            extra_parts = describe_beside_low_rank(adapter)
            description = f"with {extra_parts}" if extra_parts else next(patterns, "")
            unsupported_parts.append(_describe_unmergeable(adapter) or description)
        rank = max(adapter.get("r", 0) for adapter in adapters)
        if any(adapter.get("use_dora") for adapter in adapters):
            found, step = "DoRA, and engine: vllm", f"use_dora: false, or {vllm.OTHERWISE}"
            yield Problem(where, found, "a plain low-rank adapter", step)
        elif any(unsupported_parts):
            found = f"an adapter {next(filter(None, unsupported_parts))}, and engine: vllm"
            yield Problem(where, found, "low-rank matrices alone, of one rank and scale", vllm.OTHERWISE)
        elif rank > vllm.MAX_RANK:
            found, step = f"an adapter of rank {rank}, and engine: vllm", f"a lower r, or {vllm.OTHERWISE}"
            yield Problem(where, found, f"a rank of at most {vllm.MAX_RANK}", step)


def _describe_unmergeable(adapter: Mapping[str, Any]) -> str:
    # Describes the part of an adapter that cannot be merged (see `merge_layers`); empty if none is known.
    if (family := adapter.get("peft_type", "LORA")) != "LORA":
        return f"of the family {family}"
    return next((f"with {name}" for name in ("use_dora", "lora_bias") if adapter.get(name)), "")


def key_problems(experiment: Experiment, placed: Placed) -> Iterator[Problem]:
    """Yield what prevents requests to candidates over HTTP now."""
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


def _settings(candidate: ResolvedCandidate) -> openai_api.Settings:
    return openai_api.Settings(**candidate.source.params)


_ACCELERATE = "training.accelerate"


def check_sharing(policy: AcceleratePolicy, candidate: ResolvedCandidate) -> list[Problem]:
    """List what prevents processes from sharing a candidate's training, in its first trial with a problem."""
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
        # These need whole weights, but each process has only a shard.
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
            expected = "nf4 by FSDP, which shards its four bits as floats"
            problems.append(Problem(where, f"a base in {quantization}, and {kind}", expected, whole))
        if trial.method.draws_from == "pairs":
            found = f"{trial.source.method}, which reads its reference before weights are sharded, and {kind}"
            problems.append(Problem(where, found, "one of the two", whole))
        if problems:
            return problems
    return []


def check_gpus(experiment: Experiment, device: str) -> Iterator[Problem]:
    """Yield the problems of sharing a training among processes: GPUs, executor and packages here."""
    policy, executor = experiment.training.accelerate, experiment.execution.executor
    n_processes, on_gpu = policy.num_processes, device == "cuda"
    if n_processes == 1:
        return
    kind = f"distributed_type: {policy.distributed_type}"
    if executor != "in_process":
        found = f"num_processes: {n_processes}, and executor: {executor}, whose workers are one process each"
        yield Problem(_ACCELERATE, found, "one of the two", "num_processes: 1, or no executor")
    elif on_gpu and (n_gpus := len(visible_gpus())) < n_processes:
        found = f"num_processes: {n_processes}, and {n_gpus} GPU{'s' * (n_gpus > 1)} for each training"
        yield Problem(_ACCELERATE, found, "a GPU for each process", "fewer processes")
    if policy.shards and not on_gpu:
        expected = "a GPU for each process, as accelerate shards on GPUs alone"
        yield Problem(_ACCELERATE, f"{kind}, and no GPU here", expected, "distributed_type: MULTI_GPU")
    if policy.distributed_type == "DEEPSPEED" and find_spec("deepspeed") is None:
        step = "pip install 'harness-evals[deepspeed]', or distributed_type: FSDP"
        yield Problem(_ACCELERATE, f"{kind}, and no package deepspeed", "the package that shards", step)


def find_adapter_config(candidate: ResolvedCandidate) -> dict[str, Any]:
    """Return the known configuration of a candidate's adapter, without values that a sweep decides.

    An adapter that starts from another candidate's adapter has the same shape.
    """
    while candidate.init:
        candidate = candidate.init
    config = read_recipe_config(candidate.source)
    return {name: value for name, value in config.items() if name not in candidate.source.tried}


def read_recipe_config(recipe: Recipe) -> dict[str, Any]:
    """Return the parameters of a recipe's adapter; empty if the file of an external adapter is unreadable."""
    if not recipe.path:
        params: dict[str, Any] = plugins.method(recipe.method).params(**recipe.params).model_dump()
        return params
    return read_object(Path(recipe.path) / CONFIG)


def find_unwritable_rows(
    tasks: Sequence[MeasuredTask], candidates: Iterable[ResolvedCandidate]
) -> Iterator[Problem]:
    """Yield the rows that the chat template of a candidate's base cannot render, at most ten per file."""
    local = (c for c in candidates if c.method.makes_language_model and not c.is_remote)
    sources = {source for c in local for source in (c.base, c.trained_base)}
    bases = {base for base in sources if not is_packed(base) and chat_template(base)}
    rows = list[tuple[list[Message], str]]()  # conversations, each with its location
    for measured in tasks if bases else ():
        task = measured.task
        if not task.chat_template or task.lm_eval or task.kind == "bits_per_byte":
            continue
        shots = {"few_shot": {"select": "fixed", "shots": task.num_fewshot}} if task.num_fewshot else {}
        prompt = compose(shots, PromptingContext(task, measured.items.train, (), 0))
        for part in get_args(PartName):
            for example, where, _ in measured.items.list_sourced(part):
                sampled = prompt(example) if part == "test" else example
                rows.append((list(wrap_prompt(sampled, task.system, None).messages), where))
    texts_digest, expected = digest([messages for messages, _ in rows]), "a row that its chat template writes"

    def try_rows(base: ModelSource) -> dict[str, str]:
        # Maps the indices of rows that failed to the reason.
        tokenizer, reason_by_row = load_tokenizer(base), dict[str, str]()
        for row_index, (messages, _) in enumerate(rows):
            try:
                if role := find_left_out(tokenizer, messages):
                    reason_by_row[str(row_index)] = f"a turn of {role!r} that the chat template leaves out"
            except CandidateFailed as error:
                reason_by_row[str(row_index)] = error.reason
        return reason_by_row

    for base in sorted(bases, key=lambda base: base.name) if rows else ():
        key = digest([base.template_digest, texts_digest, versions_of("tokenization")])
        reasons = memo("unwritable_rows", key, partial(try_rows, base))
        if len(reasons) == len(rows):  # if all rows fail, reports one problem
            step = "correct its chat template, choose another base, or set chat_template: false on the tasks"
            yield Problem(f"base_model {base.name}", next(iter(reasons.values())), expected, step)
            continue
        by_file: dict[str, list[Problem]] = {}
        step = "change its turns to such as the template takes, remove the row, or choose another base"
        for row_index, reason in reasons.items():
            where = rows[int(row_index)][1]
            problem = Problem(where, f"{reason}, {base.name}'s", expected, step)
            by_file.setdefault(readers.file_of(where), []).append(problem)
        for file, problems in by_file.items():
            yield from cap_problems(problems, file, "rows that the chat template does not write")
