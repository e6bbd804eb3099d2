"""Metrics of answers with a structure: JSON, its fields, calls of tools, and spans of a text.

Invariant: the order of keys never counts; 1 and 1.0 are equal, "1" is a text; texts are compared as by exact
match.
"""

import ast
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from harness.metrics import Array, Metric, Parts, mean_metric, normalize, refuse_constant, unfence_json
from harness.records import Example, Output, canonical_json, compose_letters


def _fold(value: Any, fold_key: Callable[[str], str]) -> Any:
    if isinstance(value, dict):
        return {fold_key(key): _fold(inner, fold_key) for key, inner in value.items()}
    if isinstance(value, list):
        return [_fold(inner, fold_key) for inner in value]
    if isinstance(value, str):
        return normalize(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _counted_metric(
    name: str, score: Callable[[Output, Example], float | None], count: Callable[[str], Counter[str] | None]
) -> Metric:
    """Build a mean metric of what `count` reads in texts; items without a readable reference are left out."""

    def reduce_to_counts(text: str) -> object:
        counts = count(text)
        return normalize(text) if counts is None else frozenset(counts.items())

    def is_read(example: Example) -> bool:
        return any(count(reference) is not None for reference in example.references)

    return replace(mean_metric(name, score), same=reduce_to_counts, reads=is_read)


class JsonValid:
    """Share of answers that are one JSON text and nothing else.

    What RFC 8259 does not allow (NaN, comments, a code fence around it) is not valid.
    Source: RFC 8259.
    """

    @staticmethod
    def _score(output: Output, example: Example) -> float:
        try:
            json.loads(output.text, parse_constant=refuse_constant)
        except (ValueError, RecursionError):
            return 0.0
        return 1.0

    metric = mean_metric("json_valid", _score)


def _fields(text: str) -> Counter[str] | None:
    try:
        return Counter(json.dumps(leaf) for leaf in _leaves(json.loads(unfence_json(text)), ()))
    except (ValueError, RecursionError):
        return None


def _leaves(value: Any, path: tuple[str | int, ...]) -> Iterator[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    if isinstance(value, (dict, list)) and value:
        for key, child in inner:
            yield from _leaves(child, (*path, compose_letters(key) if isinstance(key, str) else key))
    else:
        yield (*path, _fold(value, compose_letters))


class JsonFields:
    """F1 of the fields of a JSON answer against those of the nearest reference: path and value have to agree.

    The order of a list counts; keys are compared with their letter case. An answer that is not JSON has no
    field.
    Source: slot F1 of information extraction (Chinchor & Sundheim 1993, MUC-5), over a document's leaves.
    """

    @staticmethod
    def _score(output: Output, example: Example) -> float | None:
        references = [fields for fields in map(_fields, example.references) if fields is not None]
        if not references:
            return None
        answer = _fields(output.text)
        if answer is None:
            return 0.0
        return max(2 * (answer & ref).total() / (answer.total() + ref.total()) for ref in references)

    metric = _counted_metric("json_fields", _score, _fields)


_TAGGED = re.compile(r"<tool_call>\s*(.*?)\s*(?:</tool_call>|\Z)", re.DOTALL)
_FENCE = re.compile(r"```(?:json|tool_call|tool_code|python)?\s*\n(.*?)\n?```", re.DOTALL)
_MARK = re.compile(r"(?:\[TOOL_CALLS\]|<\|python_tag\|>|<\|tool_call\|>)(.*)", re.DOTALL)
_FUNCTION = re.compile(r"<function=([\w.-]+)>(.*?)</function>", re.DOTALL)
_JSON = re.compile(r"\{|\[\s*\{")  # start of an object or of a list of objects
_PARAMETER = re.compile(r"<parameter=([\w.-]+)>\s*(.*?)\s*</parameter>", re.DOTALL)
_BEGINS = re.compile(r"<\|?tool_call\|?>|\[TOOL_CALLS\]|<\|python_tag\|>|<function=|[\"']name[\"']\s*:")


def read_forms(text: str) -> list[Any]:
    """Return the values that may be calls, in order; empty if there are none."""
    texts = _TAGGED.findall(text) or _FENCE.findall(text) or _MARK.findall(text) or [text]
    return [value for t in texts for value in _read_tags(t) or _read_python(t) or _json_within(t)]


def _read_tags(call_text: str) -> list[dict[str, Any]]:
    calls = []
    for name, body in _FUNCTION.findall(call_text):
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


def _read_python(call_text: str) -> list[Any]:
    """Read one call or a list of calls in Python's syntax with named arguments; empty for anything else."""
    try:
        body = ast.parse(call_text.strip(), mode="eval").body
        return [_read_call(call) for call in (body.elts if isinstance(body, ast.List) else [body])]
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return []


def _read_call(call: ast.expr) -> dict[str, Any]:
    if not isinstance(call, ast.Call) or call.args or any(keyword.arg is None for keyword in call.keywords):
        raise TypeError(ast.dump(call))
    arguments = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
    return {"name": ast.unparse(call.func), "arguments": arguments}


def _json_within(call_text: str) -> Iterator[Any]:
    decoder, position = json.JSONDecoder(), 0
    while match := _JSON.search(call_text, position):
        try:
            value, position = decoder.raw_decode(call_text, match.start())
            yield value
        except (ValueError, RecursionError):
            position = match.start() + 1


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
        return [call for entry in value for call in _calls_of(entry)]
    if isinstance(value, dict) and "tool_calls" in value:
        return _calls_of(value["tool_calls"] or [])
    return [value]


def _spell(call: Any) -> str:
    function = call.get("function", call) if isinstance(call, dict) else call
    name, raw = function["name"], function.get("arguments", function.get("parameters", {}))
    raw = {} if raw in (None, "") else raw  # servers send this for functions without parameters
    arguments = json.loads(raw) if isinstance(raw, str) else raw
    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise TypeError(name)
    return canonical_json([compose_letters(name), _fold(arguments, compose_letters)])


class ToolCall:
    """Share of answers whose tool calls are those of a reference: the same functions with the same arguments.

    The order of calls and the text around them never count; an incomplete form is not a call, and names are
    case-sensitive. If the reference is `[]`, an answer in words is right, and one with an unfinished call is
    wrong.
    Source: the chat templates of Hermes and Qwen (`<tool_call>`), Qwen3-Coder (`<function=…>`), Mistral
    (`[TOOL_CALLS]`), Llama 3.1 (`<|python_tag|>`), Llama 3.2 (Python's syntax), Granite (`<|tool_call|>`) and
    Gemma (`tool_code`); Berkeley Function Calling Leaderboard (Patil et al. 2025); OpenAI's `tool_calls`
    """

    @staticmethod
    def _score(output: Output, example: Example) -> float | None:
        references = [calls for calls in map(_read_calls, example.references) if calls is not None]
        if not references:
            return None
        calls = _read_calls(output.text)
        if calls is not None or Counter() not in references:
            return float(calls in references)
        # No call is right where a text contains neither a call nor the beginning of one.
        text = output.text
        try:
            return float(bool(text.strip()) and not _BEGINS.search(text) and not read_forms(text))
        except (ValueError, TypeError, KeyError, RecursionError):
            return 0.0

    metric = _counted_metric("tool_call", _score, _read_calls)


_ANY_FENCE = re.compile(r"^```\w*\s*\n(.*?)\n?```$", re.DOTALL)


def read_spans(text: str) -> Counter[str]:
    """Count the spans that an answer or a reference names."""
    fenced = _ANY_FENCE.match(text.strip())
    inner = fenced[1] if fenced else text
    try:
        value = json.loads(inner)
        if isinstance(value, dict) and value and all(isinstance(spans, list) for spans in value.values()):
            folded = _fold([[key, span] for key, spans in value.items() for span in spans], normalize)
        else:
            spans = value if isinstance(value, list) else [value] if value else []
            folded = _fold(spans, normalize)
        return Counter(json.dumps(span, sort_keys=True) for span in folded)
    except (ValueError, RecursionError):
        return Counter(filter(None, map(normalize, re.split(r"[\n;]", inner))))


def _span_f1(parts: Array, weights: Array) -> Array:
    sums = weights @ parts
    right, wrong, missed = sums[..., 0], sums[..., 1], sums[..., 2]
    whole = 2 * right + wrong + missed
    return np.where(whole > 0, 2 * right / np.where(whole > 0, whole, 1.0), 1.0)


class SpanF1:
    """Micro-F1 of the spans that an answer names, such as entities: all fields of a span must match.

    The order of spans never counts, their number does; without any span on either side it is 1. Spans are the
    elements of a JSON list, the values of a JSON object's lists with their key, or the lines of a text
    (`PER: Anna`).
    Source: entity-level F1 over a corpus, Tjong Kim Sang & De Meulder 2003 (CoNLL-2003).
    """

    @staticmethod
    def _score(output: Output, example: Example) -> Parts | None:
        answer = read_spans(output.text)
        counts: list[Parts] = []
        for expected in map(read_spans, example.references):
            right = (answer & expected).total()
            counts.append((float(right), float(answer.total() - right), float(expected.total() - right)))
        return max(counts, key=lambda parts: float(_span_f1(np.array([parts]), np.ones(1))), default=None)

    @staticmethod
    def _worst(example: Example) -> Parts:
        return 0.0, 0.0, float(max((read_spans(r).total() for r in example.references), default=0) or 1)

    metric = replace(
        Metric(*("span_f1", True, (0.0, 1.0), ("right", "wrong", "missed")), _score, _span_f1, _worst),
        same=lambda text: frozenset(read_spans(text).items()),
    )


PLUGINS = {"json_valid": JsonValid, "json_fields": JsonFields, "tool_call": ToolCall, "span_f1": SpanF1}
