"""Rows of JSON Lines, and of JSON: a list of objects, within `data` too, SQuAD's articles, pandas' tables.

Invariant: an object is read as a table where its form leaves one reading, and refused otherwise.
"""

import json
import re
import shlex
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
                found, step = f"malformed JSON ({error})", "fix the line"
                if number == 1 and line.lstrip().startswith("["):
                    step += ", or where the file is one list, name it .json"
                problems.append(Problem(f"{shown}:{number}", found, "one JSON object a line", step))
    if problems:
        raise UserError(cap_problems(problems, shown, "malformed lines"))


def read_json_array(file: Path, shown: str) -> list[Row]:
    """Return the objects of a JSON list, or of a table as pandas and SQuAD write it."""
    try:
        with open_text(file, shown) as opened:
            text = opened.read()
        value = parse_json(text, parse_constant=_no_number, object_pairs_hook=_once)
        _refuse_half_signs(text, value)
    except json.JSONDecodeError as error:
        found = f"malformed JSON ({error.msg} at column {error.colno})"
        expected = "a list of objects (one object a line is a .jsonl file)"
        raise UserError(
            Problem(f"{shown}:{error.lineno}", found, expected, "fix or rename the file")
        ) from None
    except ValueError as error:
        raise UserError(Problem(shown, f"malformed JSON ({error})", "a list of objects", "fix it")) from None
    rows = _list_objects(value)
    if rows is None:
        raise UserError(Problem(shown, *_describe_no_rows(value, shown)))
    return [Row(f"{shown} row {i}", fields) for i, fields in enumerate(rows)]


def _list_objects(value: Any) -> list[dict[str, Any]] | None:
    """List the rows of a value; None where it is no table, or more than one."""
    if isinstance(value, list):
        return _list_squad(value) if all(isinstance(row, dict) for row in value) else None
    held = [of for of in value.values() if isinstance(of, list | dict)] if isinstance(value, dict) else []
    if isinstance(value, dict) and value.keys() >= {"columns", "data"}:  # pandas' split
        return [dict(zip(value["columns"], cells, strict=False)) for cells in value["data"]]
    if (
        isinstance(value, dict)
        and isinstance(value.get("data"), list)
        and len(held) <= 1 + ("schema" in value)
    ):
        return _list_objects(value["data"])
    if len(held) == 1 and isinstance(held[0], list):
        return _list_objects(held[0])
    if not held or len(held) < len(value):
        return None
    if all(isinstance(of, list) for of in held):
        is_table = len({len(of) for of in held}) == 1 and not any(
            isinstance(c, dict) for of in held for c in of
        )
        return (
            [dict(zip(value, cells, strict=True)) for cells in zip(*held, strict=True)] if is_table else None
        )
    return _list_by_key(value) if all(isinstance(of, dict) for of in held) else None


def _list_by_key(value: dict[str, dict[str, Any]]) -> list[dict[str, Any]] | None:
    """List rows by their keys, as pandas' `index` has them, or columns by rows, as its `columns` has them."""
    inner = dict.fromkeys(key for of in value.values() for key in of)
    if inner and all(map(str.isdecimal, inner)):
        return [{name: of.get(key) for name, of in value.items()} for key in inner]
    if all(map(str.isdecimal, value)):
        return list(value.values())
    return [{"id": key, **row} for key, row in value.items()] if len(value) > len(inner) else None


def _list_squad(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """List the questions of SQuAD's articles, each beside its context; other rows as they are."""
    if not all(isinstance(row.get("paragraphs"), list) for row in rows):
        return rows
    return [
        {**question, "context": paragraph.get("context"), "title": row.get("title")}
        for row in rows
        for paragraph in row["paragraphs"]
        for question in paragraph.get("qas") or ()
    ]


def _describe_no_rows(value: Any, shown: str) -> tuple[str, str, str]:
    """Say what stands in the place of rows, what is expected, and the command that makes rows of it."""
    expected, source = "[{…}, {…}]", f"json.load(open({shown!r}))"
    parts = [key for key, of in value.items() if isinstance(of, list)] if isinstance(value, dict) else []
    if len(parts) > 1:
        commands = (_write_lines(f"{source}[{key!r}]", "row", f"{shown}.{key}.jsonl") for key in parts)
        return f"JSON of several lists: {', '.join(parts)}", "one list of rows", " && ".join(commands)
    if isinstance(value, list) and value and all(isinstance(row, list) for row in value):
        n = max(map(len, value))
        names = ["prompt", "reference"] if n == 2 else [f"column_{i}" for i in range(1, n + 1)]
        command = _write_lines(source, f"dict(zip({names}, row))", f"{shown}.jsonl")
        return "lists in the place of rows, without names of columns", expected, f"name them: {command}"
    return (
        "JSON that is not a list of objects",
        expected,
        "write its rows as a list, or one a line in a .jsonl file",
    )


def _write_lines(rows: str, row: str, out: str) -> str:
    program = f"import json; [print(json.dumps({row})) for row in {rows}]"
    return f"python3 -c {shlex.quote(program)} > {shlex.quote(out)}"


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
