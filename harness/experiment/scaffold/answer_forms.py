"""Forms that all answers of a task share: JSON, calls of tools, reasoning, numbers, several labels."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from harness.records import parse_json

_FINAL = re.compile(r"^####\s|\\boxed\{", re.MULTILINE)
_BEGINS_WITH_NUMBER = re.compile(r"\W*\d")
_SEPARATORS = (";", "|", ",")


class JoinedLabels(NamedTuple):
    """Labels of which an answer names one or several, and what stands between them."""

    labels: tuple[str, ...]
    separator: str


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


def find_joined_labels(texts: Sequence[str], rows_a_label: int) -> JoinedLabels | None:
    """Find labels that answers join, as in `billing; delivery`: fewer than different answers, some alone.

    Numbers are none: their comma is a decimal's.
    """
    values = {text.strip() for text in texts}
    for separator in () if are_numbers(texts) else _SEPARATORS:
        labels = {part.strip() for value in values for part in value.split(separator)} - {""}
        some_alone, enough = labels & values, len(labels) * rows_a_label <= len(texts)
        if len(values) > len(labels) > 1 and some_alone and enough:
            return JoinedLabels(tuple(sorted(labels)), separator)
    return None


def _has_calls(values: Sequence[object]) -> bool:
    return bool(values) and all(isinstance(v, dict) and v.keys() == {"name", "arguments"} for v in values)


def _read_json(text: str) -> object:
    """Read a text as JSON; None where it is none."""
    try:
        return parse_json(text)
    except ValueError:
        return None
