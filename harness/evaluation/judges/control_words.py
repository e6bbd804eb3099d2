"""Control words of a judge that runs here: what its own tokenizer reads as more than text is broken up.

Invariant: only what was written by others is changed, and only where it holds such a word; whatever the
judge's chat template is, an answer cannot end its turn.
"""

from collections.abc import Collection
from dataclasses import replace

from harness.models.hub import ModelSource, load_tokenizer
from harness.records import Example, Message


def control_words(source: ModelSource) -> tuple[str, ...]:
    """List the words that a base's tokenizer reads as control tokens, the longest first."""
    tokenizer = load_tokenizer(source)
    added = (token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
    words = {word for word in (*tokenizer.all_special_tokens, *added) if len(word.strip()) > 1}
    return tuple(sorted(words, key=lambda word: (-len(word), word)))


def break_words(text: str, words: Collection[str]) -> str:
    """Put a blank behind the first character of each of these words, so that they are text."""
    for word in words:
        text = text.replace(word, f"{word[0]} {word[1:]}")
    return text


def break_in_example(example: Example, words: Collection[str]) -> Example:
    """Break up the words in the question and the references of an item."""
    turns: list[Message] = [
        {"role": turn["role"], "content": break_words(turn["content"], words)} for turn in example.messages
    ]
    references = (break_words(text, words) for text in example.references)
    return replace(example, messages=tuple(turns), references=tuple(references))
