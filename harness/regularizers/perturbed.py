"""Trainings on what is slightly off: noisy embeddings, smoothed targets, weights of a higher loss."""

from collections.abc import Callable
from typing import Any

from pydantic import Field

from harness.models.later import torch
from harness.spec import Spec

_SMALLEST = 1e-12


class Neftune:
    """NEFTune: uniform noise within ± alpha / √(t d) on the input embeddings during training.

    Source: Jain et al. 2023 (arXiv:2310.05914), algorithm 1; transformers' own `neftune_noise_alpha`.
    """

    DRAWS = True
    WHY_NOT = "whose reference, teacher or own answers are read while the noise is on the model"

    class Params(Spec):
        """`noise_alpha` scales the noise; the paper tries 5, 10 and 15."""

        noise_alpha: float = Field(5.0, gt=0, allow_inf_nan=False)

    @staticmethod
    def arguments(params: Params) -> dict[str, Any]:
        """Return transformers' argument."""
        return {"neftune_noise_alpha": params.noise_alpha}


class LabelSmoothing:
    """Label smoothing of the training loss alone: a share of each target's probability goes to all labels.

    Source: Szegedy et al. 2016 (arXiv:1512.00567), section 7; transformers' own `label_smoothing_factor`.
    """

    class Params(Spec):
        """`factor` is the share that is spread."""

        factor: float = Field(0.1, gt=0, lt=1)

    @staticmethod
    def smoothing(params: Params) -> float:
        """Return the share that is spread."""
        return params.factor


class Sam:
    """Sharpness-aware minimisation: the gradient is that where the loss nearby is highest, w + rho · g / ‖g‖.

    Source: Foret et al. 2021 (arXiv:2010.01412), equation 2 and algorithm 1, for each batch that is read at
    once.
    """

    class Params(Spec):
        """`rho` is the distance, in the Euclidean norm over all trained weights."""

        rho: float = Field(0.05, gt=0, allow_inf_nan=False)

    @staticmethod
    def cost(params: Params, n_rows: int) -> float:
        """Return the work of a step: two passes instead of one."""
        return 2.0

    @staticmethod
    def step(model: Any, backward: "Callable[[], torch.Tensor]", params: Params) -> "torch.Tensor":
        """Add the gradients at the perturbed weights to the existing ones; return the loss at the weights."""
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        earlier_gradients = [parameter.grad for parameter in parameters]
        _forget_gradients(parameters)
        loss = backward()
        pairs = [(parameter, parameter.grad) for parameter in parameters if parameter.grad is not None]
        saved_weights = [parameter.detach().clone() for parameter, _ in pairs]
        norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for _, g in pairs]))
        with torch.no_grad():
            for parameter, gradient in pairs:
                parameter.add_(gradient * (params.rho / (norm + _SMALLEST)))
        _forget_gradients(parameters)
        backward()
        with torch.no_grad():
            for (parameter, _), weights in zip(pairs, saved_weights, strict=True):
                parameter.copy_(weights)
        for parameter, earlier in zip(parameters, earlier_gradients, strict=True):
            if earlier is not None:
                parameter.grad = earlier if parameter.grad is None else parameter.grad + earlier
        return loss


def _forget_gradients(parameters: list[Any]) -> None:
    for parameter in parameters:
        parameter.grad = None


PLUGINS = {"neftune": Neftune, "label_smoothing": LabelSmoothing, "sam": Sam}
