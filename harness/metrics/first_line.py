"""Share of answers whose first line is one of the references, whatever follows.

Invariant: lines without a word do not count; what `records.normalize` folds never decides. Answers that are
none of the labels as a whole are read too.
"""

from dataclasses import replace

from harness.metrics import Metric, mean_metric, normalize
from harness.records import Example, Output
from harness.spec import Task

IS_SHARE_OF_RIGHT_LABELS = True


def metric(task: Task) -> Metric:
    """Build exact match of the first line in [0, 1]."""
    return replace(mean_metric("first_line", _matches), same=_first_line, reads_any=True)


def _first_line(text: str) -> str:
    return next(filter(None, map(normalize, text.splitlines())), "")


def _matches(output: Output, example: Example) -> float:
    return float(_first_line(output.text) in set(map(normalize, example.references)))
