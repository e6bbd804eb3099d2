"""Sharpness-aware minimisation: the gradient is taken where the loss nearby is highest, w + rho · g / ‖g‖.

Source: Foret et al. 2021 (arXiv:2010.01412), equation 2 and algorithm 1, for each batch that is read at once.
"""

from collections.abc import Callable
from typing import Any

from pydantic import Field

from harness.models.later import torch
from harness.spec import Spec

_SMALLEST = 1e-12


class Params(Spec):
    """`rho` is the distance, in the Euclidean norm over all trained weights."""

    rho: float = Field(0.05, gt=0, allow_inf_nan=False)


def cost(params: Params, n_rows: int) -> float:
    """Return the work of a step: two passes instead of one."""
    return 2.0


def step(model: Any, backward: "Callable[[], torch.Tensor]", params: Params) -> "torch.Tensor":
    """Add the gradients at the perturbed weights to the existing ones; return the loss at the weights."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    earlier_gradients = [parameter.grad for parameter in trained]
    _forget_gradients(trained)
    loss = backward()
    moved = [(parameter, parameter.grad) for parameter in trained if parameter.grad is not None]
    saved_weights = [parameter.detach().clone() for parameter, _ in moved]
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for _, g in moved]))
    with torch.no_grad():
        for parameter, gradient in moved:
            parameter.add_(gradient * (params.rho / (norm + _SMALLEST)))
    _forget_gradients(trained)
    backward()
    with torch.no_grad():
        for (parameter, _), weights in zip(moved, saved_weights, strict=True):
            parameter.copy_(weights)
    for parameter, earlier in zip(trained, earlier_gradients, strict=True):
        if earlier is not None:
            parameter.grad = earlier if parameter.grad is None else parameter.grad + earlier
    return loss


def _forget_gradients(parameters: list[Any]) -> None:
    for parameter in parameters:
        parameter.grad = None
