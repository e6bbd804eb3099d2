"""Turns of a conversation in the forms of other tools, with calls of tools and their results, as messages.

Definitions of tools in a row become a text of its system message, and calls are JSON: chat templates write
both in forms of their own or leave them out, so one form serves every base and all candidates.

Invariant: a part is shown, or reported as not used, or its turn is refused.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from harness.data.text_files import Row, find_known_fields, is_plain, read_flag, text_of_cell, write_json
from harness.errors import UserError
from harness.records import Message, parse_json
from harness.spec import Fields

TAG_NAMES = "names of tags, such as B-PER and O"
ONLY_TEXT = "turns of text alone, for only text is read"
WITHOUT_PARTS = "write what such a part shows as text, or leave the rows out, as harness data clean does"
# Kinds of parts, by their `type`, or by the one key that Gemini's parts have in its place.
_TEXTS = ("text", "input_text", "output_text", "refusal")
FIX_ROW = "fix the row, or set invalid_rows: drop in data: of the task"
_CALLS = ("tool_use", "tool_call", "function_call", "functionCall")
_RESULTS = ("tool_result", "tool_response", "function_call_output", "functionResponse", "function_response")
_THOUGHTS = ("thinking", "redacted_thinking", "reasoning", "thought")
_MEDIA = ("image", "image_url", "audio", "video", "inlineData", "inline_data", "fileData", "file_data")
_KINDS = (*_TEXTS, *_CALLS, *_RESULTS, *_MEDIA)
_RETURNED = ("content", "output", "result", "response")
_ARGUMENTS = ("arguments", "parameters", "args", "input")
IDS = frozenset({"id", "type", "index", "call_id", "tool_call_id", "tool_use_id", "message_id"})


class Place(NamedTuple):
    """Place of a turn: its row and its speaker."""

    where: str
    speaker: str


class Content(NamedTuple):
    """Texts of a turn in their order, and the keys of its parts that are not used."""

    texts: Sequence[str] = ()
    unused: Sequence[str] = ()


def drop_empty(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Drop keys without a value: a table gives each turn the keys of all others."""
    return {key: value for key, value in entry.items() if value is not None and value not in ("", [], {})}


def read_content(value: Any, place: Place) -> Content:
    """Read a text, a part, or a list of them; an image or another unknown part is refused."""
    return _join([_read_part(part, place) for part in (value if isinstance(value, list) else [value])])


def read_result(value: Any, place: Place) -> Content:
    """Read a tool's result: as a turn, or else as JSON."""
    parts = value if isinstance(value, list) else [value]
    are_parts = all(part is None or isinstance(part, str) or _kind_of(part) for part in parts)
    return read_content(value, place) if are_parts else Content([write_json(value)])


def read_calls(value: Any, key: str, place: Place) -> Content:
    """Read a call, or a list of calls, each also as JSON within a text; other values are refused."""
    calls = [_read_call(call) for call in _list_calls(value)]
    if not all(calls):
        expected = "calls of tools with a name and arguments, also as JSON within a text"
        raise UserError(place.where, f"{key!r} of another form", expected, FIX_ROW)
    content = _join([call for call in calls if call])
    return Content(content.texts, [f"{key}.{name}" for name in content.unused])


def spell_calls(value: Any) -> Any:
    """Write calls as JSON, one a line, and an empty list as `[]`; return other values unchanged."""
    if value == []:
        return "[]"
    parsed_calls = _list_calls(value)
    calls = [call for call in map(_read_call, parsed_calls) if call]
    is_calls = parsed_calls and len(calls) == len(parsed_calls)
    return "\n".join(text for call in calls for text in call.texts) if is_calls else value


def _list_calls(value: Any) -> list[Any]:
    """List calls, or values in their place; JSON within a text is parsed."""
    parsed = _parse(value)
    if isinstance(parsed, list):
        return [_parse(call) for call in parsed]
    return [] if parsed is None else [parsed]


def _read_call(call: Any) -> Content | None:
    """Write a call as JSON; None for another value. OpenAI's files nest it under the key `function`."""
    if not isinstance(call, Mapping):
        return None
    outer = {key: _parse(value) if key == "function" else value for key, value in drop_empty(call).items()}
    inner_key = next((key for key in ("function", *_CALLS) if isinstance(outer.get(key), Mapping)), None)
    inner = outer.pop(inner_key) if inner_key else outer
    name = inner.get("name") or inner.get("function")
    if not isinstance(name, str):
        return None
    holder = call if inner_key is None else inner
    args_key = next((key for key in _ARGUMENTS if holder.get(key) is not None), "arguments")
    unused = {*outer, *drop_empty(inner)} - {"name", "function", args_key} - IDS
    return Content([write_json({"name": name, "arguments": _parse(holder.get(args_key))})], sorted(unused))


def _read_part(part: Any, place: Place) -> Content:
    if part is None or isinstance(part, str):
        return Content([part] if part else [])
    kind, filled = _kind_of(part), drop_empty(part) if isinstance(part, Mapping) else {}
    if isinstance(part, Mapping) and not filled:
        return Content()
    if not kind:
        expected = "texts, calls of tools, and what these returned"
        found = f"a turn of {place.speaker!r} with a part of another form"
        raise UserError(place.where, found, expected, FIX_ROW)
    if kind in _THOUGHTS or filled.get("thought") is True:
        return Content([], [kind if kind in _THOUGHTS else "thought"])
    inner_value = filled.get(kind)
    inner = drop_empty(inner_value) if isinstance(inner_value, Mapping) else filled
    outer = {} if inner is filled else filled
    if kind in _CALLS:
        content, used_keys = read_calls([inner], kind, place), {*inner}
    elif kind in _RESULTS:
        key = next((key for key in _RETURNED if key in inner), "")
        content, used_keys = read_result(inner.get(key), place), {key}
    elif kind in _TEXTS and isinstance(text := filled.get("text", filled.get("content", inner_value)), str):
        content, used_keys = Content([text]), {"text", "content"}
    else:
        description = "an image part" if "image" in kind else "a part that is not text"
        found = f"{description} ({kind}) in a turn of {place.speaker!r}"
        raise UserError(place.where, found, ONLY_TEXT, WITHOUT_PARTS)
    unused = {*outer, *inner} - {kind, *used_keys} - IDS
    return content._replace(unused=[*content.unused, *(f"{kind}.{key}" for key in sorted(unused))])


def _kind_of(part: Any) -> str:
    if not isinstance(part, Mapping):
        return ""
    if isinstance(part_type := part.get("type"), str):
        return part_type
    return next((kind for kind in _KINDS if kind in drop_empty(part)), "")


def _join(contents: Sequence[Content]) -> Content:
    texts = [text for content in contents for text in content.texts]
    return Content(texts, [key for content in contents for key in content.unused])


def _parse(value: Any) -> Any:
    try:
        return parse_json(value) if isinstance(value, str) else value
    except ValueError:
        return value


Turns = list[Message]
SYSTEMS, HISTORY = ("system", "system_prompt"), "history"
# Fields that are not plain text.
LISTS = {
    *("messages", "conversations", "completions", "choices", "options", "endings", "questions"),
    *("tokens", "words"),
}
_TOOLS = ("tool", "function", "observation", "tool_response")  # their results are turns of the user
_CALLING_SPEAKERS = ("function_call", "tool_call")  # calls as JSON, of LLaMA-Factory and ms-swift
_ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter", *_TOOLS), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bot", "model", *_CALLING_SPEAKERS), "assistant"),
}
_SPEAKERS, _SAID = ("role", "from", "speaker"), ("content", "value", "text", "parts")
_TRAINED = ("weight", "train", "training", "loss")  # OpenAI's, axolotl's and ms-swift's
MEDIA = ("image", "images", "audio", "audios", "video", "videos")
SHOWS_MEDIA = re.compile(r"<(image|audio|video)>")


class Turn(NamedTuple):
    """A turn as it is shown, whether its answer may be trained on, and its unused keys."""

    speaker: str
    role: str
    text: str
    is_trained: bool = True
    unused: Sequence[str] = ()


def read_turn(entry: Mapping[str, Any], where: str = "") -> Turn:
    """Read a turn, its calls of tools as JSON after its text; one that is empty or not text is refused."""
    filled = drop_empty(entry)
    speaker = str(next((filled[key] for key in _SPEAKERS if key in filled), None))
    place, role = Place(where, speaker), _ROLES.get(speaker.lower())
    if role is None:
        raise _misfit(where, f"a turn of {speaker!r}")
    if media := next((key for key in (*MEDIA, "file", "files", "attachments") if key in filled), None):
        raise UserError(where, f"{media} in a turn of {speaker!r}", ONLY_TEXT, WITHOUT_PARTS)
    key = next((key for key in _SAID if entry.get(key) is not None), "content")
    value, is_result = entry.get(key), speaker.lower() in _TOOLS
    if speaker.lower() in _CALLING_SPEAKERS and isinstance(calls_as_text := spell_calls(value), str):
        content = Content([calls_as_text])
    else:
        content = read_result(value, place) if is_result else read_content(value, place)
    refusal = [filled["refusal"]] if isinstance(filled.get("refusal"), str) else []
    calls = _join([read_calls(filled[k], k, place) for k in ("tool_calls", "function_call") if k in filled])
    texts = [*content.texts, *refusal, *calls.texts]
    flags = {flag: read_flag(filled[flag]) for flag in _TRAINED if flag in filled}
    used_keys = {*_SPEAKERS, key, "tool_calls", "function_call", "refusal", *IDS}
    used_keys |= {flag for flag, is_on in flags.items() if is_on is not None}
    unused = [*content.unused, *calls.unused, *(k for k in filled if k not in used_keys)]
    if not texts and (not isinstance(entry.get(key), str) or (unused and role == "assistant")):
        suffix = f", but with {unused[0]}" if unused else ""
        raise _misfit(where, f"a turn of {speaker!r} without text{suffix}")
    return Turn(speaker.lower(), role, "\n".join(texts), False not in flags.values(), unused)


def _misfit(where: str, found: str) -> UserError:
    return UserError(where, found, "turns of system, user and assistant, with text", FIX_ROW)


def read_leniently(entry: Any) -> Turn | None:
    """Read a turn; None if it cannot be read."""
    if not isinstance(entry, Mapping) or not {*_SPEAKERS} & entry.keys():
        return None
    try:
        return read_turn(entry)
    except UserError:
        return None


def is_conversation(value: Any) -> bool:
    """Tell whether a value is a list of turns that end with an answer of the assistant."""
    turns = [read_leniently(entry) for entry in value] if isinstance(value, list) else []
    return len(turns) > 1 and all(turns) and turns[-1] is not None and turns[-1].role == "assistant"


def answer_places(entries: Sequence[Any]) -> list[int]:
    """Return the places of the assistant's turns that can be trained on."""
    turns = enumerate(map(read_leniently, entries))
    return [i for i, t in turns if i and t and t.role == "assistant" and t.is_trained and t.text.strip()]


def count_unused_keys(fields: Mapping[str, Any]) -> Counter[str]:
    """Count the turns of a row that have each unused key."""
    counts = Counter[str]()
    for value in fields.values():
        if isinstance(value, Mapping) and not {*_SPEAKERS} & value.keys():
            counts.update(count_unused_keys({k: v for k, v in value.items() if isinstance(v, list)}))
        for entry in value if isinstance(value, list) else [value]:
            is_plain = isinstance(entry, Mapping) and {*map(type, entry.values())} == {str}
            if not (is_plain and entry.keys() == {"role", "content"}) and (turn := read_leniently(entry)):
                counts.update({*turn.unused})
    return counts


def user_turns(text: str, row: Row) -> Turns:
    """Return a question, if not empty, as the user's turn after the row's system prompt and history."""
    if not text.strip():
        raise UserError(row.where, "an empty question", "a text", FIX_ROW)
    return add_system([*list_history(row), {"role": "user", "content": text}], row)


def add_system(turns: Turns, row: Row, template: str = Fields().prompt) -> Turns:
    """Put the row's system prompt before its turns, unless they contain it."""
    name = next((name for name in list_systems(template) if row.fields.get(name)), None)
    if name is None:
        return turns
    texts = read_content(row.fields[name], Place(row.where, name)).texts
    system, current = "\n".join(texts), next((t["content"] for t in turns[:1] if t["role"] == "system"), None)
    if not system.strip() or (current is not None and system.strip() in current):
        return turns
    joined = "\n\n".join(filter(None, (system, current)))
    return [{"role": "system", "content": joined}, *turns[current is not None :]]


def list_systems(template: str) -> list[str]:
    """List the columns of system prompts outside a template; for a user's template only `system_prompt`."""
    is_own = template == Fields().prompt or "{messages}" in template
    names = SYSTEMS if is_own else ("system_prompt",)
    return [name for name in names if f"{{{name}}}" not in template]


def list_history(row: Row) -> Turns:
    """List the turns before a question in LLaMA-Factory's `history`; none if it has another form."""
    value = row.fields.get(HISTORY)
    entries = value if isinstance(value, list) else []
    if entries and all(map(read_leniently, entries)):
        return read_turns(row, HISTORY)
    if not all(isinstance(e, list) and len(e) == 2 and all(isinstance(t, str) for t in e) for e in entries):
        return []
    texts = [text for entry in entries for text in entry]
    return [{"role": "assistant" if i % 2 else "user", "content": text} for i, text in enumerate(texts)]


def read_text(row: Row, field: str) -> str:
    """Return the text or number of a field; an empty one or one of another type is refused."""
    value = text_of_cell(row.fields[field])
    if value is None or not value.strip():
        kind = type(row.fields[field]).__name__
        found = f"an empty {field!r}" if value is not None else f"a {kind} in {field!r}"
        raise UserError(row.where, found, "a text", FIX_ROW)
    return value.strip()


def read_turns(row: Row, field: str) -> Turns:
    """Read turns of role and content, or of from and value."""
    entries = row.fields[field]
    expected = f"a list of {{role, content}} or {{from, value}} in {field!r}"
    if isinstance(entries, str) and not is_plain(entries):
        step = "write the rows as JSON Lines, with the list itself in the field"
        raise UserError(row.where, f"a list within a text in {field!r}", expected, step)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise UserError(row.where, f"{field!r} of another form", expected, FIX_ROW)
    turns: Turns = []
    previous = ""
    for i, entry in enumerate(entries, start=1):
        turn = read_turn(entry, row.where)
        content = turn.text
        if turn.role == "assistant" and not content.strip() and i < len(entries):
            raise _misfit(row.where, f"a turn of {turn.speaker!r} without text, and turns behind it")
        if turn.speaker in _TOOLS and previous == turn.speaker:
            content = f"{turns.pop()['content']}\n{content}"  # results of several calls
        turns.append({"role": turn.role, "content": content})
        previous = turn.speaker
    return turns


def text_of(value: Any) -> str:
    """Write a value as a prompt shows it: a list line by line, `speaker: text`, other objects as JSON."""
    if isinstance(value, dict) and len(value) == 2 and (names := {*_SPEAKERS} & value.keys()):
        speaker = names.pop()
        text = next(text for name, text in value.items() if name != speaker)
        return f"{value[speaker]}: {text}"
    if isinstance(value, list):
        return "\n".join(map(text_of, value))
    if isinstance(value, str):
        return value
    return write_json(value) if isinstance(value, dict | bool) else text_of_cell(value) or write_json(value)


def find_fields(row: Row) -> set[str]:
    """Return the names of the fields with a value, without plain texts in place of a layout's list."""
    return {name for name in find_known_fields(row) if name not in LISTS or not is_plain(row.fields[name])}


TOOL_FIELDS = ("functions", "tools")
TOOL_USE = (
    "You can call these tools. A call is a line of JSON: "
    '{"name": the name of the tool, "arguments": {the name of an argument: its value}}.'
)
_EXPECTED = 'tools as {"type": "function", "function": {name, description, parameters}}, or its function'
_FIX_TOOLS = f"{FIX_ROW}, or rename the column"
_SCHEMAS = ("parameters", "input_schema", "inputSchema")  # of OpenAI, Anthropic and MCP
_LISTED = ("functionDeclarations", "function_declarations")  # Gemini's
_DEFINES = re.compile(rf"\s*[\[{{].*[\"'](?:function|{'|'.join((*_SCHEMAS, *_LISTED))})[\"']", re.DOTALL)


def add_tools(messages: tuple[Message, ...], row: Row) -> tuple[Message, ...]:
    """Return a row's messages with its tools at the end of the system message, unless it has them."""
    tools = list_tools(row)
    system_text = messages[0]["content"] if messages and messages[0]["role"] == "system" else None

    def is_named(tool: Mapping[str, Any]) -> bool:  # in quotes, with its description
        is_quoted = any(f"{quote}{tool['name']}{quote}" in (system_text or "") for quote in "\"'")
        return is_quoted and str(tool.get("description") or "") in (system_text or "")

    if all(map(is_named, tools)):
        return messages
    text = "\n".join([TOOL_USE, *(json.dumps(tool, ensure_ascii=False) for tool in tools)])
    other_messages = messages if system_text is None else messages[1:]
    return ({"role": "system", "content": "\n\n".join(filter(None, (system_text, text)))}, *other_messages)


def list_tools(row: Row) -> list[Mapping[str, Any]]:
    """List the functions that a row defines as tools, each once; unreadable definitions are refused."""
    functions: list[Mapping[str, Any]] = []
    for field in TOOL_FIELDS:
        value = _parse_field(row, field, row.fields.get(field))
        entries = value if isinstance(value, list) else [value]
        tools = [tool for tool in (_parse_field(row, field, entry) for entry in entries) if _drop_nulls(tool)]
        per_tool = [[*_list_functions(tool)] for tool in tools]
        for tool, tool_functions in zip(tools, per_tool, strict=True) if any(per_tool) else ():
            filled_tool = _drop_nulls(tool)
            is_named = isinstance(filled_tool, Mapping) and isinstance(filled_tool.get("name"), str)
            # A function without arguments may have a name and a description only.
            if not tool_functions and not (is_named and filled_tool.keys() <= {"name", "description"}):
                shown_tool = json.dumps(tool, ensure_ascii=False)[:80]
                found = f"{shown_tool} among the tools in {field!r}"
                raise UserError(row.where, found, _EXPECTED, _FIX_TOOLS)
            functions += tool_functions or [filled_tool]
    return [tool for i, tool in enumerate(functions) if tool not in functions[:i]]


def _parse_field(row: Row, field: str, value: Any) -> Any:
    """Parse JSON within a text; refuse a text that defines functions and is not JSON."""
    if not isinstance(value, str):
        return value
    try:
        return parse_json(value)
    except ValueError:
        if _DEFINES.match(value):
            found = f"definitions that are not JSON in {field!r}"
            raise UserError(row.where, found, _EXPECTED, _FIX_TOOLS) from None
        return None


def _list_functions(tool: Any) -> Iterator[Mapping[str, Any]]:
    """Yield the functions of a tool without empty keys, their schema as `parameters`."""
    if not isinstance(tool, Mapping):
        return
    declarations = next((tool[key] for key in _LISTED if isinstance(tool.get(key), list)), None)
    if declarations is not None:
        for function in declarations:
            yield from _list_functions({"function": function})
        return
    is_nested = isinstance(tool.get("function"), Mapping)
    function = tool["function"] if is_nested else tool
    is_function = is_nested or tool.get("type") == "function" or any(key in tool for key in _SCHEMAS)
    if is_function and isinstance(function.get("name"), str):
        yield {
            "parameters" if key in _SCHEMAS else key: value
            for key, value in _drop_nulls(function).items()
            if is_nested or key != "type"
        }


def _drop_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _drop_nulls(inner) for key, inner in value.items() if inner is not None}
    return [_drop_nulls(inner) for inner in value] if isinstance(value, list) else value
