"""Jinja environment for chat templates of strangers: what a template computes is bounded, on every thread.

Invariant: a conversation is written in the same way every day, for a training and its evaluation may lie days
apart. A template that loops, calls or writes without end is stopped after `MOST_STEPS` steps or
`MOST_SIGNS` signs, by counting and not by a clock, so it is stopped everywhere alike.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from datetime import datetime
from functools import cache, wraps
from typing import Any

from jinja2 import Template, nodes
from jinja2.runtime import LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

DAY = datetime(2025, 1, 1)  # noqa: DTZ001  (what templates take for today, so that every day's prompts are alike)
MOST_STEPS = 1_000_000
MOST_SIGNS = 20_000_000
_STEPS_A_CALL = 10
_MOST_ENLARGED = 1_000_000_000  # product of the sizes of what is put into what
_ENLARGES = (
    "expandtabs",
    "format",
    "format_map",
    "indent",
    "join",
    "replace",
    "tojson",
    "translate",
    "wordwrap",
)
_FORMATS = ("format", "format_map")
_NUMBER = re.compile(r"\d+")
_FREE = ("count", "first", "last", "length")  # what they take does not grow with a conversation
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
    ours.filters = {name: _count_work(name, made) for name, made in theirs.filters.items()}
    ours.filters |= {name: theirs.filters[name] for name in _FREE}
    ours.filters |= {"_each": _count_each, "_charge": _charge}
    ours.filters.pop("random")  # a conversation is written alike each time
    ours.tests = {name: _count_work(name, made) for name, made in theirs.tests.items()}
    ours.finalize = _charge
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


def _measure(value: Any) -> int:
    """Return the size of a value with all that it holds, in signs; reading it takes steps."""
    size, n_items, pending = 0, 0, list[Any]()
    if isinstance(value, str):
        size = len(value)
    elif isinstance(value, int):
        size = value.bit_length() * _SIGNS_A_BIT
    else:
        pending = [value]
    while pending:
        one = pending.pop()
        n_items += 1
        if isinstance(one, str):
            size += len(one)
        elif isinstance(one, dict):
            pending += [*one, *one.values()]
        elif isinstance(one, Namespace):
            pending += object.__getattribute__(one, "_Namespace__attrs").values()
        elif isinstance(one, list | tuple | range):
            pending += one
        if size > MOST_SIGNS or n_items + len(pending) > MOST_STEPS:
            break
    if size > MOST_SIGNS or pending:
        raise TooMuchWork
    _spend(size // _SIGNS_A_STEP + n_items)
    return size + n_items


def _charge(value: Any) -> Any:
    """Take the steps that a value takes to be read, and return it."""
    _measure(value)
    return value


def _count_each(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        _spend(1)
        yield value


def _count_arguments(name: str, *args: Any) -> None:
    """Take the steps of a call, and refuse one whose result may be far larger than what it reads."""
    _spend(_STEPS_A_CALL)
    sizes = sorted(value if type(value) is int else _measure(value) for value in args)
    if sizes and sizes[-1] > MOST_SIGNS:  # a width, or how often
        raise TooMuchWork
    if name in _ENLARGES and sizes[1:] and sizes[-1] * sizes[-2] > _MOST_ENLARGED:
        raise TooMuchWork
    if name in _FORMATS and isinstance(args[0], str) and sum(map(int, _NUMBER.findall(args[0]))) > MOST_SIGNS:
        raise TooMuchWork


def _refuse_repeated(value: Any, times: Any) -> None:
    if _measure(value) * (times if isinstance(times, int) else 1) > MOST_SIGNS:
        raise TooMuchWork


def _count_work(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a filter or a test that counts what it reads, and makes nothing too large."""

    @wraps(function)
    def count(*args: Any, **options: Any) -> Any:
        _count_arguments(name, *args, *options.values())
        return _charge(function(*args, **options))

    return count


class _BoundedTree(NodeTransformer):
    """Puts the counting filters around whatever repeats or joins."""

    def visit_For(self, node: nodes.For) -> nodes.For:  # noqa: N802
        self.generic_visit(node)
        node.iter = _put_filter(node.iter, "_each")
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Filter:  # noqa: N802
        self.generic_visit(node)
        node.nodes = list(map(_put_charge, node.nodes))
        return _put_filter(node, "_charge")

    def visit_Compare(self, node: nodes.Compare) -> nodes.Compare:  # noqa: N802
        self.generic_visit(node)
        for operand in node.ops:
            operand.expr = _put_charge(operand.expr)
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Getitem:  # noqa: N802
        self.generic_visit(node)
        if isinstance(node.arg, nodes.Slice):
            node.node = _put_filter(node.node, "_charge")
        return node

    def visit_AssignBlock(self, node: nodes.AssignBlock) -> nodes.AssignBlock:  # noqa: N802
        self.generic_visit(node)
        node.filter = _put_filter(node.filter, "_charge", node)
        return node


def _put_charge(node: nodes.Expr) -> nodes.Expr:
    return node if isinstance(node, nodes.Const) else _put_filter(node, "_charge")


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
        owner = getattr(getattr(function, "__wrapped__", function), "__self__", None)
        read = [owner] if isinstance(owner, str | list | dict) else []
        _count_arguments(getattr(function, "__name__", ""), *read, *args, *options.values())
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
