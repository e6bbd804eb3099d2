"""Adapters of any family of the `peft` library, under its names, trained with TRL on the completions."""

from collections.abc import Iterator
from itertools import product
from typing import Any

from pydantic import ConfigDict

from harness import training
from harness.errors import Problem
from harness.models.later import torch
from harness.models.memory import lora_parameters
from harness.models.shapes import Shape
from harness.models.weight_files import read_config
from harness.plugins import AdapterShape, Method, MethodAlternative, MethodChecks
from harness.spec import Recipe


class Params(training.SupervisedParams):
    """`peft_type` names the family; all parameters of its PEFT configuration and TRL's are accepted."""

    model_config = ConfigDict(extra="allow")
    peft_type: str

    @property
    def of_peft(self) -> dict[str, Any]:
        """Parameters of PEFT's configuration."""
        return dict(self.model_extra or {})

    def identity(self) -> dict[str, Any]:
        """Return the values that enter digests: those that are not at their default."""
        held = super().identity()
        of_peft = {name: held.pop(name) for name in self.of_peft}
        return held | training.peft_families.list_own_values(self.peft_type, of_peft)


def problems(recipe: Recipe, base: Any, where: str) -> Iterator[Problem]:
    """Yield the problems of an adapter of this family."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for point in product(*recipe.tried.values()):
        params = Params(**{**recipe.params, **dict(zip(recipe.tried, point, strict=True))})
        of_peft = {"peft_type": params.peft_type, **params.of_peft}
        given = params.peft_type, params.of_peft, base.path, device, where, recipe.quantization or ""
        found = training.peft_families.family_problems(*given)
        if found := found or [*training.peft_families.quantization_problems(recipe, of_peft, device, where)]:
            yield from found
            return


def fit(context: training.FitContext, params: Params) -> training.Weights:
    """Train the adapter and save it under `adapter/`."""
    folder = context.folder / "adapter"
    config = training.peft_families.peft_config(params.peft_type, params.of_peft)
    training.peft_families.exclude_unadapted(config, read_config(context.source.path).get("model_type", ""))
    made = training.fine_tune(context, params, config, folder)
    return training.made_weights(context, "adapter", made)


def adapter_parameters(shape: Shape, params: Params) -> int:
    """Estimate the trained parameters: those of a LoRA of its rank, if it has one, else almost none."""
    rank = params.of_peft.get("r", 0)
    return lora_parameters(shape, rank, "all-linear") if isinstance(rank, int) and rank else 1


METHOD = Method(
    params=Params,
    fit=fit,
    makes="adapter",
    **training.SUPERVISED,
    loops=("training", "tokens", "sft", "peft_families"),
    checks=MethodChecks(problems),
    adapter=AdapterShape(adapter_parameters),
    alternative=MethodAlternative(
        {"peft_type": "IA3"}, "trains the fewest parameters of PEFT's families that merge into the base"
    ),
)
