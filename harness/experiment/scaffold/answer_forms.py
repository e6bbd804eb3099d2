"""Forms that all answers of a task share: JSON, or calls of tools."""

from collections.abc import Sequence

from harness.records import parse_json


def are_calls(texts: Sequence[str]) -> bool:
    """Tell whether texts are calls of tools, as chat rows are read: one a line, or an empty list for none."""
    read = [[_read_json(line) for line in text.splitlines()] for text in texts]
    return any(map(_has_calls, read)) and all(_has_calls(values) or values == [[]] for values in read)


def are_json(texts: Sequence[str]) -> bool:
    """Tell whether each text is a JSON object or list."""
    return all(isinstance(_read_json(text), dict | list) for text in texts)


def _has_calls(values: Sequence[object]) -> bool:
    return bool(values) and all(isinstance(v, dict) and v.keys() == {"name", "arguments"} for v in values)


def _read_json(text: str) -> object:
    """Read a text as JSON; None where it is none."""
    try:
        return parse_json(text)
    except ValueError:
        return None
