"""Layers of an adapter that add a sparse update to their weights at each pass.

Invariant: they compute what PEFT computes, without gradients.
"""

from functools import partial
from typing import Any


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
