"""Share of answers that are one JSON text and nothing else.

Invariant: what RFC 8259 does not allow (NaN, comments, a code fence around it) is not valid.
Source: RFC 8259.
"""

import json

from harness.metrics import Metric, mean_metric
from harness.records import Example, Output
from harness.spec import Task


def metric(task: Task) -> Metric:
    """Build the share of valid JSON answers in [0, 1]."""
    return mean_metric("json_valid", _is_json)


def _is_json(output: Output, example: Example) -> float:
    try:
        json.loads(output.text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return 0.0
    return 1.0


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")
