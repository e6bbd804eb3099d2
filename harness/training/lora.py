"""A new low-rank adapter, trained on completions: on the base as published, or on it quantised.

Invariant: only the adapter is trained; its digest is that of the adapter on the base it was trained on.
"""

from harness.models.adapters import LoraParams, adapter_digest, lora_config
from harness.training.context import FitContext, Weights
from harness.training.sft import SupervisedParams, supervised


class LowRankParams(SupervisedParams, LoraParams):
    """PEFT's names beside TRL's."""


def low_rank(context: FitContext, params: LowRankParams) -> Weights:
    """Train an adapter on the context's base and save it under `adapter/`.

    Raises:
        CandidateFailed: out of memory, no row fits, or the loss was not a number.
    """
    folder = context.folder / "adapter"
    training = supervised(context, params, lora_config(params), folder)
    return Weights("adapter", adapter_digest(folder, context.source.weights_digest), context.folder, training)
