"""Messages to token ids, and new token ids to an answer: what every engine of a language model shares.

Invariant: `encode_all` is the only place where a chat template or a beginning-of-sequence token
is added, and a prompt holds at most one of the latter.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from harness.errors import Problem, UserError
from harness.models.batching import Tokens
from harness.records import Encoded, Limits, Message, Output, PromptText

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedTokenizerBase


class _Text(NamedTuple):
    """A text, and whether the tokenizer puts its special tokens around it."""

    text: str
    special: bool = False


class _PromptTexts(NamedTuple):
    """Texts of a prompt: its context, what would follow, and both together."""

    context: _Text
    continuation: _Text
    whole: _Text


class PromptEncoder:
    """Base of candidates, which turn prompts into token ids: one alone, or all of a block together."""

    def encode_all(self, prompts: Sequence[PromptText]) -> list[Encoded]:
        """Turn messages, and what would follow each, into token ids, in order."""
        raise NotImplementedError

    def encode(
        self, messages: Sequence[Message], continuation: str = "", *, chat_template: bool = True
    ) -> Encoded:
        """Turn messages, and what would follow them, into token ids."""
        return self.encode_all([PromptText(messages, continuation, chat_template)])[0]


def encode_all(tokenizer: "PreTrainedTokenizerBase", prompts: Sequence[PromptText]) -> list[Encoded]:
    """Turn messages, and what would follow each, into token ids: every text once, all of them in a call.

    Without a chat template turns are joined by blank lines, and an answer to its question by a
    space. An empty context becomes the beginning- or end-of-sequence token, as in lm-eval.

    Raises:
        UserError: a chat template is wanted and the tokenizer has none.
    """
    rendered = _render(tokenizer, prompts)
    ids = _ids(tokenizer, [text for one in rendered for text in (one.context, one.whole)])
    ids |= _ids(tokenizer, [one.continuation for one in rendered if _is_merged(one, ids)])
    return [_join(tokenizer, one, ids) for one in rendered]


def end_ids(tokenizer: "PreTrainedTokenizerBase", config: "GenerationConfig") -> list[int]:
    """List the tokens that end an answer; the first of them fills up rows that ended before others.

    Raises:
        UserError: neither the tokenizer nor the model names one.
    """
    written, pad, eos = config.eos_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id
    ends = {int(i) for i in [*(written if isinstance(written, list) else [written]), eos] if i is not None}
    if pad is None and not ends:
        raise _phrase_no_end()
    first = int(pad if pad is not None else eos if eos is not None else min(ends))
    return [first, *sorted(ends - {first})]


def _phrase_no_end() -> UserError:
    found = "a tokenizer with neither a pad nor an end-of-sequence token, and a model that names none"
    step = "eos_token in its tokenizer_config.json, or eos_token_id in generation_config.json"
    return UserError(Problem("base_model", found, "a token that ends an answer", step))


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


def join_to_plain_text(messages: Sequence[Message]) -> str:
    """Join messages to the text that stands for them without a chat template."""
    text = ""
    for message in messages:
        gap = "" if not text else " " if message["role"] == "assistant" else "\n\n"
        text += gap + message["content"]
    return text


def _render(tokenizer: "PreTrainedTokenizerBase", prompts: Sequence[PromptText]) -> list[_PromptTexts]:
    """Write prompts as texts; those that share their messages, once."""
    contexts: dict[tuple[int, bool], _Text] = {}
    rendered = []
    for messages, continuation, chat in prompts:
        key = (id(messages), chat)
        if key not in contexts:
            text = _apply_template(tokenizer, messages) if chat else join_to_plain_text(messages)
            contexts[key] = _Text(text, not chat)
        context = contexts[key]
        behind = _Text(context.text + continuation, context.special and bool(context.text))
        rendered.append(_PromptTexts(context, _Text(continuation), behind if continuation else context))
    return rendered


def _is_merged(one: _PromptTexts, ids: Mapping[_Text, Tokens]) -> bool:
    """Tell whether a token spans the end of the context."""
    context = ids[one.context]
    return bool(one.context.text) and ids[one.whole][: len(context)] != context


def _join(tokenizer: "PreTrainedTokenizerBase", one: _PromptTexts, ids: Mapping[_Text, Tokens]) -> Encoded:
    context = ids[one.context]
    if not one.continuation.text:
        return Encoded(context or _prefix(tokenizer))
    if not one.context.text:
        return Encoded(_prefix(tokenizer), ids[one.whole])
    merged = _is_merged(one, ids)
    return Encoded(context, ids[one.continuation] if merged else ids[one.whole][len(context) :], merged)


def _ids(tokenizer: "PreTrainedTokenizerBase", texts: Iterable[_Text]) -> dict[_Text, Tokens]:
    """Return the token ids of texts, each of them once."""
    wanted, out = dict.fromkeys(texts), {}
    for special in (False, True):
        if chosen := [one for one in wanted if one.special == special]:
            made = tokenizer([one.text for one in chosen], add_special_tokens=special)["input_ids"]
            for one, ids in zip(chosen, made, strict=True):
                # A template that writes the token and a tokenizer that adds it would make two.
                twice = special and len(ids) > 1 and ids[0] == ids[1] == tokenizer.bos_token_id
                out[one] = tuple(ids[1:] if twice else ids)
    return out


def _prefix(tokenizer: "PreTrainedTokenizerBase") -> Tokens:
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    if bos is None and eos is None:
        raise _phrase_no_end()
    return (int(bos if bos is not None else eos),)
