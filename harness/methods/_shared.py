"""Checks and proposals that methods share: whole models, `init_from`, and proposed trainings.

Invariant: only configurations and safetensors headers are read. Proposed learning rates are within
`config/recipe_ranges.toml`, so `harness init` proposes nothing that the lint remarks.
"""

from collections.abc import Callable, Iterator
from math import inf
from pathlib import Path
from typing import Any

from harness.errors import Problem, UserError
from harness.models.hub import ModelSource, architecture_difference, has_tokenizer, is_packed
from harness.models.weight_files import read_config, refuse_damaged
from harness.plugins import RescueStep, Situation, TrialSetting
from harness.spec import Recipe

PICKLED = "adapter_model.bin"


def model_problems(folder: Path, source: ModelSource, where: str) -> Iterator[Problem]:
    """Yield the problems of a whole model: damaged files, or layers that differ from the base's."""
    try:
        read_config(folder)
        refuse_damaged(folder)
    except UserError as damaged:
        yield from damaged.problems
        return
    if found := architecture_difference(folder, source.path):
        step = f"name it as base_model: {folder} of an experiment of its own"
        yield Problem(where, found, f"the architecture of {source.name}", step)


def whole_model_problems(recipe: Recipe, source: ModelSource, where: str) -> Iterator[Problem]:
    """Yield the problems of judging the whole model at the recipe's path against this base."""
    folder = Path(recipe.path or "")
    if not has_tokenizer(folder):
        step = f"AutoTokenizer.from_pretrained({str(source.path)!r}).save_pretrained({str(folder)!r})"
        yield Problem(where, f"{folder} without a tokenizer", "the tokenizer next to the weights", step)
    if not is_packed(source):
        yield from model_problems(folder, source, where)


def requires_init(
    expected: str, example: str = "lora"
) -> Callable[[Recipe, ModelSource, str], Iterator[Problem]]:
    """Return a check that yields a problem if a recipe names no candidate."""

    def problems(recipe: Recipe, source: ModelSource, where: str) -> Iterator[Problem]:
        if recipe.init_from is None:
            yield Problem(where, f"{recipe.method} without init_from", expected, f"add init_from: {example}")

    return problems


RESCUE = RescueStep(
    "scale",
    lambda at: [
        TrialSetting({"scale": s}, f"scale={s:g}", f"at scale {s:g}, no training") for s in at.policy.scales
    ],
    place=2,
)


_BILLION = 1e9
_USUAL = 7e9  # assumed parameters of a base of unknown size

# What was measured on smollm2-135m (reports/recipe_search.md) and Hu et al. 2021; Hu et al.; Dettmers et al.
# 2023. The first is the one that is tried where time allows no more.
_OF_ADAPTERS = {0.5: [1e-3, 2e-4], 1.5: [2e-4, 5e-4], inf: [1e-4, 2e-4]}
# A base too small for all sources needs as much as an adapter. Devlin et al. 2019 and SmolLM2 of 135 M;
# Llama 2 and SmolLM2 of 1.7 B; Tülu 3 and Llama 2; Tülu 3.
_OF_ALL_PARAMETERS = {
    0.05: [1e-4, 5e-4],
    1: [5e-5, 1e-3],
    3: [2e-5, 3e-4],
    100: [5e-6, 2e-5],
    inf: [2e-6, 5e-6],
}
# Learning rates of trainings on pairs by billions of parameters: smollm2-135m, reports/LOG.md; alignment-
# handbook's Zephyr.
_PAIRS_MEASURED, _PAIRS_PUBLISHED = 0.5, 20


def propose_adapter(situation: Situation) -> dict[str, Any]:
    """Propose the rank, the sweep and the replayed rows of a low-rank adapter."""
    # One replayed row for each training row kept most of what the quickstart's base could do.
    rates = _first(_OF_ADAPTERS, situation.n_parameters)
    return {"params": {"r": 16}, "sweep": {"learning_rate": rates}, "replay": 1.0}


def propose_all_parameters(situation: Situation) -> dict[str, Any]:
    """Propose the sweep and the replayed rows of a training of all parameters."""
    rates = _first(_OF_ALL_PARAMETERS, situation.n_parameters)
    return {"sweep": {"learning_rate": rates}, "replay": 1.0}


def params_on_pairs(n_parameters: float | None) -> dict[str, Any]:
    """Return the parameters of a training on pairs; none if the method's default suits the base.

    For bases of 50 to 500 M parameters 3e-5 was measured, and it is assumed for smaller ones; for bases
    larger than in any source the default is assumed.
    """
    size = (n_parameters or _USUAL) / _BILLION
    if size <= _PAIRS_MEASURED:
        return {"params": {"learning_rate": 3e-5}}
    return {} if size <= _PAIRS_PUBLISHED else {"params": {"learning_rate": 5e-6}}


def _first(rates: dict[float, list[float]], n_parameters: float | None) -> list[float]:
    size = (n_parameters or _USUAL) / _BILLION
    return next(of for most, of in rates.items() if size < most)
