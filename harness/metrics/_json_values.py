"""Values of JSON as they are compared: texts as by exact match, whole numbers without a fraction."""

from typing import Any

from harness.records import normalize


def fold_leaf(value: Any) -> Any:
    """Fold a value that is not an object and no list."""
    if isinstance(value, str):
        return normalize(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value
