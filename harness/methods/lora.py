"""Low-rank adapters on all linear layers, trained with TRL on the completions.

Invariant: only the adapter is trained; the base stays as it was loaded.

Source: Hu et al. 2021 (arXiv:2106.09685); defaults (all linear layers, a learning rate some
ten times that of full fine-tuning) after Biderman et al. 2024 (arXiv:2405.09673).
"""

from harness.training import FitContext, LowRankParams, Weights, low_rank

NEEDS = ("train",)
LOOPS = ("training", "tokens", "sft")
MAKES = "adapter"


class Params(LowRankParams):
    """PEFT's names beside TRL's."""


def fit(context: FitContext, params: Params) -> Weights:
    """Train the adapter and save it under `adapter/`."""
    return low_rank(context, params)
