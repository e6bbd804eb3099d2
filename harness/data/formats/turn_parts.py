"""Parts of turns as texts, calls of tools and what these returned among them, as chat APIs write them.

Invariant: a part is shown, or named as not used, or its turn is refused; none is left out in silence.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import date, time
from decimal import Decimal
from typing import Any, NamedTuple

from harness.data.formats.ratings import MEND_ROW
from harness.errors import Problem, UserError
from harness.records import parse_json

TAG_NAMES = "names of tags, such as B-PER and O"
ONLY_TEXT = "turns of text alone, for only text is read"
WITHOUT_PARTS = "write what such a part shows as text, or leave the rows out, as harness data clean does"
# Kinds of parts, by their `type`, or by the one key that Gemini's parts have in its place.
_TEXTS = ("text", "input_text", "output_text", "refusal")
_CALLS = ("tool_use", "tool_call", "function_call", "functionCall")
_RESULTS = ("tool_result", "tool_response", "function_call_output", "functionResponse", "function_response")
_THOUGHTS = ("thinking", "redacted_thinking", "reasoning", "thought")
_MEDIA = ("image", "image_url", "audio", "video", "inlineData", "inline_data", "fileData", "file_data")
_KINDS = (*_TEXTS, *_CALLS, *_RESULTS, *_MEDIA)
_RETURNED = ("content", "output", "result", "response")
_ARGUMENTS = ("arguments", "parameters", "args", "input")
IDS = frozenset({"id", "type", "index", "call_id", "tool_call_id", "tool_use_id", "message_id"})


class Place(NamedTuple):
    """Place of a turn: its row, and who speaks."""

    where: str
    speaker: str


class Content(NamedTuple):
    """Texts of a turn in their order, and the keys of its parts that are not used."""

    texts: Sequence[str] = ()
    unused: Sequence[str] = ()


def drop_empty(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out keys without a value: a table gives each turn the keys of all the others."""
    return {key: value for key, value in entry.items() if value is not None and value not in ("", [], {})}


def read_content(value: Any, place: Place) -> Content:
    """Read a text, a part, or a list of either.

    Raises:
        UserError: a part is no text, as an image is none, or of an unknown form.
    """
    return _join([_read_part(part, place) for part in (value if isinstance(value, list) else [value])])


def read_result(value: Any, place: Place) -> Content:
    """Read what a tool returned: as any turn is read, and other values as their JSON."""
    parts = value if isinstance(value, list) else [value]
    are_parts = all(part is None or isinstance(part, str) or _kind_of(part) for part in parts)
    return read_content(value, place) if are_parts else Content([write_json(value)])


def read_calls(value: Any, key: str, place: Place) -> Content:
    """Read a call, or a list of calls, each also as JSON within a text.

    Raises:
        UserError: one of them is no call.
    """
    read = [_read_call(call) for call in _list_calls(value)]
    if not all(read):
        expected = "calls of tools with a name and arguments, also as JSON within a text"
        raise UserError(Problem(place.where, f"{key!r} of another form", expected, MEND_ROW))
    found = _join(filter(None, read))
    return found._replace(unused=[f"{key}.{name}" for name in found.unused])


def spell_calls(value: Any) -> Any:
    """Write one call, or a list of calls, as JSON, one a line; no call as `[]`, another value as it is."""
    if value == []:
        return "[]"
    read = [_read_call(call) for call in _list_calls(value)]
    return "\n".join(text for found in read if found for text in found.texts) if read and all(read) else value


def _list_calls(value: Any) -> list[Any]:
    """List calls, or what stands in their place; JSON within a text is parsed."""
    parsed = _parse(value)
    if isinstance(parsed, list):
        return [_parse(call) for call in parsed]
    return [] if parsed is None else [parsed]


def _read_call(call: Any) -> Content | None:
    """Write a call as JSON, in the form of our own; None of what is not a call.

    A call stands by itself, or within the key `function`, as OpenAI's files have it.
    """
    if not isinstance(call, Mapping):
        return None
    around = {key: _parse(value) if key == "function" else value for key, value in drop_empty(call).items()}
    within = next((key for key in ("function", *_CALLS) if isinstance(around.get(key), Mapping)), None)
    inner = around.pop(within) if within else around
    name = inner.get("name") or inner.get("function")
    if not isinstance(name, str):
        return None
    own = call if within is None else inner
    given = next((key for key in _ARGUMENTS if own.get(key) is not None), "arguments")
    unused = {*around, *drop_empty(inner)} - {"name", "function", given} - IDS
    return Content([write_json({"name": name, "arguments": _parse(own.get(given))})], sorted(unused))


def _read_part(part: Any, place: Place) -> Content:
    if part is None or isinstance(part, str):
        return Content([part] if part else [])
    kind, known = _kind_of(part), drop_empty(part) if isinstance(part, Mapping) else {}
    if isinstance(part, Mapping) and not known:
        return Content()
    if not kind:
        expected = "texts, calls of tools, and what these returned"
        found = f"a turn of {place.speaker!r} with a part of another form"
        raise UserError(Problem(place.where, found, expected, MEND_ROW))
    if kind in _THOUGHTS or known.get("thought") is True:
        return Content([], [kind if kind in _THOUGHTS else "thought"])
    within = known.get(kind)
    inner = drop_empty(within) if isinstance(within, Mapping) else known
    around = {} if inner is known else known
    if kind in _CALLS:
        read, used = read_calls([inner], kind, place), {*inner}
    elif kind in _RESULTS:
        key = next((key for key in _RETURNED if key in inner), "")
        read, used = read_result(inner.get(key), place), {key}
    elif kind in _TEXTS and isinstance(text := known.get("text", known.get("content", within)), str):
        read, used = Content([text]), {"text", "content"}
    else:
        what = "an image part" if "image" in kind else "a part that is not text"
        found = f"{what} ({kind}) in a turn of {place.speaker!r}"
        raise UserError(Problem(place.where, found, ONLY_TEXT, WITHOUT_PARTS))
    unused = {*around, *inner} - {kind, *used} - IDS
    return read._replace(unused=[*read.unused, *(f"{kind}.{key}" for key in sorted(unused))])


def _kind_of(part: Any) -> str:
    """Name the kind of a part; empty of what is not a part."""
    if not isinstance(part, Mapping):
        return ""
    named = part.get("type")
    return (
        named if isinstance(named, str) else next((kind for kind in _KINDS if kind in drop_empty(part)), "")
    )


def _join(read: Any) -> Content:
    every = list(read)
    return Content([t for of in every for t in of.texts], [key for of in every for key in of.unused])


def _parse(value: Any) -> Any:
    """Read JSON within a text; another text, or value, as it is."""
    try:
        return parse_json(value) if isinstance(value, str) else value
    except ValueError:
        return value


def write_json(value: Any) -> str:
    """Write a value as JSON; decimals as numbers, dates and times by ISO 8601, as tables hold them."""
    return json.dumps(value, ensure_ascii=False, default=_write_cell)


def _write_cell(value: Any) -> Any:
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    return text_of_cell(value) or f"<{type(value).__name__}>"


def text_of_cell(value: Any) -> str | None:
    """Write a number, a decimal, a date or a time as a text; None of another value."""
    if isinstance(value, date | time):
        return value.isoformat()
    return str(value) if isinstance(value, str | int | float | Decimal) else None
