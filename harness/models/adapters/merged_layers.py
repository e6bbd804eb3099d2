"""Layers of a base with an adapter in them: merged, as they would be served, or with sparse updates.

Invariant: the base's own layers are never written; merged copies stand in their place for a while. A layer
that adds a sparse update at each pass computes what PEFT computes, without gradients.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from harness.models.cpu_kernels import prepack
from harness.models.devices import placement
from harness.models.hardware import memory


@contextmanager
def merge_layers(model: Any) -> Iterator[bool]:
    """Put merged copies of the layers that an adapter changes into a model; undone afterwards.

    Yields whether it did. Left as it is: what has no adapter, one that is more than low-rank updates of
    unquantised linear layers, and one for whose copies there is no memory.
    """
    places = _low_rank_layers(model)
    try:
        for parent, name, layer in places:
            setattr(parent, name, _merge_layer(layer))
        yield bool(places)
    finally:
        for parent, name, layer in places:
            setattr(parent, name, layer)


def _low_rank_layers(model: Any) -> list[tuple[Any, str, Any]]:
    """List an adapter's layers that can be merged, with their places; none where one of them cannot."""
    if not hasattr(model, "peft_config") or placement.is_spread(model.get_base_model()):
        return []
    import torch
    from peft.tuners import lora

    def is_more(layer: Any) -> bool:
        return bool(layer.lora_variant) or any(layer.lora_bias.values())

    places: list[tuple[Any, str, Any]] = [
        (parent, name, layer)
        for parent in model.modules()
        for name, layer in parent.named_children()
        if isinstance(layer, lora.LoraLayer)
    ]
    plain = all(
        type(layer) is lora.Linear and type(layer.base_layer) is torch.nn.Linear and not is_more(layer)
        for _, _, layer in places
    )
    n_bytes = sum(2 * layer.base_layer.weight.nbytes for _, _, layer in places) if plain else 0
    return places if plain and n_bytes / 2**30 < memory(model.device.type).free_gib else []


def _merge_layer(layer: Any) -> Any:
    """Return a linear layer of a layer's weights and its adapter's together, rounded once."""
    import torch

    base = layer.base_layer
    with torch.no_grad():
        weight = base.weight + sum(map(layer.get_delta_weight, layer.active_adapters))
        weight = weight.to(base.weight.dtype)
    made = torch.nn.Linear(base.in_features, base.out_features, bias=base.bias is not None, device="meta")
    made.weight, made.bias = torch.nn.Parameter(weight, requires_grad=False), base.bias
    prepack(made)
    return made


def compute_in_normal_mode(model: Any) -> None:
    """Let the layers that add sparse updates leave inference mode while they compute.

    On a CPU several threads add a sparse matrix to one that is stored by columns (see `cpu_kernels`). They
    are not in inference mode, and may not write to a tensor that was made in it.
    """
    from peft.tuners.shira.layer import ShiraLayer

    for layer in model.modules():
        if isinstance(layer, ShiraLayer):
            forward = partial(_compute, layer.forward)  # type: ignore[attr-defined]
            setattr(layer, "forward", forward)  # noqa: B010  (mypy refuses to assign a method)


def _compute(forward: Any, *args: Any, **kwargs: Any) -> Any:
    import torch

    with torch.inference_mode(mode=False), torch.no_grad():
        return forward(*args, **kwargs)
