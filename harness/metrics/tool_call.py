"""Share of answers whose tool calls are those of a reference: the same functions with the same arguments.

Invariant: the order of calls, the order of keys and the text around the calls never count; a call too many
is as wrong as one too few. 1 and 1.0 are one number, and "1" is a text; texts are
compared as by exact match, names with their letter case. Where the reference is no call, `[]`,
an answer in words alone is right, and one that begins a call and does not end it is wrong.
Source: matching of calls by their syntax tree, Berkeley Function Calling Leaderboard (Patil et al. 2025);
`function` as in OpenAI's API.
"""

import json
import re
from collections import Counter
from dataclasses import replace
from typing import Any

from harness.metrics import Metric, mean_metric, normalize
from harness.metrics._json_values import fold_leaf
from harness.metrics._tool_call_forms import read_forms
from harness.records import Example, Output, canonical_json, compose_letters
from harness.spec import Task

_BEGINS = re.compile(r"<\|?tool_call\|?>|\[TOOL_CALLS\]|<\|python_tag\|>|<function=|[\"']name[\"']\s*:")


def metric(task: Task) -> Metric:
    """Build the share of answers in [0, 1] with the right calls."""
    return replace(mean_metric("tool_call", _is_right), same=_reduce_to_calls, reads=_is_read)


def _is_read(example: Example) -> bool:
    return any(_read_calls(reference) is not None for reference in example.references)


def _reduce_to_calls(text: str) -> object:
    """Return what equal answers share: their calls, or of what is not a call its words."""
    calls = _read_calls(text)
    return normalize(text) if calls is None else frozenset(calls.items())


def _is_right(output: Output, example: Example) -> float | None:
    wanted = [calls for reference in example.references if (calls := _read_calls(reference)) is not None]
    if not wanted:
        return None
    calls = _read_calls(output.text)
    if calls is None and Counter() in wanted:
        return float(_is_in_words(output.text))
    return float(calls in wanted)


def _is_in_words(text: str) -> bool:
    """Tell whether a text holds nothing that is a call, or begins one."""
    try:
        return bool(text.strip()) and not _BEGINS.search(text) and not read_forms(text)
    except (ValueError, TypeError, KeyError, RecursionError):
        return False


def _read_calls(text: str) -> Counter[str] | None:
    """Count the calls of a text, each as name and arguments in one spelling; None where one is no call."""
    # A call is `{"name": …, "arguments": {…}}`, or whatever `_tool_call_forms` reads; an empty list has none.
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
    """List the calls of a value: one, a list, or a message of OpenAI's API."""
    if isinstance(value, list):
        return [call for one in value for call in _calls_of(one)]
    if isinstance(value, dict) and "tool_calls" in value:
        return _calls_of(value["tool_calls"] or [])
    return [value]


def _spell(call: Any) -> str:
    """Spell a call in one way."""
    called = call.get("function", call) if isinstance(call, dict) else call
    name, given = called["name"], called.get("arguments", called.get("parameters", {}))
    given = {} if given in (None, "") else given  # as servers send them where a function has no parameters
    arguments = json.loads(given) if isinstance(given, str) else given
    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise TypeError(name)
    return canonical_json([compose_letters(name), _fold(arguments)])


def _fold(value: Any) -> Any:
    """Write texts and numbers in one way, in all of a value."""
    if isinstance(value, dict):
        return {compose_letters(key): _fold(of) for key, of in value.items()}
    return [_fold(of) for of in value] if isinstance(value, list) else fold_leaf(value)
