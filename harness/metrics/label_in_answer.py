"""Share of answers that name the right label and no other one, whatever else they say.

Invariant: labels are found as whole words, the longer first: "not urgent" does not name "urgent". Answers
that are none of the labels as a whole are read too.
"""

import re
from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache

from harness.metrics import Metric, mean_metric, normalize
from harness.records import Example, Output, fold_text
from harness.spec import Task

IS_SHARE_OF_RIGHT_LABELS = True


def metric(task: Task) -> Metric:
    """Build the share in [0, 1]; without labels, of answers in which a reference stands as whole words."""
    labels = frozenset(map(normalize, task.labels))
    built = mean_metric("label_in_answer", _names_the_right_one)
    return replace(built, same=lambda text: _find(text, labels) or normalize(text), reads_any=True)


def _names_the_right_one(output: Output, example: Example) -> float:
    right = frozenset(map(normalize, example.references))
    named = _find(output.text, right | set(map(normalize, example.choices)))
    return float(bool(named) and named <= right)


def _find(text: str, labels: Iterable[str]) -> frozenset[str]:
    return frozenset(_pattern(frozenset(labels)).findall(fold_text(text)))


@lru_cache(maxsize=64)
def _pattern(labels: frozenset[str]) -> re.Pattern[str]:
    longest_first = sorted(filter(None, labels), key=lambda label: (-len(label), label))
    return re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, longest_first)) or '(?!)'})(?!\w)")
