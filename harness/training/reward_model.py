"""Reward model: one number for an answer, higher for the chosen one of each pair than for the rejected.

Invariant: only the adapter and the head are trained, and both are saved as one; accuracy is measured on pairs
that were held out.
Source: Bradley and Terry 1952, as in Ouyang et al. 2022 (arXiv:2203.02155), equation 1; TRL's RewardTrainer.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from harness.models import encode_answered
from harness.models.hardware import Machine
from harness.models.hub import ModelSource, map_end_tokens
from harness.records import Example, PromptText, TrainingRecord
from harness.training import heldout
from harness.training import trainer as loop
from harness.training.context import CHECKPOINTS, FitContext
from harness.training.heads import load_with_head, open_reward_model
from harness.training.heldout import HeldOutParams
from harness.training.trainer import Row

if TYPE_CHECKING:
    from peft import PeftConfig

_TOGETHER = 16  # answers that are scored at once


class RewardParams(HeldOutParams):
    """Parameters of a reward model's training, under TRL's own names.

    `center_rewards_coefficient` pulls the mean of rewards to 0. A pair is as long as its prompt with the
    longer answer.
    """

    learning_rate: float = Field(1e-4, gt=0, le=1)
    center_rewards_coefficient: float | None = Field(None, ge=0)


def train_reward_model(
    context: FitContext, params: RewardParams, peft_config: "PeftConfig", save_to: Path
) -> TrainingRecord:
    """Train an adapter and a head of one output on the context's pairs.

    The reward margin of its record is in the reward's own unit, a logit.

    Raises:
        CandidateFailed: out of memory, no pair fits, or the loss was not a number.
    """
    from transformers import set_seed
    from trl import RewardConfig, RewardTrainer

    set_seed(context.seed)
    scratch = save_to.parent / CHECKPOINTS
    start = loop.start_time(scratch)
    base, tokenizer = load_with_head(context.source, context.machine, 1)
    rows, apart, n_dropped = heldout.pairs_that_fit(context, params, tokenizer, _row)
    kind = heldout.make_weighting_trainer(RewardTrainer)
    arguments, given = heldout.trainer_options(params, (rows, apart))
    arguments["remove_unused_columns"] = False  # `length` is read by the sampler
    trainer = loop.make_trainer(
        kind,
        RewardConfig,
        context,
        params,
        tokenizer,
        scratch,
        arguments,
        model=base,
        processing_class=tokenizer,
        peft_config=peft_config,
        **given,
    )
    longest = max(row["length"] for row in rows + apart)
    loop.attend_plainly(base, longest, 2 * params.per_device_train_batch_size)
    made = loop.run(trainer, start, n_dropped, lambda model: model.save_pretrained(save_to))
    n_rows = len(rows), len(apart)
    return heldout.add_curves(made, trainer, n_rows, accuracy="accuracy", margin="margin")


def open_scorer(
    folder: Path, source: ModelSource, machine: Machine, chat: bool
) -> Callable[[Sequence[Example], Sequence[str]], list[float]]:
    """Open a reward model; return what rewards answers to prompted examples, in its own unit, a logit.

    Each is read as in the training of the reward model. One longer than the context is read cut at its end.
    """
    import torch

    model, tokenizer = open_reward_model(folder, source, machine)
    ends = map_end_tokens(source, tokenizer)
    longest = int(getattr(model.config.get_text_config(), "max_position_embeddings", 0) or 1 << 30)

    def score(examples: Sequence[Example], answers: Sequence[str]) -> list[float]:
        pairs = zip(examples, answers, strict=True)
        rows = [PromptText(example.messages, answer, chat) for example, answer in pairs]
        made = encode_answered(tokenizer, rows, ends) if rows else []
        wholes = [[*one.context, *one.continuation][:longest] for one in made]
        order = sorted(range(len(wholes)), key=lambda i: len(wholes[i]))
        scores = [0.0] * len(wholes)
        for start in range(0, len(order), _TOGETHER):
            part = order[start : start + _TOGETHER]
            ids = {"input_ids": [wholes[i] for i in part]}
            padded = tokenizer.pad(ids, return_tensors="pt").to(model.device)
            with torch.inference_mode():
                found = model(**padded).logits[:, 0].float().tolist()
            for i, reward in zip(part, found, strict=True):
                scores[i] = reward
        return scores

    return score


def _row(_: int, wholes: list[list[int]]) -> Row:
    chosen, rejected = wholes
    return {"chosen_ids": chosen, "rejected_ids": rejected, "length": max(len(chosen), len(rejected))}
