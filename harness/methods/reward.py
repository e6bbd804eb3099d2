"""Reward model over a low-rank adapter, trained on preference pairs: what other candidates are rewarded by.

Invariant: it answers no task and is in no comparison; the candidates whose `reward` names it make it first.
Source: Ouyang et al. 2022 (arXiv:2203.02155); trained by TRL's RewardTrainer, its head by PEFT's SEQ_CLS.
"""

from harness import training
from harness.plugins import AdapterShape, Method


class Params(training.RewardParams, training.LoraParams):
    """TRL's names, and PEFT's for the adapter."""


def fit(context: training.FitContext, params: Params) -> training.Weights:
    """Train adapter and head, and save them under `reward/`.

    Raises:
        CandidateFailed: out of memory, no pair fits, or the loss was not a number.
    """
    folder = context.folder / "reward"
    made = training.train_reward_model(context, params, training.lora_config(params, "SEQ_CLS"), folder)
    return training.made_weights(context, "reward", made)


METHOD = Method(
    params=Params,
    fit=fit,
    makes="reward",
    trains=True,
    draws_from="pairs",
    seeded=True,
    hooks=("penalty", "step", "arguments"),
    loops=("training", "tokens", "heldout", "heads", "reward_model"),
    adapter=AdapterShape(training.adapter_parameters),
)
