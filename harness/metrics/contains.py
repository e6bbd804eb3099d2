"""Share of answers in which a reference occurs as whole words.

Invariant: "cat" is not in "category"; letter case and spacing never decide.
"""

import re

from harness.metrics import Metric, mean_metric, normalize
from harness.records import Example, Output
from harness.spec import Task


def metric(task: Task) -> Metric:
    """Build containment in [0, 1]."""
    return mean_metric("contains", _contains)


def _contains(output: Output, example: Example) -> float:
    answer = " ".join(output.text.casefold().split())
    return float(any(_occurs(normalize(reference), answer) for reference in example.references))


def _occurs(phrase: str, text: str) -> bool:
    return bool(phrase) and re.search(rf"(?<!\w){re.escape(phrase)}(?!\w)", text) is not None
