"""Models with a head in place of their vocabulary: one number for a reward, or one for each label.

Invariant: a new head is drawn by the seed that was set before; adapter and head are saved together, or of a
training without an adapter all that was trained, and what is opened later is what was saved.
Source: sequence classification of transformers, on a decoder's last token or an encoder's first; PEFT's
SEQ_CLS.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import Field

from harness.errors import CandidateFailed, Problem, UserError, one_line
from harness.models import TextCandidate, TextTable
from harness.models.devices import avoid_cudnn_attention
from harness.models.hardware import Machine, dtype
from harness.models.hub import ModelSource, load_tokenizer, resolve
from harness.models.memory import explain_out_of_memory
from harness.models.weight_files import content_digest
from harness.progress import quiet_libraries
from harness.records import Example, TrainingRecord, digest
from harness.training import trainer as loop
from harness.training.context import CHECKPOINTS, FitContext, curve
from harness.training.low_rank_adapters import LoraParams, lora_config
from harness.training.tokenized import rows_that_fit
from harness.training.trainer import LoopParams, Row

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer

HEAD, EMBEDDING = "head", "embedding"  # below a method's folder
_FILE, _COEFFICIENTS, _TRAINED = "head.json", "embedding.json", "trained.safetensors"
_AT_ONCE = 32  # texts read together


def load_with_head(
    source: ModelSource, machine: Machine, n_outputs: int
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Load a base with a new head of so many outputs, in the machine's precision, and its tokenizer.

    Raises:
        CandidateFailed: the model does not fit the device's memory.
    """
    from transformers import AutoModelForSequenceClassification

    return _load(AutoModelForSequenceClassification, source, machine, num_labels=n_outputs)


def _load(
    kind: Any, source: ModelSource, machine: Machine, **given: Any
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    quiet_libraries()
    avoid_cudnn_attention()
    tokenizer = load_tokenizer(source, padding_side="right")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    found = f"{source.name} does not fit the memory of {machine.name}"
    try:
        with explain_out_of_memory(found, "a smaller base_model or device: cpu"):
            model = kind.from_pretrained(
                source.path, dtype=dtype(machine.precision), trust_remote_code=False, **given
            )
            model = model.to(machine.device)
    except ValueError as error:
        what = f"{source.name} cannot be loaded with a head ({one_line(error)})"
        raise CandidateFailed(what, "another base_model or encoder, or method: embedding") from error
    # The last token that is not a padding is the one that a decoder's head reads.
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    return model, tokenizer


def open_reward_model(
    folder: Path, source: ModelSource, machine: Machine
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Open a trained reward model, to score and not to be trained."""
    from peft import PeftModel

    model, tokenizer = load_with_head(source, machine, 1)
    opened: Any = PeftModel.from_pretrained(model, str(folder))
    return opened.merge_and_unload().eval(), tokenizer


def encoder_digest(params: Any) -> str:
    """Digest the model that `encoder` names in place of the base; empty where it names none.

    Raises:
        UserError: there is no such model.
    """
    if not params.encoder:
        return ""
    found = resolve(params.encoder, where="params.encoder")
    return digest([found.weights_digest, found.template_digest])


def encoder_problems(params: Any) -> Iterator[Problem]:
    """Yield what forbids reading with the model that `encoder` names."""
    try:
        encoder_digest(params)
    except UserError as error:
        yield from error.problems


def encoder_of(encoder: str | None, base: ModelSource) -> ModelSource:
    """Return the model that `encoder` names, else the base."""
    return resolve(encoder, where="params.encoder") if encoder else base


class LabelledTexts(NamedTuple):
    """Texts with the index of each one's label, and the labels."""

    texts: list[str]
    indices: list[int]
    labels: list[str]


def label_texts(examples: Sequence[Example], labels: Sequence[str] = ()) -> LabelledTexts:
    """Return the texts of examples that have a closed set of choices, with their labels.

    Raises:
        CandidateFailed: fewer than two labels occur, where none are given.
    """
    closed = [e for e in examples if e.choices and (not labels or e.references[0] in labels)]
    known = list(labels) or sorted({e.references[0] for e in closed})
    if not known:
        found = "the task has no closed label set to classify into"
        raise CandidateFailed(found, "give the task `labels:`, or leave this candidate out")
    if len(known) < 2:
        found = f"training rows of one label alone, {known[0]!r}"
        raise CandidateFailed(found, "add rows of another label, or leave this candidate out")
    return LabelledTexts([e.prompt for e in closed], [known.index(e.references[0]) for e in closed], known)


class HeadParams(LoopParams, LoraParams):
    """Parameters of a classification head, under the names of transformers' Trainer and PEFT.

    `train` says what is trained beside the head: an adapter (`adapter`), nothing (`head`), or the whole model
    (`all`). `encoder` is the folder or hub id of a model to read with in place of the base, such as one of
    BERT's kind. The checkpoint with the best validation loss is kept.
    """

    encoder: str | None = None
    train: Literal["adapter", "head", "all"] = "adapter"
    learning_rate: float = Field(1e-3, gt=0, le=1)
    num_train_epochs: float = Field(5.0, gt=0, le=100)
    weight_decay: float = Field(0.01, ge=0)


def train_head(context: FitContext, params: HeadParams, save_to: Path) -> TrainingRecord:
    """Train a head with one output for each label that occurs in training, and save it in a folder.

    Raises:
        CandidateFailed: out of memory, fewer than two labels, no text fits, or the loss was not a number.
    """
    from safetensors.torch import save_file
    from transformers import set_seed

    set_seed(context.seed)
    machine, scratch = context.machine, save_to.parent / CHECKPOINTS
    start, known = loop.start_time(scratch), label_texts(context.train)
    source = encoder_of(params.encoder, context.source)
    loaded_in = machine._replace(precision="fp32") if params.train == "all" else machine
    model, tokenizer = load_with_head(source, loaded_in, len(known.labels))
    context.prepare(model)
    train, n_dropped = _rows(known, tokenizer, params.max_length)
    validation, _ = _rows(label_texts(context.validation, known.labels), tokenizer, params.max_length)
    trainable = _trainable(model, params)
    trainer = _trainer(context, params, trainable, tokenizer, (train, validation), scratch)

    def save(trained: Any) -> None:
        save_to.mkdir()
        if params.train == "adapter":
            trained.save_pretrained(save_to)
        else:
            kept = {
                n: p.detach().cpu().contiguous() for n, p in trained.named_parameters() if p.requires_grad
            }
            save_file(kept, save_to / _TRAINED, {"format": "pt"})
        content = {"labels": known.labels, "params": params.model_dump(mode="json")}
        (save_to / _FILE).write_text(json.dumps(content, ensure_ascii=False), "utf-8")

    made = loop.run(trainer, start, n_dropped, save)
    losses = curve(trainer.state.log_history, "eval_loss")
    best = min((loss for _, loss in losses if loss is not None), default=None)
    return replace(made, n_examples=len(train), validation_loss=losses, best_validation_loss=best)


def head_digest(folder: Path, source: ModelSource) -> str:
    """Digest a saved head, its tensors and labels, with the base that it reads from."""
    files = [folder / name for name in (_FILE, _COEFFICIENTS) if (folder / name).exists()]
    return digest([source.weights_digest, content_digest(sorted([*files, *folder.glob("*.safetensors")]))])


def open_head(folder: Path, base: ModelSource, machine: Machine, weights_digest: str) -> TextCandidate:
    """Open a saved head as a candidate that answers with its most likely label."""
    import torch
    from peft import PeftModel
    from safetensors.torch import load_file

    content = json.loads((folder / _FILE).read_text("utf-8"))
    labels, params = tuple(content["labels"]), HeadParams(**content["params"])
    source = encoder_of(params.encoder, base)
    model: Any
    model, tokenizer = load_with_head(source, machine, len(labels))
    if params.train == "adapter":
        model = PeftModel.from_pretrained(model, str(folder)).merge_and_unload()
    else:
        model.load_state_dict(load_file(folder / _TRAINED), strict=False)
    model = model.to(device=machine.device, dtype=dtype(machine.precision)).eval()

    def predict(texts: Sequence[str]) -> list[TextTable]:
        tables = []
        for batch in _batches(texts, tokenizer, params.max_length, machine):
            with torch.inference_mode():
                logprobs = model(**batch).logits.float().log_softmax(-1)  # (b, labels)
            tables += [TextTable(labels, tuple(row)) for row in logprobs.tolist()]
        return tables

    return TextCandidate(predict, weights_digest)


def _trainable(model: Any, params: HeadParams) -> Any:
    if params.train == "adapter":
        from peft import get_peft_model

        return get_peft_model(model, lora_config(params, "SEQ_CLS"))
    read = {id(parameter) for parameter in model.base_model.parameters()}
    for parameter in model.parameters():
        if id(parameter) not in read:
            parameter.requires_grad_(True)
        elif params.train == "head":
            parameter.requires_grad_(False)
    return model


def _rows(known: LabelledTexts, tokenizer: Any, max_length: int) -> tuple[list[Row], int]:
    ids = [tokenizer(text, split_special_tokens=True)["input_ids"] for text in known.texts]
    rows = [{"input_ids": row, "labels": i} for row, i in zip(ids, known.indices, strict=True)]
    return rows_that_fit(rows, list(map(len, ids)), max_length)


def _trainer(
    context: FitContext,
    params: HeadParams,
    model: Any,
    tokenizer: "PreTrainedTokenizerBase",
    rows: tuple[list[Row], list[Row]],
    scratch: Path,
) -> "Trainer":
    from datasets import Dataset
    from transformers import DataCollatorWithPadding, Trainer, TrainingArguments

    class PlainValidation(Trainer):
        """transformers' trainer with labels smoothed in training alone."""

        def compute_loss(self, model: Any, *args: Any, **kwargs: Any) -> Any:
            smoother = self.label_smoother
            self.label_smoother = smoother if model.training else None
            try:
                return super().compute_loss(model, *args, **kwargs)
            finally:
                self.label_smoother = smoother

    train, validation = map(Dataset.from_list, rows)
    measured = {"eval_dataset": validation} if rows[1] else {}
    trainer: Trainer = loop.make_trainer(
        PlainValidation,
        TrainingArguments,
        context,
        params,
        tokenizer,
        scratch,
        loop.evaluations(params, best=True) if measured else {},
        model=model,
        data_collator=DataCollatorWithPadding(tokenizer),
        train_dataset=train,
        **measured,
    )
    return trainer


Embedder = Callable[[Sequence[str]], "Tensor"]


def _batches(
    texts: Sequence[str], tokenizer: "PreTrainedTokenizerBase", max_length: int, machine: Machine
) -> Any:
    for at in range(0, len(texts), _AT_ONCE):
        yield tokenizer(
            list(texts[at : at + _AT_ONCE]),
            split_special_tokens=True,  # one in a text of the user's is text
            return_tensors="pt",
            padding=True,
            truncation=True,
            max_length=max_length,
        ).to(machine.device)


def embedder(encoder: str | None, base: ModelSource, machine: Machine, max_length: int) -> Embedder:
    """Return what embeds texts (n, d) in fp32: sentence-transformers, or the mean of the base's last states.

    Raises:
        CandidateFailed: the encoder cannot be loaded, or the base does not fit the device's memory.
    """
    import torch

    if encoder is None:
        from transformers import AutoModel

        base_model, tokenizer = _load(AutoModel, base, machine)
        base_model.eval()

        def embed(texts: Sequence[str]) -> "Tensor":
            out = []
            for batch in _batches(texts, tokenizer, max_length, machine):
                with torch.inference_mode():
                    states = base_model(**batch).last_hidden_state.float()  # (b, t, d)
                mask = batch["attention_mask"][..., None].float()  # (b, t, 1)
                out.append(((states * mask).sum(1) / mask.sum(1)).cpu())
            return torch.cat(out)

        return embed
    from sentence_transformers import SentenceTransformer

    path = encoder_of(encoder, base).path
    try:
        model = SentenceTransformer(str(path), device=machine.device, trust_remote_code=False)
    except (OSError, ValueError, ImportError) as error:
        found = f"the encoder {encoder} cannot be loaded ({str(error).splitlines()[0]})"
        raise CandidateFailed(found, "another params.encoder") from error
    model.max_seq_length = min(max_length, model.max_seq_length or max_length)
    return lambda texts: torch.from_numpy(model.encode(list(texts), show_progress_bar=False)).float()


def open_embedding(folder: Path, base: ModelSource, machine: Machine, weights_digest: str) -> TextCandidate:
    """Open a classifier of embeddings as a candidate that answers with its most likely label."""
    import torch

    content = json.loads((folder / _COEFFICIENTS).read_text("utf-8"))
    embed = embedder(content["encoder"], base, machine, content["max_length"])
    weights, bias = torch.tensor(content["coefficients"]), torch.tensor(content["intercepts"])
    labels = tuple(content["labels"])

    def predict(texts: Sequence[str]) -> list[TextTable]:
        scores = embed(texts) @ weights.T + bias  # (n, labels), of two labels (n, 1)
        if len(labels) == 2:
            scores = torch.cat([torch.zeros_like(scores), scores], 1)
        return [TextTable(labels, tuple(row)) for row in scores.log_softmax(-1).tolist()]

    return TextCandidate(predict, weights_digest)
