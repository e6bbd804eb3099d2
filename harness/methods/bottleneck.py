"""Bottleneck adapters of Houlsby or Pfeiffer, trained with TRL on the completions.

Invariant: only the adapters are trained, and a new one changes no output.
Source: Houlsby et al. 2019 (arXiv:1902.00751); Pfeiffer et al. 2020 (arXiv:2005.00247); AdapterHub's names.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from harness.models import deltas
from harness.models.shapes import Shape
from harness.plugins import Method
from harness.training import SUPERVISED, FitContext, SupervisedParams, Weights, fine_tune, made_weights


class Params(SupervisedParams):
    """`style` names the sublayers that get adapters; each adapter has `bottleneck_size` units.

    `reduction_factor` gives the size as the base's hidden size divided by it (default 16).
    `non_linearity` defaults to swish for `houlsby` and relu for `pfeiffer`.
    """

    style: Literal["houlsby", "pfeiffer"] = "pfeiffer"
    bottleneck_size: int | None = Field(None, ge=1)
    reduction_factor: float | None = Field(None, ge=1)
    non_linearity: Literal["relu", "gelu", "swish", "tanh"] | None = None

    @model_validator(mode="after")
    def _check_size(self) -> "Params":
        if self.bottleneck_size and self.reduction_factor:
            raise ValueError("a bottleneck takes bottleneck_size or reduction_factor, not both")
        return self

    def size_for(self, hidden: int) -> int:
        """Return the units of an adapter for a hidden size."""
        return self.bottleneck_size or max(1, int(hidden // (self.reduction_factor or 16)))


def fit(context: FitContext, params: Params) -> Weights:
    """Train the adapters and save them under `delta/`."""
    activation = params.non_linearity or deltas.NON_LINEARITY[params.style]

    def form_for(model: Any) -> deltas.Bottleneck:
        size = params.size_for(model.config.get_text_config().hidden_size)
        return deltas.Bottleneck(params.style, size, activation)

    def prepare(model: Any) -> None:
        context.prepare(model)
        model.requires_grad_(False)
        form = form_for(model)
        model.add_module(deltas.BOTTLENECK_LAYERS, deltas.new_bottlenecks(model, form))
        deltas.hook(model, form, getattr(model, deltas.BOTTLENECK_LAYERS))

    def save(model: Any, to: Path, state_dict: Mapping[str, Any] | None = None) -> None:
        start, state = f"{deltas.BOTTLENECK_LAYERS}.", state_dict or model.state_dict()
        tensors = {name.removeprefix(start): value for name, value in state.items() if name.startswith(start)}
        deltas.save_delta(to, deltas.BOTTLENECK_LAYERS, form_for(model)._asdict(), tensors)

    prepared = replace(context, prepare=prepare)
    return made_weights(context, "delta", fine_tune(prepared, params, None, context.folder / "delta", save))


def adapter_parameters(shape: Shape, params: Params) -> int:
    """Count the parameters of new adapters on a model of this shape."""
    return deltas.n_parameters(params.style, params.size_for(shape.hidden), shape.hidden, shape.n_layers)


METHOD = Method(
    params=Params,
    fit=fit,
    makes="delta",
    **SUPERVISED,
    loops=("training", "tokens", "sft", "deltas"),
    n_parameters=adapter_parameters,
)
