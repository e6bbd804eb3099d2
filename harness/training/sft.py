"""Supervised fine-tuning on completions, by TRL's trainer; batch rows that share a prefix may be joined.

Invariant: each token of joined rows attends to the earlier tokens of its own row, at their positions in that
row, so loss and gradients equal those of separate rows. Rows share only tokens before their first label.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from math import inf, isqrt
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field, field_validator

from harness.cache import memo
from harness.errors import CandidateFailed
from harness.models import common_length, mask_assistant
from harness.models.batching import Tokens
from harness.models.devices import load_base
from harness.models.hardware import dtype
from harness.models.hub import ModelSource, is_packed, map_end_tokens
from harness.models.later import Model, Tokenizer, datasets, peft, torch, transformers, trl
from harness.models.loglikelihood import ask_copy
from harness.models.prefix_cache import additive_mask, longest_alike, windows
from harness.progress import quiet_libraries
from harness.provenance import package_versions, versions_of
from harness.records import Example, TrainingRecord, digest, parse_json
from harness.regularizers import has_hook
from harness.training import parallel, tokenized
from harness.training import trainer as loop
from harness.training.context import CHECKPOINTS, TRACKED, FitContext, curve, track
from harness.training.peft_families import PLAIN, PeftFamily, family_of, virtual_tokens
from harness.training.trainer import PLAIN_SCORES, LoopParams, Row

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
    peft_config: "peft.PeftConfig | None",
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
    transformers.set_seed(context.seed)
    machine, scratch = context.machine, save_to.parent / CHECKPOINTS
    family = family_of(peft_config, save_to.parent) if peft_config else PLAIN
    if family.starts_over:
        if parallel.is_first():
            for folder in (scratch, scratch.with_name(TRACKED)):
                shutil.rmtree(folder, ignore_errors=True)
        parallel.wait_for_all()
    start = loop.start_time(scratch)
    is_whole = peft_config is None and save is None
    if is_whole and (params.trained_in, machine.precision) == ("bf16", "fp16"):
        found = "dtype: bfloat16 with products in fp16, where gradients can be scaled in fp16 only"
        raise CandidateFailed(found, "dtype: float32, or precision: bf16")
    loaded_in = machine._replace(precision=params.trained_in) if is_whole else machine
    placement = parallel.place_base(machine.device)
    base, tokenizer = load_base(context.source, loaded_in, loop.attention(machine), placement)
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
    elif is_whole:
        family = PLAIN._replace(save=partial(_save_model, tokenizer, dtype(machine.precision)))
    trainer = _trainer(context, params, (peft_config, family), base, tokenizer, (train, validation), scratch)
    model: Any = trainer.model
    if not any(parameter.requires_grad for parameter in model.parameters()):  # the base has no such layers
        raise CandidateFailed("nothing of this base is trained", "another method or params.target_modules")
    dataset: Any = trainer.train_dataset
    loop.attend_plainly(base, max(map(len, dataset["input_ids"])), params.per_device_train_batch_size)
    family.begin(trainer)
    show_at = 0 if family.starts_over else context.show_at  # such a family would retrain up to each point
    track(trainer, replace(context, show_at=show_at), save_to, family.save)
    finish = partial(parallel.save_trained, family.save, folder=save_to)
    loop_record = loop.run(trainer, start, n_dropped, finish, loaded_in.precision if is_whole else "fp32")
    losses = curve(trainer.state.log_history, "eval_loss")
    record = replace(
        loop_record,
        validation_loss=losses,
        token_accuracy=curve(trainer.state.log_history, "mean_token_accuracy"),
        validation_token_accuracy=curve(trainer.state.log_history, "eval_mean_token_accuracy"),
        best_validation_loss=min((loss for _, loss in losses if loss is not None), default=None),
        not_packed=against,
    )
    return record.add(n_packs=len(dataset) if params.packing else None)


def _save_model(
    tokenizer: Tokenizer, precision: "torch.dtype", model: Any, folder: Path, state_dict: Row | None = None
) -> None:
    """Write a whole model and its tokenizer in a precision; the model in memory keeps its own."""
    # Shared tensors, such as tied embeddings, are written once; a sharded model passes its `state_dict`.
    tensors: dict[Any, Any] = {}
    state = {
        name: tensors.setdefault((t.data_ptr(), t.shape), t.to(precision) if t.is_floating_point() else t)
        for name, t in (state_dict or model.state_dict()).items()
    }
    model.save_pretrained(folder, state_dict=state)
    config = parse_json((folder / _CONFIG).read_text("utf-8"))
    config["dtype"] = str(precision).removeprefix("torch.")
    (folder / _CONFIG).write_text(f"{json.dumps(config, indent=2)}\n", "utf-8")
    tokenizer.save_pretrained(folder)


def _rows(
    examples: Sequence[Example], context: FitContext, tokenizer: Tokenizer, params: SupervisedParams
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
    adapter: "tuple[peft.PeftConfig | None, PeftFamily]",
    model: Model,
    tokenizer: Tokenizer,
    rows: tuple[list[Row], list[Row]],
    scratch: Path,
) -> "trl.SFTTrainer":
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
    callbacks = [*family.callbacks]
    if not family.keeps_last:
        callbacks.insert(0, transformers.EarlyStoppingCallback(params.early_stopping_patience))
    trainer: trl.SFTTrainer = loop.make_trainer(
        _of_family(kind, family),
        trl.SFTConfig,
        context,
        params,
        tokenizer,
        scratch,
        arguments,
        own_params=("assistant_only_loss", "eval_steps"),
        n_trained=n_trained,
        callbacks=callbacks,
        model=model,
        processing_class=tokenizer,
        peft_config=peft_config,
        train_dataset=datasets.Dataset.from_list(rows[0]),
        eval_dataset=datasets.Dataset.from_list(rows[1]),
    )
    if not has_hook(context.regularize, "DRAWS"):
        setattr(trainer, "joins_rows", can_join(trainer.model, context.source.path))  # noqa: B010
    if params.packing and not tokenized.joins_packs(model):
        batch_packs(trainer.data_collator)
    return trainer


def batch_packs(collator: Any) -> None:
    """Keep each pack of a batch in its own row; TRL would join them in one, the form for FlashAttention."""
    collator.padding_free, collator.return_position_ids = False, True


def _of_family(kind: "type[trl.SFTTrainer]", family: PeftFamily) -> "type[trl.SFTTrainer]":
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


def make_tiled_loss_trainer() -> "type[trl.SFTTrainer]":
    """Return TRL's trainer, with its loss in tiles of logits; packs in rows of their own get no mask."""

    class TiledLossTrainer(trl.SFTTrainer):
        def compute_loss(
            self, model: Any, inputs: Row, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            unread = "attention_mask" if "position_ids" in inputs else ""
            used_inputs = {name: value for name, value in inputs.items() if name != unread}
            loss: Any = super().compute_loss(model, used_inputs, return_outputs, num_items_in_batch)  # type: ignore[no-untyped-call]
            return loss

    return TiledLossTrainer


def whole_loss_trainer() -> "type[trl.SFTTrainer]":
    """Return TRL's trainer with the loss computed in one piece, and label smoothing in training only.

    With `joins_rows`, prefixes that rows of a batch share are read once. Logits are computed only where some
    row has a label: TRL's conversion of the vocabulary matrix in chunks takes 43 % of a step on a CPU.
    """

    class WholeLossTrainer(trl.SFTTrainer):
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
                joined = join_rows(self.accelerator.unwrap_model(model), *batch)
            if joined:
                model_inputs, positions, targets = joined.inputs, joined.kept, joined.targets
            else:
                labels = inputs["labels"][:, 1:]  # (b, t - 1)
                columns = (labels != -100).any(0).nonzero()[:, 0]
                positions, targets = columns + virtual_tokens(self.model), labels[:, columns].flatten()
                seen_by = "position_ids" if is_packed else "attention_mask"
                model_inputs = {name: inputs[name] for name in ("input_ids", seen_by)}
            outputs = model(**model_inputs, logits_to_keep=positions, use_cache=False)
            logits = outputs.logits.flatten(0, 1)
            is_answer = targets != -100
            total = torch.nn.functional.cross_entropy(
                logits.float(),
                targets,
                ignore_index=-100,
                reduction="sum",
                label_smoothing=self.args.label_smoothing_factor if model.training else 0.0,
            )
            loss = total / (is_answer.sum() if num_items_in_batch is None else num_items_in_batch)
            if num_items_in_batch is not None:  # counted over all processes, whose gradients are averaged
                loss = loss * self.accelerator.num_processes
            hits = ((logits.detach().argmax(-1) == targets) & is_answer).sum()
            n_right, n_answered = self.accelerator.gather(torch.stack([hits, is_answer.sum()])[None]).sum(0)
            if n_answered:  # TRL averages and logs it under this name
                share = (n_right / n_answered).item()
                self._metrics["train" if model.training else "eval"]["mean_token_accuracy"].append(share)
            return (loss, outputs) if return_outputs else loss

    return WholeLossTrainer


_FEWEST = 8  # tokens of a prefix that is worth sharing
_NO_LABEL = -100  # as in transformers
# Tokens of a sequence whose attention scores are no more than those of padded rows.
_MOST = isqrt(PLAIN_SCORES)
_SAVES = 0.9  # largest share of the padded batch's tokens that the joined sequence may have


class JoinedRows(NamedTuple):
    """Joined rows: ids and positions (1, t), mask (1, 1, t, t); `kept` (n) predict `targets` (n)."""

    input_ids: "torch.Tensor"
    position_ids: "torch.Tensor"
    attention_mask: "torch.Tensor"
    kept: "torch.Tensor"
    targets: "torch.Tensor"

    @property
    def inputs(self) -> "dict[str, torch.Tensor]":
        """Inputs of the model under transformers' names."""
        return {name: getattr(self, name) for name in ("input_ids", "position_ids", "attention_mask")}


def join_rows(
    model: Model, input_ids: "torch.Tensor", attention_mask: "torch.Tensor", labels: "torch.Tensor"
) -> JoinedRows | None:
    """Join the rows of a batch (b, t) that is padded on the right; labels are -100 where nothing is learned.

    Returns None if that saves little, or if attention over the long sequence would cost more than it saves.
    """
    lengths = attention_mask.sum(1).tolist()
    rows, row_labels = (
        [tuple(row[:length]) for row, length in zip(tensor.tolist(), lengths, strict=True)]
        for tensor in (input_ids, labels)
    )
    ids, positions, sources, targets = list[int](), list[int](), list[int](), list[int]()
    # For each token, the start of its part of the sequence and the start of the prefix before that part.
    parts: list[tuple[int, int]] = []
    for n_shared, members in _group(rows, row_labels):
        beginning = len(ids)
        ids += rows[members[0]][:n_shared]
        positions += range(n_shared)
        parts += [(beginning, beginning)] * n_shared
        for member in members:
            row, start = rows[member], len(ids)
            ids += row[n_shared:]
            positions += range(n_shared, len(row))
            parts += [(start, beginning if n_shared else start)] * (len(row) - n_shared)
            at = [i for i, label in enumerate(row_labels[member]) if i and label != _NO_LABEL]
            sources += [start + i - 1 - n_shared for i in at]
            targets += [row_labels[member][i] for i in at]
    if len(ids) > min(_MOST, _SAVES * input_ids.numel()):
        return None
    starts, prefix_starts = torch.tensor(parts).T
    visible = ((starts == starts[:, None]) | (starts == prefix_starts[:, None])).tril()
    mask = additive_mask(model, visible[None])
    predicting, predicted = (torch.tensor(values, dtype=torch.long) for values in (sources, targets))
    return JoinedRows(torch.tensor([ids]), torch.tensor([positions]), mask, predicting, predicted)


def _group(rows: Sequence[Tokens], labels: Sequence[Tokens]) -> list[tuple[int, list[int]]]:
    """Group rows by shared prefix; return each prefix's length (0 for a single row) and row numbers."""
    groups: list[tuple[int, list[int]]] = []
    for number, row in enumerate(rows):
        # The token before the first label predicts that label, so it is never shared.
        first_label = next((i for i, label in enumerate(labels[number]) if label != _NO_LABEL), len(row))
        limit = max(0, first_label - 1)
        best, gained, joined = -1, 0, 0
        for group, (n_shared, members) in enumerate(groups):
            length = min(n_shared, limit, common_length((rows[members[0]], row)))
            gain = len(members) * length - (len(members) - 1) * n_shared
            if length >= _FEWEST and gain > gained:
                best, gained, joined = group, gain, length
        if best < 0:
            groups.append((limit, [number]))
        else:
            groups[best] = (joined, [*groups[best][1], number])
    return [(n_shared if len(members) > 1 else 0, members) for n_shared, members in groups]


def can_join(model: Any, path: Path) -> bool:
    """Tell whether a model in training on a CPU gives joined rows the results of separate ones."""
    drops = any(isinstance(m, torch.nn.Dropout) and m.p for m in model.modules())
    counts = getattr(model.config.get_text_config(), "output_router_logits", False)
    adapters = getattr(model, "peft_config", {}).values()
    apart = all(c.peft_type == "LORA" and not getattr(c, "velora_config", None) for c in adapters)
    if model.device.type != "cpu" or drops or counts or not apart:
        return False
    return _joins_by_copy(path)


def joins_rows_of(source: ModelSource) -> bool:
    """Tell whether a base can train on joined rows; the answer is remembered, so estimates need no torch."""
    key = digest([source.weights_digest, package_versions(), versions_of("sft")])
    return is_packed(source) or bool(memo("joined_rows", key, lambda: _joins_by_copy(source.path)))


def _joins_by_copy(path: Path) -> bool:
    with torch.random.fork_rng():
        return ask_copy(path, _reads_alike) or False


def _reads_alike(copy: Any) -> bool:
    """Tell whether a copy of a base gives two joined rows the logits of separate rows, without draws."""
    if any(windows(copy.config) or (1,)) or longest_alike(copy.config) < inf:
        return False
    beginning = list(range(20, 20 + _FEWEST))
    rows = torch.tensor([[*beginning, 1, 2, 3, 4], [*beginning, 5, 6, 7, 8]])
    labels = torch.where(rows < 20, rows, _NO_LABEL)
    labels[:, _FEWEST] = _NO_LABEL
    joined, before = join_rows(copy.train(), rows, torch.ones_like(rows), labels), torch.get_rng_state()
    assert joined is not None
    with torch.no_grad():
        alone = copy(input_ids=rows).logits[:, _FEWEST:-1].flatten(0, 1)
        together = copy(**joined.inputs, use_cache=False).logits[0, joined.kept]
    return torch.allclose(together, alone, atol=1e-3) and torch.equal(before, torch.get_rng_state())
