"""Kahneman-Tversky optimisation: preferences from answers that each got a thumb up or down.

Invariant: without `init_from` a new adapter starts at the base, which is then the reference; with it the
adapter of another candidate is trained further, and that candidate is the reference.

Source: Ethayarajh et al. 2024 (arXiv:2402.01306); trained by TRL's KTOTrainer.
"""

from harness.plugins import Method
from harness.training import (
    FitContext,
    LoraParams,
    UnpairedParams,
    Weights,
    adapter_parameters,
    adapter_weights,
    leave_out,
    lora_config,
    lower_rank,
    preference_without_pairs,
)


class Params(UnpairedParams, LoraParams):
    """TRL's names, and PEFT's for the new adapter that is made without `init_from`."""


def fit(context: FitContext, params: Params) -> Weights:
    """Train the adapter on the answers and save it under `adapter/`.

    Raises:
        CandidateFailed: out of memory, no answer fits, or the loss was not a number.
    """
    training = preference_without_pairs(context, params, lora_config(params), context.folder / "adapter")
    return adapter_weights(context, training)


METHOD = Method(
    params=Params,
    fit=fit,
    makes="adapter",
    trains=True,
    draws_from="pairs",
    unpaired=True,
    seeded=True,
    init_from="adapter",
    hooks=("penalty", "step"),
    loops=("training", "tokens", "heldout", "unpaired"),
    shape_params=tuple(LoraParams.model_fields),
    adapter_parameters=adapter_parameters,
    lower_rank=lower_rank,
    leave_out=leave_out,
)
