"""Decoder layers that stay frozen while the others are trained.

Source: half fine-tuning, Hui et al. 2024 (arXiv:2404.18466), here by whole layers.
"""

from typing import Any

from pydantic import Field, model_validator

from harness.errors import CandidateFailed
from harness.plugins import RescueSituation, RescueStep, TrialSetting
from harness.regularizers._weights import decoder_layers
from harness.spec import Spec


class Params(Spec):
    """The number of `first` layers to freeze, or of last layers to train with `all_but_last`.

    `first` also freezes the input embeddings; `all_but_last` freezes everything but these layers.
    """

    first: int | None = Field(None, ge=1)
    all_but_last: int | None = Field(None, ge=1)

    @property
    def n(self) -> int:
        """Number of layers that are named."""
        return self.first or self.all_but_last or 0

    @model_validator(mode="after")
    def _check_choice(self) -> "Params":
        if (self.first is None) == (self.all_but_last is None):
            raise ValueError("freeze takes first: N or all_but_last: N")
        return self


def _list_settings(at: RescueSituation) -> list[TrialSetting] | str:
    if not at.n_layers or at.n_layers < 2:
        return "the number of layers is not known"
    if at.present is not None:
        return "a part of the layers is left out already"
    half = at.n_layers // 2
    said = f"the first {half} of {at.n_layers} layers left as they are"
    return [TrialSetting({"first": half}, "half", said, leaves_out=match_first_layers(half))]


def match_first_layers(n: int) -> str:
    """Return a regular expression for modules in the first n layers: a path's first number is the layer."""
    return rf"\D*\.(?:{'|'.join(map(str, range(n)))})\..*"


RESCUE = RescueStep("half", _list_settings, place=7)


def layer_problem(params: Params, n_layers: int) -> str:
    """Say that the model has too few layers for the layers to freeze or train; empty if it has enough."""
    return f"freeze names {params.n} layers, and the model has {n_layers}" if params.n >= n_layers else ""


def prepare(model: Any, params: Params) -> None:
    """Freeze layers of a loaded model."""
    layers, n = decoder_layers(model), params.n
    if too_few := layer_problem(params, len(layers)):
        raise CandidateFailed(too_few, "fewer layers in freeze")
    if params.first:
        model.get_input_embeddings().requires_grad_(False)
        layers[:n].requires_grad_(False)
    else:
        model.requires_grad_(False)
        layers[-n:].requires_grad_(True)
