"""Reward model with a low-rank adapter, trained on preference pairs, that rewards other candidates' answers.

Invariant: it answers no task and is not compared. Source: Bradley and Terry 1952, as in Ouyang et al. 2022
(arXiv:2203.02155), equation 1; trained by TRL's RewardTrainer, its head by PEFT's SEQ_CLS.
"""

from pydantic import Field

from harness.models.later import transformers, trl
from harness.plugins import Method
from harness.training import heldout
from harness.training import trainer as loop
from harness.training.context import CHECKPOINTS, FitContext, Weights, made_weights
from harness.training.heads import load_with_head
from harness.training.lora import LoraParams, adapter_parameters, lora_config


class Params(heldout.HeldOutParams, LoraParams):
    """TRL's names, and PEFT's for the adapter.

    `center_rewards_coefficient` pulls the mean of rewards to 0. The length of a pair is that of its prompt
    with the longer answer.
    """

    learning_rate: float = Field(1e-4, gt=0, le=1)
    center_rewards_coefficient: float | None = Field(None, ge=0)


def fit(context: FitContext, params: Params) -> Weights:
    """Train adapter and head on the context's pairs, and save them under `reward/`.

    The reward margin of the record is in logits, the unit of rewards.
    """
    transformers.set_seed(context.seed)
    save_to, scratch = context.folder / "reward", context.folder / CHECKPOINTS
    start = loop.start_time(scratch)
    base, tokenizer = load_with_head(context.source, context.machine, 1)
    rows, heldout_rows, n_dropped = heldout.pairs_that_fit(context, params, tokenizer, _row)
    kind = heldout.make_weighting_trainer(trl.RewardTrainer)
    arguments, options = heldout.trainer_options(params, (rows, heldout_rows))
    arguments["remove_unused_columns"] = False  # `length` is read by the sampler
    trainer = loop.make_trainer(
        kind,
        trl.RewardConfig,
        context,
        params,
        tokenizer,
        scratch,
        arguments,
        model=base,
        processing_class=tokenizer,
        peft_config=lora_config(params, "SEQ_CLS"),
        **options,
    )
    longest = max(row["length"] for row in rows + heldout_rows)
    loop.attend_plainly(base, longest, 2 * params.per_device_train_batch_size)
    record = loop.run(trainer, start, n_dropped, lambda model: model.save_pretrained(save_to))
    n_rows = len(rows), len(heldout_rows)
    record = heldout.add_curves(record, trainer, n_rows, accuracy="accuracy", margin="margin")
    return made_weights(context, "reward", record)


def _row(_: int, wholes: list[list[int]]) -> loop.Row:
    chosen, rejected = wholes
    return {"chosen_ids": chosen, "rejected_ids": rejected, "length": max(len(chosen), len(rejected))}


METHOD = Method(
    params=Params,
    fit=fit,
    makes="reward",
    trains=True,
    draws_from="pairs",
    seeded=True,
    hooks=("penalty", "step", "arguments"),
    loops=("training", "tokens", "heldout", "heads", "reward_model"),
    n_parameters=adapter_parameters,
)
