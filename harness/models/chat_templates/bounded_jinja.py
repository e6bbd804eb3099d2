"""Jinja environment for chat templates of strangers: what a template computes is bounded, on every thread.

Invariant: a conversation is written in the same way every day, for a training and its evaluation may lie days
apart. A template that loops, calls or writes without end is stopped after `MOST_STEPS` steps or
`MOST_SIGNS` signs, by counting and not by a clock, so it is stopped everywhere alike.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextvars import ContextVar
from datetime import datetime
from functools import cache, wraps
from typing import Any

from jinja2 import Template, nodes
from jinja2.runtime import LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

DAY = datetime(2025, 1, 1)  # noqa: DTZ001  (what templates take for today, so that every day's prompts are alike)
MOST_STEPS = 1_000_000
MOST_SIGNS = 20_000_000
_STEPS_A_CALL = 10
_SIGNS_A_STEP = 1_000  # of a text that a filter reads
_SIGNS_A_BIT = 200  # of a number, which takes longer than a text to compute with
_left: ContextVar[int] = ContextVar("steps left to the template that is rendered")


class TooMuchWork(Exception):
    """A template takes more steps, or makes a larger value, than any conversation needs."""

    def __init__(self) -> None:
        super().__init__(f"more than {MOST_STEPS:,} steps or {MOST_SIGNS:,} signs, where it is stopped")


@cache
def compile_template(text: str) -> Template:
    """Compile a chat template with what transformers offers to templates."""
    from transformers.utils.chat_template_utils import _compile_jinja_template

    theirs = _compile_jinja_template("").environment
    kinds = [type(one) for one in theirs.extensions.values()]
    ours = _BoundedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=kinds)
    ours.filters = {name: _count_work(made) for name, made in theirs.filters.items()}
    ours.filters |= {"_each": _count_each, "_bounded": _refuse_large}
    ours.globals = theirs.globals | {"strftime_now": DAY.strftime}
    ours.globals.pop("lipsum")  # which no chat needs, and makes texts of any length
    _left.set(MOST_STEPS)
    return ours.from_string(text)


def render(template: Template, **variables: Any) -> Iterator[str]:
    """Yield the text of a compiled template piece by piece."""
    _left.set(MOST_STEPS)
    room = MOST_SIGNS
    for piece in template.generate(**variables):
        room -= len(piece)
        if room < 0:
            raise TooMuchWork
        yield piece


def _spend(steps: int) -> None:
    left = _left.get() - steps
    if left < 0:
        raise TooMuchWork
    _left.set(left)


def _size(value: Any) -> int:
    if isinstance(value, int):
        return value.bit_length() * _SIGNS_A_BIT
    return len(value) if isinstance(value, Sized) else 0


def _refuse_large(value: Any) -> Any:
    if _size(value) > MOST_SIGNS:
        raise TooMuchWork
    return value


def _count_each(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        _spend(1)
        yield value


def _count_arguments(args: Iterable[Any], options: Mapping[str, Any]) -> None:
    _spend(_STEPS_A_CALL)
    for value in (*args, *options.values()):
        if isinstance(value, int) and value > MOST_SIGNS:  # a width, or how often
            raise TooMuchWork
        if isinstance(value, str):
            _spend(len(value) // _SIGNS_A_STEP)
        elif isinstance(value, list | tuple | dict | range):
            _spend(len(value))


def _count_work(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a filter that counts what it reads, and makes nothing too large."""

    @wraps(function)
    def count(*args: Any, **options: Any) -> Any:
        _count_arguments(args, options)
        return _refuse_large(function(*args, **options))

    return count


class _BoundedTree(NodeTransformer):
    """Puts the counting filters around whatever repeats or joins."""

    def visit_For(self, node: nodes.For) -> nodes.For:  # noqa: N802
        self.generic_visit(node)
        node.iter = _put_filter(node.iter, "_each")
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Filter:  # noqa: N802
        self.generic_visit(node)
        return _put_filter(node, "_bounded")

    def visit_AssignBlock(self, node: nodes.AssignBlock) -> nodes.AssignBlock:  # noqa: N802
        self.generic_visit(node)
        node.filter = _put_filter(node.filter, "_bounded", node)
        return node


def _put_filter(node: Any, name: str, place: nodes.Node | None = None) -> nodes.Filter:
    at: Any = place or node
    made = nodes.Filter(node, name, [], [], None, None)
    made.set_lineno(at.lineno)
    made.set_environment(at.environment)
    return made


class _BoundedEnvironment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree: nodes.Template = _BoundedTree().visit(super()._parse(source, name, filename))
        return tree

    def call(self, context: Any, function: Any, /, *args: Any, **options: Any) -> Any:
        if isinstance(function, LoopContext):  # a recursive loop
            args = (_count_each(args[0]), *args[1:])
        _count_arguments(args, options)
        made = super().call(context, function, *args, **options)
        if isinstance(made, range | list | tuple | dict):
            _spend(len(made))
        return _refuse_large(made)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        _spend(1)
        n = next((value for value in (right, left) if isinstance(value, int)), 1)
        other = left if n is right else right
        if operator in ("*", "**") and not (operator == "*" and isinstance(other, int)):
            _refuse_large(range(_size(other) * max(n, 0)))
        return _refuse_large(super().call_binop(context, operator, left, right))
