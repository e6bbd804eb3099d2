"""Training rows as token ids, cached for all candidates, trials and seeds, and packed if that is safe.

Invariant: the ids are TRL's for the same texts, if the chat template renders a conversation as it renders the
prompt; otherwise the prompt is the one used in evaluation. Rows are packed only if no row attends to another.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from importlib.metadata import version
from math import ceil
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.cache import cache_dir, fill_cache_file
from harness.errors import CandidateFailed
from harness.models import encode_answered
from harness.models.hub import ModelSource, map_end_tokens
from harness.models.later import Model, Tokenizer, datasets, torch
from harness.provenance import versions_of
from harness.records import Example, PromptText, digest
from harness.training.parallel import name_sharding

if TYPE_CHECKING:
    from harness.training.context import FitContext
    from harness.training.trainer import LoopParams


class Tokens(NamedTuple):
    """Prompt with each of its answers: token ids of the whole, and where the answers start."""

    start: int
    wholes: list[list[int]]


def tokenize(
    examples: Sequence[Example],
    answers: Sequence[tuple[str, ...]],
    chat: bool,
    tokenizer: Tokenizer,
    source: ModelSource,
) -> list[Tokens]:
    """Return the tokens of examples, each with the same number of answers."""
    texts = [(list(e.messages), *ends) for e, ends in zip(examples, answers, strict=True)]
    versions = [version(name) for name in ("tokenizers", "transformers")]
    ends = map_end_tokens(source, tokenizer)
    key = digest([texts, chat, source.template_digest, ends, versions, versions_of("tokens", "tokenization")])

    def tokenize_all() -> "datasets.Dataset":
        rows = [PromptText(e.messages, a, chat) for e, s in zip(examples, answers, strict=True) for a in s]
        encoded_rows = iter(encode_answered(tokenizer, rows, ends))
        records = []
        for group in answers:  # all answers to a prompt share its token ids
            encoded = [next(encoded_rows) for _ in group]
            wholes = [[*row.context, *row.continuation] for row in encoded]
            records.append({"start": len(encoded[0].context), "wholes": wholes})
        return datasets.Dataset.from_list(records)

    dataset = cache_dataset(key, tokenize_all) if examples else ()
    return [Tokens(row["start"], row["wholes"]) for row in dataset]


def tokenized_rows(
    context: "FitContext",
    examples: Sequence[Example],
    tokenizer: Tokenizer,
    max_length: int,
    make_row: Callable[[Example, int, list[int]], dict[str, Any]],
    description: str = "rows to train or validate on",
) -> tuple[list[dict[str, Any]], int]:
    """Return the rows of examples that fit, made by `make_row(example, start, ids)`, and count the others.

    A truncated answer ends its row, without a template's whitespace, so that no end is learned there.
    """
    answers = [example.references[:1] for example in examples]
    tokens = tokenize(examples, answers, context.chat_template, tokenizer, context.source)
    ends = map_end_tokens(context.source, tokenizer)
    rows, lengths = [], []
    for example, (start, (ids,)) in zip(examples, tokens, strict=True):
        if example.is_cut:
            n = next((i for i in range(start, len(ids)) if ids[i] in ends), len(ids))
            if not example.references[0][-1:].isspace():
                while n > start + 1 and str(tokenizer.decode(ids[n - 1]))[-1:].isspace():
                    n -= 1
            ids = ids[:n]
        rows.append(make_row(example, start, ids))
        lengths.append(len(ids))
    return rows_that_fit(rows, lengths, max_length, description)


def rows_that_fit(
    rows: list[dict[str, Any]],
    lengths: Sequence[int],
    max_length: int,
    description: str = "rows to train or validate on",
) -> tuple[list[dict[str, Any]], int]:
    """Return the rows of at most `max_length` tokens, and the number of longer ones."""
    fitting = [row for row, length in zip(rows, lengths, strict=True) if length <= max_length]
    if rows and not fitting:
        found = f"all {len(rows)} {description} are longer than {max_length} tokens"
        raise CandidateFailed(found, "a larger params.max_length")
    return fitting, len(rows) - len(fitting)


def cache_dataset(key: str, build: "Callable[[], datasets.Dataset]") -> "datasets.Dataset":
    """Return the dataset cached under a key, or build and cache it."""
    import pyarrow as pa
    from pyarrow import parquet

    memory = cache_dir() / "training" / f"{key}.parquet"
    with suppress(OSError, pa.ArrowInvalid):  # missing or damaged
        return datasets.Dataset(parquet.read_table(memory, page_checksum_verification=True))
    dataset = build()
    with suppress(OSError):  # a read-only folder only costs time
        fill_cache_file(memory, partial(parquet.write_table, dataset.data.table, write_page_checksum=True))
    return dataset


FEWEST_STEPS = 100  # a learning rate chosen for unpacked rows needs some steps


def check_packing(params: "LoopParams", lengths: Sequence[int], model: Model) -> str:
    """Explain why rows of these lengths (in tokens) must not be packed; empty if they may be."""
    n_packs = ceil(sum(lengths) / params.max_length)  # filled to the last token
    batches = ceil(n_packs / params.per_device_train_batch_size)
    steps = ceil(ceil(batches / params.gradient_accumulation_steps) * params.num_train_epochs)
    if (steps := params.max_steps if params.max_steps > 0 else steps) < FEWEST_STEPS:
        return f"would leave {steps} optimiser steps, fewer than {FEWEST_STEPS}"
    if name_sharding():
        return "may let a row see others: that cannot be told of a sharded model"
    if not keeps_rows_apart(model, flash=joins_packs(model)):
        return "would let a row see others: this model does not keep packed rows apart"
    return ""


def joins_packs(model: Model) -> bool:
    """Tell whether a model uses FlashAttention, which reads a batch of packs as one row, but not in fp32."""
    return "flash" in str(model.config._attn_implementation)  # noqa: SLF001  (it has no getter)


def keeps_rows_apart(model: Model, *, flash: bool = False) -> bool:
    """Tell whether a row in a pack is read independently of the one before it; with `flash` in bf16."""
    first = torch.arange(1, 5), torch.arange(5, 9)
    second, positions = torch.tensor([3, 1, 2]), torch.tensor([[0, 1, 2, 3, 0, 1, 2]])
    with torch.no_grad(), torch.autocast(str(model.device.type), torch.bfloat16, enabled=flash):
        packs = (torch.cat([row, second])[None].to(model.device) for row in first)
        positions = positions.to(model.device)
        first_logits, second_logits = (
            model(input_ids=pack, position_ids=positions, use_cache=False).logits[0, -3:] for pack in packs
        )
    return torch.allclose(first_logits, second_logits, rtol=0.01, atol=0.01)
