"""Kahneman-Tversky optimisation: preferences from single answers with a thumb up or down.

Invariant: the reference is the base, or the adapter of `init_from`. The divergence from it is estimated on
answers to other prompts of the batch, so rows are shuffled once and then keep their order.
Source: Ethayarajh et al. 2024 (arXiv:2402.01306); TRL's KTOTrainer and its highest recommended learning rate.
"""

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import Field

from harness.models.later import peft, trl
from harness.records import Example, TrainingRecord
from harness.training import heldout, lora, policies
from harness.training.context import FitContext, curve
from harness.training.policies import Policy
from harness.training.tokenized import rows_that_fit, tokenize
from harness.training.trainer import Row


class Params(heldout.HeldOutParams, lora.LoraParams):
    """TRL's names, and PEFT's for the new adapter (without `init_from`).

    `beta` is the weight of the divergence from the reference; `desirable_weight` and `undesirable_weight`
    balance thumbs up and down. A batch has at least two answers.
    """

    beta: float = Field(0.1, gt=0)
    loss_type: Literal["kto", "apo_zero_unpaired"] = "kto"
    desirable_weight: float = Field(1.0, gt=0)
    undesirable_weight: float = Field(1.0, gt=0)
    learning_rate: float = Field(5e-6, gt=0, le=1)
    per_device_train_batch_size: int = Field(8, ge=2)


def train(context: FitContext, params: Params, config: "peft.PeftConfig", save_to: Path) -> TrainingRecord:
    """Train an adapter on the context's answers, from the base or from the adapter in `context.init`.

    A pair counts as two answers, the chosen one with a thumb up and the rejected one with a thumb down.
    """
    policy = policies.load_policy(context, config, save_to)
    train_pairs, heldout_pairs = heldout.split(context.pairs, context.pairs, params)
    rows, n_dropped = _rows(train_pairs, policy, params)
    random.Random(context.seed).shuffle(rows)
    trainer = _trainer(policy, params, (rows, _rows(heldout_pairs, policy, params)[0]))
    record = policies.train_policy(policy, trainer, n_dropped)
    history = trainer.state.log_history
    return replace(
        record,
        n_pairs=len(train_pairs),
        n_heldout=len(heldout_pairs) or None,
        reward_margin=curve(history, "rewards/margins"),
        kl=curve(history, "kl"),
        validation_loss=curve(history, "eval_loss"),
    )


def _rows(pairs: Sequence[Example], policy: Policy, params: Params) -> tuple[list[Row], int]:
    thumbs = [(pair, answer, True) for pair in pairs for answer in pair.references[:1]]
    thumbs += [(pair, pair.rejected, False) for pair in pairs if pair.rejected]
    examples, texts = [example for example, _, _ in thumbs], [(text,) for _, text, _ in thumbs]
    tokenized = tokenize(
        examples, texts, policy.context.chat_template, policy.tokenizer, policy.context.source
    )
    rows: list[Row] = [
        {"prompt_ids": ids[:start], "completion_ids": ids[start:], "label": up}
        for (start, (ids,)), (_, _, up) in zip(tokenized, thumbs, strict=True)
    ]
    lengths = [len(ids) for _, (ids,) in tokenized]
    return rows_that_fit(rows, lengths, params.max_length, "answers to train on")


def _trainer(policy: Policy, params: Params, rows: tuple[list[Row], list[Row]]) -> "trl.KTOTrainer":
    class TokensTrainer(trl.KTOTrainer):
        def _prepare_dataset(self, dataset: Any, _tokenizer: Any, args: trl.KTOConfig, *_: Any) -> Any:
            if not self.calculate_KL:
                return dataset
            # Another row's answer, on which the divergence is estimated.
            answers, size = dataset["completion_ids"], args.per_device_train_batch_size
            parts = (answers[start : start + size] for start in range(0, len(answers), size))
            return dataset.add_column("KL_completion_ids", [a for p in parts for a in (p[-1], *p[:-1])])

    arguments, options = heldout.trainer_options(params, rows)
    arguments["train_sampling_strategy"] = "sequential"
    build = policies.make_policy_trainer
    return cast("trl.KTOTrainer", build(policy, TokensTrainer, trl.KTOConfig, params, arguments, **options))


METHOD = lora.low_rank_method(
    Params,
    train,
    draws_from="pairs",
    unpaired=True,
    init_from="adapter",
    hooks=("penalty", "step"),
    published_as="unpaired preferences",
    loops=("training", "tokens", "heldout", "unpaired"),
    # As for dpo, start at a fine-tune on answers with a thumb up; TRL's documentation asks for 16 rows a
    # step.
    proposal=lambda situation: (
        ({"init_from": situation.adapter} if situation.adapter else {})
        | {"params": {"gradient_accumulation_steps": 2}}
        if situation.thumbs
        else None
    ),
)
