"""F1 of the fields of a JSON answer against those of the nearest reference: path and value have to agree.

Invariant: the order of keys never counts, that of a list does; 1 and 1.0 are one number, and "1" is a text.
Texts are compared as by exact match, keys with their letter case. An answer that is not JSON has no field.
Source: slot F1 of information extraction (Chinchor & Sundheim 1993, MUC-5), over the leaves of a document.
"""

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

from harness.metrics import Metric, counted_metric, fold_leaf, unfence_json
from harness.records import Example, Output, compose_letters
from harness.spec import Task


def metric(task: Task) -> Metric:
    """Build the F1 of fields in [0, 1]: the best over the references, averaged over items."""
    return counted_metric("json_fields", _best, _fields)


def _best(output: Output, example: Example) -> float | None:
    wanted = [found for reference in example.references if (found := _fields(reference)) is not None]
    if not wanted:
        return None
    given = _fields(output.text)
    if given is None:
        return 0.0
    return max(2 * (given & of).total() / (given.total() + of.total()) for of in wanted)


def _fields(text: str) -> Counter[str] | None:
    try:
        value = json.loads(unfence_json(text))
        return Counter(json.dumps(leaf) for leaf in _leaves(value, ()))
    except (ValueError, RecursionError):
        return None


def _leaves(value: Any, path: tuple[str | int, ...]) -> Iterator[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    if isinstance(value, (dict, list)) and value:
        for key, of in inner:
            yield from _leaves(of, (*path, compose_letters(key) if isinstance(key, str) else key))
    else:
        yield (*path, fold_leaf(value))
