"""Regularisers of training, one a file: rows mixed into training, layers that stay as they are.

Invariant: a regulariser exports `Params` and one or more hooks: `sample` and `mix` give rows that stand
beside the training rows, `prepare` changes the loaded model before training. A method takes it only where
its own `hooks` name them all, because its training then calls them.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

from harness import plugins
from harness.provenance.code_versions import versions_of
from harness.records import Example, SampleResult, digest, without_defaults

Regularize = Mapping[str, Mapping[str, Any]]  # names to parameters, as a recipe writes them
EvaluateBase = Callable[[str, "Mixture"], Iterable[SampleResult]]


class Mixture(NamedTuple):
    """Rows to mix into training: `n` of them, taken from `rows`.

    Where `max_new_tokens` is not 0 the rows are prompts, and the base's answers of so many tokens are
    what is trained on.
    """

    n: int
    rows: tuple[Example, ...]
    max_new_tokens: int = 0


@dataclass(frozen=True, slots=True)
class MixContext:
    """The number of training rows, the seed, and by task the items that are evaluated and never mixed in."""

    n_train: int
    seed: int
    evaluated: Mapping[str, tuple[Example, ...]]


def mixtures(regularize: Regularize, context: MixContext) -> dict[str, Mixture]:
    """Sample what each regulariser mixes into training, by its name.

    Raises:
        UserError: rows cannot be read, or one of them is evaluated.
    """
    return {name: p.sample(context, params) for name, p, params in _load(regularize) if hasattr(p, "mix")}


def mixed_rows(regularize: Regularize, context: MixContext, evaluate: EvaluateBase) -> tuple[Example, ...]:
    """Return the rows that stand beside the training rows; `evaluate` gives the base's answers to prompts.

    Raises:
        CandidateFailed: the base answered none of a regulariser's prompts.
    """
    mixed: tuple[Example, ...] = ()
    for name, mixture in mixtures(regularize, context).items():
        mixed += plugins.load("regularizers", name).mix(mixture, partial(evaluate, name, mixture))
    return mixed


def prepare(regularize: Regularize, model: Any) -> None:
    """Change a loaded model before it is trained.

    Raises:
        CandidateFailed: the model has no such part.
    """
    for _, plugin, params in _load(regularize):
        if hasattr(plugin, "prepare"):
            plugin.prepare(model, params)


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
    return [mixture.n, mixture.max_new_tokens, [without_defaults(row) for row in mixture.rows]]


def _load(regularize: Regularize) -> list[tuple[str, ModuleType, Any]]:
    """Load regularisers in the order of their names: that of the keys in a file means nothing."""
    loaded = {name: plugins.load("regularizers", name) for name in sorted(regularize)}
    return [(name, plugin, plugin.Params(**regularize[name])) for name, plugin in loaded.items()]
