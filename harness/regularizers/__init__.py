"""Regularisers of training, one a file: rows mixed in, penalties on the loss, choices of what is trained.

Invariant: a regulariser exports `Params` and one or more hooks of `plugins.HOOKS`, and a method takes it only
where its own `hooks` name them all, because its training then calls them:

- `mix(mixture, evaluate)` gives rows that stand beside the training rows, made of what `sample` gave;
- `prepare(model, params)` changes the loaded model before training;
- `penalty(start, params)` returns a function of the step, whose terms are added to the loss of that step;
- `step(model, backward, params)` makes the gradients of a step, by one or more calls of `backward`;
- `select(names, progress, params, seed)` names the parameters that are trained at that share of all steps;
- `arguments(params)` returns arguments of TRL's and transformers' own;
- `smoothing(params)` returns the share of each target's probability that the training loss spreads over all.

`sample(context, params)` without `mix` gives the general rows that a penalty reads in `start`. `cost(params,
n_rows)` says how many times the work of a plain training it takes whose steps have so many rows,
`problem(params)` what forbids it beside a method's parameters, `layer_problem(params, n_layers)` what forbids
it on a model of so many layers, and `WHY_NOT` what is wrong with the trainings that do not call its hooks.
`DRAWS` marks one whose passes draw random numbers.
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
GENERAL = "general"  # rows of whoever reads them, so that their answers are shared


class GeneralRow(NamedTuple):
    """Token ids of a general prompt with its answer, which begins at `start`."""

    ids: list[int]
    start: int


class Start(NamedTuple):
    """A training before its first step: the model, the seed, and a regulariser's general rows."""

    model: Any
    seed: int
    rows: tuple[GeneralRow, ...] = ()


def mixtures(regularize: Regularize, context: MixContext) -> dict[str, Mixture]:
    """Sample the general rows of each regulariser that has some, by its name.

    Raises:
        UserError: rows cannot be read, or one of them is evaluated.
    """
    return {
        name: plugin.sample(context, params) for name, plugin, params in _select_with("sample", regularize)
    }


def mix_rows(regularize: Regularize, context: MixContext, evaluate: EvaluateBase) -> tuple[Example, ...]:
    """Return the rows that stand beside the training rows; `evaluate` gives the base's answers to prompts.

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
    """Return the rows that penalties read, by regulariser; `evaluate` gives the base's answers to prompts.

    Raises:
        CandidateFailed: the base answered none of a regulariser's prompts.
    """
    return {
        name: collect_answered_rows(name, mixture, partial(evaluate, GENERAL, mixture))
        for name, mixture in mixtures(regularize, context).items()
        if not hasattr(plugins.load("regularizers", name), "mix")
    }


def layer_problems(regularize: Regularize, n_layers: int) -> list[str]:
    """Say of each regulariser what forbids it on a model of so many layers, as far as something does."""
    said = (p.layer_problem(params, n_layers) for _, p, params in _select_with("layer_problem", regularize))
    return [*filter(None, said)]


def prepare(regularize: Regularize, model: Any) -> None:
    """Change a loaded model before it is trained.

    Raises:
        CandidateFailed: the model has no such part.
    """
    for _, plugin, params in _select_with("prepare", regularize):
        plugin.prepare(model, params)


def arguments(regularize: Regularize) -> dict[str, Any]:
    """Return the arguments of TRL's and transformers' own that regularisers set."""
    given: dict[str, Any] = {}
    for _, plugin, params in _select_with("arguments", regularize):
        given |= plugin.arguments(params)
    for _, plugin, params in _select_with("smoothing", regularize):
        given["label_smoothing_factor"] = plugin.smoothing(params)
    return given


def changes_steps(regularize: Regularize) -> bool:
    """Tell whether a training needs other steps than its trainer's own."""
    return has_hook(regularize, "penalty", "step", "select")


def draws(regularize: Regularize) -> bool:
    """Tell whether the passes of a training draw random numbers that those of a plain one do not."""
    return has_hook(regularize, "DRAWS")


def has_hook(regularize: Regularize, *hooks: str) -> bool:
    """Tell whether one of the regularisers has one of these hooks."""
    return any(_select_with(hook, regularize) for hook in hooks)


def penalties(
    regularize: Regularize, model: Any, seed: int, rows: Mapping[str, tuple[GeneralRow, ...]]
) -> list[Penalty]:
    """Return the penalties on the loss, as they begin at this model.

    Raises:
        CandidateFailed: the model is none that a penalty is defined on.
    """
    return [
        plugin.penalty(Start(model, seed, rows.get(name, ())), params)
        for name, plugin, params in _select_with("penalty", regularize)
    ]


def compute_gradients(
    regularize: Regularize, model: Any, backward: Callable[[], "torch.Tensor"]
) -> "torch.Tensor":
    """Leave a batch's gradients in the model and return its loss; `backward` does so for the plain one."""
    for _, plugin, params in _select_with("step", regularize):
        backward = partial(plugin.step, model, backward, params)
    return backward()


def select_trained_names(
    regularize: Regularize, names: Sequence[str], progress: float, seed: int
) -> Collection[str]:
    """Return the parameters that are trained at a share of all steps, of those that are trained at all."""
    chosen = set(names)
    for _, plugin, params in _select_with("select", regularize):
        chosen &= set(plugin.select(names, progress, params, seed))
    return chosen


def select_moved_names(
    regularize: Regularize, names: Sequence[str], n_made: int, n_planned: int, seed: int
) -> Collection[str]:
    """Return the parameters trained in any of the steps made of those planned, by this process or before."""
    if not has_hook(regularize, "select"):
        return names
    steps = (select_trained_names(regularize, names, i / n_planned, seed) for i in range(n_made))
    return {name for chosen in steps for name in chosen}


def work_factor(regularize: Regularize, n_rows: int) -> float:
    """Estimate the work of a training whose steps have `n_rows` rows, as a multiple of that without any."""
    factors = [float(plugin.cost(params, n_rows)) for _, plugin, params in _select_with("cost", regularize)]
    return 1.0 + sum(factor - 1.0 for factor in factors)


def regularizers_digest(regularize: Regularize, context: MixContext) -> str:
    """Digest what regularisers do to weights; empty without any. A file of rows stands as those sampled."""
    if not regularize:
        return ""
    sampled = mixtures(regularize, context)
    own = [
        [
            name,
            plugins.version("regularizers", name),
            params.model_dump(mode="json", exclude_defaults=True, exclude={"data"}),
            _plain(sampled[name]) if name in sampled else [],
        ]
        for name, _, params in _load(regularize)
    ]
    return digest([versions_of("regularizers"), own])


def _plain(mixture: Mixture) -> list[Any]:
    return [mixture.n, mixture.max_new_tokens, [drop_defaults(row) for row in mixture.rows]]


def _select_with(part: str, regularize: Regularize) -> list[tuple[str, ModuleType, Any]]:
    return [loaded for loaded in _load(regularize) if hasattr(loaded[1], part)]


def _load(regularize: Regularize) -> list[tuple[str, ModuleType, Any]]:
    """Load regularisers in the order of their names: that of the keys in a file means nothing."""
    loaded = {name: plugins.load("regularizers", name) for name in sorted(regularize)}
    return [(name, plugin, plugin.Params(**regularize[name])) for name, plugin in loaded.items()]
