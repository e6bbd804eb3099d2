"""Low-rank adapters on a base quantised to four bits (NF4 with double quantisation).

Invariant: the adapter is served and judged on the NF4 base on which it was trained. `serve_on: bf16` serves
it on the unquantised base, as another candidate. Source: Dettmers et al. 2023 (arXiv:2305.14314);
quantisation by bitsandbytes.
"""

from harness.methods._shared import propose_adapter
from harness.training import SUPERVISED, LowRankParams, low_rank_method


class Params(LowRankParams):
    """Parameters under PEFT's and TRL's names, as for `lora`."""


METHOD = low_rank_method(
    Params,
    **SUPERVISED,
    quantization="nf4",
    published_as="low-rank adapters",
    loops=("training", "tokens", "sft"),
    proposal=propose_adapter,
)
