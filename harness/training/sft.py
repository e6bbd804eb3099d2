"""Supervised fine-tuning on completions, of an adapter or of the whole model."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, field_validator

from harness.errors import CandidateFailed
from harness.models import mask_assistant
from harness.models.devices import load_base
from harness.models.hardware import dtype
from harness.models.hub import map_end_tokens
from harness.progress import quiet_libraries
from harness.records import Example, TrainingRecord, parse_json
from harness.regularizers import has_hook
from harness.training import parallel, shared_beginnings, tokenized
from harness.training import trainer as loop
from harness.training.context import CHECKPOINTS, TRACKED, FitContext, curve
from harness.training.peft_families import PLAIN, PeftFamily, family_of, virtual_tokens
from harness.training.trainer import LoopParams, Row

if TYPE_CHECKING:
    import torch
    from peft import PeftConfig
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from trl import SFTTrainer


# Fields of `Method` for methods that train a part of the model by `fine_tune`.
SUPERVISED: dict[str, Any] = {
    "trains": True,
    "draws_from": "train",
    "seeded": True,
    "data_parallel": True,
    "hooks": ("mix", "penalty", "step", "arguments", "smoothing"),
}
_CONFIG = "config.json"
_BATCH_FIELDS = ("input_ids", "attention_mask", "labels")


class SupervisedParams(LoopParams):
    """Parameters of supervised fine-tuning, under TRL's names.

    `early_stopping_patience` counts evaluations (one per epoch) without a better validation loss. `packing`
    packs training rows only, and only if enough steps remain (`check_packing`). `eval_steps` is the number
    of steps (below 1: the share of all) between validations and checkpoints, instead of an epoch.
    `assistant_only_loss` trains on all assistant turns, not only the last, if the chat template marks
    them with `{% generation %}`.
    """

    learning_rate: float = Field(1e-3, gt=0, le=1)
    num_train_epochs: float = Field(2.0, gt=0, le=100)
    weight_decay: float = Field(0.01, ge=0)
    packing: bool = False
    early_stopping_patience: int = Field(2, ge=1)
    eval_steps: float | None = Field(None, gt=0)
    assistant_only_loss: bool = False

    @field_validator("eval_steps")
    @classmethod
    def _check_eval_steps(cls, steps: float | None) -> float | None:
        if steps is not None and steps >= 1 and steps != int(steps):
            raise ValueError(f"eval_steps: {steps}, neither whole steps nor a share below 1")
        return steps


def fine_tune(
    context: FitContext,
    params: SupervisedParams,
    peft_config: "PeftConfig | None",
    save_to: Path,
    save: "Callable[[Any, Path], None] | None" = None,
) -> TrainingRecord:
    """Fine-tune on completions only; keep the checkpoint with the best validation loss.

    Without a `peft_config` the whole model is trained. Its weights are in fp32 (or in `params.trained_in`),
    its matrix products in the machine's precision (in bf16 if the weights are), and it is saved in the
    machine's precision with its tokenizer. With `save(model, folder)`, only the parameters that the context's
    `prepare` left trainable are in fp32, and `save` writes them.
    """
    quiet_libraries()
    from transformers import set_seed

    set_seed(context.seed)
    machine, scratch = context.machine, save_to.parent / CHECKPOINTS
    family = family_of(peft_config, save_to.parent) if peft_config else PLAIN
    if family.begins_anew:
        if parallel.is_first():
            for begun in (scratch, scratch.with_name(TRACKED)):
                shutil.rmtree(begun, ignore_errors=True)
        parallel.wait_for_all()
    start = loop.start_time(scratch)
    whole = peft_config is None and save is None
    if whole and (params.trained_in, machine.precision) == ("bf16", "fp16"):
        found = "dtype: bfloat16 with products in fp16, where gradients can be scaled in fp16 only"
        raise CandidateFailed(found, "dtype: float32, or precision: bf16")
    loaded_in = machine._replace(precision=params.trained_in) if whole else machine
    placed = parallel.place_base(machine.device)
    base, tokenizer = load_base(context.source, loaded_in, loop.attention(machine), placed)
    context.prepare(base)
    train, n_dropped = _rows(context.train, context, tokenizer, params)
    validation, _ = _rows(context.validation, context, tokenizer, params)
    against = ""
    if params.packing:
        against = tokenized.check_packing(params, [len(row["input_ids"]) for row in train], base)
        params = params.model_copy(update={"packing": not against})
    params = parallel.rows_of_each(params, parallel.process_count())
    if save:
        family = PLAIN._replace(save=save, keeps_part=True)
    if whole:
        family = PLAIN._replace(save=partial(_save_model, tokenizer, dtype(machine.precision)))
    trainer = _trainer(context, params, (peft_config, family), base, tokenizer, (train, validation), scratch)
    model: Any = trainer.model
    if not any(parameter.requires_grad for parameter in model.parameters()):  # the base has no such layers
        raise CandidateFailed("nothing of this base is trained", "another method or params.target_modules")
    read: Any = trainer.train_dataset
    loop.attend_plainly(base, max(map(len, read["input_ids"])), params.per_device_train_batch_size)
    family.begin(trainer)
    show_at = 0 if family.begins_anew else context.show_at  # such a family would retrain up to each point
    loop.track(trainer, replace(context, show_at=show_at), save_to, family.save)
    finish = partial(parallel.save_trained, family.save, folder=save_to)
    measured = loop.run(trainer, start, n_dropped, finish, loaded_in.precision if whole else "fp32")
    losses = curve(trainer.state.log_history, "eval_loss")
    return replace(
        measured,
        validation_loss=losses,
        token_accuracy=curve(trainer.state.log_history, "mean_token_accuracy"),
        validation_token_accuracy=curve(trainer.state.log_history, "eval_mean_token_accuracy"),
        best_validation_loss=min((loss for _, loss in losses if loss is not None), default=None),
        not_packed=against,
        n_packs=len(read) if params.packing else None,
    )


def _save_model(
    tokenizer: "PreTrainedTokenizerBase",
    precision: "torch.dtype",
    model: Any,
    folder: Path,
    state_dict: Row | None = None,
) -> None:
    """Write a whole model and its tokenizer in a precision; the model in memory keeps its own."""
    # Shared tensors, such as tied embeddings, are written once; a sharded model passes its `state_dict`.
    made: dict[Any, Any] = {}
    state = {
        name: made.setdefault((t.data_ptr(), t.shape), t.to(precision) if t.is_floating_point() else t)
        for name, t in (state_dict or model.state_dict()).items()
    }
    model.save_pretrained(folder, state_dict=state)
    config = parse_json((folder / _CONFIG).read_text("utf-8"))
    config["dtype"] = str(precision).removeprefix("torch.")
    (folder / _CONFIG).write_text(f"{json.dumps(config, indent=2)}\n", "utf-8")
    tokenizer.save_pretrained(folder)


def _rows(
    examples: Sequence[Example],
    context: FitContext,
    tokenizer: "PreTrainedTokenizerBase",
    params: SupervisedParams,
) -> tuple[list[Row], int]:
    ends = {*map_end_tokens(context.source, tokenizer)} if params.assistant_only_loss else {}

    def row(example: Example, start: int, ids: list[int]) -> Row:
        mask = [0] * start + [1] * (len(ids) - start)
        if params.assistant_only_loss:  # all turns that the template marks, and the end token
            end = next((i for i in range(start, len(ids)) if ids[i] in ends), len(ids) - 1) + 1
            earlier = mask_assistant(tokenizer, example.messages)
            mask = [*earlier, *[1] * (end - start), *[0] * (len(ids) - end)]
        return {"input_ids": ids, "completion_mask": mask}

    return tokenized.tokenized_rows(context, examples, tokenizer, params.max_length, row)


def _trainer(
    context: FitContext,
    params: SupervisedParams,
    adapter: "tuple[PeftConfig | None, PeftFamily]",
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    rows: tuple[list[Row], list[Row]],
    scratch: Path,
) -> "SFTTrainer":
    from datasets import Dataset
    from transformers import EarlyStoppingCallback
    from trl import SFTConfig, SFTTrainer

    peft_config, family = adapter
    n_trained = None if peft_config else sum(p.numel() for p in model.parameters() if p.requires_grad)
    arguments: dict[str, Any] = {
        "completion_only_loss": True,
        "eval_packing": False,
        **loop.evaluations(params, best=not family.keeps_last),
    }
    if params.eval_steps is not None:  # each evaluation needs a checkpoint
        steps = params.eval_steps if params.eval_steps < 1 else int(params.eval_steps)
        arguments |= {"eval_strategy": "steps", "eval_steps": steps, "save_strategy": "steps"}
        arguments["save_steps"] = steps
    in_tiles = context.machine.device == "cuda" and not has_hook(context.regularize, "smoothing")
    kind = make_tiled_loss_trainer() if in_tiles else whole_loss_trainer()
    stopping = [] if family.keeps_last else [EarlyStoppingCallback(params.early_stopping_patience)]
    trainer: SFTTrainer = loop.make_trainer(
        _of_family(kind, family),
        SFTConfig,
        context,
        params,
        tokenizer,
        scratch,
        arguments,
        own=("assistant_only_loss", "eval_steps"),
        n_trained=n_trained,
        callbacks=[*stopping, *family.callbacks],
        model=model,
        processing_class=tokenizer,
        peft_config=peft_config,
        train_dataset=Dataset.from_list(rows[0]),
        eval_dataset=Dataset.from_list(rows[1]),
    )
    if not has_hook(context.regularize, "DRAWS"):
        setattr(trainer, "joins_rows", shared_beginnings.can_join(trainer.model, context.source.path))  # noqa: B010
    if params.packing and not tokenized.joins_packs(model):
        batch_packs(trainer.data_collator)
    return trainer


def batch_packs(collator: Any) -> None:
    """Keep each pack of a batch in its own row; TRL would join them in one, the form for FlashAttention."""
    collator.padding_free, collator.return_position_ids = False, True


def _of_family(kind: "type[SFTTrainer]", family: PeftFamily) -> "type[SFTTrainer]":
    """Return a trainer that adds an adapter family's penalty to the loss and saves the parts it keeps."""
    if family.penalty is PLAIN.penalty and not family.keeps_part:
        return kind

    class FamilyTrainer(kind):  # type: ignore[misc, valid-type]
        def compute_loss(
            self, model: Any, inputs: Row, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            if family.penalty is PLAIN.penalty or not model.training:
                return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
            loss = loss + family.penalty(self.model) / self.args.gradient_accumulation_steps
            return (loss, outputs) if return_outputs else loss

        def _save(self, output_dir: str | None = None, state_dict: Row | None = None) -> None:
            if family.keeps_part:  # the other parameters are the base's
                state_dict = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
            super()._save(output_dir, state_dict)

    return FamilyTrainer


def make_tiled_loss_trainer() -> "type[SFTTrainer]":
    """Return TRL's trainer, which computes its loss in tiles of logits to save GPU memory.

    Packs in rows of their own are passed without a mask, so that transformers separates them by position.
    """
    from trl import SFTTrainer

    class TiledLossTrainer(SFTTrainer):
        def compute_loss(
            self, model: Any, inputs: Row, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            unread = "attention_mask" if "position_ids" in inputs else ""
            read = {name: value for name, value in inputs.items() if name != unread}
            loss: Any = super().compute_loss(model, read, return_outputs, num_items_in_batch)  # type: ignore[no-untyped-call]
            return loss

    return TiledLossTrainer


def whole_loss_trainer() -> "type[SFTTrainer]":
    """Return TRL's trainer with the loss computed in one piece, and label smoothing in training only.

    With `joins_rows`, prefixes that rows of a batch share are read once. Logits are computed only where some
    row has a label: TRL's conversion of the vocabulary matrix in chunks takes 43 % of a step on a CPU.
    """
    import torch
    from trl import SFTTrainer

    class WholeLossTrainer(SFTTrainer):
        joins_rows = False

        def compute_loss(
            self, model: Any, inputs: Row, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            # transformers separates packed rows by their positions, and only if there is no mask; each
            # padding token then counts as a row.
            is_packed = "position_ids" in inputs
            joined = None
            if self.joins_rows and not is_packed:
                batch = [inputs[name] for name in _BATCH_FIELDS]
                joined = shared_beginnings.join_rows(self.accelerator.unwrap_model(model), *batch)
            if joined:
                read, kept, targets = joined.inputs, joined.kept, joined.targets
            else:
                labels = inputs["labels"][:, 1:]  # (b, t - 1)
                wanted = (labels != -100).any(0).nonzero()[:, 0]
                kept, targets = wanted + virtual_tokens(self.model), labels[:, wanted].flatten()
                seen_by = "position_ids" if is_packed else "attention_mask"
                read = {name: inputs[name] for name in ("input_ids", seen_by)}
            outputs = model(**read, logits_to_keep=kept, use_cache=False)
            logits = outputs.logits.flatten(0, 1)
            answered = targets != -100
            total = torch.nn.functional.cross_entropy(
                logits.float(),
                targets,
                ignore_index=-100,
                reduction="sum",
                label_smoothing=self.args.label_smoothing_factor if model.training else 0.0,
            )
            count = answered.sum() if num_items_in_batch is None else num_items_in_batch
            loss = total / count
            if num_items_in_batch is not None:  # counted over all processes, whose gradients are averaged
                loss = loss * self.accelerator.num_processes
            right = ((logits.detach().argmax(-1) == targets) & answered).sum()
            n_right, n_answered = self.accelerator.gather(torch.stack([right, answered.sum()])[None]).sum(0)
            if n_answered:  # TRL averages and logs it under this name
                share = (n_right / n_answered).item()
                self._metrics["train" if model.training else "eval"]["mean_token_accuracy"].append(share)
            return (loss, outputs) if return_outputs else loss

    return WholeLossTrainer
