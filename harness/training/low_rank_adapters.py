"""A new low-rank adapter, trained on completions: on the base as published, or on it quantised.

Invariant: only the adapter is trained; its digest is that of the adapter on the base it was trained on.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import Field

from harness.errors import Problem
from harness.models.devices import load_base
from harness.models.memory import lora_parameters
from harness.models.shapes import Shape
from harness.models.weight_files import read_config
from harness.plugins import InitWeights, Method
from harness.progress import quiet_libraries
from harness.records import TrainingRecord
from harness.spec import Recipe, Spec
from harness.training import trainer as loop
from harness.training.context import CHECKPOINTS, FitContext, Weights, adapter_weights
from harness.training.peft_families import is_soft_prompt, sort_names
from harness.training.refused_families import exclude_unadapted, quantization_problems
from harness.training.sft import SupervisedParams, fine_tune
from harness.training.training_figures import figures

if TYPE_CHECKING:
    from peft import LoraConfig, PeftConfig
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer


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

    def identity(self) -> dict[str, Any]:
        """Return what digests hold of the values: without the scale by default, and names in no order."""
        held = sort_names(super().identity())
        if self.lora_alpha == 2 * self.r:
            held.pop("lora_alpha", None)
        return held


def lora_config(params: LoraParams, task_type: str = "CAUSAL_LM") -> "LoraConfig":
    """Return PEFT's configuration of a new adapter, with the head of its task trained beside it."""
    quiet_libraries()
    from peft import LoraConfig

    given = params.model_dump(include=set(LoraParams.model_fields))
    return LoraConfig(**given | {"lora_alpha": params.lora_alpha or 2 * params.r}, task_type=task_type)


class LowRankParams(SupervisedParams, LoraParams):
    """PEFT's names beside TRL's."""


def low_rank(train: Callable[..., TrainingRecord] = fine_tune) -> Callable[[FitContext, Any], Weights]:
    """Return the fit of a method: an adapter on the context's base, made by `train`, saved under `adapter/`.

    It raises CandidateFailed where `train` does: out of memory, no row fits, or the loss was not a number.
    """

    def fit(context: FitContext, params: LoraParams) -> Weights:
        config = lora_config(params)
        exclude_unadapted(config, read_config(context.source.path).get("model_type", ""))
        made = train(context, params, config, context.folder / "adapter")
        return adapter_weights(context, made)

    return fit


def low_rank_method(params: type[LoraParams], fit: Callable[..., Weights], **own: Any) -> Method:
    """Declare a method that trains a low-rank adapter; `own` are its other fields of `Method`.

    Where it can start from another candidate's adapter, that one settles the shape.
    """
    shaped = {"shape_params": tuple(LoraParams.model_fields)} if own.get("init_from") else {}
    given: dict[str, Any] = {
        "makes": "adapter",
        "trains": True,
        "seeded": True,
        "problems": low_rank_problems,
        "init_problems": _init_problems,
    }
    return Method(
        params=params,
        fit=fit,
        adapter_parameters=adapter_parameters,
        lower_rank=lower_rank,
        leave_out=leave_out,
        **given | shaped | own,
    )


def low_rank_problems(recipe: Recipe, base: Any, where: str) -> Iterator[Problem]:
    """Yield what forbids a low-rank adapter on the base of a recipe."""
    if "use_dora" not in {*recipe.params, *recipe.tried}:
        return
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    use_dora = any([recipe.params.get("use_dora"), *recipe.tried.get("use_dora", ())])
    yield from quantization_problems(recipe, {"use_dora": use_dora}, device, where)


def _init_problems(params: LoraParams, init: InitWeights, where: str) -> Iterator[Problem]:
    """Yield that what is to be trained further is a soft prompt, which PEFT loads to answer with alone."""
    family = init.adapter.get("peft_type", "LORA")
    if is_soft_prompt(family):
        found = f"init_from: an adapter of the family {family}, which PEFT does not train further"
        yield Problem(where, found, "an adapter of matrices, such as a LoRA", "another init_from, or none")


def lower_rank(params: LoraParams, by: int) -> dict[str, Any]:
    """Return the parameters of a rank divided by `by`, scaled as before; empty where it is 1."""
    r = max(1, params.r // by)
    alpha = {"lora_alpha": max(1, params.lora_alpha * r // params.r)} if params.lora_alpha else {}
    return {"r": r, **alpha} if params.r > 1 else {}


def leave_out(params: LoraParams, modules: str) -> dict[str, Any]:
    """Return the parameters that leave modules out; empty where some are left out already."""
    return {"exclude_modules": modules} if params.exclude_modules is None else {}


class Policy(NamedTuple):
    """Base of an adapter that TRL trains beside a reference, with its folder of checkpoints and its start."""

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    scratch: Path
    start: float


def load_policy(context: FitContext, save_to: Path) -> Policy:
    """Load the base of an adapter that is saved at `save_to`, and seed its training."""
    quiet_libraries()
    from transformers import set_seed

    set_seed(context.seed)
    scratch = save_to.parent / CHECKPOINTS
    start = loop.start_time(scratch)
    loaded = load_base(context.source, context.machine, loop.attention(context.machine))
    return Policy(*loaded, scratch, start)


def policy_options(context: FitContext, policy: Policy, peft_config: "PeftConfig") -> dict[str, Any]:
    """Return a trainer's model, tokenizer and adapter: a new one, or that of `context.init` to go on with.

    TRL copies the one called `default` as reference.
    """
    from peft import PeftModel

    options: dict[str, Any] = {"processing_class": policy.tokenizer}
    if context.init is None:
        return options | {"model": policy.model, "peft_config": peft_config}
    init = str(context.init)
    model = PeftModel.from_pretrained(policy.model, init, adapter_name="default", is_trainable=True)
    return options | {"model": model}


def train_policy(
    context: FitContext, policy: Policy, trainer: "Trainer", n_dropped: int, save_to: Path
) -> TrainingRecord:
    """Train and save the adapter of a policy.

    Raises:
        CandidateFailed: out of memory, or the loss was not a number.
    """
    loop.track(trainer, context, save_to, save_policy)
    earlier_s = loop.run(trainer, policy.start)
    save_policy(trainer.model, save_to)
    wall_s = time.perf_counter() - policy.start
    return figures(trainer, n_dropped, wall_s, context.machine.device, earlier_s)


def save_policy(model: Any, folder: Path) -> None:
    """Write the adapter that is trained, without the copy of it that is the reference."""
    model.save_pretrained(folder, selected_adapters=["default"])


def adapter_parameters(shape: Shape, params: LoraParams) -> int:
    """Count the parameters of a new adapter on a model of this shape."""
    modules = params.target_modules
    return lora_parameters(shape, params.r, tuple(modules) if isinstance(modules, list) else modules)
