"""Group relative policy optimisation: answers are rewarded relative to the others to their prompt.

Source: Shao et al. 2024 (arXiv:2402.03300); trained by TRL's GRPOTrainer.
"""

from functools import partial
from typing import Literal

from harness.training import LoraParams, low_rank_method, reinforcement


class Params(reinforcement.ReinforcedParams, LoraParams):
    """TRL's names, and PEFT's for the new adapter (without `init_from`)."""

    loss_type: Literal["grpo", "bnpo", "dr_grpo", "dapo"] = "dapo"
    scale_rewards: Literal["group", "batch", "none"] = "group"


METHOD = low_rank_method(Params, partial(reinforcement.train_on_rewards, "GRPO"), **reinforcement.REWARDED)
