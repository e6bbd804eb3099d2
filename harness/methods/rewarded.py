"""Trainings on rewards of sampled answers, by TRL: GRPO and RLOO."""

from functools import partial
from typing import Literal

from harness.training import LoraParams, low_rank_method
from harness.training.reinforcement import REWARDED, ReinforcedParams, train_on_rewards


class Grpo:
    """Group relative policy optimisation: answers are rewarded relative to the others to their prompt.

    Source: Shao et al. 2024 (arXiv:2402.03300); trained by TRL's GRPOTrainer.
    """

    class Params(ReinforcedParams, LoraParams):
        """TRL's names, and PEFT's for the new adapter (without `init_from`)."""

        loss_type: Literal["grpo", "bnpo", "dr_grpo", "dapo"] = "dapo"
        scale_rewards: Literal["group", "batch", "none"] = "group"

    METHOD = low_rank_method(Params, partial(train_on_rewards, "GRPO"), **REWARDED)


class Rloo:
    """REINFORCE leave-one-out: answers are rewarded relative to the mean of the others to their prompt.

    Source: Ahmadian et al. 2024 (arXiv:2402.14740); trained by TRL's RLOOTrainer.
    """

    class Params(ReinforcedParams, LoraParams):
        """TRL's names, and PEFT's for the new adapter (without `init_from`)."""

        normalize_advantages: bool = False

    METHOD = low_rank_method(Params, partial(train_on_rewards, "RLOO"), **REWARDED)


PLUGINS = {"grpo": Grpo, "rloo": Rloo}
