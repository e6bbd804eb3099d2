"""Displacement of weights from the start of training, one fp32 tensor at a time, and decoder layers."""

from collections.abc import Callable, Mapping
from typing import Any

from harness.errors import CandidateFailed
from harness.models.later import peft, torch

# PEFT's families whose `get_delta_weight` is added to a weight matrix.
ADDITIVE = ("ADALORA", "C3A", "FOURIERFT", "GRALORA", "LOHA", "LOKR", "LORA", "RANDLORA", "VBLORA", "VERA")
_ADAPTER = "default"
_COPIED = ".modules_to_save."


def problem(params: Mapping[str, Any]) -> str:
    """Say which method parameters make weights that are not a sum with ΔW; empty if none do."""
    family = params.get("peft_type", "LORA")
    if family not in ADDITIVE:
        return f"an adapter of the family {family}, which is not added to weight matrices"
    if params.get("use_dora"):
        return "use_dora, whose magnitudes are not added to weight matrices"
    if (bias := params.get("bias", "none")) != "none":
        return f"bias: {bias}, whose biases are in no weight matrix"
    if params.get("lora_bias"):
        return "lora_bias, whose biases are in no weight matrix"
    if params.get("trainable_token_indices"):
        return "trainable_token_indices, which replace rows of the embeddings"
    return ""


def displacements(model: Any) -> "dict[str, Callable[[], torch.Tensor]]":
    """Return a displacement for each trained weight, by name; for an adapter one for each adapted weight."""
    layers = find_adapted_layers(model)
    return {
        **{name: _displace_adapter(layer) for name, layer in layers.items()},
        **{name: _displace_parameter(parameter) for name, parameter in find_plain_parameters(model).items()},
    }


def find_adapted_layers(model: Any) -> dict[str, Any]:
    """Return the layers that an adapter adds to, by name; empty for a model without an adapter."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    if not isinstance(model, peft.PeftModel):
        return {}
    config = vars(model.peft_config[_ADAPTER])
    family = config["peft_type"]
    if cause := problem(config | {"peft_type": getattr(family, "value", family)}):
        raise CandidateFailed(f"no penalty on ΔW is defined for {cause}", "another method, or regularize: kl")
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, BaseTunerLayer)}


def find_plain_parameters(model: Any) -> dict[str, Any]:
    """Return the directly trained parameters, by name; with an adapter only those of copied modules."""
    # A new head is not included: it was never published, so there is no start to pull it to.
    with_adapter = isinstance(model, peft.PeftModel)
    whole = model.get_base_model() if with_adapter else model
    known = whole if whole.get_output_embeddings() is not None else whole.base_model
    published_ids = {id(parameter) for parameter in known.parameters()}
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
        and id(parameter) in published_ids
        and (not with_adapter or _COPIED in name)
    }


def _displace_parameter(parameter: Any) -> "Callable[[], torch.Tensor]":
    start = parameter.detach().clone()
    return lambda: parameter.float() - start.float()


def _displace_adapter(layer: Any) -> "Callable[[], torch.Tensor]":
    start = layer.get_delta_weight(_ADAPTER).detach().float()
    if not start.any():  # an adapter that starts at zero: no matrix is kept
        return lambda: layer.get_delta_weight(_ADAPTER).float()
    return lambda: layer.get_delta_weight(_ADAPTER).float() - start


def decoder_layers(model: Any) -> "torch.nn.ModuleList":
    """Return the longest list of modules of a model: its decoder layers."""
    return max((m for m in model.modules() if isinstance(m, torch.nn.ModuleList)), key=len)
