"""All parameters of the model, in fp32 while they are trained.

Invariant: what is saved is a whole model folder in safetensors, in the precision it is served in.

Source: the default learning rate is a tenth of LoRA's, after Biderman et al. 2024 (arXiv:2405.09673).
"""

from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from harness.errors import CandidateFailed
from harness.plugins import Method
from harness.spec import Spec
from harness.training import FitContext, SupervisedParams, Weights, model_digest, supervised

if TYPE_CHECKING:
    from torch import nn


class Freeze(Spec):
    """Decoder layers that stay as they are: the `first` so many, or `all_but_last` so many.

    `first` also freezes the input embeddings; `all_but_last` freezes everything but these layers.
    """

    first: int | None = Field(None, ge=1)
    all_but_last: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _one_of_both(self) -> "Freeze":
        if (self.first is None) == (self.all_but_last is None):
            raise ValueError("freeze takes first: N or all_but_last: N")
        return self


class Params(SupervisedParams):
    """TRL's names, and what is not trained."""

    learning_rate: float = Field(1e-4, gt=0, le=1)
    freeze: Freeze | None = None


def fit(context: FitContext, params: Params) -> Weights:
    """Train the model and save it under `model/`.

    Raises:
        CandidateFailed: more layers are to be frozen or trained than there are.
    """
    folder = context.folder / "model"
    training = supervised(
        context, params, None, folder, lambda model: _freeze(model, params.freeze) if params.freeze else None
    )
    return Weights("model", model_digest(folder, context.source.weights_digest), context.folder, training)


def _freeze(model: Any, freeze: Freeze) -> None:
    layers = _decoder_layers(model)
    n = freeze.first or freeze.all_but_last or 0
    if n >= len(layers):
        found = f"freeze names {n} layers, and the model has {len(layers)}"
        raise CandidateFailed(found, "fewer layers in freeze")
    if freeze.first:
        model.get_input_embeddings().requires_grad_(False)
        layers[:n].requires_grad_(False)
    else:
        model.requires_grad_(False)
        layers[-n:].requires_grad_(True)


def _decoder_layers(model: Any) -> "nn.ModuleList":
    """Return the model's longest list of modules: its layers, whatever they are called."""
    from torch import nn

    return max((m for m in model.modules() if isinstance(m, nn.ModuleList)), key=len)


METHOD = Method(
    params=Params,
    fit=fit,
    makes="model",
    trains=True,
    draws_from="train",
    seeded=True,
    loops=("training", "tokens", "sft"),
)
