"""Classification head on the base or on a BERT-like encoder, with or without a low-rank adapter.

Invariant: it answers only with labels that occur in training. Source: Devlin et al. 2019 (arXiv:1810.04805),
section 4.1; PEFT's SEQ_CLS.
"""

import json
from dataclasses import replace
from typing import Any, Literal

from pydantic import Field

from harness.models.later import datasets, peft, safetensors, transformers
from harness.plugins import Method
from harness.training import heads
from harness.training import trainer as loop
from harness.training.context import CHECKPOINTS, FitContext, Weights, curve
from harness.training.lora import LoraParams, adapter_parameters, lora_config, lower_rank
from harness.training.tokenized import rows_that_fit


class Params(loop.LoopParams, LoraParams):
    """The names of transformers' Trainer, and PEFT's for the adapter.

    `train` says what is trained besides the head: an adapter (`adapter`), nothing (`head`), or the whole
    model (`all`). `encoder` is the folder or hub id of a model that replaces the base, such as a BERT. The
    checkpoint with the best validation loss is kept.
    """

    encoder: str | None = None
    train: Literal["adapter", "head", "all"] = "adapter"
    learning_rate: float = Field(1e-3, gt=0, le=1)
    num_train_epochs: float = Field(5.0, gt=0, le=100)
    weight_decay: float = Field(0.01, ge=0)


def fit(context: FitContext, params: Params) -> Weights:
    """Train a head with one output per label that occurs in training, and save it under `head/`."""
    transformers.set_seed(context.seed)
    machine, folder, scratch = context.machine, context.folder / heads.HEAD, context.folder / CHECKPOINTS
    start, (texts, indices, labels) = loop.start_time(scratch), heads.label_texts(context.train)
    source = heads.encoder_of(params.encoder, context.source)
    load_machine = machine._replace(precision="fp32") if params.train == "all" else machine
    model: Any
    model, tokenizer = heads.load_with_head(source, load_machine, len(labels))
    context.prepare(model)
    train, n_dropped = _rows(texts, indices, tokenizer, params.max_length)
    texts, indices, _ = heads.label_texts(context.validation, labels)
    validation, _ = _rows(texts, indices, tokenizer, params.max_length)
    if params.train == "adapter":
        model = peft.get_peft_model(model, lora_config(params, "SEQ_CLS"))
    else:
        encoder_ids = {id(parameter) for parameter in model.base_model.parameters()}
        for parameter in model.parameters():
            if id(parameter) not in encoder_ids:
                parameter.requires_grad_(True)
            elif params.train == "head":
                parameter.requires_grad_(False)

    class PlainValidation(transformers.Trainer):
        """transformers' trainer with label smoothing in training only."""

        def compute_loss(self, model: Any, *args: Any, **kwargs: Any) -> Any:
            smoother = self.label_smoother
            self.label_smoother = smoother if model.training else None
            try:
                return super().compute_loss(model, *args, **kwargs)
            finally:
                self.label_smoother = smoother

    eval_options = {"eval_dataset": datasets.Dataset.from_list(validation)} if validation else {}
    trainer: transformers.Trainer = loop.make_trainer(
        PlainValidation,
        transformers.TrainingArguments,
        context,
        params,
        tokenizer,
        scratch,
        loop.evaluations(params, best=True) if eval_options else {},
        model=model,
        data_collator=transformers.DataCollatorWithPadding(tokenizer),
        train_dataset=datasets.Dataset.from_list(train),
        **eval_options,
    )

    def save(tuned: Any) -> None:
        folder.mkdir()
        if params.train == "adapter":
            tuned.save_pretrained(folder)
        else:
            trained = ((n, p) for n, p in tuned.named_parameters() if p.requires_grad)
            tensors = {name: parameter.detach().cpu().contiguous() for name, parameter in trained}
            safetensors.save_file(tensors, folder / heads.TRAINED, {"format": "pt"})
        content = {"labels": labels, "params": params.model_dump(mode="json")}
        (folder / heads.FILE).write_text(json.dumps(content, ensure_ascii=False), "utf-8")

    record = loop.run(trainer, start, n_dropped, save)
    losses = curve(trainer.state.log_history, "eval_loss")
    best = min((loss for _, loss in losses if loss is not None), default=None)
    record = replace(record, validation_loss=losses, best_validation_loss=best).add(n_examples=len(train))
    return Weights("head", heads.head_digest(folder, source), context.folder, record)


def _rows(texts: list[str], indices: list[int], tokenizer: Any, longest: int) -> tuple[list[loop.Row], int]:
    ids = [tokenizer(text, split_special_tokens=True)["input_ids"] for text in texts]
    rows = [{"input_ids": row, "labels": i} for row, i in zip(ids, indices, strict=True)]
    return rows_that_fit(rows, list(map(len, ids)), longest)


METHOD = Method(
    params=Params,
    fit=fit,
    makes="head",
    trains=True,
    draws_from="train",
    seeded=True,
    hooks=("penalty", "step", "arguments", "smoothing"),
    hooks_where={("train", "all"): ("prepare", "select")},
    loops=("training", "heads"),
    reads=heads.encoder_digest,
    problems=lambda recipe, *_: heads.encoder_problems(Params(**recipe.params)),
    n_parameters=adapter_parameters,
    lower_rank=lower_rank,
)
