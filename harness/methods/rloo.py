"""REINFORCE leave-one-out: answers are rewarded above the mean of the others drawn for their prompt.

Invariant: the recipe's `reward` says what rewards the answers; without `init_from` a new adapter starts at
the base, which is then the reference, with it the adapter of another candidate is trained further.
Source: Ahmadian et al. 2024 (arXiv:2402.14740); trained by TRL's RLOOTrainer.
"""

from functools import partial

from harness.training import LoraParams, low_rank_method, reinforcement


class Params(reinforcement.ReinforcedParams, LoraParams):
    """TRL's names, and PEFT's for the new adapter that is made without `init_from`."""

    normalize_advantages: bool = False


METHOD = low_rank_method(Params, partial(reinforcement.train_on_rewards, "RLOO"), **reinforcement.REWARDED)
