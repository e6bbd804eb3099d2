"""Regularisers of training: mixed-in rows, penalties on the loss, choices of parameters.

A regulariser exports `Params` and one or more hooks. A method supports it if its `hooks` name them all:

- `mix(mixture, evaluate)` returns rows to add to the training rows, made from the mixture of `sample`;
- `prepare(model, params)` changes the loaded model before training;
- `penalty(start, params)` returns a function of the step, whose terms are added to the loss of that step;
- `step(model, backward, params)` computes the gradients of a step with one or more calls of `backward`;
- `select(names, progress, params, seed)` names the parameters that are trained at that share of all steps;
- `arguments(params)` returns arguments of TRL and transformers;
- `smoothing(params)` returns the share of each target's probability that the loss spreads over all labels.

`sample(context, params)` without `mix` returns the general rows that a penalty reads in `start`: prompts with
the base's own answers, or rows of a file. Which ones depends only on the parameters, the number of training
rows and the seed, and none repeats the question of an evaluated item.
`cost(params, n_rows)` is the work of a step with `n_rows` rows as a multiple of plain training.
`problem(params)` says which method parameters forbid it, `layer_problem(params, n_layers)` whether a model
with so many layers does, and `WHY_NOT` why trainings that do not call its hooks are unsuitable. `DRAWS` marks
a regulariser whose passes draw random numbers.
"""

import json
import random
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

from harness import plugins
from harness.data import load_rows, suite_contamination
from harness.errors import CandidateFailed, UserError, refuse
from harness.models.later import torch
from harness.plugins import RescueSituation, RescueStep, TrialSetting
from harness.provenance import versions_of
from harness.records import Example, digest, drop_defaults, fold_text
from harness.spec import Task, TaskData

_LONGEST = 64  # tokens of an answer
_SPARE = 1.1  # a few answers are empty or refused
_PROMPTS = Path(__file__).with_name("general_prompts.jsonl")
_SHIPPED = Path(__file__).parent / "answers"  # a file per base, written by reports/studies/shipped_answers.py


class Mixture(NamedTuple):
    """General rows of a regulariser: `n` of them, taken from `rows`.

    If `max_new_tokens` is not 0, the rows are prompts, and the base answers with at most that many tokens.
    """

    n: int
    rows: tuple[Example, ...]
    max_new_tokens: int = 0


@dataclass(frozen=True, slots=True)
class MixContext:
    """The number of training rows, the seed, and by task the evaluated items, which are never mixed in."""

    n_train: int
    seed: int
    evaluated: Mapping[str, tuple[Example, ...]]


# Answer of a base to a general prompt, like a stored row: `example_id`, `text` and `status`.
Answered = Any
Regularize = Mapping[str, Mapping[str, Any]]  # names to parameters, as a recipe writes them
EvaluateBase = Callable[[str, Mixture], Iterable[Answered]]
Penalty = Callable[[int], Iterable["torch.Tensor"]]  # terms of the loss, by step
GENERAL = "general"  # name of rows shared by all penalties, so that their answers are shared too


class GeneralRow(NamedTuple):
    """Token ids of a general prompt with its answer, which begins at index `start`."""

    ids: list[int]
    start: int


class Start(NamedTuple):
    """A training before its first step: the model, the seed, and a regulariser's general rows."""

    model: Any
    seed: int
    rows: tuple[GeneralRow, ...] = ()


def mixtures(regularize: Regularize, context: MixContext) -> dict[str, Mixture]:
    """Sample each regulariser's general rows; UserError if they cannot be read, or one is evaluated."""
    return {name: plugin.sample(context, params) for name, plugin, params in _all_with("sample", regularize)}


def general_rows(
    regularize: Regularize, context: MixContext, evaluate: EvaluateBase
) -> tuple[tuple[Example, ...], dict[str, tuple[Example, ...]]]:
    """Return the rows to add to the training rows, and those that penalties read, by regulariser.

    `evaluate` answers prompts by the base.
    """
    mixed_rows: tuple[Example, ...] = ()
    penalty_rows = {}
    for name, mixture in mixtures(regularize, context).items():
        if mixes_rows(name):
            mixed_rows += plugins.load("regularizers", name).mix(mixture, partial(evaluate, name, mixture))
        else:
            penalty_rows[name] = collect_answered_rows(name, mixture, partial(evaluate, GENERAL, mixture))
    return mixed_rows, penalty_rows


def mixes_rows(name: str) -> bool:
    """Tell whether the general rows of a regulariser are added to the training rows."""
    return hasattr(plugins.load("regularizers", name), "mix")


def layer_problems(regularize: Regularize, n_layers: int) -> list[str]:
    """List why regularisers cannot be used on a model with `n_layers` layers; empty if all can."""
    entries = _all_with("layer_problem", regularize)
    return [*filter(None, (plugin.layer_problem(params, n_layers) for _, plugin, params in entries))]


def prepare(regularize: Regularize, model: Any) -> None:
    """Change a loaded model before training."""
    for _, plugin, params in _all_with("prepare", regularize):
        plugin.prepare(model, params)


def arguments(regularize: Regularize) -> dict[str, Any]:
    """Return the arguments of TRL and transformers that regularisers set."""
    set_arguments: dict[str, Any] = {}
    for _, plugin, params in _all_with("arguments", regularize):
        set_arguments |= plugin.arguments(params)
    for _, plugin, params in _all_with("smoothing", regularize):
        set_arguments["label_smoothing_factor"] = plugin.smoothing(params)
    return set_arguments


def has_hook(regularize: Regularize, *hooks: str) -> bool:
    """Tell whether any regulariser has one of these hooks."""
    return any(_all_with(hook, regularize) for hook in hooks)


def penalties(
    regularize: Regularize, model: Any, seed: int, rows: Mapping[str, tuple[GeneralRow, ...]]
) -> list[Penalty]:
    """Return the penalties on the loss, starting at this model."""
    return [
        plugin.penalty(Start(model, seed, rows.get(name, ())), params)
        for name, plugin, params in _all_with("penalty", regularize)
    ]


def compute_gradients(
    regularize: Regularize, model: Any, backward: Callable[[], "torch.Tensor"]
) -> "torch.Tensor":
    """Leave a batch's gradients in the model and return its loss; `backward` does the plain pass."""
    for _, plugin, params in _all_with("step", regularize):
        backward = partial(plugin.step, model, backward, params)
    return backward()


def select_trained_names(
    regularize: Regularize, names: Sequence[str], progress: float, seed: int
) -> Collection[str]:
    """Return the trainable parameters that are trained at this share of all steps."""
    selected = set(names)
    for _, plugin, params in _all_with("select", regularize):
        selected &= set(plugin.select(names, progress, params, seed))
    return selected


def select_moved_names(
    regularize: Regularize, names: Sequence[str], n_made: int, n_planned: int, seed: int
) -> Collection[str]:
    """Return the parameters trained in any of the steps made so far, in this process or an earlier one."""
    if not has_hook(regularize, "select"):
        return names
    steps = (select_trained_names(regularize, names, i / n_planned, seed) for i in range(n_made))
    return {name for selected in steps for name in selected}


def work_factor(regularize: Regularize, n_rows: int) -> float:
    """Estimate the work of a training whose steps have `n_rows` rows, as a multiple of plain training."""
    factors = [float(plugin.cost(params, n_rows)) for _, plugin, params in _all_with("cost", regularize)]
    return 1.0 + sum(factor - 1.0 for factor in factors)


def regularizers_digest(regularize: Regularize, context: MixContext) -> str:
    """Digest all effects of regularisers on weights; empty without any. A file counts by its sampled rows."""
    if not regularize:
        return ""
    mixture_by_name = mixtures(regularize, context)
    parts = []
    for name, _, params in _load(regularize):
        own_values = params.model_dump(mode="json", exclude_defaults=True, exclude={"data"})
        sampled: list[Any] = []
        if mixture := mixture_by_name.get(name):
            sampled = [mixture.n, mixture.max_new_tokens, [drop_defaults(row) for row in mixture.rows]]
        parts.append([name, plugins.version("regularizers", name), own_values, sampled])
    return digest([versions_of("regularizers"), parts])


def _all_with(hook: str, regularize: Regularize) -> list[tuple[str, ModuleType, Any]]:
    return [entry for entry in _load(regularize) if hasattr(entry[1], hook)]


def _load(regularize: Regularize) -> list[tuple[str, ModuleType, Any]]:
    """Load regularisers in the order of their names: the order of keys in a file has no meaning."""
    plugin_by_name = {name: plugins.load("regularizers", name) for name in sorted(regularize)}
    return [(name, plugin, plugin.Params(**regularize[name])) for name, plugin in plugin_by_name.items()]


def find_shipped_answers(base_digest: str, mixture: Mixture) -> list[Answered]:
    """Return the answers to a mixture's prompts that ship for a base; empty if any is missing."""
    row_by_prompt = _read_shipped_answers(base_digest)
    if not mixture.max_new_tokens or any(e.prompt not in row_by_prompt for e in mixture.rows):
        return []
    rows = ((e.id, row_by_prompt[e.prompt]) for e in mixture.rows)
    return [SimpleNamespace(example_id=i, text=row["answer"], status=row["status"]) for i, row in rows]


@cache
def _read_shipped_answers(base_digest: str) -> dict[str, dict[str, str]]:
    path = _SHIPPED / f"{base_digest[:16]}.jsonl"
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    return {row["prompt"]: row for row in map(json.loads, lines)}


@cache
def general_prompts() -> tuple[str, ...]:
    """Return the general prompts, ordered so that each prefix has about equal shares of all kinds."""
    return tuple(json.loads(line)["prompt"] for line in _PROMPTS.read_text("utf-8").splitlines())


def rescue_by_strength(
    name: str, params: type[Any], strengths: tuple[float, ...], says: str, place: float
) -> RescueStep:
    """Return the step of a rescue that adds or strengthens a penalty; for `place` see reports/fronts.md."""

    def settings(case: RescueSituation) -> list[TrialSetting] | str:
        current = dict(case.present or {})
        current_strength = 0.0 if case.present is None else params(**current).strength
        return [
            TrialSetting({**current, "strength": s}, f"{name}={s:g}", f"{says}, strength {s:g}")
            for s in strengths
            if s > current_strength
        ] or f"its recipe has {name} of the strength {current_strength:g} already"

    return RescueStep(name, settings, place)


@cache
def _folded_prompts() -> tuple[tuple[str, str], ...]:
    return tuple((text, fold_text(text)) for text in general_prompts())


def general_mixture(name: str, n: int, data: str | None, context: MixContext) -> Mixture:
    """Sample `n` rows of the user's file, or more than `n` general prompts, without evaluated items."""
    if data is None:
        evaluated = {fold_text(e.prompt) for examples in context.evaluated.values() for e in examples}
        prompts = tuple(
            Example(f"{name}-{number}", ({"role": "user", "content": text},), cluster=f"{name}-{number}")
            for number, (text, folded) in enumerate(_folded_prompts())
            if folded not in evaluated
        )
        return Mixture(n, prompts[: round(_SPARE * n) + 1], _LONGEST)
    try:
        rows = sorted(load_rows(Task(name=name, data=TaskData(train=data)), data), key=lambda e: e.id)
    except UserError as error:
        where = "general rows of regularize"
        raise UserError([replace(p, where=f"{where}: {p.where}") for p in error.problems]) from None
    refuse(suite_contamination(rows, context.evaluated))
    n = min(n, len(rows))
    return Mixture(n, tuple(random.Random(f"{context.seed}/{name}").sample(rows, n)))


def collect_answered_rows(
    name: str, mixture: Mixture, evaluate: Callable[[], Iterable[Answered]]
) -> tuple[Example, ...]:
    """Return a file's rows as they are, or prompts joined with the base's answers, long ones cut."""
    if not mixture.max_new_tokens:
        return mixture.rows
    answers = {row.example_id: row for row in evaluate() if row.status in ("ok", "truncated")}
    rows = tuple(
        Example(e.id, e.messages, (text,), cluster=e.cluster, is_cut=row.status == "truncated")
        for e in mixture.rows
        if (row := answers.get(e.id)) and (text := row.text.strip())
    )
    if not rows:
        reason = f"the base answered none of {len(mixture.rows)} general prompts"
        raise CandidateFailed(reason, f"data: rows-of-yours.jsonl under regularize: {name}")
    return rows[: mixture.n]
