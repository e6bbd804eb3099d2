"""Tools that a row defines (`tools`, or OpenAI's former `functions`), as a text of its system message.

Chat templates write definitions in forms of their own, or leave them out, while calls are read as JSON here.
So one form serves every base, says how a call is written, and is the same for all candidates.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from harness.data.text_files import Row
from harness.data.turns import MEND_ROW
from harness.errors import Problem, UserError
from harness.records import Message, parse_json

TOOL_FIELDS = ("functions", "tools")
_HOW = (
    "You can call these tools. A call is a line of JSON: "
    '{"name": the name of the tool, "arguments": {the name of an argument: its value}}.'
)
_EXPECTED = 'tools as {"type": "function", "function": {name, description, parameters}}, or its function'
_SCHEMAS = ("parameters", "input_schema", "inputSchema")  # of OpenAI, Anthropic and MCP
_LISTS = ("functionDeclarations", "function_declarations")  # Gemini's
_DEFINES = re.compile(rf"\s*[\[{{].*[\"'](?:function|{'|'.join((*_SCHEMAS, *_LISTS))})[\"']", re.DOTALL)


def add_tools(messages: tuple[Message, ...], row: Row) -> tuple[Message, ...]:
    """Return a row's messages with the tools that it defines at the end of their system message.

    A system message that holds them already stays as it is.

    Raises:
        UserError: what defines the row's tools cannot be read, or some of them are no definitions.
    """
    tools = list_tools(row)
    own = messages[0]["content"] if messages and messages[0]["role"] == "system" else None

    def is_named(tool: Mapping[str, Any]) -> bool:  # as a definition does: in quotes, with its description
        name, description = tool["name"], tool.get("description") or ""
        is_quoted = any(f"{sign}{name}{sign}" in (own or "") for sign in "\"'")
        return is_quoted and str(description) in (own or "")

    if all(map(is_named, tools)):
        return messages
    text = "\n".join([_HOW, *(json.dumps(tool, ensure_ascii=False) for tool in tools)])
    rest = messages if own is None else messages[1:]
    return ({"role": "system", "content": "\n\n".join(filter(None, (own, text)))}, *rest)


def list_tools(row: Row) -> list[Mapping[str, Any]]:
    """List the functions that a row defines as tools, each once; none where a column is only named so.

    Raises:
        UserError: they cannot be read, or some are no definitions.
    """
    found: list[Mapping[str, Any]] = []
    for field in TOOL_FIELDS:
        value = _parse(row, field, row.fields.get(field))
        entries = (_parse(row, field, entry) for entry in (value if isinstance(value, list) else [value]))
        tools = [tool for tool in entries if _drop_nulls(tool)]
        read = [[*_functions(tool)] for tool in tools]
        for tool, functions in zip(tools, read, strict=True) if any(read) else ():
            # A function without arguments, of which nothing but this is said, is one too.
            known = _drop_nulls(tool)
            is_named = isinstance(known, Mapping) and isinstance(known.get("name"), str)
            if not functions and not (is_named and known.keys() <= {"name", "description"}):
                shown = json.dumps(tool, ensure_ascii=False)[:80]
                raise _phrase_unreadable(row, f"{shown} among the tools in {field!r}")
            found += functions or [known]
    return [tool for i, tool in enumerate(found) if tool not in found[:i]]


def defines_tools_alone(system: str) -> bool:
    """Tell whether a system message was made of a row's tools, and says nothing else."""
    return system.startswith(_HOW)


def _parse(row: Row, field: str, value: Any) -> Any:
    """Read JSON within a text; refuse a text that defines functions and is none."""
    if not isinstance(value, str):
        return value
    try:
        return parse_json(value)
    except ValueError:
        if _DEFINES.match(value):
            raise _phrase_unreadable(row, f"definitions that are not JSON in {field!r}") from None
        return None


def _functions(tool: Any) -> Iterator[Mapping[str, Any]]:
    """Yield the functions that a tool is, without keys that have no value, their schema as `parameters`."""
    if not isinstance(tool, Mapping):
        return
    listed = next((tool[key] for key in _LISTS if isinstance(tool.get(key), list)), None)
    if listed is not None:
        for function in listed:
            yield from _functions({"function": function})
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
    """Leave out keys without a value: a table gives each row the keys of all the others."""
    if isinstance(value, Mapping):
        return {key: _drop_nulls(of) for key, of in value.items() if of is not None}
    return [_drop_nulls(of) for of in value] if isinstance(value, list) else value


def _phrase_unreadable(row: Row, found: str) -> UserError:
    return UserError(Problem(row.where, found, _EXPECTED, f"{MEND_ROW}, or rename the column"))
