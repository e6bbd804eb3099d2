"""Low-rank adapters on all linear layers, trained with TRL on the completions.

Invariant: only the adapter is trained; the base stays as it was loaded.
Source: Hu et al. 2021 (arXiv:2106.09685); defaults (all linear layers, a learning rate some
ten times that of full fine-tuning) after Biderman et al. 2024 (arXiv:2405.09673).
"""

from harness.methods._shared import propose_adapter
from harness.training import SUPERVISED, LowRankParams, low_rank_method


class Params(LowRankParams):
    """Parameters under PEFT's and TRL's names."""


METHOD = low_rank_method(
    Params,
    **SUPERVISED,
    published_as="low-rank adapters",
    loops=("training", "tokens", "sft"),
    proposal=propose_adapter,
)
