"""Matrices of linear layers in place of a base's own: all that a training of some of them changed.

Invariant: a layer is replaced by one of the stored matrix and its own bias, and put back as it was.
Source: Hartford et al. 2024 (arXiv:2406.06623), who train whole matrices of some layers.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from harness.errors import CandidateFailed
from harness.models.cpu_kernels import prepack

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Linear

FORM = "matrices"


@contextmanager
def put_on(model: Any, config: Mapping[str, Any], tensors: "Mapping[str, Tensor]") -> Iterator[None]:
    """Let a base compute with stored matrices, which bear the names of their layers.

    Raises:
        CandidateFailed: the base has no such layers.
    """
    places = [(_parent(model, name), name.rpartition(".")[2], weight) for name, weight in tensors.items()]
    before = [(parent, name, _layer_of(parent, name, weight)) for parent, name, weight in places]
    try:
        for (parent, name, layer), (_, _, weight) in zip(before, places, strict=True):
            setattr(parent, name, _make_layer(layer, weight))
        yield
    finally:
        for parent, name, layer in before:
            setattr(parent, name, layer)


def _layer_of(parent: Any, name: str, weight: "Tensor") -> "Linear":
    """Return the layer of a name, whose weight has the shape of another."""
    layer: Linear | None = getattr(parent, name, None)
    own = getattr(layer, "weight", None)
    if layer is None or own is None or own.shape != weight.shape:
        has = "none" if own is None else f"one of the shape {tuple(own.shape)}"
        found = f"a matrix for {name} of the shape {tuple(weight.shape)}, and the base has {has}"
        raise CandidateFailed(found, "the base that it was trained on")
    return layer


def _parent(model: Any, name: str) -> Any:
    try:
        return model.get_submodule(name.rpartition(".")[0])
    except AttributeError:
        return None


def _make_layer(layer: "Linear", weight: "Tensor") -> "Linear":
    """Return a linear layer of a matrix with the bias of another one, in that one's precision."""
    import torch

    made = torch.nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
    made.weight = torch.nn.Parameter(weight.to(layer.weight.dtype), requires_grad=False)
    made.bias = layer.bias
    prepack(made)
    return made.train(layer.training)
