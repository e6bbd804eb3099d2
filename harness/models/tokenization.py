"""Messages to token ids, and new token ids to an answer: what every engine of a language model shares.

Invariant: `encode` is the only place where a chat template or a beginning-of-sequence token
is added, and a prompt holds at most one of the latter.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.errors import Problem, UserError
from harness.records import Encoded, Limits, Message, Output

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedTokenizerBase


def encode(
    tokenizer: "PreTrainedTokenizerBase",
    messages: Sequence[Message],
    continuation: str = "",
    *,
    chat_template: bool = True,
) -> Encoded:
    """Turn messages, and what would follow them, into token ids.

    Without a chat template turns are joined by blank lines, and an answer to its question by a
    space. An empty context becomes the beginning- or end-of-sequence token, as in lm-eval.

    Raises:
        UserError: a chat template is wanted and the tokenizer has none.
    """
    text = _apply_template(tokenizer, messages) if chat_template else as_plain_text(messages)
    context = _ids(tokenizer, text, special=not chat_template)
    if not continuation:
        return Encoded(context or _prefix(tokenizer))
    if not text:
        return Encoded(_prefix(tokenizer), _ids(tokenizer, continuation))
    whole = _ids(tokenizer, text + continuation, special=not chat_template)
    merged = whole[: len(context)] != context
    tail = _ids(tokenizer, continuation) if merged else whole[len(context) :]
    return Encoded(context, tail, merged)


def end_ids(tokenizer: "PreTrainedTokenizerBase", config: "GenerationConfig") -> list[int]:
    """List the tokens that end an answer; the first of them fills up rows that ended before others."""
    written, pad, eos = config.eos_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id
    ends = {int(i) for i in [*(written if isinstance(written, list) else [written]), eos] if i is not None}
    first = int(pad if pad is not None else eos)
    return [first, *sorted(ends - {first})]


def answer(
    tokenizer: "PreTrainedTokenizerBase",
    prompt: Sequence[int],
    new: list[int],
    ends: Sequence[int],
    limits: Limits,
    compute_s: float,
) -> Output:
    """Turn new tokens into an answer, which ends before an end token or a stop string."""
    length = next((i for i, token in enumerate(new) if token in ends), len(new))
    text = str(tokenizer.decode(new[:length], skip_special_tokens=True))
    cuts = [text.index(s) for s in limits.stop if s in text]
    ended = bool(cuts) or length < len(new)
    full = length >= limits.max_new_tokens
    return Output(
        text=text[: min(cuts)] if cuts else text,
        finish_reason="length" if full and not ended else "stop",
        n_prompt_tokens=len(prompt),
        n_output_tokens=length,
        compute_s=compute_s,
    )


def _apply_template(tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message]) -> str:
    if not tokenizer.chat_template:
        raise UserError(
            Problem(
                "base_model",
                "a tokenizer without a chat template",
                "an instruction-tuned model",
                "choose an instruct model, or set chat_template: false on the task",
            )
        )
    return str(tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True))


def as_plain_text(messages: Sequence[Message]) -> str:
    """Join messages to the text that stands for them without a chat template."""
    text = ""
    for message in messages:
        gap = "" if not text else " " if message["role"] == "assistant" else "\n\n"
        text += gap + message["content"]
    return text


def _ids(tokenizer: "PreTrainedTokenizerBase", text: str, *, special: bool = False) -> tuple[int, ...]:
    ids = tuple(tokenizer(text, add_special_tokens=special)["input_ids"])
    bos = tokenizer.bos_token_id
    # A template that writes the token and a tokenizer that adds it would make two.
    return ids[1:] if special and len(ids) > 1 and ids[0] == ids[1] == bos else ids


def _prefix(tokenizer: "PreTrainedTokenizerBase") -> tuple[int, ...]:
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    return (int(bos if bos is not None else eos),)
