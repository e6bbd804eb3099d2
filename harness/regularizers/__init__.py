"""Regularisers of training, one per file: mixed-in rows, penalties on the loss, choices of parameters.

Invariant: a regulariser exports `Params` and one or more hooks of `plugins.HOOKS`. A method supports it only
if the method's `hooks` name them all, because its training then calls them:

- `mix(mixture, evaluate)` returns rows to add to the training rows, made from the mixture of `sample`;
- `prepare(model, params)` changes the loaded model before training;
- `penalty(start, params)` returns a function of the step, whose terms are added to the loss of that step;
- `step(model, backward, params)` computes the gradients of a step with one or more calls of `backward`;
- `select(names, progress, params, seed)` names the parameters that are trained at that share of all steps;
- `arguments(params)` returns arguments of TRL and transformers;
- `smoothing(params)` returns the share of each target's probability that the loss spreads over all labels.

`sample(context, params)` without `mix` returns the general rows that a penalty reads in `start`.
`cost(params, n_rows)` is the work of a step with `n_rows` rows as a multiple of plain training.
`problem(params)` says which method parameters forbid it, `layer_problem(params, n_layers)` whether a model
with so many layers does, and `WHY_NOT` why trainings that do not call its hooks are unsuitable. `DRAWS` marks
a regulariser whose passes draw random numbers.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

from harness import plugins
from harness.provenance import versions_of
from harness.records import Example, digest, drop_defaults
from harness.regularizers._general import (
    Answered,
    MixContext,
    Mixture,
    collect_answered_rows,
    find_shipped_answers,
    general_mixture,
)

if TYPE_CHECKING:
    import torch

__all__ = [
    "Answered",
    "MixContext",
    "Mixture",
    "collect_answered_rows",
    "find_shipped_answers",
    "general_mixture",
]

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
    """Sample the general rows of each regulariser that uses them, by its name.

    Raises:
        UserError: rows cannot be read, or one of them is evaluated.
    """
    return {
        name: plugin.sample(context, params) for name, plugin, params in _select_with("sample", regularize)
    }


def mix_rows(regularize: Regularize, context: MixContext, evaluate: EvaluateBase) -> tuple[Example, ...]:
    """Return the rows to add to the training rows; `evaluate` returns the base's answers to prompts.

    Raises:
        CandidateFailed: the base answered none of a regulariser's prompts.
    """
    mixed: tuple[Example, ...] = ()
    for name, plugin, params in _select_with("mix", regularize):
        mixture = plugin.sample(context, params)
        mixed += plugin.mix(mixture, partial(evaluate, name, mixture))
    return mixed


def general_rows(
    regularize: Regularize, context: MixContext, evaluate: EvaluateBase
) -> dict[str, tuple[Example, ...]]:
    """Return the rows that penalties read, by regulariser; `evaluate` returns the base's answers to prompts.

    Raises:
        CandidateFailed: the base answered none of a regulariser's prompts.
    """
    return {
        name: collect_answered_rows(name, mixture, partial(evaluate, GENERAL, mixture))
        for name, mixture in mixtures(regularize, context).items()
        if not mixes_rows(name)
    }


def mixes_rows(name: str) -> bool:
    """Tell whether the general rows of a regulariser stand beside the training rows."""
    return hasattr(plugins.load("regularizers", name), "mix")


def layer_problems(regularize: Regularize, n_layers: int) -> list[str]:
    """List why regularisers cannot be used on a model with `n_layers` layers; empty if all can."""
    loaded = _select_with("layer_problem", regularize)
    return [*filter(None, (plugin.layer_problem(params, n_layers) for _, plugin, params in loaded))]


def prepare(regularize: Regularize, model: Any) -> None:
    """Change a loaded model before training.

    Raises:
        CandidateFailed: the model lacks the part to change.
    """
    for _, plugin, params in _select_with("prepare", regularize):
        plugin.prepare(model, params)


def arguments(regularize: Regularize) -> dict[str, Any]:
    """Return the arguments of TRL and transformers that regularisers set."""
    set_arguments: dict[str, Any] = {}
    for _, plugin, params in _select_with("arguments", regularize):
        set_arguments |= plugin.arguments(params)
    for _, plugin, params in _select_with("smoothing", regularize):
        set_arguments["label_smoothing_factor"] = plugin.smoothing(params)
    return set_arguments


def changes_steps(regularize: Regularize) -> bool:
    """Tell whether a training needs steps other than its trainer's own."""
    return has_hook(regularize, "penalty", "step", "select")


def draws(regularize: Regularize) -> bool:
    """Tell whether a training's passes draw random numbers that a plain training does not draw."""
    return has_hook(regularize, "DRAWS")


def has_hook(regularize: Regularize, *hooks: str) -> bool:
    """Tell whether any regulariser has one of these hooks."""
    return any(_select_with(hook, regularize) for hook in hooks)


def penalties(
    regularize: Regularize, model: Any, seed: int, rows: Mapping[str, tuple[GeneralRow, ...]]
) -> list[Penalty]:
    """Return the penalties on the loss, starting at this model.

    Raises:
        CandidateFailed: a penalty is not defined on the model.
    """
    return [
        plugin.penalty(Start(model, seed, rows.get(name, ())), params)
        for name, plugin, params in _select_with("penalty", regularize)
    ]


def compute_gradients(
    regularize: Regularize, model: Any, backward: Callable[[], "torch.Tensor"]
) -> "torch.Tensor":
    """Leave a batch's gradients in the model and return its loss; `backward` does the plain pass."""
    for _, plugin, params in _select_with("step", regularize):
        backward = partial(plugin.step, model, backward, params)
    return backward()


def select_trained_names(
    regularize: Regularize, names: Sequence[str], progress: float, seed: int
) -> Collection[str]:
    """Return those of the trainable parameters that are trained at this share of all steps."""
    chosen = set(names)
    for _, plugin, params in _select_with("select", regularize):
        chosen &= set(plugin.select(names, progress, params, seed))
    return chosen


def select_moved_names(
    regularize: Regularize, names: Sequence[str], n_made: int, n_planned: int, seed: int
) -> Collection[str]:
    """Return the parameters trained in any of the steps made so far, in this process or an earlier one."""
    if not has_hook(regularize, "select"):
        return names
    steps = (select_trained_names(regularize, names, i / n_planned, seed) for i in range(n_made))
    return {name for chosen in steps for name in chosen}


def work_factor(regularize: Regularize, n_rows: int) -> float:
    """Estimate the work of a training whose steps have `n_rows` rows, as a multiple of plain training."""
    factors = [float(plugin.cost(params, n_rows)) for _, plugin, params in _select_with("cost", regularize)]
    return 1.0 + sum(factor - 1.0 for factor in factors)


def regularizers_digest(regularize: Regularize, context: MixContext) -> str:
    """Digest all effects of regularisers on weights; empty without any. A file counts by its sampled rows."""
    if not regularize:
        return ""
    sampled = mixtures(regularize, context)
    digested = [
        [
            name,
            plugins.version("regularizers", name),
            params.model_dump(mode="json", exclude_defaults=True, exclude={"data"}),
            _plain(sampled[name]) if name in sampled else [],
        ]
        for name, _, params in _load(regularize)
    ]
    return digest([versions_of("regularizers"), digested])


def _plain(mixture: Mixture) -> list[Any]:
    return [mixture.n, mixture.max_new_tokens, [drop_defaults(row) for row in mixture.rows]]


def _select_with(part: str, regularize: Regularize) -> list[tuple[str, ModuleType, Any]]:
    return [loaded for loaded in _load(regularize) if hasattr(loaded[1], part)]


def _load(regularize: Regularize) -> list[tuple[str, ModuleType, Any]]:
    """Load regularisers in the order of their names: the order of keys in a file has no meaning."""
    loaded = {name: plugins.load("regularizers", name) for name in sorted(regularize)}
    return [(name, plugin, plugin.Params(**regularize[name])) for name, plugin in loaded.items()]
