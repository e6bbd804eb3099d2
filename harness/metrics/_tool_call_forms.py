"""Forms in which models write tool calls, each read into values: JSON, tags, code fences, Python's syntax.

Invariant: text around the calls is left out; a form that is not whole holds no call.
Source: the chat templates of Hermes and Qwen (`<tool_call>`), Qwen3-Coder (`<function=…>` with parameters),
Mistral (`[TOOL_CALLS]`), Llama 3.1 (`<|python_tag|>`), Llama 3.2 (calls in Python's syntax), Granite
(`<|tool_call|>`) and Gemma (`tool_code` fences); `tool_calls` as in OpenAI's API.
"""

import ast
import json
import re
from collections.abc import Iterator
from typing import Any

_TAGGED = re.compile(r"<tool_call>\s*(.*?)\s*(?:</tool_call>|\Z)", re.DOTALL)
_FENCE = re.compile(r"```(?:json|tool_call|tool_code|python)?\s*\n(.*?)\n?```", re.DOTALL)
_MARK = re.compile(r"(?:\[TOOL_CALLS\]|<\|python_tag\|>|<\|tool_call\|>)(.*)", re.DOTALL)
_FUNCTION = re.compile(r"<function=([\w.-]+)>(.*?)</function>", re.DOTALL)
_JSON = re.compile(r"\{|\[\s*\{")  # begins an object, or a list of such
_PARAMETER = re.compile(r"<parameter=([\w.-]+)>\s*(.*?)\s*</parameter>", re.DOTALL)


def read_forms(text: str) -> list[Any]:
    """Return the values that may be calls, in the order in which they stand; empty where there is none."""
    parts = _TAGGED.findall(text) or _FENCE.findall(text) or _MARK.findall(text) or [text]
    return [value for part in parts for value in _values(part)]


def _values(part: str) -> list[Any]:
    return [*map(_read_function, _FUNCTION.findall(part))] or _read_python(part) or [*_json_within(part)]


def _read_function(found: tuple[str, str]) -> dict[str, Any]:
    """Read a function's tag, which holds its parameters as JSON or as tags of their own."""
    name, body = found
    if given := _PARAMETER.findall(body):
        return {"name": name, "arguments": {key: _json_or_text(value) for key, value in given}}
    return {"name": name, "arguments": json.loads(body) if body.strip() else {}}


def _json_or_text(written: str) -> Any:
    try:
        return json.loads(written)
    except ValueError:
        return written


def _read_python(part: str) -> list[Any]:
    """Read calls in Python's syntax with named arguments, one or a list; empty where it is something else."""
    try:
        body = ast.parse(part.strip(), mode="eval").body
        calls = body.elts if isinstance(body, ast.List) else [body]
        return [_read_call(call) for call in calls]
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return []


def _read_call(call: ast.expr) -> dict[str, Any]:
    """Read one call."""
    if not isinstance(call, ast.Call) or call.args or any(one.arg is None for one in call.keywords):
        raise TypeError(ast.dump(call))
    arguments = {one.arg: ast.literal_eval(one.value) for one in call.keywords}
    return {"name": ast.unparse(call.func), "arguments": arguments}


def _json_within(part: str) -> Iterator[Any]:
    """Yield the JSON objects of a text, and the lists of such, from left to right."""
    decoder, at = json.JSONDecoder(), 0
    while found := _JSON.search(part, at):
        try:
            value, at = decoder.raw_decode(part, found.start())
            yield value
        except (ValueError, RecursionError):
            at = found.start() + 1
