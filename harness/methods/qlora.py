"""Low-rank adapters on a base quantised to four bits (NF4, with its scales quantised too).

Invariant: what is trained on is what is served and judged: the adapter on its NF4 base. `serve_on: bf16`
puts the same adapter on the base as it was, and is another candidate.
Source: Dettmers et al. 2023 (arXiv:2305.14314); quantisation by bitsandbytes.
"""

from harness.methods._shared import propose_adapter
from harness.training import SUPERVISED, LowRankParams, low_rank_method


class Params(LowRankParams):
    """PEFT's names beside TRL's, as for `lora`."""


METHOD = low_rank_method(
    Params,
    **SUPERVISED,
    quantization="nf4",
    published_as="low-rank adapters",
    loops=("training", "tokens", "sft"),
    proposal=propose_adapter,
)
