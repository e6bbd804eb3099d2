"""Held-out preference pairs, which no training sees, and the metrics measured on them.

Invariant: which pairs are held out depends only on the pairs; those with the same prompt are never split.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from pydantic import Field, model_validator

from harness.data import SourcedExample
from harness.data.splits import groups_of, set_aside
from harness.models.later import Tokenizer, datasets, transformers
from harness.records import Example, TrainingRecord
from harness.training import trainer as loop
from harness.training.context import FitContext, curve
from harness.training.tokenized import rows_that_fit, tokenize
from harness.training.trainer import LoopParams, Row

_Params = TypeVar("_Params", bound=LoopParams)


def refuse_dropout(params: _Params) -> _Params:
    """Return the parameters; ValueError for `lora_dropout` in a training in which TRL turns dropout off."""
    if getattr(params, "lora_dropout", 0):
        raise ValueError("lora_dropout, which TRL turns off in this training; expected 0, the default")
    return params


class HeldOutParams(LoopParams):
    """Parameters of a preference training; all but the held-out share of rows are TRL's.

    With `early_stopping_patience`, in evaluations, the best checkpoint is kept, else the last.
    """

    heldout: float = Field(0.2, ge=0, le=0.5)
    early_stopping_patience: int | None = Field(None, ge=1)

    _check_dropout = model_validator(mode="after")(refuse_dropout)

    @model_validator(mode="after")
    def _check_early_stopping(self) -> "HeldOutParams":
        if self.early_stopping_patience is not None and not self.heldout:
            raise ValueError("early_stopping_patience counts evaluations of held-out rows: heldout above 0")
        return self


_Item = TypeVar("_Item")


def split(
    rows: Sequence[_Item], examples: Sequence[Example], params: HeldOutParams
) -> tuple[list[_Item], list[_Item]]:
    """Hold out a share of the rows (one per example), by groups with the same prompt; none for one group.

    If `max_steps` reaches only a part of the training rows, as large a part of the held-out rows is kept.
    """
    share = params.heldout
    if not share or len(groups_of(examples)) < 2:
        return list(rows), []
    rng = random.Random("held-out pairs")
    numbered = [SourcedExample(example, str(i)) for i, example in enumerate(examples)]
    train, heldout = set_aside(numbered, rng, share=share)
    if 0 < (n_reached := n_seen(params)) < len(train):
        heldout = rng.sample(heldout, max(1, round(len(heldout) * n_reached / len(train))))
    return [rows[int(e.where)] for e in train], [rows[int(e.where)] for e in heldout]


def pairs_that_fit(
    context: FitContext,
    params: HeldOutParams,
    tokenizer: Tokenizer,
    row: Callable[[int, list[list[int]]], Row],
) -> tuple[list[Row], list[Row], int]:
    """Return the fitting training and held-out pairs, made by `row(start, wholes)`, and count the others."""
    pairs = context.pairs
    answers = [(pair.references[0], pair.rejected) for pair in pairs]
    all_tokens = tokenize(pairs, answers, context.chat_template, tokenizer, context.source)
    rows: list[Row] = [{"pair": pair, "row": row(*t)} for pair, t in zip(pairs, all_tokens, strict=True)]
    lengths = [item["row"]["length"] for item in rows]
    fitting, n_dropped = rows_that_fit(rows, lengths, params.max_length, "pairs to train on")
    train, heldout = split([item["row"] for item in fitting], [item["pair"] for item in fitting], params)
    return train, heldout, n_dropped


def n_seen(params: HeldOutParams) -> int:
    """Count the rows that `max_steps` will reach; negative if there is no limit."""
    return params.max_steps * params.per_device_train_batch_size * params.gradient_accumulation_steps


def trainer_options(
    params: HeldOutParams, rows: tuple[list[Row], list[Row]]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return TRL's arguments that evaluate held-out rows, and the trainer's rows and callbacks."""
    train, heldout = rows
    options: dict[str, Any] = {"train_dataset": datasets.Dataset.from_list(train), "eval_dataset": None}
    if not heldout:
        return {}, options
    patience = params.early_stopping_patience
    stopping = [] if patience is None else [transformers.EarlyStoppingCallback(patience)]
    arguments = loop.evaluations(params, best=patience is not None)
    return arguments, options | {"eval_dataset": datasets.Dataset.from_list(heldout), "callbacks": stopping}


def make_weighting_trainer(kind: Any) -> Any:
    """Return a trainer class of TRL whose held-out metrics are means over pairs instead of batches."""

    class PairWeighted(kind):  # type: ignore[misc]
        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            before = {name: len(values) for name, values in self._metrics["eval"].items()}
            loss = super().compute_loss(model, inputs, *args, **kwargs)
            if not self.model.training:
                ids = inputs["input_ids"]
                n_pairs = len(self.accelerator.gather_for_metrics(ids[: len(ids) // 2, 0]))
                for name, values in self._metrics["eval"].items():
                    values.extend(values[before.get(name, 0) :] * (n_pairs - 1))
            return loss

    return PairWeighted


def add_curves(
    record: TrainingRecord,
    trainer: "transformers.Trainer",
    n_rows: tuple[int, int],
    *,
    accuracy: str,
    margin: str,
) -> TrainingRecord:
    """Return the record with the curves that TRL logs for training and held-out pairs."""
    history, (n_pairs, n_heldout) = trainer.state.log_history, n_rows
    return replace(
        record,
        n_pairs=n_pairs,
        reward_margin=curve(history, margin),
        reward_accuracy=curve(history, accuracy),
        n_heldout=n_heldout or None,
        validation_loss=curve(history, "eval_loss"),
        heldout_accuracy=curve(history, f"eval_{accuracy}"),
        heldout_margin=curve(history, f"eval_{margin}"),
    )
