"""Weights made of other candidates' weights without training: of an earlier step, scaled, mixed or merged."""

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

from pydantic import Field, model_validator

from harness.errors import CandidateFailed, Problem, one_line
from harness.models.devices import load_base
from harness.models.hub import ModelSource
from harness.models.later import peft, safetensors, torch, transformers
from harness.models.weight_files import (
    CONFIG,
    CONVERTED,
    WEIGHTS,
    describe_beside_low_rank,
    refuse_moved_base,
)
from harness.plugins import InitWeights, Method, RescueSituation, RescueStep, TrialSetting
from harness.records import TrainingRecord, parse_json
from harness.spec import Recipe, Spec
from harness.training import TRACKED, FitContext, Weights, made_weights, map_tracked_folders


def _requires_init(
    expected: str, example: str = "lora"
) -> Callable[[Recipe, ModelSource, str], Iterator[Problem]]:
    """Return a check that yields a problem if a recipe names no candidate."""

    def problems(recipe: Recipe, source: ModelSource, where: str) -> Iterator[Problem]:
        if recipe.init_from is None:
            yield Problem(where, f"{recipe.method} without init_from", expected, f"add init_from: {example}")

    return problems


class Checkpoint:
    """Another candidate's weights at an earlier step of its training, as kept by the recipe's `track`.

    Source: Goodfellow, Bengio and Courville 2016, *Deep Learning*, section 7.8, on stopping early.
    """

    class Params(Spec):
        """`step` is a step whose weights `track` kept."""

        step: int = Field(ge=1)

    @staticmethod
    def _init_problems(params: Params, init: InitWeights, where: str) -> Iterator[Problem]:
        if init.recipe.track is None:
            step = "add track: {points: 4} to that recipe"
            yield Problem(where, "init_from: a recipe without track", "a training that was tracked", step)

    @staticmethod
    def _fit(context: FitContext, params: Params) -> Weights:
        if context.init is None:
            raise CandidateFailed("checkpoint without init_from", "init_from: the candidate that is meant")
        start, folders = time.perf_counter(), map_tracked_folders(context.init.parent / TRACKED)
        if params.step not in folders:
            kept_steps = f"those of the steps {', '.join(map(str, folders))}" if folders else "none"
            step = "params.step, one of these" if folders else "track: {points: 4} on the recipe of init_from"
            raise CandidateFailed(f"no weights were kept of step {params.step}, but {kept_steps}", step)
        kind = context.init.name  # the folder is named after the kind of weights
        shutil.copytree(folders[params.step] / kind, context.folder / kind)
        record = TrainingRecord().add(copying_s=round(time.perf_counter() - start, 3))
        return made_weights(context, kind, record)

    @staticmethod
    def _list_settings(case: RescueSituation) -> list[TrialSetting] | str:
        """List the best step on the target within the margin of a rescue, else the least forgetful one."""
        points = [
            (case.sign * p.target, p.capability, p.step)
            for p in case.tracked
            if p.target is not None and p.capability is not None
        ]
        if not points:
            return "nothing was measured along its training: its recipe has no track, or no task counts"
        within = [point for point in points if point[1] >= -case.margin]
        # Ties are broken by the other value, so that no point beats it, then by the earlier step.
        step = max(within or points, key=lambda p: (p[0], p[1], -p[2]) if within else (p[1], p[0], -p[2]))[2]
        return [TrialSetting({"step": step}, f"step={step}", f"as it was at step {step}, no training")]

    METHOD = Method(
        params=Params,
        fit=_fit,
        makes="adapter or delta or model",
        seeded=True,
        init_from="adapter or delta or model",
        problems=_requires_init("the candidate whose training was tracked"),
        init_problems=_init_problems,
        rescue=RescueStep("earlier", _list_settings, place=1),
    )


_SCALES = RescueStep(
    "scale",
    lambda case: [
        TrialSetting({"scale": s}, f"scale={s:g}", f"at scale {s:g}, no training") for s in case.policy.scales
    ],
    place=2,
)


def _describe_beside_scale(config: Mapping[str, Any]) -> str:
    """Name the part of an adapter with this configuration that does not follow its scale; empty if none."""
    if (kind := config.get("peft_type", "LORA")) != "LORA":
        return f"of the kind {kind}, which has no lora_alpha"
    if config.get("use_dora"):
        return "with use_dora, whose magnitudes do not follow its scale"
    more = describe_beside_low_rank({**config, "lora_bias": False})  # LoRA's bias is scaled with B
    return more and f"with {more}, which has no scale"


def _times(scale: float, alpha: float) -> float:
    """Multiply; whole numbers stay integers, as PEFT writes them."""
    product = scale * alpha
    return int(product) if product == int(product) else product


class Scaled:
    """Another candidate's adapter at a share of its scale, between the base (0) and the fine-tune (1).

    Invariant: only `lora_alpha`, which determines an adapter's scale in PEFT, is changed. Source: Wortsman et
    al. 2022 (arXiv:2109.01903), who interpolate weights; for low-rank adapters that is the same.
    """

    class Params(Spec):
        """`scale` is the share of the way from the base to the fine-tune."""

        scale: float = Field(0.5, gt=0, le=1)

    @staticmethod
    def _init_problems(params: Params, init: InitWeights, where: str) -> Iterator[Problem]:
        """Yield a problem for parts of the adapter that do not follow its scale, as far as known."""
        if part := _describe_beside_scale(init.adapter):
            yield Problem(where, f"an adapter {part}", "one of low-rank matrices alone", "another init_from")

    @staticmethod
    def _fit(context: FitContext, params: Params) -> Weights:
        if context.init is None:
            step = "init_from: the candidate whose adapter is meant"
            raise CandidateFailed("scaled without init_from", step)
        start, folder = time.perf_counter(), context.folder / "adapter"
        config = parse_json((context.init / CONFIG).read_text("utf-8"))
        part = _describe_beside_scale({"peft_type": None, **config})
        if part := part or ("" if config.get("lora_alpha") else "without lora_alpha"):
            step = "a candidate whose adapter is low-rank matrices alone"
            raise CandidateFailed(f"an adapter {part}", step)
        refuse_moved_base(config)
        config["lora_alpha"] = _times(params.scale, config["lora_alpha"])
        if pattern := config.get("alpha_pattern"):
            config["alpha_pattern"] = {name: _times(params.scale, alpha) for name, alpha in pattern.items()}
        folder.mkdir()
        (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True), "utf-8")
        shutil.copy(context.init / WEIGHTS, folder / WEIGHTS)
        record = TrainingRecord().add(copying_s=round(time.perf_counter() - start, 3))
        return made_weights(context, "adapter", record)

    @staticmethod
    def _list_settings(case: RescueSituation) -> Sequence[TrialSetting] | str:
        part = _describe_beside_scale(case.params)
        return f"it is an adapter {part}" if part else _SCALES.settings(case)

    METHOD = Method(
        params=Params,
        fit=_fit,
        makes="adapter",
        seeded=True,
        init_from="adapter",
        interpolates=True,
        problems=_requires_init("the candidate whose adapter is scaled"),
        init_problems=_init_problems,
        rescue=_SCALES._replace(settings=_list_settings),
    )


class Interpolated:
    """Weights interpolated between the base and another candidate's whole model.

    Invariant: every tensor is base + scale · (fine-tuned − base), computed in fp32 and stored in the
    precision of the fine-tuned one. Source: Wortsman et al. 2022 (arXiv:2109.01903).
    """

    @staticmethod
    def _fit(context: FitContext, params: Scaled.Params) -> Weights:
        if context.init is None:
            raise CandidateFailed("interpolated without init_from", "init_from: the candidate that is meant")
        start, folder = time.perf_counter(), context.folder / "model"
        shutil.copytree(context.init, folder)
        base: dict[str, torch.Tensor] = {}
        for file in context.source.path.glob("*.safetensors"):
            base |= safetensors.load_file(file)
        for file in sorted(folder.glob("*.safetensors")):
            mixed = safetensors.load_file(file)
            for name in sorted(mixed.keys() & base.keys()):  # tied tensors stay tied
                base_tensor, tuned = base[name], mixed[name]
                if base_tensor.shape != tuned.shape:
                    shapes = f"{tuple(tuned.shape)}, which the base has as {tuple(base_tensor.shape)}"
                    step = "weights of the base's own vocabulary at the other end"
                    raise CandidateFailed(f"{name} of the shape {shapes}", step)
                mixed[name] = base_tensor.float().lerp(tuned.float(), params.scale).to(tuned.dtype)
            safetensors.save_file(mixed, file, {"format": "pt"})
        record = TrainingRecord().add(mixing_s=round(time.perf_counter() - start, 3))
        return made_weights(context, "model", record)

    Params = Scaled.Params
    METHOD = Method(
        params=Scaled.Params,
        fit=_fit,
        makes="model",
        seeded=True,
        init_from="model",
        interpolates=True,
        problems=_requires_init("the candidate at the other end", "full"),
        rescue=_SCALES,
    )


_OF_ONE_RANK = ("linear", "ties", "dare_linear", "dare_ties", "magnitude_prune")
_AVERAGED = ("ties", "dare_ties", "ties_svd", "dare_ties_svd")  # means of adapters that agree in sign
# PEFT would drop DoRA's magnitudes, scale the merged adapter again, and merge only adapters of layers.
_NOT_MERGED = ("use_dora", "use_rslora", "target_parameters")
_NAME = "combined"

_Plain = Literal["svd", "linear", "cat"]
_Pruned = Literal["ties", "dare_ties", "dare_linear", "magnitude_prune"]
_PrunedSvd = Literal["ties_svd", "dare_ties_svd", "dare_linear_svd", "magnitude_prune_svd"]


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
            config_ranks = {config["r"], *(config.get("rank_pattern") or {}).values()}
            ranks[name] = sorted((2 if moved else 1) * r for r in config_ranks)
    if combination in _OF_ONE_RANK and len({r for values in ranks.values() for r in values}) > 1:
        shown_ranks = ", ".join(f"{name} of rank {' and '.join(map(str, rs))}" for name, rs in ranks.items())
        step = "combination_type: svd or cat, which take several ranks"
        return f"{combination} of {shown_ranks}", "adapters of one rank", step
    return None


class Merged:
    """Adapter merged from those of several candidates on one base, by PEFT's `add_weighted_adapter`.

    Invariant: adapters that PEFT cannot merge correctly are refused. Source: Ilharco et al. 2022
    (arXiv:2212.04089), TIES (Yadav et al. 2023, arXiv:2306.01708), DARE (Yu et al. 2023, arXiv:2311.03099).
    """

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
        def _check_density(self) -> "Merged.Params":
            prunes = self.combination_type not in ("svd", "linear", "cat")
            if prunes != (self.density is not None):
                has = "takes a density, for example 0.5" if prunes else "takes no density"
                raise ValueError(f"combination_type {self.combination_type} {has}")
            return self

    @staticmethod
    def _problems(recipe: Recipe, base: Any, where: str) -> Iterator[Problem]:
        weights = recipe.params.get("weights")
        if weights is not None and len(weights) != len(recipe.merges):
            found = f"{len(weights)} weights of {len(recipe.merges)} adapters"
            yield Problem(where, found, "a weight for each that merges names", "fix params.weights")

    @staticmethod
    def _fit(context: FitContext, params: Params) -> Weights:
        start, n = time.perf_counter(), len(context.merges)
        share = 1.0 if params.combination_type in _AVERAGED else 1 / max(n, 1)
        weights = params.weights or [share] * n
        if n < 2 or len(weights) != n:
            found = f"{len(weights)} weights of {n} adapters"
            raise CandidateFailed(found, "a weight for each of two adapters or more")
        texts = [(path / CONFIG).read_text("utf-8") for path in context.merges]
        configs = {f"adapter {i}": parse_json(text) for i, text in enumerate(texts, start=1)}
        if mismatch := unlike(configs, params.combination_type):
            raise CandidateFailed(f"{mismatch[0]}, where {mismatch[1]} are expected", mismatch[2])
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
        record = TrainingRecord().add(mixing_s=round(time.perf_counter() - start, 3))
        return made_weights(context, "adapter", record)

    @staticmethod
    def _list_settings(case: RescueSituation) -> list[TrialSetting] | str:
        """List one merge for a rescue to try: the mean with all adapters that PEFT can merge with it."""
        others = case.others.items()
        mergeable = [n for n, params in others if not unlike({"": case.params, n: params}, "svd")]
        if not mergeable:
            return "there is no other adapter on its base to merge it with"
        description = f"merged with {', '.join(mergeable)} in equal shares, no training"
        return [TrialSetting({}, "merged", description, tuple(mergeable))]

    METHOD = Method(
        params=Params,
        fit=_fit,
        makes="adapter",
        seeded=True,
        merges=True,
        problems=_problems,
        merge_problems=lambda recipe, adapters, where: (
            Problem(where, *mismatch)
            for mismatch in [unlike(adapters, Merged.Params(**recipe.params).combination_type)]
            if mismatch
        ),
        rescue=RescueStep("merge", _list_settings, place=4),
    )


PLUGINS = {"checkpoint": Checkpoint, "scaled": Scaled, "interpolated": Interpolated, "merged": Merged}
