"""A new low-rank adapter, trained on completions: on the base as published, or on it quantised.

Invariant: only the adapter is trained; its digest is that of the adapter on the base it was trained on.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pydantic import Field

from harness.models.memory import lora_parameters
from harness.models.memory.shape import Shape
from harness.models.model_folder import read_config
from harness.plugins import Method
from harness.progress import quiet_libraries
from harness.records import TrainingRecord
from harness.spec import Spec
from harness.training.context import FitContext, Weights, adapter_weights
from harness.training.sft import SupervisedParams, fine_tune

if TYPE_CHECKING:
    from peft import LoraConfig


# Families whose routers are linear layers that return more than their products, on which no adapter can lie.
_ROUTERS = dict.fromkeys(("llama4", "llama4_text", "phimoe"), r".*\.router")


class LoraParams(Spec):
    """PEFT's names; `lora_alpha` defaults to twice the rank.

    `exclude_modules` is a list of names, or a regular expression over whole paths of modules.
    `target_parameters` are tensors of their own, such as experts' `mlp.experts.gate_up_proj`.
    """

    r: int = Field(16, ge=1, le=1024)
    lora_alpha: int | None = Field(None, ge=1)
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: str | list[str] = "all-linear"
    exclude_modules: str | list[str] | None = None
    target_parameters: list[str] | None = None
    use_dora: bool = False
    use_rslora: bool = False


def lora_config(params: LoraParams, task_type: str = "CAUSAL_LM") -> "LoraConfig":
    """Return PEFT's configuration of a new adapter, with the head of its task trained beside it."""
    quiet_libraries()
    from peft import LoraConfig

    return LoraConfig(
        r=params.r,
        lora_alpha=params.lora_alpha or 2 * params.r,
        lora_dropout=params.lora_dropout,
        target_modules=params.target_modules,
        exclude_modules=params.exclude_modules,
        target_parameters=params.target_parameters,
        use_dora=params.use_dora,
        use_rslora=params.use_rslora,
        task_type=task_type,
    )


class LowRankParams(SupervisedParams, LoraParams):
    """PEFT's names beside TRL's."""


def low_rank(train: Callable[..., TrainingRecord] = fine_tune) -> Callable[[FitContext, Any], Weights]:
    """Return the fit of a method: an adapter on the context's base, made by `train`, saved under `adapter/`.

    It raises CandidateFailed where `train` does: out of memory, no row fits, or the loss was not a number.
    """

    def fit(context: FitContext, params: LoraParams) -> Weights:
        config = lora_config(params)
        if config.target_modules == "all-linear" and config.exclude_modules is None:
            config.exclude_modules = _ROUTERS.get(read_config(context.source.path).get("model_type", ""))
        made = train(context, params, config, context.folder / "adapter")
        return adapter_weights(context, made)

    return fit


def low_rank_method(params: type[LoraParams], fit: Callable[..., Weights], **own: Any) -> Method:
    """Declare a method that trains a low-rank adapter; `own` are its other fields of `Method`.

    Where it can start from another candidate's adapter, that one settles the shape.
    """
    shaped = {"shape_params": tuple(LoraParams.model_fields)} if own.get("init_from") else {}
    traits = {"makes": "adapter", "trains": True, "seeded": True, **shaped, **own}
    return Method(
        params=params,
        fit=fit,
        adapter_parameters=adapter_parameters,
        lower_rank=lower_rank,
        leave_out=leave_out,
        **traits,
    )


def lower_rank(params: LoraParams, by: int) -> dict[str, Any]:
    """Return the parameters of a rank divided by `by`, scaled as before; empty where it is 1."""
    r = max(1, params.r // by)
    alpha = {"lora_alpha": max(1, params.lora_alpha * r // params.r)} if params.lora_alpha else {}
    return {"r": r, **alpha} if params.r > 1 else {}


def leave_out(params: LoraParams, modules: str) -> dict[str, Any]:
    """Return the parameters that leave modules out; empty where some are left out already."""
    return {"exclude_modules": modules} if params.exclude_modules is None else {}


def adapter_parameters(shape: Shape, params: LoraParams) -> int:
    """Count the parameters of a new adapter on a model of this shape."""
    modules = params.target_modules
    return lora_parameters(shape, params.r, tuple(modules) if isinstance(modules, list) else modules)
