"""Chat templates for bases without one: those that ship, a file a template, and a Jinja file of the user's.

Invariant: a template that is used ends each answer with a token that ends one, so that a fine-tune learns to
stop, and writes a conversation so that the prompt is its beginning. A base's own is never replaced; in
front of one that refuses or drops a system message stands what joins that to the question behind it.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.errors import CandidateFailed, Problem, UserError, did_you_mean
from harness.records import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SUFFIX = ".jinja"
_END_OF_TURN = {"chatml": "<|im_end|>"}  # ends an answer where the vocabulary has it
_KEY = "chat_template"
_QUESTION = [{"role": "user", "content": "first"}]
_SYSTEM = {"role": "system", "content": "before"}
# In front of a template: the system message and the question behind it are one message of the user.
_JOINED = (
    "{% set messages = [{'role': 'user',"
    " 'content': messages[0]['content'] + '\\n\\n' + messages[1]['content']}] + messages[2:]"
    " if messages | length > 1 and messages[0]['role'] == 'system' and messages[1]['role'] == 'user'"
    " else messages +%}"
)
_ANSWER = "second"
_FEW_TURNS = 8
_stopped: dict[str, str] = {}  # templates that did too much work for few turns, which need not show it again
_rendering = Lock()  # a template's environment tracks the marked spans of one conversation at a time


class Chat(NamedTuple):
    """Conversation as a template writes it, and the spans (from, to) that it marks as the assistant's."""

    text: str
    marked: tuple[tuple[int, int], ...]


def render_chat(
    tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message], *, asks: bool = True
) -> Chat:
    """Write a conversation by a tokenizer's chat template; where it `asks`, the assistant's turn begins.

    Raises:
        CandidateFailed: the template refuses the conversation, has a fault, or does too much work.
    """
    from harness.models.chat_templates.bounded_jinja import TooMuchWork, compile_template, render

    blocks: list[str] = []
    marked: list[tuple[int, int]] = []
    try:
        text = tokenizer.get_chat_template()
        if text in _stopped:
            raise CandidateFailed(_stopped[text])
        template: Any = compile_template(text)
        given = {**tokenizer.special_tokens_map, "tools": None, "documents": None}
        with _rendering, template.environment.activate_tracker(blocks, marked):
            for block in render(template, messages=list(messages), add_generation_prompt=asks, **given):
                blocks.append(block)  # noqa: PERF402  (the tracker of marked spans reads those before it)
    except CandidateFailed:
        raise
    except TooMuchWork as error:
        reason = f"a chat template that takes {error}"
        if len(messages) <= _FEW_TURNS:
            _stopped[text] = reason
        raise CandidateFailed(reason, "a template of a chat alone") from None
    except Exception as error:  # noqa: BLE001  (whatever a template of somebody else does)
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise CandidateFailed(f"a conversation that the chat template does not write ({said})") from None
    return Chat("".join(blocks), tuple(marked))


def special_tokens_of(tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    """List the tokens of a tokenizer that are not text: those that begin and end texts, turns and answers."""
    added = (token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
    return [token for token in dict.fromkeys([*tokenizer.all_special_tokens, *added]) if token.strip()]


def template_names() -> list[str]:
    """List the names of the templates that ship."""
    return sorted(file.stem for file in Path(__file__).parent.glob(f"*{SUFFIX}"))


def read_template(written: str) -> str:
    """Return the text of a template by its name, or of a file.

    Raises:
        UserError: there is none.
    """
    is_file = written.endswith(SUFFIX)
    file = Path(written) if is_file else Path(__file__).with_name(f"{written}{SUFFIX}")
    if not is_file and written not in template_names():
        expected = f"{', '.join(template_names())}, or a file that ends with {SUFFIX}"
        raise UserError(Problem(_KEY, repr(written), expected, did_you_mean(written, template_names())))
    try:
        return file.read_text("utf-8")
    except FileNotFoundError:
        raise UserError(Problem(_KEY, f"no file {file}", "a Jinja file", "correct the path")) from None
    except UnicodeDecodeError:
        found, step = "bytes that are not UTF-8", "save it as UTF-8"
        raise UserError(Problem(str(file), found, "a Jinja file", step)) from None


def put_template(tokenizer: "PreTrainedTokenizerBase", text: str) -> None:
    """Give a tokenizer a chat template.

    One that ships ends turns by its own token where the vocabulary has it, and begins as the tokenizer itself
    begins a text.
    """
    tokenizer.chat_template = text
    name = next((name for name in template_names() if read_template(name) == text), "")
    if not name:
        return
    end = _END_OF_TURN.get(name, "")
    if end and tokenizer.convert_tokens_to_ids(end) not in (None, tokenizer.unk_token_id):
        tokenizer.eos_token = end
    bos = tokenizer.bos_token_id
    if bos is not None and list(tokenizer("a")["input_ids"])[:1] == [bos]:
        tokenizer.chat_template = f"{{{{- bos_token -}}}}\n{text}"


def join_system(tokenizer: "PreTrainedTokenizerBase") -> None:
    """Let a chat template that refuses or leaves out a system message read it before the first question.

    Gemma 2's refuses it, Phi-3 medium's leaves it out. Without a system message it renders as before.
    """
    template = tokenizer.chat_template
    if (
        isinstance(template, str)
        and _writes(tokenizer, _QUESTION)
        and not _writes(tokenizer, [_SYSTEM, *_QUESTION])
    ):
        tokenizer.chat_template = _JOINED + template


def _writes(tokenizer: "PreTrainedTokenizerBase", turns: list[Message]) -> bool:
    try:
        return not find_left_out(tokenizer, turns)
    except CandidateFailed:
        return False


def find_left_out(tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message]) -> str:
    """Return the role of the first turn whose text changes nothing in the prompt; empty where each does.

    Raises:
        CandidateFailed: the template does not write the conversation.
    """
    text = render_chat(tokenizer, messages).text
    for place, message in enumerate(messages):
        if message["content"].strip() in text:
            continue
        changed = {**message, "content": f"{message['content']} {_ANSWER}"}
        if render_chat(tokenizer, [*messages[:place], changed, *messages[place + 1 :]]).text == text:
            return message["role"]
    return ""


def find_gap(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Return the blanks that a chat template writes between a prompt and its answer."""
    try:
        prompt = render_chat(tokenizer, _QUESTION).text
        answered = [*_QUESTION, {"role": "assistant", "content": _ANSWER}]
        whole = render_chat(tokenizer, answered, asks=False).text
    except CandidateFailed:
        return ""
    before, _, _ = whole.removeprefix(prompt).partition(_ANSWER)
    return before if whole.startswith(prompt) and not before.strip() else ""


def template_problems(
    tokenizer: "PreTrainedTokenizerBase", ends: Sequence[str], where: str
) -> Iterator[Problem]:
    """Yield what forbids to train and evaluate by the template of a tokenizer; `ends` end an answer."""
    try:
        prompt = render_chat(tokenizer, _QUESTION).text
        answered = [*_QUESTION, {"role": "assistant", "content": _ANSWER}]
        whole = render_chat(tokenizer, answered, asks=False).text
    except CandidateFailed as error:
        expected, step = "a Jinja template over messages and add_generation_prompt", "correct it"
        yield Problem(where, f"a template that cannot be rendered ({error.reason})", expected, step)
        return
    if _QUESTION[0]["content"] not in prompt or not whole.startswith(f"{prompt}{_ANSWER}"):
        found = f"{prompt!r} for the prompt, and {whole!r} with its answer"
        expected = "a conversation that begins with the prompt, then the answer"
        yield Problem(where, found, expected, "end the template as add_generation_prompt does")
        return
    rest = whole.removeprefix(f"{prompt}{_ANSWER}")
    if not rest.startswith(tuple(ends)):
        found = f"{rest!r} after an answer"
        expected = f"a token that ends one: {', '.join(ends)}"
        yield Problem(where, found, expected, "write {{ eos_token }} after the assistant's content")
