"""Methods around supervised fine-tuning with TRL on the completions: `lora`, `qlora`, `full` and `peft`.

Invariant: proposed learning rates are within `config/recipe_ranges.toml`, so `harness init` proposes nothing
that the lint remarks.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import product
from math import inf
from typing import Any, Literal

from pydantic import ConfigDict, Field

from harness.errors import Problem
from harness.models.later import torch
from harness.models.memory import lora_parameters
from harness.models.shapes import Shape
from harness.models.weight_files import read_config
from harness.plugins import Method, MethodAlternative, Situation
from harness.spec import Recipe
from harness.training import (
    SUPERVISED,
    FitContext,
    LowRankParams,
    SupervisedParams,
    Weights,
    fine_tune,
    low_rank_method,
    made_weights,
    peft_families,
)

# Learning rates by billions of parameters.
# Sources: measurements on smollm2-135m (reports/recipe_search.md) and Hu et al. 2021; Hu et al.; Dettmers et
# al. 2023. Only the first is tried if time is short.
_OF_ADAPTERS = {0.5: [1e-3, 2e-4], 1.5: [2e-4, 5e-4], inf: [1e-4, 2e-4]}
# A base smaller than in any source needs as much as an adapter. Devlin et al. 2019 and SmolLM2 of 135 M;
# Llama 2 and SmolLM2 of 1.7 B; Tülu 3 and Llama 2; Tülu 3.
_OF_ALL_PARAMETERS = {
    0.05: [1e-4, 5e-4],
    1: [5e-5, 1e-3],
    3: [2e-5, 3e-4],
    100: [5e-6, 2e-5],
    inf: [2e-6, 5e-6],
}


def _propose(rates: dict[float, list[float]], situation: Situation) -> dict[str, Any]:
    # Kept plain LoRA's gain on three tasks; a replayed row for each row takes longer and kept less of it.
    learning_rates = next(values for bound, values in rates.items() if situation.billions < bound)
    return {
        "sweep": {"learning_rate": learning_rates},
        "regularize": {"kl": {"rows": 144, "rows_per_step": 1}},
    }


class Lora:
    """Low-rank adapters on all linear layers, trained with TRL on the completions.

    Source: Hu et al. 2021 (arXiv:2106.09685); defaults after Biderman et al. 2024 (arXiv:2405.09673).
    """

    Params = LowRankParams
    METHOD = low_rank_method(
        LowRankParams,
        fine_tune,
        **SUPERVISED,
        published_as="low-rank adapters",
        loops=("training", "tokens", "sft"),
        proposal=lambda situation: {"params": {"r": 16}, **_propose(_OF_ADAPTERS, situation)},
    )


class Qlora:
    """Low-rank adapters on a base quantised to four bits (NF4 with double quantisation by bitsandbytes).

    The adapter is judged on the NF4 base; `serve_on: bf16` on the unquantised one is another candidate.
    Source: Dettmers et al. 2023 (arXiv:2305.14314).
    """

    Params = LowRankParams
    METHOD = replace(Lora.METHOD, quantization="nf4")


class Full:
    """Training of all parameters of the model, in fp32 by default; saved in the precision that serves it.

    Source: the default learning rate is a tenth of LoRA's, after Biderman et al. 2024 (arXiv:2405.09673).
    """

    class Params(SupervisedParams):
        """TRL's names.

        `dtype` is the type of the weights during training. In `bfloat16`, weights, gradients and the state of
        torch's optimisers take half the memory, and changes below some 0.4 % of a weight are lost.
        """

        learning_rate: float = Field(1e-4, gt=0, le=1)
        dtype: Literal["float32", "bfloat16"] = "float32"

        @property
        def trained_in(self) -> str:
            """Precision of the model during training."""
            return "bf16" if self.dtype == "bfloat16" else "fp32"

    METHOD = Method(
        params=Params,
        fit=lambda context, params: made_weights(
            context, "model", fine_tune(context, params, None, context.folder / "model")
        ),
        makes="model",
        trains=True,
        draws_from="train",
        seeded=True,
        hooks=("mix", "prepare", "penalty", "step", "select", "arguments", "smoothing"),
        data_parallel=True,
        published_as="all parameters",
        loops=("training", "tokens", "sft"),
        proposal=partial(_propose, _OF_ALL_PARAMETERS),
    )


class Peft:
    """Adapters of any family of the `peft` library, under its names, trained with TRL on the completions."""

    class Params(SupervisedParams):
        """`peft_type` names the family; all parameters of its PEFT configuration and TRL's are accepted."""

        model_config = ConfigDict(extra="allow")
        peft_type: str

        @property
        def of_peft(self) -> dict[str, Any]:
            """Parameters of PEFT's configuration."""
            return dict(self.model_extra or {})

        def identity(self) -> dict[str, Any]:
            """Return the values that enter digests: those that are not at their default."""
            own_values = super().identity()
            peft_values = {name: own_values.pop(name) for name in self.of_peft}
            return own_values | peft_families.list_own_values(self.peft_type, peft_values)

    @staticmethod
    def _problems(recipe: Recipe, base: Any, where: str) -> Iterator[Problem]:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        for point in product(*recipe.tried.values()):
            params = Peft.Params(**{**recipe.params, **dict(zip(recipe.tried, point, strict=True))})
            peft_params = {"peft_type": params.peft_type, **params.of_peft}
            arguments = params.peft_type, params.of_peft, base.path, device, where, recipe.quantization or ""
            faults = peft_families.family_problems(*arguments)
            if faults := faults or [*peft_families.quantization_problems(recipe, peft_params, device, where)]:
                yield from faults
                return

    @staticmethod
    def _fit(context: FitContext, params: Params) -> Weights:
        config = peft_families.peft_config(params.peft_type, params.of_peft)
        peft_families.exclude_unadapted(config, read_config(context.source.path).get("model_type", ""))
        record = fine_tune(context, params, config, context.folder / "adapter")
        return made_weights(context, "adapter", record)

    @staticmethod
    def _count_parameters(shape: Shape, params: Params) -> int:
        """Estimate the trained parameters: those of a LoRA of its rank, if it has one, else almost none."""
        rank = params.of_peft.get("r", 0)
        return lora_parameters(shape, rank, "all-linear") if isinstance(rank, int) and rank else 1

    METHOD = Method(
        params=Params,
        fit=_fit,
        makes="adapter",
        **SUPERVISED,
        loops=("training", "tokens", "sft", "peft_families"),
        problems=_problems,
        n_parameters=_count_parameters,
        alternative=MethodAlternative(
            {"peft_type": "IA3"}, "trains the fewest parameters of PEFT's families that merge into the base"
        ),
    )


PLUGINS = {"lora": Lora, "qlora": Qlora, "full": Full, "peft": Peft}
