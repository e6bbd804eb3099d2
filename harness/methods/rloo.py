"""REINFORCE leave-one-out: answers are rewarded above the mean of the others drawn for their prompt.

Invariant: the recipe's `reward` says what rewards the answers; without `init_from` a new adapter starts at
the base, which is then the reference, with it the adapter of another candidate is trained further.

Source: Ahmadian et al. 2024 (arXiv:2402.14740); trained by TRL's RLOOTrainer.
"""

from harness.plugins import Method
from harness.training import (
    FitContext,
    LoraParams,
    ReinforcedParams,
    Weights,
    adapter_parameters,
    adapter_weights,
    leave_out,
    lora_config,
    lower_rank,
    train_on_rewards,
)


class Params(ReinforcedParams, LoraParams):
    """TRL's names, and PEFT's for the new adapter that is made without `init_from`."""

    normalize_advantages: bool = False


def fit(context: FitContext, params: Params) -> Weights:
    """Train the adapter on rewards and save it under `adapter/`.

    Raises:
        CandidateFailed: no reward is named, out of memory, no prompt fits, or the loss was not a number.
    """
    training = train_on_rewards(context, params, "RLOO", lora_config(params), context.folder / "adapter")
    return adapter_weights(context, training)


METHOD = Method(
    params=Params,
    fit=fit,
    makes="adapter",
    trains=True,
    draws_from="train",
    seeded=True,
    init_from="adapter",
    rewarded=True,
    hooks=("penalty",),
    loops=("training", "tokens", "heads", "reinforcement"),
    shape_params=tuple(LoraParams.model_fields),
    adapter_parameters=adapter_parameters,
    lower_rank=lower_rank,
    leave_out=leave_out,
)
