"""Low-rank adapters on a base quantised to four bits (NF4 with double quantisation by bitsandbytes).

The adapter is judged on the NF4 base; `serve_on: bf16` on the unquantised one is another candidate.
Source: Dettmers et al. 2023 (arXiv:2305.14314).
"""

from harness.methods._shared import propose_adapter
from harness.training import SUPERVISED, LowRankParams, low_rank_method

Params = LowRankParams
METHOD = low_rank_method(
    LowRankParams,
    **SUPERVISED,
    quantization="nf4",
    published_as="low-rank adapters",
    loops=("training", "tokens", "sft"),
    proposal=propose_adapter,
)
