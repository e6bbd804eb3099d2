"""Direct preference optimisation on pairs of a chosen and a rejected answer.

Invariant: without `init_from` a new adapter starts at the base, which is then the reference; with it
the adapter of another candidate is trained further, and that candidate is the reference.
Source: Rafailov et al. 2023 (arXiv:2305.18290).
"""

from harness.methods._shared import params_on_pairs
from harness.training import LoraParams, PreferenceParams, low_rank_method, preference


class Params(PreferenceParams, LoraParams):
    """TRL's names, and PEFT's for the new adapter that is made without `init_from`."""


METHOD = low_rank_method(
    Params,
    preference,
    draws_from="pairs",
    init_from="adapter",
    data_parallel=True,
    hooks=("penalty", "step", "arguments"),
    published_as="preference pairs",
    loops=("training", "tokens", "heldout", "dpo"),
    # It starts at the fine-tune on the chosen answers: the pairs are to be likely under the reference (§ 4).
    proposal=lambda situation: (
        ({"init_from": situation.adapter} if situation.adapter else {})
        | params_on_pairs(situation.n_parameters)
        if situation.pairs
        else None
    ),
)
