"""Direct preference optimisation on pairs of a chosen and a rejected answer.

Invariant: without `init_from` a new adapter starts at the base, which is then the reference; with it
the adapter of another candidate is trained further, and that candidate is the reference.

Source: Rafailov et al. 2023 (arXiv:2305.18290).
"""

from harness.training import (
    FitContext,
    LoraParams,
    PreferenceParams,
    Weights,
    adapter_digest,
    lora_config,
    preference,
)

NEEDS = ("pairs",)
LOOPS = ("training", "tokens", "dpo")
MAKES = "adapter"
INIT_FROM = "adapter"
SHAPE = tuple(LoraParams.model_fields)  # of a new adapter; with init_from it is settled


class Params(PreferenceParams, LoraParams):
    """TRL's names, and PEFT's for the new adapter that is made without `init_from`."""


def fit(context: FitContext, params: Params) -> Weights:
    """Train the adapter on the pairs and save it under `adapter/`."""
    folder = context.folder / "adapter"
    training = preference(context, params, lora_config(params), folder)
    return Weights("adapter", adapter_digest(folder, context.source.weights_digest), context.folder, training)
