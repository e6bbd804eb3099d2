"""REINFORCE leave-one-out: answers are rewarded relative to the mean of the others to their prompt.

Source: Ahmadian et al. 2024 (arXiv:2402.14740); trained by TRL's RLOOTrainer.
"""

from functools import partial

from harness.training import LoraParams, low_rank_method, reinforcement


class Params(reinforcement.ReinforcedParams, LoraParams):
    """TRL's names, and PEFT's for the new adapter (without `init_from`)."""

    normalize_advantages: bool = False


METHOD = low_rank_method(Params, partial(reinforcement.train_on_rewards, "RLOO"), **reinforcement.REWARDED)
