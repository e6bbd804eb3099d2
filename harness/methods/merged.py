"""Adapter merged from those of several candidates on one base, by PEFT's `add_weighted_adapter`.

Invariant: adapters that PEFT cannot merge correctly are refused. Source: Ilharco et al. 2022
(arXiv:2212.04089), TIES (Yadav et al. 2023, arXiv:2306.01708), DARE (Yu et al. 2023, arXiv:2311.03099).
"""

import time
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from harness.errors import CandidateFailed, Problem, one_line
from harness.models.devices import load_base
from harness.models.later import peft, transformers
from harness.models.weight_files import CONFIG, CONVERTED, describe_beside_low_rank, refuse_moved_base
from harness.plugins import Method, MethodChecks, RescueSituation, RescueStep, TrialSetting
from harness.records import TrainingRecord, parse_json
from harness.spec import Recipe, Spec
from harness.training import FitContext, Weights, made_weights

_OF_ONE_RANK = ("linear", "ties", "dare_linear", "dare_ties", "magnitude_prune")
_AVERAGED = ("ties", "dare_ties", "ties_svd", "dare_ties_svd")  # means of adapters that agree in sign
# PEFT would drop DoRA's magnitudes, scale the merged adapter again, and merge only adapters of layers.
_NOT_MERGED = ("use_dora", "use_rslora", "target_parameters")
_NAME = "combined"

_Plain = Literal["svd", "linear", "cat"]
_Pruned = Literal["ties", "dare_ties", "dare_linear", "magnitude_prune"]
_PrunedSvd = Literal["ties_svd", "dare_ties_svd", "dare_linear_svd", "magnitude_prune_svd"]


class Params(Spec):
    """PEFT's names and defaults. `weights` are for the adapters in `merges`, by default equal with sum 1.

    TIES averages the adapters that agree on a sign, so there the default weights are 1. `density` is the
    share of values that TIES, DARE and magnitude pruning keep.
    """

    weights: list[float] | None = None
    combination_type: Literal[_Plain, _Pruned, _PrunedSvd] = "svd"
    svd_rank: int | None = Field(None, ge=1)
    svd_clamp: float | None = Field(None, gt=0, le=1)
    density: float | None = Field(None, gt=0, le=1)
    majority_sign_method: Literal["total", "frequency"] = "total"

    @model_validator(mode="after")
    def _check_density(self) -> "Params":
        prunes = self.combination_type not in ("svd", "linear", "cat")
        if prunes != (self.density is not None):
            has = "takes a density, for example 0.5" if prunes else "takes no density"
            raise ValueError(f"combination_type {self.combination_type} {has}")
        return self


def problems(recipe: Recipe, base: Any, where: str) -> Iterator[Problem]:
    """Yield a problem unless there is one weight per adapter."""
    weights = recipe.params.get("weights")
    if weights is not None and len(weights) != len(recipe.merges):
        found = f"{len(weights)} weights of {len(recipe.merges)} adapters"
        yield Problem(where, found, "a weight for each that merges names", "fix params.weights")


def unlike(adapters: Mapping[str, Mapping[str, Any]], combination: str) -> tuple[str, str, str] | None:
    """Find why adapters with these configurations cannot be combined: found, expected and next step."""
    for name, config in adapters.items():
        if (family := config.get("peft_type", "LORA")) != "LORA":
            return f"{name}, an adapter of the family {family}", "adapters of LoRA", "leave it out of merges"
        variants = (variant for variant in _NOT_MERGED if config.get(variant))
        if more := next(variants, "") or describe_beside_low_rank(config):  # PEFT would drop it
            return f"{name}, an adapter with {more}", "plain LoRA adapters", "leave it out of merges"
    ranks: dict[str, list[int]] = {}
    for name, config in adapters.items():
        if "r" in config:  # an adapter that changed its base's weights is saved with twice its rank
            moved = str(config.get("init_lora_weights", "")).lower().startswith(CONVERTED)
            given = {config["r"], *(config.get("rank_pattern") or {}).values()}
            ranks[name] = sorted((2 if moved else 1) * r for r in given)
    if combination in _OF_ONE_RANK and len({r for own in ranks.values() for r in own}) > 1:
        named = ", ".join(f"{name} of rank {' and '.join(map(str, own))}" for name, own in ranks.items())
        step = "combination_type: svd or cat, which take several ranks"
        return f"{combination} of {named}", "adapters of one rank", step
    return None


def fit(context: FitContext, params: Params) -> Weights:
    """Merge the adapters of the context and save the result under `adapter/`."""
    start, n = time.perf_counter(), len(context.merges)
    share = 1.0 if params.combination_type in _AVERAGED else 1 / max(n, 1)
    weights = params.weights or [share] * n
    if n < 2 or len(weights) != n:
        found = f"{len(weights)} weights of {n} adapters"
        raise CandidateFailed(found, "a weight for each of two adapters or more")
    texts = [(path / CONFIG).read_text("utf-8") for path in context.merges]
    configs = {f"adapter {i}": parse_json(text) for i, text in enumerate(texts, start=1)}
    if wrong := unlike(configs, params.combination_type):
        raise CandidateFailed(f"{wrong[0]}, where {wrong[1]} are expected", wrong[2])
    for config in configs.values():
        refuse_moved_base(config)
    base, _ = load_base(context.source._replace(quantization=""), context.machine)
    names = [f"adapter_{i}" for i in range(n)]
    model: Any = peft.PeftModel.from_pretrained(base, str(context.merges[0]), adapter_name=names[0])
    for name, path in zip(names[1:], context.merges[1:], strict=True):
        model.load_adapter(str(path), adapter_name=name)
    transformers.set_seed(context.seed)  # DARE drops values at random
    try:
        model.add_weighted_adapter(names, weights, _NAME, **params.model_dump(exclude={"weights"}))
    except (ValueError, TypeError, RuntimeError) as error:
        reason = f"PEFT does not merge them ({one_line(error)})"
        raise CandidateFailed(reason, "another combination_type or a smaller svd_rank") from error
    model.save_pretrained(context.folder, selected_adapters=[_NAME])
    (context.folder / _NAME).rename(context.folder / "adapter")
    made = TrainingRecord(mixing_s=round(time.perf_counter() - start, 3))
    return made_weights(context, "adapter", made)


def _list_settings(at: RescueSituation) -> list[TrialSetting] | str:
    """List the merges that a rescue tries: the mean with each other adapter that PEFT can merge with it."""
    able = [n for n, params in at.others.items() if not unlike({"": at.params, n: params}, "svd")]
    if not able:
        return "there is no other adapter on its base to merge it with"
    says = f"merged with {', '.join(able)} in equal shares, no training"
    return [TrialSetting({}, "merged", says, tuple(able))]


METHOD = Method(
    params=Params,
    fit=fit,
    makes="adapter",
    seeded=True,
    merges=True,
    checks=MethodChecks(
        problems,
        of_merges=lambda recipe, adapters, where: (
            Problem(where, *found)
            for found in [unlike(adapters, Params(**recipe.params).combination_type)]
            if found
        ),
    ),
    rescue=RescueStep("merge", _list_settings, place=4),
)
