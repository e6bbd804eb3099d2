"""Rows of JSON Lines, and of a JSON list of objects."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from harness.data.readers.text_file import Row, cap_problems, open_text
from harness.errors import Problem, UserError
from harness.records import parse_json

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def read_json_lines(file: Path, shown: str) -> Iterator[Row]:
    """Yield the objects of a file that has one in each line."""
    problems: list[Problem] = []
    with open_text(file, shown, "\n") as text:
        for number, line in enumerate(text, start=1):
            if not line.strip():
                continue
            try:
                yield Row(f"{shown}:{number}", _object(line.removesuffix("\n")))
            except ValueError as error:
                found, step = f"malformed JSON ({error})", "mend the line"
                if number == 1 and line.lstrip().startswith("["):
                    step += ", or where the file is one list, name it .json"
                problems.append(Problem(f"{shown}:{number}", found, "one JSON object a line", step))
    if problems:
        raise UserError(cap_problems(problems, shown, "malformed lines"))


def read_json_array(file: Path, shown: str) -> list[Row]:
    """Return the objects of a JSON list."""
    try:
        with open_text(file, shown) as opened:
            text = opened.read()
        rows = parse_json(text, parse_constant=_no_number, object_pairs_hook=_once)
        _refuse_half_signs(text, rows)
    except json.JSONDecodeError as error:
        found = f"malformed JSON ({error.msg} at column {error.colno})"
        expected = "a list of objects (one object a line is a .jsonl file)"
        raise UserError(
            Problem(f"{shown}:{error.lineno}", found, expected, "mend or rename the file")
        ) from None
    except ValueError as error:
        raise UserError(Problem(shown, f"malformed JSON ({error})", "a list of objects", "mend it")) from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        found = "JSON that is no list of objects"
        raise UserError(Problem(shown, found, "[{…}, {…}]", "convert it to JSON Lines"))
    return [Row(f"{shown} row {i}", fields) for i, fields in enumerate(rows)]


def _object(line: str) -> dict[str, Any]:
    try:
        value = parse_json(line, parse_constant=_no_number, object_pairs_hook=_once)
    except json.JSONDecodeError as error:
        raise ValueError(f"{error.msg} at column {error.colno}") from None
    if not isinstance(value, dict):
        raise ValueError(f"a {type(value).__name__}, not an object")
    _refuse_half_signs(line, value)
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object of its fields."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in fields if names.count(name) > 1)
        raise ValueError(f"the field {twice!r} twice")
    return fields


def _refuse_half_signs(text: str, value: Any) -> None:
    """Refuse half of a pair of surrogates, which is left where a text was cut inside an emoji."""
    if not _SURROGATE.search(text):
        return
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(error.object[error.start]):04x}"
        raise ValueError(f"{half} is half of a sign, which no encoding can write") from None


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON number")
