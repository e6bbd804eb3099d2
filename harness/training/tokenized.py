"""Training rows as token ids, made once for all candidates, trials and seeds that train on them.

Invariant: the ids are those that TRL makes of the same texts; what is remembered is what would be made
again, because texts, tokenizer with its template, versions and that of this code are its key.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.cache import cache_dir, fill_cache_file
from harness.models import common_length
from harness.models.hub import ModelSource
from harness.provenance import versions_of
from harness.records import Example, Message, digest

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase


class Tokens(NamedTuple):
    """One prompt with each of its answers: token ids of the whole, and where all of them leave the prompt."""

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
    key = digest([texts, chat, source.template_digest, versions, versions_of("tokens")])

    def make() -> "Dataset":
        from datasets import Dataset

        rows = [_tokens(e.messages, ends, chat, tokenizer) for e, ends in zip(examples, answers, strict=True)]
        return Dataset.from_list([row._asdict() for row in rows])

    made = cache_dataset(key, make) if examples else ()
    return [Tokens(row["start"], row["wholes"]) for row in made]


def cache_dataset(key: str, make: "Callable[[], Dataset]") -> "Dataset":
    """Return what was remembered under a key, or else make and remember it."""
    import pyarrow as pa
    from datasets import Dataset
    from pyarrow import parquet

    memory = cache_dir() / "training" / f"{key}.parquet"
    with suppress(OSError, pa.ArrowInvalid):  # not there, or damaged
        return Dataset(parquet.read_table(memory))
    made = make()
    with suppress(OSError):  # a folder that may only be read costs time, and no more
        fill_cache_file(memory, partial(parquet.write_table, made.data.table))
    return made


def _tokens(
    messages: Sequence[Message], answers: Sequence[str], chat: bool, tokenizer: "PreTrainedTokenizerBase"
) -> Tokens:
    """Make the tokens of one prompt and its answers; an answer begins where they leave the prompt's own."""
    if chat:
        ids = partial(_tokenize_chat, tokenizer)
        prompt = ids(messages, add_generation_prompt=True)
        wholes = [ids([*messages, {"role": "assistant", "content": answer}]) for answer in answers]
    else:
        text = "\n\n".join(m["content"] for m in messages)
        prompt = tokenizer(text)["input_ids"]
        wholes = [tokenizer(f"{text} {answer}{tokenizer.eos_token}")["input_ids"] for answer in answers]
    return Tokens(common_length([tuple(ids) for ids in (prompt, *wholes)]), wholes)


def _tokenize_chat(
    tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Any], **options: Any
) -> list[int]:
    ids: Any = tokenizer.apply_chat_template(list(messages), tokenize=True, return_dict=True, **options)
    return list(ids["input_ids"])
