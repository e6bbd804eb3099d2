"""Direct preference optimisation on pairs of a chosen and a rejected answer.

Invariant: without `init_from` a new adapter starts at the base, which is then the reference; with it
the adapter of another candidate is trained further, and that candidate is the reference.

Source: Rafailov et al. 2023 (arXiv:2305.18290).
"""

from harness.plugins import Method
from harness.training import (
    FitContext,
    LoraParams,
    PreferenceParams,
    Weights,
    adapter_parameters,
    adapter_weights,
    leave_out,
    lora_config,
    lower_rank,
    preference,
)


class Params(PreferenceParams, LoraParams):
    """TRL's names, and PEFT's for the new adapter that is made without `init_from`."""


def fit(context: FitContext, params: Params) -> Weights:
    """Train the adapter on the pairs and save it under `adapter/`."""
    training = preference(context, params, lora_config(params), context.folder / "adapter")
    return adapter_weights(context, training)


METHOD = Method(
    params=Params,
    fit=fit,
    makes="adapter",
    trains=True,
    draws_from="pairs",
    seeded=True,
    init_from="adapter",
    hooks=("penalty", "step"),
    loops=("training", "tokens", "heldout", "dpo"),
    shape_params=tuple(LoraParams.model_fields),
    adapter_parameters=adapter_parameters,
    lower_rank=lower_rank,
    leave_out=leave_out,
    # Published rates are those of larger models; for the quickstart's base 3e-5 was right, and 1e-4 too much.
    proposal=lambda situation: (
        ({"params": {"learning_rate": 3e-5}} if situation.small_base else {}) if situation.pairs else None
    ),
)
