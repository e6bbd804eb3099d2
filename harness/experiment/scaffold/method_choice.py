"""Proposal of candidates, the cheap ones first, and choice of a fine-tuning method for this machine.

Invariant: methods are distinguished by their declarations, and sizes come from the model's configuration; no
weights are loaded. An adapter on the plain base is preferred to one on a quantised base (slower answers) and
to training all parameters (forgets more). Source: Hu et al. 2021 (arXiv:2106.09685, section 4.1), Dettmers et
al. 2023 (arXiv:2305.14314), Biderman et al. 2024 (arXiv:2405.09673).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from harness import plugins
from harness.data import TaskItems
from harness.evaluation import costs, wrap_prompt
from harness.experiment.scaffold.recognition import Kind
from harness.experiment.scaffold.task_proposal import count_tokens
from harness.formatting import count, pluralize, size
from harness.models import hub, memory
from harness.models.hardware import Machine, Memory
from harness.models.hub import ModelSource, context_length, is_packed
from harness.models.shapes import Shape
from harness.records import Example
from harness.spec import Task

# Parameters of an adapter of rank 16 on all linear layers of a Llama of 7 billion.
AS_SMALL_AS_AN_ADAPTER = 40e6
_GIB = 2**30 / 1e9  # GB
_BATCH = ("per_device_train_batch_size", "gradient_accumulation_steps")


class Resources(NamedTuple):
    """Machine on which a comparison would run, and its memory."""

    machine: Machine
    room: Memory


class MethodChoice(NamedTuple):
    """Name of the chosen method, the reason, a warning if none fits, and other trainings that fit."""

    name: str
    why: str
    warning: str = ""
    others: str = ""


def fit_batches(
    recipes: Mapping[str, dict[str, Any]], base: ModelSource | None, resources: Resources, longest: int
) -> dict[str, dict[str, Any]]:
    """Reduce the batch size of trainings that exceed the memory, keeping the rows per step."""
    shape, fitted = None if base is None else hub.shape(base), dict(recipes)
    if shape is None:
        return fitted
    free = resources.room.free_gib * _GIB
    for name, recipe in recipes.items():
        params = recipe.get("params", {})
        usual = plugins.method(name).params(**params)
        rows, steps = (getattr(usual, key) for key in _BATCH)
        tried = recipe
        while _need(name, tried, shape, resources, longest)[0] > free and rows % 2 == 0:
            rows, steps = rows // 2, steps * 2
            tried = {**recipe, "params": {**params, **dict(zip(_BATCH, (rows, steps), strict=True))}}
        if _need(name, tried, shape, resources, longest)[0] <= free:
            fitted[name] = tried
    return fitted


def choose_method(
    recipes: Mapping[str, Mapping[str, Any]], base: ModelSource | None, resources: Resources, longest: int
) -> MethodChoice:
    """Choose among recipes by method name; `longest` is the number of tokens of the longest row."""
    shape = None if base is None else hub.shape(base)
    is_small = shape is not None and shape.n_parameters <= AS_SMALL_AS_AN_ADAPTER
    methods = {name: plugins.method(name) for name in recipes}
    ordered = sorted(recipes, key=lambda name: bool(methods[name].quantization))
    ordered.sort(key=lambda name: (methods[name].makes == "model") != is_small)
    if shape is None:
        why = "the size of the base is not known here, and an adapter needs the least memory"
        return MethodChoice(ordered[0], why)
    needs = {name: _need(name, recipe, shape, resources, longest) for name, recipe in recipes.items()}
    takes = {name: size(gb * 1e9) for name, (gb, _) in needs.items()}
    room = resources.room.free_gib * _GIB
    free = f"{size(room * 1e9)} of {resources.room.of} are free"
    name = next((name for name in ordered if needs[name][0] <= room), None)
    if name is None:
        name = min(ordered, key=lambda method_name: needs[method_name][0])
        reason = f"training {name} takes about {takes[name]}, and {free}"
        return MethodChoice(name, reason, f"{reason}; next: a smaller --base-model, or more memory")
    fits = f"about {takes[name]}, and {free}"
    sizes = shape.n_parameters, needs[name][1]
    n_whole, n_trained = (f"{count(n / 1e6)} million" if n >= 1e6 else count(n) for n in sizes)
    if methods[name].makes == "model":
        why = f"all {n_whole} parameters, no more than an adapter usually has; {fits}"
    elif methods[name].quantization and name != ordered[0]:
        why = (
            f"on the base in 4 bits, because {ordered[0]} would take {takes[ordered[0]]}; {fits}; "
            "it answers more slowly than the base in 16 bits"
        )
    else:
        whole = [takes[method_name] for method_name in ordered if methods[method_name].makes == "model"]
        why = f"trains {n_trained} of {n_whole} parameters in {fits}; merged, it answers as fast as the base"
        why += f"; all parameters would take {whole[0]}" if whole else ""
    rows, steps = (recipes[name].get("params", {}).get(key) for key in _BATCH)
    if steps:  # a reduced batch size
        why += f"; {pluralize(rows, 'row')} at a time, {rows * steps} a step, so that it fits"
    others = []
    for other, alternative in plugins.alternatives().items():
        memory_gb = _need(other, {"params": alternative.params}, shape, resources, longest)[0]
        if memory_gb <= room:
            recipe_name = str(next(iter(alternative.params.values()), other)).lower()
            others.append(f"{recipe_name} ({alternative.reason}, in about {size(memory_gb * 1e9)})")
    return MethodChoice(name, why, others=", ".join(others))


def _need(
    name: str, recipe: Mapping[str, Any], shape: Shape, resources: Resources, longest: int
) -> tuple[float, float]:
    """Estimate the memory of a training in GB, and the parameters that it trains."""
    method, on_gpu = plugins.method(name), resources.machine.device == "cuda"
    params = method.params(**recipe.get("params", {}))
    n_trained = method.n_parameters(shape, params) or shape.n_parameters
    memory_gb = memory.training_peak(
        shape,
        n_trained,
        params.per_device_train_batch_size * min(longest, params.max_length),
        resources.machine.precision,
        quantization=method.quantization if on_gpu else "",
        checkpointing=on_gpu,
        in_tiles=on_gpu,
    ).total
    return memory_gb, n_trained


MOST_SHOTS, LONGEST_SHOTS = 8, 3000  # the second in characters of all shots
LONGEST_ROW = 4096  # tokens of a training row; longer ones are dropped


def propose_candidates(
    kind: Kind,
    items: TaskItems,
    task: Task,
    base: ModelSource | None,
    resources: Resources,
    instructions: Sequence[str] = (),
) -> tuple[MethodChoice, dict[str, dict[str, Any]]]:
    """List all candidates that a decision on such a task needs, the cheap ones first."""

    def long_row(lengths: Sequence[int]) -> int:  # the 90th percentile
        return max(sorted(lengths)[int(0.9 * (len(lengths) - 1))], 1)

    def list_methods(situation: plugins.Situation) -> dict[str, dict[str, Any]]:
        recipes = {name: plugins.method(name).proposal(situation) for name in plugins.names("methods")}
        return {name: {"method": name, **recipe} for name, recipe in recipes.items() if recipe is not None}

    lengths = [len(e.prompt) + max(map(len, e.references), default=0) for e in items.train]
    n_shots = max(1, min(MOST_SHOTS, LONGEST_SHOTS // long_row(lengths)))
    n_tokens = _count_tokens(items.train, base)
    if base and not is_packed(base) and (context := context_length(base)):
        whole = (wrap_prompt(e, task.system, None) for e in (*items.train, *items.validation, *items.test))
        prompts = [replace(e, references=()) for e in whole]
        room = context - task.max_new_tokens - max(_count_tokens(prompts, base))
        n_shots = min(n_shots, max(0, room // long_row(n_tokens)))
    fixed, nearest = ({"few_shot": {"select": select, "shots": n_shots}} for select in ("fixed", "knn"))
    is_whole = all(pair.references and pair.rejected for pair in items.pairs)
    thumbs = not is_whole and len({bool(pair.references) for pair in items.pairs}) > 1
    size = base.n_parameters if base else None
    situation = plugins.Situation(kind == "labels", bool(task.data.pairs) and is_whole, size, thumbs=thumbs)
    proposed = list_methods(situation)
    on_rows = {name: recipe for name, recipe in proposed.items() if plugins.method(name).trains_on_rows}
    longest = max(n_tokens)
    # Raise max_length to the longest row, estimated with a quarter to spare, if it would be dropped.
    room = min(-(-longest * 5 // 4 // 256) * 256, LONGEST_ROW)
    for name, recipe in on_rows.items():
        params = recipe.get("params", {})
        if room > plugins.method(name).params(**params).max_length:
            on_rows[name] = {**recipe, "params": {**params, "max_length": room}}
    on_rows = fit_batches(on_rows, base, resources, longest)
    choice = choose_method(on_rows, base, resources, longest)
    tried = {"sweep": {"system": [None, *instructions]}} if instructions else {}
    candidates: dict[str, dict[str, Any]] = {"prompt": {"prompting": "zero_shot", **tried}}
    if n_shots:
        candidates |= {"fixed": {"prompting": fixed}, "knn": {"prompting": nearest}}
    if kind == "labels":
        candidates["ranked"] = {"prompting": nearest if n_shots else "zero_shot", "answer": "rank"}
    candidates |= {name: recipe for name, recipe in proposed.items() if not plugins.method(name).trains}
    rag = {"rag": {"retriever": "bm25", "top_k": 2}}
    if task.data.documents:
        candidates["rag"] = {"prompting": rag}
    candidates[choice.name] = on_rows[choice.name]
    if task.data.documents:
        candidates["hybrid"] = {"weights_of": choice.name, "prompting": rag}
    is_adapter = plugins.method(choice.name).makes == "adapter"
    more_recipes = list_methods(situation._replace(adapter=choice.name if is_adapter else ""))
    return choice, candidates | {name: recipe for name, recipe in more_recipes.items() if name not in on_rows}


def _count_tokens(rows: Sequence[Example], base: ModelSource | None) -> list[int]:
    if base is None or not (base.path / "tokenizer.json").is_file():
        return [costs.training([e], 1).trained for e in rows]
    texts = ["\n".join([*(m["content"] for m in e.messages), *e.references[:1]]) for e in rows]
    counts = zip(count_tokens(texts, base), rows, strict=True)
    return [n + costs.CHAT_TOKENS * (len(e.messages) + 1) for n, e in counts]
