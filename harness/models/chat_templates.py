"""Chat templates, shipped or the user's, for bases without one; rendered by a bounded Jinja environment.

Invariant: a template in use ends each answer with an end token, and a rendered conversation begins with its
prompt. A base's own template is never replaced. Rendering does not depend on the date, and stops after
`MOST_STEPS` steps or `MOST_SIGNS` characters; both are counted, so it stops at the same point everywhere.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextvars import ContextVar
from datetime import datetime
from functools import cache, wraps
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple, cast

from jinja2 import Template, nodes
from jinja2.runtime import LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from harness.errors import CandidateFailed, Problem, UserError, did_you_mean
from harness.models.later import Tokenizer
from harness.records import Message

SUFFIX = ".jinja"
_CHATML_END = "<|im_end|>"  # end token, if the vocabulary has it
_KEY = "chat_template"
_QUESTION = [{"role": "user", "content": "first"}]
_SYSTEM = {"role": "system", "content": "before"}
# Prologue of a template: joins the system message and the next question into one user message.
_JOINED = (
    "{% set messages = [{'role': 'user',"
    " 'content': messages[0]['content'] + '\\n\\n' + messages[1]['content']}] + messages[2:]"
    " if messages | length > 1 and messages[0]['role'] == 'system' and messages[1]['role'] == 'user'"
    " else messages +%}"
)
_ANSWER = "second"
_FEW_TURNS = 8
_stopped: dict[str, str] = {}  # templates that did too much work for a short conversation
_rendering = Lock()  # a template's environment tracks the marked spans of one conversation at a time


class Chat(NamedTuple):
    """Rendered conversation, and the spans (start, end) that the template marks as the assistant's."""

    text: str
    marked: tuple[tuple[int, int], ...]


def render_chat(tokenizer: Tokenizer, messages: Sequence[Message], *, asks: bool = True) -> Chat:
    """Render a conversation; with `asks`, end where the assistant begins. CandidateFailed if it cannot be."""
    blocks: list[str] = []
    marked: list[tuple[int, int]] = []
    try:
        text = tokenizer.get_chat_template()
        if text in _stopped:
            raise CandidateFailed(_stopped[text])
        template: Any = compile_template(text)
        variables = {**tokenizer.special_tokens_map, "tools": None, "documents": None}
        with _rendering, template.environment.activate_tracker(blocks, marked):
            for block in render(template, messages=list(messages), add_generation_prompt=asks, **variables):
                blocks.append(block)  # noqa: PERF402  (the tracker of marked spans reads those before it)
    except CandidateFailed:
        raise
    except TooMuchWork as error:
        reason = f"a chat template that takes {error}"
        if len(messages) <= _FEW_TURNS:
            _stopped[text] = reason
        raise CandidateFailed(reason, "a template of a chat alone") from None
    except Exception as error:  # noqa: BLE001  (a foreign template may raise anything)
        line = (str(error).splitlines() or [type(error).__name__])[0]
        raise CandidateFailed(f"a conversation that the chat template does not write ({line})") from None
    return Chat("".join(blocks), tuple(marked))


def special_tokens_of(tokenizer: Tokenizer) -> list[str]:
    """List the special tokens of a tokenizer: those that begin and end texts, turns and answers."""
    added = (token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
    return [token for token in dict.fromkeys([*tokenizer.all_special_tokens, *added]) if token.strip()]


def template_names() -> list[str]:
    """List the names of the shipped templates."""
    return sorted(file.stem for file in Path(__file__).parent.glob(f"*{SUFFIX}"))


def read_template(name_or_file: str) -> str:
    """Return the text of a template, given by name or as a file; UserError if there is none."""
    is_file = name_or_file.endswith(SUFFIX)
    file = Path(name_or_file) if is_file else Path(__file__).with_name(f"{name_or_file}{SUFFIX}")
    if not is_file and name_or_file not in template_names():
        expected = f"{', '.join(template_names())}, or a file that ends with {SUFFIX}"
        raise UserError(_KEY, repr(name_or_file), expected, did_you_mean(name_or_file, template_names()))
    try:
        return file.read_text("utf-8")
    except FileNotFoundError:
        raise UserError(_KEY, f"no file {file}", "a Jinja file", "correct the path") from None
    except UnicodeDecodeError:
        raise UserError(str(file), "bytes that are not UTF-8", "a Jinja file", "save it as UTF-8") from None


def put_template(tokenizer: Tokenizer, text: str) -> None:
    """Set a tokenizer's chat template; a shipped one ends turns and begins texts as the vocabulary does."""
    tokenizer.chat_template = text
    name = next((name for name in template_names() if read_template(name) == text), "")
    if not name:
        return
    ends_turn = name == "chatml" and tokenizer.convert_tokens_to_ids(_CHATML_END)
    if ends_turn not in (False, None, tokenizer.unk_token_id):
        tokenizer.eos_token = _CHATML_END
    bos = tokenizer.bos_token_id
    if bos is not None and list(tokenizer("a")["input_ids"])[:1] == [bos]:
        tokenizer.chat_template = f"{{{{- bos_token -}}}}\n{text}"


def join_system(tokenizer: Tokenizer) -> None:
    """Make a chat template that refuses or drops system messages put them before the first question."""
    template = tokenizer.chat_template
    if not isinstance(template, str):
        return
    writes = []
    for turns in (_QUESTION, [_SYSTEM, *_QUESTION]):
        try:
            writes.append(not find_left_out(tokenizer, turns))
        except CandidateFailed:
            writes.append(False)
    if writes == [True, False]:
        tokenizer.chat_template = _JOINED + template


def find_left_out(tokenizer: Tokenizer, messages: Sequence[Message]) -> str:
    """Return the role of the first turn whose text does not reach the prompt; empty if all do."""
    text = render_chat(tokenizer, messages).text
    for index, message in enumerate(messages):
        if message["content"].strip() in text:
            continue
        changed_message = {**message, "content": f"{message['content']} {_ANSWER}"}
        if render_chat(tokenizer, [*messages[:index], changed_message, *messages[index + 1 :]]).text == text:
            return message["role"]
    return ""


def find_gap(tokenizer: Tokenizer) -> str:
    """Return the whitespace that a chat template writes between a prompt and its answer."""
    try:
        prompt, conversation = _write_probe(tokenizer)
    except CandidateFailed:
        return ""
    before, _, _ = conversation.removeprefix(prompt).partition(_ANSWER)
    return before if conversation.startswith(prompt) and not before.strip() else ""


def _write_probe(tokenizer: Tokenizer) -> tuple[str, str]:
    answered = [*_QUESTION, {"role": "assistant", "content": _ANSWER}]
    return render_chat(tokenizer, _QUESTION).text, render_chat(tokenizer, answered, asks=False).text


def template_problems(tokenizer: Tokenizer, ends: Sequence[str], where: str) -> Iterator[Problem]:
    """Yield problems of training and evaluating with a tokenizer's template; `ends` are the end tokens."""
    try:
        prompt, conversation = _write_probe(tokenizer)
    except CandidateFailed as error:
        expected, step = "a Jinja template over messages and add_generation_prompt", "correct it"
        yield Problem(where, f"a template that cannot be rendered ({error.reason})", expected, step)
        return
    if _QUESTION[0]["content"] not in prompt or not conversation.startswith(f"{prompt}{_ANSWER}"):
        found = f"{prompt!r} for the prompt, and {conversation!r} with its answer"
        expected = "a conversation that begins with the prompt, then the answer"
        yield Problem(where, found, expected, "end the template as add_generation_prompt does")
        return
    rest = conversation.removeprefix(f"{prompt}{_ANSWER}")
    if not rest.startswith(tuple(ends)):
        found = f"{rest!r} after an answer"
        expected = f"a token that ends one: {', '.join(ends)}"
        yield Problem(where, found, expected, "write {{ eos_token }} after the assistant's content")


DAY = datetime(2025, 1, 1)  # noqa: DTZ001  (the date that templates see, so that prompts are the same every day)
MOST_STEPS = 1_000_000
MOST_SIGNS = 20_000_000
_STEPS_A_CALL = 10
_MOST_ENLARGED = 1_000_000_000  # product of the sizes of nested values
_ENLARGES = frozenset(
    ("expandtabs", "format", "format_map", "indent", "join", "replace", "tojson", "translate", "wordwrap")
)
_FORMATS = ("format", "format_map")
_NUMBER = re.compile(r"\d+")
_FREE = ("count", "first", "last", "length")  # filters whose cost does not grow with a conversation
_SIGNS_A_STEP = 1_000  # characters of a text that a filter reads per step
_SIGNS_A_BIT = 200  # characters charged per bit of a number, which is slower to compute with
_left: ContextVar[int] = ContextVar("steps left to the template that is rendered")


class TooMuchWork(Exception):
    """Error of a template that takes more steps, or makes a larger value, than any conversation needs."""

    def __init__(self) -> None:
        super().__init__(f"more than {MOST_STEPS:,} steps or {MOST_SIGNS:,} signs, where it is stopped")


@cache
def compile_template(text: str) -> Template:
    """Compile a chat template with the functions that transformers offers to templates."""
    from transformers.utils.chat_template_utils import _compile_jinja_template

    hf_env = _compile_jinja_template("").environment
    kinds = [type(extension) for extension in hf_env.extensions.values()]
    env = _BoundedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=kinds)
    env.filters = {name: _count_work(name, function) for name, function in hf_env.filters.items()}
    env.filters |= {name: hf_env.filters[name] for name in _FREE}
    env.filters |= {"_each": _count_each, "_charge": _charge}
    env.filters.pop("random")  # rendering must be deterministic
    env.tests = {name: _count_work(name, function) for name, function in hf_env.tests.items()}
    env.finalize = _charge
    env.globals = hf_env.globals | {"strftime_now": DAY.strftime}
    env.globals.pop("lipsum")  # no chat needs it, and it makes texts of any length
    _left.set(MOST_STEPS)
    return env.from_string(text)


def render(template: Template, **variables: Any) -> Iterator[str]:
    """Yield the rendered text of a compiled template in pieces."""
    _left.set(MOST_STEPS)
    room = MOST_SIGNS
    for piece in template.generate(**variables):
        room -= len(piece)
        if room < 0:
            raise TooMuchWork
        yield piece


def _spend(steps: int) -> None:
    n_left = _left.get() - steps
    if n_left < 0:
        raise TooMuchWork
    _left.set(n_left)


def _measure(value: Any) -> int:
    """Return the size of a value with its contents, in characters; reading it is charged in steps."""
    size, n_items, pending = 0, 0, list[Any]()
    if isinstance(value, str):
        size = len(value)
    elif isinstance(value, int):
        size = value.bit_length() * _SIGNS_A_BIT
    else:
        pending = [value]
    while pending:
        item = pending.pop()
        n_items += 1
        if isinstance(item, str):
            size += len(item)
        elif isinstance(item, dict):
            pending += [*item, *item.values()]
        elif isinstance(item, Namespace):
            pending += object.__getattribute__(item, "_Namespace__attrs").values()
        elif isinstance(item, list | tuple | range):
            pending += item
        if size > MOST_SIGNS or n_items + len(pending) > MOST_STEPS:
            break
    if size > MOST_SIGNS or pending:
        raise TooMuchWork
    _spend(size // _SIGNS_A_STEP + n_items)
    return size + n_items


def _charge(value: Any) -> Any:
    _measure(value)
    return value


def _count_each(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        _spend(1)
        yield value


def _count_arguments(name: str, *args: Any) -> None:
    """Charge the steps of a call, and refuse it if its result may be far larger than its input."""
    _spend(_STEPS_A_CALL)
    sizes = sorted(value if type(value) is int else _measure(value) for value in args)
    if sizes and sizes[-1] > MOST_SIGNS:  # a width or a repeat count
        raise TooMuchWork
    if name in _ENLARGES and sizes[1:] and sizes[-1] * sizes[-2] > _MOST_ENLARGED:
        raise TooMuchWork
    if name in _FORMATS and isinstance(args[0], str) and sum(map(int, _NUMBER.findall(args[0]))) > MOST_SIGNS:
        raise TooMuchWork


def _refuse_repeated(value: Any, times: Any) -> None:
    if _measure(value) * (times if isinstance(times, int) else 1) > MOST_SIGNS:
        raise TooMuchWork


def _count_work(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a filter or test so that its input is counted and its result is bounded."""

    @wraps(function)
    def count(*args: Any, **options: Any) -> Any:
        _count_arguments(name, *args, *options.values())
        return _charge(function(*args, **options))

    return count


class _BoundedTree(NodeTransformer):
    """Syntax tree visitor that puts the counting filters around loops and concatenations."""

    def generic_visit(self, node: Any, *args: Any, **options: Any) -> Any:
        super().generic_visit(node, *args, **options)
        if isinstance(node, nodes.For):
            node.iter = _put_filter(node.iter, "_each")
        elif isinstance(node, nodes.Concat):
            node.nodes = list(map(_put_charge, node.nodes))
            return _put_filter(node, "_charge")
        elif isinstance(node, nodes.Compare):
            for operand in node.ops:
                operand.expr = _put_charge(operand.expr)
        elif isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice):
            node.node = _put_filter(node.node, "_charge")
        elif isinstance(node, nodes.AssignBlock):
            node.filter = _put_filter(node.filter, "_charge", node)
        return node


def _put_charge(node: nodes.Expr) -> nodes.Expr:
    return node if isinstance(node, nodes.Const) else _put_filter(node, "_charge")


def _put_filter(node: Any, name: str, origin: nodes.Node | None = None) -> nodes.Filter:
    at: Any = origin or node
    filter_node = nodes.Filter(node, name, [], [], None, None)
    filter_node.set_lineno(at.lineno)
    filter_node.set_environment(at.environment)
    return filter_node


class _BoundedEnvironment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        return cast(nodes.Template, _BoundedTree().visit(super()._parse(source, name, filename)))

    def call(self, context: Any, function: Any, /, *args: Any, **options: Any) -> Any:
        if isinstance(function, LoopContext):  # a recursive loop
            args = (_count_each(args[0]), *args[1:])
        owner = getattr(getattr(function, "__wrapped__", function), "__self__", None)
        owner_arguments = [owner] if isinstance(owner, str | list | dict) else []
        _count_arguments(getattr(function, "__name__", ""), *owner_arguments, *args, *options.values())
        return _charge(super().call(context, function, *args, **options))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" or (operator == "*" and not isinstance(left, int)):
            _refuse_repeated(left, right)
        elif operator == "*" and not isinstance(right, int):
            _refuse_repeated(right, left)
        elif operator == "%":
            _count_arguments("format", left, *(right if isinstance(right, tuple) else (right,)))
        else:
            _count_arguments(operator, left, right)
        return _charge(super().call_binop(context, operator, left, right))
