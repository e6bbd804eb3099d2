"""Tools that a row defines (`tools`, or OpenAI's former `functions`), as a text of its system message.

Chat templates write definitions in forms of their own, or leave them out, while calls are read as JSON here.
So one form serves every base, says how a call is written, and is the same for all candidates.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from harness.data.formats.ratings import MEND_ROW
from harness.data.readers import Row
from harness.errors import Problem, UserError
from harness.records import Message, parse_json

TOOL_FIELDS = frozenset({"tools", "functions"})
_HOW = (
    "You can call these tools. A call is a line of JSON: "
    '{"name": the name of the tool, "arguments": {the name of an argument: its value}}.'
)


def add_tools(messages: tuple[Message, ...], row: Row) -> tuple[Message, ...]:
    """Return a row's messages with the tools that it defines at the end of their system message.

    Raises:
        UserError: some of the row's tools are definitions, and others are none.
    """
    tools = [tool for field in sorted(TOOL_FIELDS) for tool in _definitions(row, field)]
    if not tools:
        return messages
    text = "\n".join([_HOW, *(json.dumps(tool, ensure_ascii=False) for tool in tools)])
    if messages and messages[0]["role"] == "system":
        return ({"role": "system", "content": f"{messages[0]['content']}\n\n{text}"}, *messages[1:])
    return ({"role": "system", "content": text}, *messages)


def _definitions(row: Row, field: str) -> list[Mapping[str, Any]]:
    """List the tools that a field defines; none where the column is only named so."""
    tools = _list(row.fields.get(field))
    functions = [tool for tool in map(_function, tools) if tool]
    if functions and len(functions) < len(tools):
        other = next(tool for tool in tools if not _function(tool))
        raise UserError(
            Problem(
                row.where,
                f"{json.dumps(other, ensure_ascii=False)[:80]} among the tools in {field!r}",
                'tools as {"type": "function", "function": {name, description, parameters}}, or its function',
                f"{MEND_ROW}, or rename the column",
            )
        )
    return functions


def _list(value: Any) -> Sequence[Any]:
    """Return a list, also of JSON within a text; empty of anything else."""
    try:
        value = parse_json(value) if isinstance(value, str) else value
    except ValueError:
        return ()
    return value if isinstance(value, list) else ()


def _function(tool: Any) -> Mapping[str, Any] | None:
    """Return the function that a tool is, without keys that have no value; None where it is none."""
    if not isinstance(tool, Mapping):
        return None
    function = tool.get("function") if tool.get("type") == "function" else tool
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        return None
    return _drop_nulls(function) if function is not tool or "parameters" in tool else None


def _drop_nulls(value: Any) -> Any:
    """Leave out keys without a value: a table gives each row the keys of all the others."""
    if isinstance(value, Mapping):
        return {key: _drop_nulls(of) for key, of in value.items() if of is not None}
    return [_drop_nulls(of) for of in value] if isinstance(value, list) else value
