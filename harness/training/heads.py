"""Models with a head instead of the vocabulary: one output for a reward, or one per label."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from harness.errors import CandidateFailed, Problem, UserError, one_line
from harness.models import TextCandidate, TextTable, encode_answered
from harness.models.devices import avoid_cudnn_attention
from harness.models.hardware import Machine, dtype
from harness.models.hub import ModelSource, load_tokenizer, map_end_tokens, resolve
from harness.models.later import Model, Tokenizer, peft, safetensors, torch, transformers
from harness.models.out_of_memory import explain_out_of_memory
from harness.models.weight_files import content_digest
from harness.progress import quiet_libraries
from harness.records import Example, PromptText, digest

HEAD, EMBEDDING = "head", "embedding"  # subfolders of a method's folder
FILE, COEFFICIENTS, TRAINED = "head.json", "embedding.json", "trained.safetensors"
_AT_ONCE, _SCORED_AT_ONCE = 32, 16  # texts read together, and answers scored together by a reward model


def load_with_head(source: ModelSource, machine: Machine, n_outputs: int = 0) -> tuple[Model, Tokenizer]:
    """Load a base with a new head of `n` outputs, or none, in the machine's precision, and its tokenizer."""
    kind: Any = transformers.AutoModelForSequenceClassification if n_outputs else transformers.AutoModel
    options = {"num_labels": n_outputs} if n_outputs else {}
    quiet_libraries()
    avoid_cudnn_attention()
    tokenizer = load_tokenizer(source, padding_side="right")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    found = f"{source.name} does not fit the memory of {machine.name}"
    try:
        with explain_out_of_memory(found, "a smaller base_model or device: cpu"):
            model = kind.from_pretrained(
                source.path, dtype=dtype(machine.precision), trust_remote_code=False, **options
            )
            model = model.to(machine.device)
    except ValueError as error:
        reason = f"{source.name} cannot be loaded with a head ({one_line(error)})"
        raise CandidateFailed(reason, "another base_model or encoder, or method: embedding") from error
    # A decoder's head reads the last token that is not padding.
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    return model, tokenizer


def open_scorer(
    folder: Path, source: ModelSource, machine: Machine, chat: bool
) -> Callable[[Sequence[Example], Sequence[str]], list[float]]:
    """Open a reward model; return a function that scores answers as logits, cut at the context's end."""
    base: Any
    base, tokenizer = load_with_head(source, machine, 1)
    model: Any = peft.PeftModel.from_pretrained(base, str(folder)).merge_and_unload().eval()
    ends = map_end_tokens(source, tokenizer)
    longest = int(getattr(model.config.get_text_config(), "max_position_embeddings", 0) or 1 << 30)

    def score(examples: Sequence[Example], answers: Sequence[str]) -> list[float]:
        pairs = zip(examples, answers, strict=True)
        rows = [PromptText(example.messages, answer, chat) for example, answer in pairs]
        encodings = encode_answered(tokenizer, rows, ends) if rows else []
        wholes = [[*encoded.context, *encoded.continuation][:longest] for encoded in encodings]
        order = sorted(range(len(wholes)), key=lambda i: len(wholes[i]))
        scores = [0.0] * len(wholes)
        for start in range(0, len(order), _SCORED_AT_ONCE):
            indices = order[start : start + _SCORED_AT_ONCE]
            ids = {"input_ids": [wholes[i] for i in indices]}
            padded = tokenizer.pad(ids, return_tensors="pt").to(model.device)
            with torch.inference_mode():
                rewards = model(**padded).logits[:, 0].float().tolist()
            for i, reward in zip(indices, rewards, strict=True):
                scores[i] = reward
        return scores

    return score


def encoder_digest(params: Any) -> str:
    """Return the digest of the model that `encoder` names, or ""; UserError if it does not exist."""
    if not params.encoder:
        return ""
    source = resolve(params.encoder, where="params.encoder")
    return digest([source.weights_digest, source.template_digest])


def encoder_problems(params: Any) -> Iterator[Problem]:
    """Yield the problems of the model that `encoder` names."""
    try:
        encoder_digest(params)
    except UserError as error:
        yield from error.problems


def encoder_of(encoder: str | None, base: ModelSource) -> ModelSource:
    """Return the model that `encoder` names, or the base."""
    return resolve(encoder, where="params.encoder") if encoder else base


def label_texts(
    examples: Sequence[Example], labels: Sequence[str] = ()
) -> tuple[list[str], list[int], list[str]]:
    """Return the texts of examples with a closed set of choices, the index of each label, and labels."""
    closed = [e for e in examples if e.choices and (not labels or e.references[0] in labels)]
    known_labels = list(labels) or sorted({e.references[0] for e in closed})
    if not known_labels:
        found = "the task has no closed label set to classify into"
        raise CandidateFailed(found, "give the task `labels:`, or leave this candidate out")
    if len(known_labels) < 2:
        found = f"training rows of one label alone, {known_labels[0]!r}"
        raise CandidateFailed(found, "add rows of another label, or leave this candidate out")
    return [e.prompt for e in closed], [known_labels.index(e.references[0]) for e in closed], known_labels


def head_digest(folder: Path, source: ModelSource) -> str:
    """Return the digest of a saved head (tensors and labels) and its base."""
    files = [folder / name for name in (FILE, COEFFICIENTS) if (folder / name).exists()]
    return digest([source.weights_digest, content_digest(sorted([*files, *folder.glob("*.safetensors")]))])


def open_head(folder: Path, base: ModelSource, machine: Machine, weights_digest: str) -> TextCandidate:
    """Open a saved head as a candidate that answers with its most likely label."""
    content = json.loads((folder / FILE).read_text("utf-8"))
    labels, params = tuple(content["labels"]), content["params"]
    source = encoder_of(params["encoder"], base)
    model: Any
    model, tokenizer = load_with_head(source, machine, len(labels))
    if params["train"] == "adapter":
        model = peft.PeftModel.from_pretrained(model, str(folder)).merge_and_unload()
    else:
        model.load_state_dict(safetensors.load_file(folder / TRAINED), strict=False)
    model = model.to(device=machine.device, dtype=dtype(machine.precision)).eval()

    def predict(texts: Sequence[str]) -> list[TextTable]:
        tables = []
        for batch in _batches(texts, tokenizer, params["max_length"], machine):
            with torch.inference_mode():
                logprobs = model(**batch).logits.float().log_softmax(-1)  # (b, labels)
            tables += [TextTable(labels, tuple(row)) for row in logprobs.tolist()]
        return tables

    return TextCandidate(predict, weights_digest)


Embedder = Callable[[Sequence[str]], "torch.Tensor"]


def _batches(texts: Sequence[str], tokenizer: Tokenizer, max_length: int, machine: Machine) -> Any:
    for start in range(0, len(texts), _AT_ONCE):
        yield tokenizer(
            list(texts[start : start + _AT_ONCE]),
            split_special_tokens=True,  # special tokens in a user's text are plain text
            return_tensors="pt",
            padding=True,
            truncation=True,
            max_length=max_length,
        ).to(machine.device)


def embedder(encoder: str | None, base: ModelSource, machine: Machine, max_length: int) -> Embedder:
    """Return a function that embeds texts (n, d) in fp32: sentence-transformers, or the mean last state."""
    if encoder is None:
        base_model: Any
        base_model, tokenizer = load_with_head(base, machine)
        base_model.eval()

        def embed(texts: Sequence[str]) -> "torch.Tensor":
            embeddings = []
            for batch in _batches(texts, tokenizer, max_length, machine):
                with torch.inference_mode():
                    states = base_model(**batch).last_hidden_state.float()  # (b, t, d)
                mask = batch["attention_mask"][..., None].float()  # (b, t, 1)
                embeddings.append(((states * mask).sum(1) / mask.sum(1)).cpu())
            return torch.cat(embeddings)

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
    content = json.loads((folder / COEFFICIENTS).read_text("utf-8"))
    embed = embedder(content["encoder"], base, machine, content["max_length"])
    weights, bias = torch.tensor(content["coefficients"]), torch.tensor(content["intercepts"])
    labels = tuple(content["labels"])

    def predict(texts: Sequence[str]) -> list[TextTable]:
        scores = embed(texts) @ weights.T + bias  # (n, labels), or (n, 1) for two labels
        if len(labels) == 2:
            scores = torch.cat([torch.zeros_like(scores), scores], 1)
        return [TextTable(labels, tuple(row)) for row in scores.log_softmax(-1).tolist()]

    return TextCandidate(predict, weights_digest)
