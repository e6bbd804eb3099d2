"""Share of answers whose tool calls are those of a reference: the same functions with the same arguments.

Invariant: the order of calls and keys and the text around calls never count; an incomplete form is not a
call. 1 and 1.0 are equal, "1" is a text; texts are compared as by exact match, names are case-sensitive. If
the reference is `[]`, an answer in words is right, and one with an unfinished call is wrong.
Source: the chat templates of Hermes and Qwen (`<tool_call>`), Qwen3-Coder (`<function=…>`), Mistral
(`[TOOL_CALLS]`), Llama 3.1 (`<|python_tag|>`), Llama 3.2 (Python's syntax), Granite (`<|tool_call|>`) and
Gemma (`tool_code`); Berkeley Function Calling Leaderboard (Patil et al. 2025); OpenAI's `tool_calls`
"""

import ast
import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from harness.metrics import Metric, counted_metric, fold_leaf
from harness.records import Example, Output, canonical_json, compose_letters
from harness.spec import Task

_TAGGED = re.compile(r"<tool_call>\s*(.*?)\s*(?:</tool_call>|\Z)", re.DOTALL)
_FENCE = re.compile(r"```(?:json|tool_call|tool_code|python)?\s*\n(.*?)\n?```", re.DOTALL)
_MARK = re.compile(r"(?:\[TOOL_CALLS\]|<\|python_tag\|>|<\|tool_call\|>)(.*)", re.DOTALL)
_FUNCTION = re.compile(r"<function=([\w.-]+)>(.*?)</function>", re.DOTALL)
_JSON = re.compile(r"\{|\[\s*\{")  # start of an object or of a list of objects
_PARAMETER = re.compile(r"<parameter=([\w.-]+)>\s*(.*?)\s*</parameter>", re.DOTALL)


def read_forms(text: str) -> list[Any]:
    """Return the values that may be calls, in order; empty if there are none."""
    parts = _TAGGED.findall(text) or _FENCE.findall(text) or _MARK.findall(text) or [text]
    return [value for part in parts for value in _read_tags(part) or _read_python(part) or _json_within(part)]


def _read_tags(part: str) -> list[dict[str, Any]]:
    calls = []
    for name, body in _FUNCTION.findall(part):
        arguments: dict[str, Any] = {}
        for key, written in _PARAMETER.findall(body):
            try:
                arguments[key] = json.loads(written)
            except ValueError:
                arguments[key] = written
        if not arguments and body.strip():
            arguments = json.loads(body)
        calls.append({"name": name, "arguments": arguments})
    return calls


def _read_python(part: str) -> list[Any]:
    """Read one call or a list of calls in Python's syntax with named arguments; empty for anything else."""
    try:
        body = ast.parse(part.strip(), mode="eval").body
        calls = body.elts if isinstance(body, ast.List) else [body]
        return [_read_call(call) for call in calls]
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return []


def _read_call(call: ast.expr) -> dict[str, Any]:
    if not isinstance(call, ast.Call) or call.args or any(one.arg is None for one in call.keywords):
        raise TypeError(ast.dump(call))
    arguments = {one.arg: ast.literal_eval(one.value) for one in call.keywords}
    return {"name": ast.unparse(call.func), "arguments": arguments}


def _json_within(part: str) -> Iterator[Any]:
    decoder, at = json.JSONDecoder(), 0
    while found := _JSON.search(part, at):
        try:
            value, at = decoder.raw_decode(part, found.start())
            yield value
        except (ValueError, RecursionError):
            at = found.start() + 1


_BEGINS = re.compile(r"<\|?tool_call\|?>|\[TOOL_CALLS\]|<\|python_tag\|>|<function=|[\"']name[\"']\s*:")


def metric(task: Task) -> Metric:
    """Build the share of answers in [0, 1] with the right calls."""
    return counted_metric("tool_call", _is_right, _read_calls)


def _is_right(output: Output, example: Example) -> float | None:
    wanted = [calls for reference in example.references if (calls := _read_calls(reference)) is not None]
    if not wanted:
        return None
    calls = _read_calls(output.text)
    if calls is not None or Counter() not in wanted:
        return float(calls in wanted)
    # No call is right where a text contains neither a call nor the beginning of one.
    text = output.text
    try:
        return float(bool(text.strip()) and not _BEGINS.search(text) and not read_forms(text))
    except (ValueError, TypeError, KeyError, RecursionError):
        return 0.0


def _read_calls(text: str) -> Counter[str] | None:
    """Count the calls of a text in normalised form; None if one is not a call."""
    # A call is `{"name": …, "arguments": {…}}`, or any form of `read_forms`; an empty list has no call.
    try:
        values = [json.loads(text)]
    except (ValueError, RecursionError):
        values = []
    try:
        values = values or read_forms(text)
        return Counter(map(_spell, _calls_of(values))) if values else None
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def _calls_of(value: Any) -> list[Any]:
    """List the calls of a value: one call, a list, or a message of OpenAI's API."""
    if isinstance(value, list):
        return [call for one in value for call in _calls_of(one)]
    if isinstance(value, dict) and "tool_calls" in value:
        return _calls_of(value["tool_calls"] or [])
    return [value]


def _spell(call: Any) -> str:
    called = call.get("function", call) if isinstance(call, dict) else call
    name, given = called["name"], called.get("arguments", called.get("parameters", {}))
    given = {} if given in (None, "") else given  # servers send this for functions without parameters
    arguments = json.loads(given) if isinstance(given, str) else given
    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise TypeError(name)
    return canonical_json([compose_letters(name), _fold(arguments)])


def _fold(value: Any) -> Any:
    if isinstance(value, dict):
        return {compose_letters(key): _fold(of) for key, of in value.items()}
    return [_fold(of) for of in value] if isinstance(value, list) else fold_leaf(value)
