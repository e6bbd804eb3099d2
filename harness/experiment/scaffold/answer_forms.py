"""Forms that all answers of a task share: JSON, calls of tools, reasoning with a final answer, numbers."""

import re
from collections.abc import Sequence

from harness.records import parse_json

_FINAL = re.compile(r"^####\s|\\boxed\{", re.MULTILINE)
_BEGINS_WITH_NUMBER = re.compile(r"\W*\d")


def are_calls(texts: Sequence[str]) -> bool:
    """Tell whether texts are calls of tools, as chat rows are read: one a line, or an empty list for none."""
    read = [[_read_json(line) for line in text.splitlines()] for text in texts]
    return any(map(_has_calls, read)) and all(_has_calls(values) or values == [[]] for values in read)


def are_json(texts: Sequence[str]) -> bool:
    """Tell whether each text is a JSON object or list."""
    return all(isinstance(_read_json(text), dict | list) for text in texts)


def are_reasoned(texts: Sequence[str]) -> bool:
    """Tell whether each text marks its final answer, as GSM8K and MATH do."""
    return all(map(_FINAL.search, texts))


def are_numbers(texts: Sequence[str]) -> bool:
    """Tell whether each text begins with a number, which may have a unit."""
    return all(map(_BEGINS_WITH_NUMBER.match, texts))


def _has_calls(values: Sequence[object]) -> bool:
    return bool(values) and all(isinstance(v, dict) and v.keys() == {"name", "arguments"} for v in values)


def _read_json(text: str) -> object:
    """Read a text as JSON; None where it is none."""
    try:
        return parse_json(text)
    except ValueError:
        return None
