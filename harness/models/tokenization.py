"""Conversion of messages to token ids, and of new token ids to answers, for all engines and trainings.

Invariant: chat templates and beginning-of-sequence tokens are added only here, once. Training sequences begin
with the token ids of the prompt as evaluated and end with an end token. Special tokens in a user's text are
plain text.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from harness.errors import CandidateFailed, UserError
from harness.models.batching import Tokens
from harness.models.chat_templates import find_gap, render_chat, special_tokens_of
from harness.models.later import Tokenizer, transformers
from harness.records import Encoded, Limits, Message, Output, PromptText

_MARKED = re.compile("[\U000f0000\U000f0001]")  # transformers' marks of plain text
_OPENED = re.compile(r"(<[^<>\s]+>|\[[A-Z_]+\])\s*$")


class _Text(NamedTuple):
    """A text, and whether the tokenizer puts its special tokens around it."""

    text: str
    special: bool = False


class _PromptTexts(NamedTuple):
    """Texts of a prompt: its context, its continuation, and both together."""

    context: _Text
    continuation: _Text
    whole: _Text


def encode_all(tokenizer: Tokenizer, prompts: Sequence[PromptText]) -> list[Encoded]:
    """Convert messages and their continuations into token ids: every text once, in one call.

    Without a chat template turns are joined by blank lines, and an answer to its question by a space. An
    empty context becomes the beginning- or end-of-sequence token, as in lm-eval.
    """
    gap = find_gap(tokenizer) if any(p.chat_template and p.continuation for p in prompts) else ""
    spaced = [
        prompt._replace(continuation=gap + prompt.continuation)
        if prompt.chat_template and prompt.continuation and not prompt.is_written
        else prompt
        for prompt in prompts
    ]
    return _encode(tokenizer, _render(tokenizer, spaced))


def encode_answered(
    tokenizer: Tokenizer, rows: Sequence[PromptText], ends: Mapping[int, str]
) -> list[Encoded]:
    """Encode prompts with their answers for training; `ends` are the end tokens.

    An answer is rendered by the chat template if the result begins with the prompt as evaluated and ends the
    answer. Otherwise the answer follows the prompt and the template's whitespace, and the token that the
    template writes there or the first of `ends`.
    """
    if not ends:
        raise _phrase_no_end()
    special, rendered = _find_special(tokenizer), _render(tokenizer, rows)
    gap = find_gap(tokenizer) if any(row.chat_template for row in rows) else ""
    written = [
        _write_answer(tokenizer, row._replace(messages=_mark(special, row.messages)), texts, ends, gap)
        for row, texts in zip(rows, rendered, strict=True)
    ]
    encodings = _encode(tokenizer, [texts for texts, _ in written])
    return [
        encoded._replace(continuation=encoded.continuation + end)
        for encoded, (_, end) in zip(encodings, written, strict=True)
    ]


def mask_assistant(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
    """Mark the tokens of a prompt that its chat template marks as the assistant's, in earlier turns."""
    chat = render_chat(tokenizer, _mark(_find_special(tokenizer), messages))
    cuts = dict.fromkeys([len(chat.text), *(offset for span in chat.marked for offset in span)])
    ids = _ids(tokenizer, [_Text(chat.text[:cut]) for cut in cuts])
    places = {cut: len(ids[_Text(chat.text[:cut])]) for cut in cuts}
    mask = [0] * places[len(chat.text)]
    for start, end in chat.marked:
        mask[places[start] : places[end]] = [1] * (places[end] - places[start])
    return mask


def _write_answer(
    tokenizer: Tokenizer, row: PromptText, prompt: _PromptTexts, ends: Mapping[int, str], gap: str
) -> tuple[_PromptTexts, Tokens]:
    """Return the texts of a prompt with its answer, and the end token to append, if any."""
    context, answer, whole = prompt.context, prompt.continuation.text, ""
    first = next(iter(ends))
    if not row.chat_template:
        gap = " " if context.text else ""
        return _put_behind(context, gap + answer), (first,)
    try:
        messages = [*row.messages, {"role": "assistant", "content": answer}]
        whole = render_chat(tokenizer, messages, asks=False).text
    except CandidateFailed:
        pass  # a template that does not render answers
    before, found_answer, after = whole.removeprefix(context.text).partition(answer or "\0")
    is_asked_so = whole.startswith(context.text) and found_answer and not before.strip()
    if is_asked_so and after.lstrip().startswith(tuple(ends.values())):
        return _put_behind(context, before + found_answer + after), ()
    behind = whole.rpartition(answer)[2] if answer else whole
    end = next((i for i, token in ends.items() if token in behind), first)
    match = _OPENED.search(context.text)
    if match and answer.lstrip().startswith(match[1]):  # the prompt already begins the reasoning
        answer = answer.lstrip().removeprefix(match[1]).lstrip("\n")
    return _put_behind(context, gap + answer), (end,)


def _put_behind(context: _Text, text: str) -> _PromptTexts:
    whole = _Text(context.text + text, context.special and bool(context.text))
    return _PromptTexts(context, _Text(text), whole if text else context)


def _encode(tokenizer: Tokenizer, rendered: Sequence[_PromptTexts]) -> list[Encoded]:
    ids = _ids(tokenizer, [text for texts in rendered for text in (texts.context, texts.whole)])
    ids |= _ids(tokenizer, [texts.continuation for texts in rendered if _is_merged(texts, ids)])
    return [_join(tokenizer, texts, ids) for texts in rendered]


def end_ids(tokenizer: Tokenizer, config: "transformers.GenerationConfig") -> list[int]:
    """List the tokens that end an answer; the first of them pads rows that end early."""
    eos_ids, pad, eos = config.eos_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id
    ends = {int(i) for i in [*(eos_ids if isinstance(eos_ids, list) else [eos_ids]), eos] if i is not None}
    if pad is None and not ends:
        raise _phrase_no_end()
    first = int(pad if pad is not None else eos if eos is not None else min(ends))
    return [first, *sorted(ends - {first})]


def stored_end_ids(tokenizer: Tokenizer, folder: Path) -> list[int]:
    """List the tokens that end an answer of a model in a folder; errors are those of `end_ids`."""
    try:
        config = transformers.GenerationConfig.from_pretrained(folder)
    except OSError:  # a model without this file
        model = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
        config = transformers.GenerationConfig.from_model_config(model)
    return end_ids(tokenizer, config)


def _phrase_no_end() -> UserError:
    found = "a tokenizer with neither a pad nor an end-of-sequence token, and a model that names none"
    step = "eos_token in its tokenizer_config.json, or eos_token_id in generation_config.json"
    return UserError("base_model", found, "a token that ends an answer", step)


def answer(
    tokenizer: Tokenizer,
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
    return Output(
        text=text[: min(cuts)] if cuts else text,
        finish_reason="length" if length >= limits.max_new_tokens and not ended else "stop",
        n_prompt_tokens=len(prompt),
        n_output_tokens=length,
        compute_s=compute_s,
    )


def _find_special(tokenizer: Tokenizer) -> re.Pattern[str]:
    from transformers.utils.chat_template_utils import _get_control_token_patterns

    return _get_control_token_patterns(tuple(special_tokens_of(tokenizer)))[0]


def _mark(special: re.Pattern[str], messages: Sequence[Message]) -> list[Message]:
    """Mark the special tokens in a user's texts, which are then read as text."""
    return [{**message, "content": _mark_text(special, message["content"])} for message in messages]


def _mark_text(special: re.Pattern[str], text: str) -> str:
    from transformers.utils.chat_template_utils import mark_control_tokens

    return str(mark_control_tokens(text, special))


def join_to_plain_text(messages: Sequence[Message]) -> str:
    """Join messages into plain text, for bases without a chat template."""
    text = ""
    for message in messages:
        gap = "" if not text else " " if message["role"] == "assistant" else "\n\n"
        text += gap + message["content"]
    return text


def _render(tokenizer: Tokenizer, prompts: Sequence[PromptText]) -> list[_PromptTexts]:
    """Render prompts as texts; messages that prompts share are rendered once."""
    contexts: dict[tuple[int, bool, bool], _Text] = {}
    rendered, special = [], _find_special(tokenizer)
    for messages, continuation, chat, is_written in prompts:
        key = (id(messages), chat, is_written)
        if key not in contexts:
            marked = messages if is_written else _mark(special, messages)
            if chat and not tokenizer.chat_template:
                found, expected = "a tokenizer without a chat template", "an instruction-tuned model"
                step = "choose an instruct model, or set chat_template: false on the task"
                raise UserError("base_model", found, expected, step)
            text = render_chat(tokenizer, marked).text if chat else join_to_plain_text(marked)
            contexts[key] = _Text(text, not chat)
        behind = continuation if is_written else _mark_text(special, continuation)
        rendered.append(_put_behind(contexts[key], behind))
    return rendered


def _is_merged(texts: _PromptTexts, ids: Mapping[_Text, Tokens]) -> bool:
    """Tell whether a token crosses the boundary between context and continuation."""
    context = ids[texts.context]
    return bool(texts.context.text) and ids[texts.whole][: len(context)] != context


def _join(tokenizer: Tokenizer, texts: _PromptTexts, ids: Mapping[_Text, Tokens]) -> Encoded:
    context = ids[texts.context]
    if not texts.continuation.text:
        return Encoded(context or _prefix(tokenizer))
    if not texts.context.text:
        return Encoded(_prefix(tokenizer), ids[texts.whole])
    merged = _is_merged(texts, ids)
    return Encoded(context, ids[texts.continuation] if merged else ids[texts.whole][len(context) :], merged)


def _ids(tokenizer: Tokenizer, texts: Iterable[_Text]) -> dict[_Text, Tokens]:
    from transformers.utils.chat_template_utils import encode_marked_chat

    unique_texts, ids_by_text, eos = dict.fromkeys(texts), dict[_Text, Tokens](), tokenizer.eos_token
    for special in (False, True):
        chosen = [text for text in unique_texts if text.special == special]
        if plain := [text for text in chosen if not _MARKED.search(text.text)]:
            encoded = tokenizer([text.text for text in plain], add_special_tokens=special)["input_ids"]
            for text, ids in zip(plain, encoded, strict=True):
                # Drop a second beginning-of-sequence token, which the template writes too, and an end token.
                twice = special and len(ids) > 1 and ids[0] == ids[1] == tokenizer.bos_token_id
                is_end = special and eos and len(ids) > 1 and ids[-1] == tokenizer.eos_token_id
                ends = is_end and not text.text.endswith(eos)
                ids_by_text[text] = tuple(ids[int(twice) : -1 if ends else None])
        for text in chosen:
            if text not in ids_by_text:  # it contains marked special tokens of the user
                try:
                    marked = tuple(encode_marked_chat(tokenizer, text.text))
                except ValueError as error:  # a tokenizer that makes the token from plain letters too
                    found = f"a text that holds a special token of the tokenizer ({error})"
                    step = "harness data clean FILE --out OUT --special-tokens"
                    raise CandidateFailed(found, step) from None
                begin = tokenizer("", add_special_tokens=True)["input_ids"][:1] if text.special else []
                ids_by_text[text] = tuple(i for i in begin if i == tokenizer.bos_token_id) + marked
    return ids_by_text


def _prefix(tokenizer: Tokenizer) -> Tokens:
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    if bos is None and eos is None:
        raise _phrase_no_end()
    return (int(bos if bos is not None else eos),)
