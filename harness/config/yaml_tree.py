"""YAML as plain values that remember where each of them was written.

Invariant: `where` always answers: with the line of the value itself, or of the nearest
value around it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from harness.errors import Problem, UserError

Keys = tuple[str | int, ...]


@dataclass(slots=True)
class Tree:
    """The values of all files of one experiment, their places, and what is wrong so far.

    `failed` holds the keys whose value could not be read, so that nothing more is said of them.
    """

    data: dict[str, Any]
    marks: dict[Keys, str]
    folder: Path
    problems: list[Problem] = field(default_factory=list)
    failed: set[Keys] = field(default_factory=set)

    def where(self, keys: Keys) -> str:
        """Return `file:line` of the value at these keys, or of the nearest one around it."""
        return next(self.marks[keys[:n]] for n in range(len(keys), -1, -1) if keys[:n] in self.marks)

    def has_failed(self, keys: Keys) -> bool:
        """Tell whether the value at these keys, or one around it, could not be read."""
        return any(keys[:n] in self.failed for n in range(len(keys) + 1))

    def put(self, keys: Keys, value: Any, marks: Mapping[Keys, str]) -> None:
        """Replace the value at these keys; `marks` are places relative to it."""
        around: Any = self.data
        for key in keys[:-1]:
            around = around[key]
        around[keys[-1]] = value
        self.marks = {k: mark for k, mark in self.marks.items() if k[: len(keys)] != keys or k == keys}
        self.marks.update({keys + k: mark for k, mark in marks.items()})


def parse(text: str, shown: str) -> tuple[Any, dict[Keys, str]]:
    """Parse YAML 1.2 into plain values and the `file:line` of each.

    Raises:
        UserError: the text is no YAML, or a key stands twice.
    """
    try:
        loaded = YAML().load(text)
    except YAMLError as error:
        raise UserError(_syntax(error, shown)) from None
    marks: dict[Keys, str] = {(): f"{shown}:1"}
    _mark(loaded, (), shown, marks)
    return plain(loaded), marks


def plain(value: Any) -> Any:
    """Turn the parser's own kinds of values into Python's; keys become strings."""
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(inner) for inner in value]
    if isinstance(value, date):
        return value.isoformat()
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)
    return value


def mapping(value: Any) -> dict[str, Any]:
    """Return a value that is a mapping, and an empty one for whatever else was written."""
    return value if isinstance(value, dict) else {}


def _mark(value: Any, keys: Keys, shown: str, marks: dict[Keys, str]) -> None:
    places = getattr(getattr(value, "lc", None), "data", None) or {}
    inner = value.items() if isinstance(value, Mapping) else enumerate(value) if places else ()
    for key, child in inner:
        below = (*keys, key if isinstance(key, int) and not isinstance(value, Mapping) else str(key))
        if key in places:
            marks[below] = f"{shown}:{places[key][0] + 1}"
        _mark(child, below, shown, marks)


def _syntax(error: YAMLError, shown: str) -> Problem:
    if not isinstance(error, MarkedYAMLError) or error.problem_mark is None:
        return Problem(shown, " ".join(str(error).split())[:120], "YAML", "mend the file")
    where = f"{shown}:{error.problem_mark.line + 1}"
    found = str(error.problem).split(" with value")[0].removeprefix("found ")
    if "duplicate key" in found:
        return Problem(where, found, "every key once", "remove or rename one of the two")
    found = f"{found}, {error.context}" if error.context else found
    return Problem(where, found, "valid YAML", "check quotes, brackets and indentation")
