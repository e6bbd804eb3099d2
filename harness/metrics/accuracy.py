"""Share of items whose chosen choice is the right one.

Invariant: choices that differ only in letter case or in a final period stay different.
"""

from harness.metrics import Metric, mean_metric, normalize
from harness.records import Example, Output
from harness.spec import Task

SHORT = "acc"
IS_SHARE_OF_RIGHT_LABELS = True


def metric(task: Task) -> Metric:
    """Build accuracy in [0, 1]."""
    return mean_metric("accuracy", _is_right)


def _is_right(output: Output, example: Example) -> float:
    if output.text in example.choices:
        return float(output.text in example.references)
    answer = normalize(output.text)
    return float(any(answer == normalize(reference) for reference in example.references))
