"""Another candidate's adapter with its intruder dimensions reduced, to bring back what they hide of the base.

Invariant: the adapter is what PEFT's `reduce_intruder_dimension` makes of it on the base as published; a
layer without intruders keeps its own.
Source: Shuttleworth et al. 2024 (arXiv:2410.21228): directions of W + ΔW that no direction of W is near to.
"""

import time
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import Field

from harness.errors import CandidateFailed, Problem
from harness.methods._init_from import requires_init
from harness.models.adapters import CONFIG, describe_beside_low_rank, refuse_moved_base
from harness.models.devices import load_base
from harness.plugins import InitWeights, Method, RescueSituation, RescueStep, TrialSetting
from harness.records import TrainingRecord, parse_json
from harness.spec import Spec
from harness.training import FitContext, Weights, adapter_weights

_LOADED, _NAME = "default", "reduced"  # of the adapter in PEFT, before and after


class Params(Spec):
    """PEFT's names and defaults.

    Of the `top_k` largest directions of a matrix with its adapter those are intruders whose cosine with every
    direction of the base's is below `threshold_epsilon`; `mitigation_lambda` is the share of them that stays.
    """

    top_k: int = Field(10, ge=1)
    threshold_epsilon: float = Field(0.5, gt=0, le=1)
    mitigation_lambda: float = Field(0.75, ge=0, lt=1)


def init_problems(params: Params, init: InitWeights, where: str) -> Iterator[Problem]:
    """Yield what the adapter is beside a plain LoRA, as far as that is known."""
    if found := _describe_beyond_lora(init.adapter):
        yield Problem(where, f"an adapter {found}", "a plain LoRA", "another init_from")


def fit(context: FitContext, params: Params) -> Weights:
    """Reduce the intruders of the adapter that `init_from` names, and save it under `adapter/`.

    Raises:
        CandidateFailed: there is no `init_from`, or its adapter is no plain LoRA.
    """
    if context.init is None:
        raise CandidateFailed("no init_from", "init_from: the candidate whose adapter is meant")
    start, config = time.perf_counter(), parse_json((context.init / CONFIG).read_text("utf-8"))
    if found := _describe_beyond_lora({"peft_type": None, **config}):
        raise CandidateFailed(f"an adapter {found}", "a candidate whose adapter is a plain LoRA")
    refuse_moved_base(config)
    from peft import PeftModel
    from peft.tuners.lora.intruders import reduce_intruder_dimension

    machine = context.machine._replace(precision="fp32")
    base, _ = load_base(context.source._replace(quantization=""), machine)
    model = PeftModel.from_pretrained(base, str(context.init))
    reduce_intruder_dimension(model, new_adapter_name=_NAME, **params.model_dump(), logging_sink=None)
    _turn_transposed(model)
    model.save_pretrained(str(context.folder), selected_adapters=[_NAME])
    (context.folder / _NAME).rename(context.folder / "adapter")
    made = TrainingRecord(mixing_s=round(time.perf_counter() - start, 3))
    return adapter_weights(context, made)


def _turn_transposed(model: Any) -> None:
    """Turn the reduced matrices of layers whose weights are in × out: embeddings, and Conv1D as in GPT-2."""
    # PEFT factors the change of a weight as the layer holds it, in × out, and takes the factors for out × in.
    from peft.tuners.lora import LoraLayer

    layers: list[Any] = [layer for layer in model.modules() if isinstance(layer, LoraLayer)]
    for layer in layers:
        if _NAME in layer.lora_embedding_A:
            down, up = layer.lora_embedding_A, layer.lora_embedding_B
            kept, down, up = down[_LOADED], down[_NAME], up[_NAME]
        elif getattr(layer, "fan_in_fan_out", False):
            down, up = layer.lora_A, layer.lora_B
            kept, down, up = down[_LOADED].weight, down[_NAME].weight, up[_NAME].weight
        else:
            continue
        if not down.equal(kept):  # a layer without intruders keeps its own
            down.data, up.data = up.data.T.contiguous(), down.data.T.contiguous()


def _describe_beyond_lora(config: Mapping[str, Any]) -> str:
    """Say what an adapter of this configuration is beside a plain LoRA; empty where it is one."""
    if (kind := config.get("peft_type", "LORA")) != "LORA":
        return f"of the kind {kind}"
    own = (name for name in ("use_dora", "target_parameters") if config.get(name))  # PEFT reads layers alone
    more = next(own, "") or describe_beside_low_rank(config)
    return more and f"with {more}"


def _list_settings(at: RescueSituation) -> list[TrialSetting] | str:
    """List what a rescue tries: PEFT's defaults."""
    if found := _describe_beyond_lora(at.params):
        return f"it is an adapter {found}, and no plain LoRA"
    return [TrialSetting({}, "intruders", "its intruder dimensions reduced, no training")]


METHOD = Method(
    params=Params,
    fit=fit,
    makes="adapter",
    seeded=True,
    init_from="adapter",
    problems=requires_init("the candidate whose adapter is changed"),
    init_problems=init_problems,
    rescue=RescueStep("intruders", _list_settings, place=3),
)
