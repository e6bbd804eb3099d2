"""Training rows as token ids, made once for all candidates, trials and seeds that train on them.

Invariant: the ids are those that TRL makes of the same texts where a chat template writes a conversation as
it asks for the answer; else the prompt is the one that is evaluated. What is remembered is what would be made
again, because texts, tokenizer with its template and ends, versions and that of this code are its key.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, NamedTuple

from harness.cache import cache_dir, fill_cache_file
from harness.models import encode_answered
from harness.models.hub import ModelSource, map_end_tokens
from harness.provenance import versions_of
from harness.records import Encoded, Example, PromptText, digest

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase


class Tokens(NamedTuple):
    """One prompt with each of its answers: token ids of the whole, and where the answers start."""

    start: int
    wholes: list[list[int]]


def tokenize(
    examples: Sequence[Example],
    answers: Sequence[tuple[str, ...]],
    chat: bool,
    tokenizer: "PreTrainedTokenizerBase",
    source: ModelSource,
) -> list[Tokens]:
    """Return the tokens of examples, each with its answers (as many for every one of them)."""
    texts = [(list(e.messages), *ends) for e, ends in zip(examples, answers, strict=True)]
    versions = [version(name) for name in ("tokenizers", "transformers")]
    ends = map_end_tokens(source, tokenizer)
    key = digest([texts, chat, source.template_digest, ends, versions, versions_of("tokens", "tokenization")])

    def make() -> "Dataset":
        from datasets import Dataset

        rows = [PromptText(e.messages, a, chat) for e, of in zip(examples, answers, strict=True) for a in of]
        made = iter(encode_answered(tokenizer, rows, ends))
        return Dataset.from_list([_join([next(made) for _ in of])._asdict() for of in answers])

    made = cache_dataset(key, make) if examples else ()
    return [Tokens(row["start"], row["wholes"]) for row in made]


def cache_dataset(key: str, make: "Callable[[], Dataset]") -> "Dataset":
    """Return what was remembered under a key, or else make and remember it."""
    import pyarrow as pa
    from datasets import Dataset
    from pyarrow import parquet

    memory = cache_dir() / "training" / f"{key}.parquet"
    with suppress(OSError, pa.ArrowInvalid):  # not there, or damaged
        return Dataset(parquet.read_table(memory, page_checksum_verification=True))
    made = make()
    with suppress(OSError):  # a folder that may only be read costs time, and no more
        fill_cache_file(memory, partial(parquet.write_table, made.data.table, write_page_checksum=True))
    return made


def _join(encoded: Sequence[Encoded]) -> Tokens:
    """Join the answers to one prompt, whose token ids all of them begin with."""
    return Tokens(len(encoded[0].context), [[*one.context, *one.continuation] for one in encoded])
