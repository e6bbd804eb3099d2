"""Turns of a conversation as other tools write them, read as messages; a text of a row, read as one turn."""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from harness.data.formats.ratings import MEND_ROW
from harness.data.readers import Row
from harness.errors import Problem, UserError
from harness.records import Message, parse_json

Turns = list[Message]
ONLY_TEXT = "turns of text alone, for only text is read"
_WITHOUT_PARTS = "write what such a part shows as text, or leave the rows out, as harness data clean does"
_TEXTS = ("text", "input_text", "output_text", "refusal")  # kinds of parts that hold text
_ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "developer": "system",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool_call": "assistant",
    "tool": "user",
    "function": "user",
    "observation": "user",
    "tool_response": "user",
}
# Fields that hold no plain text.
LISTS = frozenset({"messages", "conversations", "completions", "choices", "options"})
_JSON = re.compile(r"\s*(?:\[\s*[\[{\"']|\{\s*[\"'])")
# What tools return is read as a turn of the user.
_TOOLS = ("tool", "function", "observation", "tool_response")
_CALLS = ("function_call", "tool_call")  # LLaMA-Factory's and ms-swift's: what they say are calls as JSON


def answer_places(entries: Sequence[Any]) -> list[int]:
    """Return the places of the assistant's turns that can be trained on."""
    turns = [(i, entry) for i, entry in enumerate(entries) if i and isinstance(entry, dict)]
    return [
        i
        for i, entry in turns
        if _ROLES.get(str(entry.get("role") or entry.get("from"))) == "assistant"
        and entry.get("weight") != 0
        and str(_write_calls(entry.get("content") or entry.get("value"), entry) or "").strip()
    ]


def user_turns(text: str, row: Row) -> Turns:
    """Return a question as a turn of the user, behind the row's system prompt where it has one.

    Raises:
        UserError: the question is empty.
    """
    if not text.strip():
        raise UserError(Problem(row.where, "an empty question", "a text", MEND_ROW))
    system = row.fields.get("system") or row.fields.get("system_prompt")
    turns = [{"role": "user", "content": text}]
    return [{"role": "system", "content": str(system)}, *turns] if system else turns


def read_text(row: Row, field: str) -> str:
    """Return the text or number of a field.

    Raises:
        UserError: it is empty or of another type.
    """
    value = row.fields[field]
    if not isinstance(value, str | int | float) or not str(value).strip():
        kind = type(value).__name__
        found = f"an empty {field!r}" if isinstance(value, str) else f"a {kind} in {field!r}"
        raise UserError(Problem(row.where, found, "a text", MEND_ROW))
    return str(value).strip()


def read_turns(row: Row, field: str) -> Turns:
    """Read turns of role and content, or of from and value."""
    entries = row.fields[field]
    expected = f"a list of {{role, content}} or {{from, value}} in {field!r}"
    if isinstance(entries, str) and not is_plain(entries):
        step = "write the rows as JSON Lines, with the list itself in the field"
        raise UserError(Problem(row.where, f"a list within a text in {field!r}", expected, step))
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise UserError(Problem(row.where, f"{field!r} of another form", expected, MEND_ROW))
    turns: Turns = []
    was = ""
    for entry in entries:
        speaker = str(entry.get("role") or entry.get("from"))
        content = _join_parts(
            entry.get("content") if entry.get("content") is not None else entry.get("value")
        )
        _refuse_pictures(row, speaker, content)
        content = _write_calls(content, entry)
        if speaker not in _ROLES or not isinstance(content, str):
            found = (
                f"a turn of {speaker!r}" if speaker not in _ROLES else f"a turn of {speaker!r} without text"
            )
            raise UserError(
                Problem(row.where, found, "turns of system, user and assistant, with text", MEND_ROW)
            )
        if speaker in _TOOLS and turns and turns[-1]["role"] == "user" and was == speaker:
            content = f"{turns.pop()['content']}\n{content}"  # results of several calls
        turns.append({"role": _ROLES[speaker], "content": content})
        was = speaker
    return turns


def _refuse_pictures(row: Row, speaker: str, content: Any) -> None:
    """Refuse a turn with a part that is no text, as an image is."""
    kinds = (
        [part.get("type") for part in content if isinstance(part, dict)] if isinstance(content, list) else []
    )
    if kind := next((kind for kind in kinds if isinstance(kind, str) and kind not in _TEXTS), None):
        what = "an image part" if "image" in kind else "a part that is no text"
        found = f"{what} ({kind}) in a turn of {speaker!r}"
        raise UserError(Problem(row.where, found, ONLY_TEXT, _WITHOUT_PARTS))


def join_problems(problems: Sequence[Problem]) -> list[Problem]:
    """Say once what is wrong with all rows that hold parts other than text, with their number."""
    n = Counter(of.found for of in problems if of.expected == ONLY_TEXT)
    out, seen = list[Problem](), set[str]()
    for of in problems:
        if of.expected != ONLY_TEXT:
            out.append(of)
        elif of.found not in seen:
            seen.add(of.found)
            rows = f", the first of {n[of.found]:,} such rows" if n[of.found] > 1 else ""
            out.append(replace(of, found=f"{of.found}{rows}"))
    return out


def _write_calls(content: Any, entry: Mapping[str, Any]) -> Any:
    """Write the calls of tools as JSON, one a line, behind what is said, as OpenAI's files hold them."""
    if (entry.get("role") or entry.get("from")) in _CALLS:
        return spell_calls(content)
    calls = [call.get("function") for call in entry.get("tool_calls") or () if isinstance(call, dict)]
    shown = [_call(call) for call in (*calls, entry.get("function_call")) if isinstance(call, dict)]
    said = [content] if isinstance(content, str) and content else []
    return "\n".join([*said, *shown]) if shown else content


def spell_calls(content: Any) -> Any:
    """Write a turn that is one call as JSON, or a list of such, as all calls are; another one as it is."""
    try:
        calls = parse_json(content) if isinstance(content, str) else content
    except ValueError:
        return content
    calls = calls if isinstance(calls, list) else [calls]
    is_read = bool(calls) and all(isinstance(call, dict) and "name" in call for call in calls)
    return "\n".join(map(_call, calls)) if is_read else content


def _call(call: Mapping[str, Any]) -> str:
    """Write a call as JSON; its arguments are JSON in a text already."""
    arguments = call.get("arguments")
    try:
        given = parse_json(arguments) if isinstance(arguments, str) else arguments
    except ValueError:
        given = arguments
    return json.dumps({"name": call.get("name"), "arguments": given}, ensure_ascii=False)


def _join_parts(content: Any) -> Any:
    """Join the parts of a turn where all of them are texts, as OpenAI's files may have it."""
    if isinstance(content, list) and content:
        texts = [part.get("text") if isinstance(part, dict) else None for part in content]
        if all(isinstance(text, str) for text in texts):
            return "\n".join(map(str, texts))
    return content


def find_known_fields(row: Row) -> set[str]:
    """Return the names of the fields that have a value."""
    return {name for name, value in row.fields.items() if value is not None}


def find_fields(row: Row) -> set[str]:
    """Return the names of the fields that have a value, without plain texts where a layout has a list.

    JSON within a text, as a CSV file may hold it, is no plain text.
    """
    return {name for name in find_known_fields(row) if name not in LISTS or not is_plain(row.fields[name])}


def is_plain(value: Any) -> bool:
    """Tell whether a value is a number or a text, and not JSON of a list or an object within a text."""
    return isinstance(value, int | float) or (isinstance(value, str) and not _JSON.match(value))
