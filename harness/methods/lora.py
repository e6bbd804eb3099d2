"""Low-rank adapters on all linear layers, trained with TRL on the completions.

Source: Hu et al. 2021 (arXiv:2106.09685); defaults after Biderman et al. 2024 (arXiv:2405.09673).
"""

from harness.methods._shared import propose_adapter
from harness.training import SUPERVISED, LowRankParams, low_rank_method

Params = LowRankParams
METHOD = low_rank_method(
    LowRankParams,
    **SUPERVISED,
    published_as="low-rank adapters",
    loops=("training", "tokens", "sft"),
    proposal=propose_adapter,
)
