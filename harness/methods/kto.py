"""Kahneman-Tversky optimisation: preferences from answers that each got a thumb up or down.

Invariant: without `init_from` a new adapter starts at the base, which is then the reference; with it the
adapter of another candidate is trained further, and that candidate is the reference.
Source: Ethayarajh et al. 2024 (arXiv:2402.01306); trained by TRL's KTOTrainer.
"""

from harness import training


class Params(training.UnpairedParams, training.LoraParams):
    """TRL's names, and PEFT's for the new adapter that is made without `init_from`."""


METHOD = training.low_rank_method(
    Params,
    training.preference_without_pairs,
    draws_from="pairs",
    unpaired=True,
    init_from="adapter",
    hooks=("penalty", "step"),
    published_as="unpaired preferences",
    loops=("training", "tokens", "heldout", "unpaired"),
    checks={"remarks": training.weigh_thumbs},
    # As dpo, from the fine-tune on the answers with a thumb up; TRL's documentation asks for 16 rows a step.
    proposal=lambda situation: (
        ({"init_from": situation.adapter} if situation.adapter else {})
        | {"params": {"gradient_accumulation_steps": 2}}
        if situation.thumbs
        else None
    ),
)
