"""Low-rank adapters (LoRA): parameters, methods, and checks of module names on a base without weights."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from pydantic import Field

from harness.cache import memo
from harness.errors import Problem, did_you_mean
from harness.models.devices import build_without_weights
from harness.models.hub import ModelSource
from harness.models.later import peft, torch
from harness.models.memory import lora_parameters
from harness.models.shapes import Shape
from harness.models.weight_files import read_config
from harness.plugins import InitWeights, Method
from harness.progress import quiet_libraries
from harness.provenance import package_versions
from harness.records import TrainingRecord, digest
from harness.spec import Recipe, Spec
from harness.training import peft_families
from harness.training.context import FitContext, Weights, made_weights
from harness.training.peft_families import sort_names
from harness.training.sft import SupervisedParams


class LoraParams(Spec):
    """LoRA parameters under PEFT's names; `lora_alpha` defaults to twice the rank.

    `exclude_modules` is a list of names, or a regular expression over full module paths.
    `target_parameters` names tensors outside linear layers, such as experts' `mlp.experts.gate_up_proj`.
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
        """Return the values that enter digests: without the default scale, and with names sorted."""
        values = sort_names(super().identity())
        if self.lora_alpha == 2 * self.r:
            values.pop("lora_alpha", None)
        return values


def lora_config(params: LoraParams, task_type: str = "CAUSAL_LM") -> "peft.LoraConfig":
    """Return PEFT's configuration of a new adapter; `task_type` adds a trained head where it has one."""
    quiet_libraries()
    values = params.model_dump(include=set(LoraParams.model_fields))
    return peft.LoraConfig(**values | {"lora_alpha": params.lora_alpha or 2 * params.r}, task_type=task_type)


class LowRankParams(SupervisedParams, LoraParams):
    """Parameters under PEFT's and TRL's names."""


def low_rank_method(params: type[LoraParams], train: Callable[..., TrainingRecord], **options: Any) -> Method:
    """Declare a method that trains a low-rank adapter by `train`; `options` are other fields of `Method`."""

    def fit(context: FitContext, values: LoraParams) -> Weights:
        config = lora_config(values)
        peft_families.exclude_unadapted(config, read_config(context.source.path).get("model_type", ""))
        return made_weights(context, "adapter", train(context, values, config, context.folder / "adapter"))

    common_fields: dict[str, Any] = {
        "trains": True,
        "seeded": True,
        "problems": low_rank_problems,
        "init_problems": _init_problems,
        "n_parameters": adapter_parameters,
        "lower_rank": lower_rank,
        "leave_out": leave_out,
        "fixed": tuple(LoraParams.model_fields) if options.get("init_from") else (),
    }
    return Method(params=params, fit=fit, makes="adapter", **common_fields | options)


def low_rank_problems(recipe: Recipe, base: Any, where: str) -> Iterator[Problem]:
    """Yield the problems of a low-rank adapter on a recipe's base."""
    if "use_dora" not in {*recipe.params, *recipe.tried}:
        return
    device = "cuda" if torch.cuda.is_available() else "cpu"
    use_dora = any([recipe.params.get("use_dora"), *recipe.tried.get("use_dora", ())])
    yield from peft_families.quantization_problems(recipe, {"use_dora": use_dora}, device, where)


def _init_problems(params: LoraParams, init: InitWeights, where: str) -> Iterator[Problem]:
    """Yield a problem if the adapter to train on is a soft prompt, which PEFT loads for inference only."""
    family = init.adapter.get("peft_type", "LORA")
    if family == "LORA":  # the usual case, answered without importing PEFT
        return
    config = peft_families.families().get(family)
    if config is not None and issubclass(config, peft.PromptLearningConfig):
        found = f"init_from: an adapter of the family {family}, which PEFT does not train further"
        yield Problem(where, found, "an adapter of matrices, such as a LoRA", "another init_from, or none")


def lower_rank(params: LoraParams, by: int) -> dict[str, Any]:
    """Return the parameters for a rank divided by `by` with the same scale; empty if the rank is 1."""
    r = max(1, params.r // by)
    alpha = {"lora_alpha": max(1, params.lora_alpha * r // params.r)} if params.lora_alpha else {}
    return {"r": r, **alpha} if params.r > 1 else {}


def leave_out(params: LoraParams, modules: str) -> dict[str, Any]:
    """Return the parameters that exclude modules; empty if some are excluded already."""
    return {"exclude_modules": modules} if params.exclude_modules is None else {}


def adapter_parameters(shape: Shape, params: LoraParams) -> int:
    """Count the parameters of a new adapter on a model of this shape."""
    modules = params.target_modules
    return lora_parameters(shape, params.r, tuple(modules) if isinstance(modules, list) else modules)


_EXPECTED = "names that are in the base"
_VERSION = 2  # of the checks, whose results are cached


def unknown_names(params: Spec, base: ModelSource, where: str) -> list[Problem]:
    """Return a problem for each module or parameter name that the base lacks; the result is cached."""
    tensors = params.model_dump().get("target_parameters") or ()
    modules = isinstance(params, LoraParams) and (
        params.target_modules != "all-linear" or bool(params.exclude_modules)
    )
    if not (tensors or modules):
        return []
    problems: list[Problem] = []

    def check() -> bool | None:
        model = build_without_weights(base.path)
        if model is not None:
            parameters = [name for name, _ in model.named_parameters()]
            problems.extend(_absent("target_parameters", tensors, parameters, parameters, where))
        if model is None or problems or not isinstance(params, LoraParams):
            return None if problems else True
        modules = [name for name, _ in model.named_modules()]
        holders = {name.rpartition(".")[0] for name, _ in model.named_parameters()}
        config, refusal, adapted = lora_config(params), "", None
        peft_families.exclude_unadapted(config, model.config.model_type)
        try:  # PEFT replaces names of experts in the configuration by those that it uses
            adapted = peft.get_peft_model(model, config)
        except (TypeError, ValueError, AttributeError, re.error) as error:
            refusal = " ".join(str(error).split())
        adapted_names = _list_names(config.target_modules)
        targets = [name for name in _list_names(params.target_modules) if name in adapted_names]
        problems.extend(_absent("target_modules", targets, modules, holders, where))
        if set(config.target_parameters or ()) == set(params.target_parameters or ()):
            excluded = _list_names(params.exclude_modules)
            problems.extend(_absent("exclude_modules", excluded, modules, holders, where))
        if refusal and not problems:
            problems.append(Problem(where, refusal, _EXPECTED, "fix params"))
        elif adapted and peft_families.adapts_head(adapted):
            step = "leave lm_head out of params"
            problems.append(Problem(where, peft_families.ADAPTED_HEAD, "modules before the head", step))
        return None if problems else True

    key_parts = [type(params).__module__, params.model_dump(mode="json")]
    memo("adapter_names", digest([base.weights_digest, key_parts, package_versions(), _VERSION]), check)
    return problems


def _list_names(names: str | Iterable[str] | None) -> list[str]:
    """Return the names of a list; none for a regular expression, which may match anything."""
    return [] if names is None or isinstance(names, str) else list(names)


def _absent(
    setting: str, names: Iterable[str], paths: Sequence[str], offered: Iterable[str], where: str
) -> Iterator[Problem]:
    """Yield a problem for each name that no known path ends with; suggest the nearest offered ending."""
    ends = {re.sub(r"^.*\.\d+\.", "", path) for path in offered}
    for name in names:
        if not any(path == name or path.endswith(f".{name}") for path in paths):
            last = ends if "." in name else {end.rpartition(".")[2] for end in ends}
            yield Problem(where, f"{setting}: {name}", _EXPECTED, did_you_mean(name, last))
