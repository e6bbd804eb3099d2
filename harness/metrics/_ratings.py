"""Ratings: the values of a task's labels on their scale, which the metrics over ordered labels share.

Invariant: labels that are all different numbers, with or without words (`4 stars`), have these as their
values; others have their places in `labels`, the first one 1.
"""

import re
from collections.abc import Callable

from harness.errors import UserError
from harness.metrics import Parts, normalize
from harness.metrics._classification import phrase_no_labels
from harness.records import Example, Output
from harness.spec import Task

_NUMBER = re.compile(r"[-−]?\d+(?:\.\d+)?")


def read_scale(name: str, task: Task) -> dict[str, float]:
    """Map the labels of a task, as metrics compare them, to their values.

    Raises:
        UserError: the task has no `labels`.
    """
    if not task.labels:
        raise UserError(phrase_no_labels(name, task))
    found = [_NUMBER.findall(label) for label in task.labels]
    values = [float(numbers[0].replace("−", "-")) for numbers in found if len(numbers) == 1]
    if len(set(values)) < len(task.labels):
        values = [float(place) for place in range(1, len(task.labels) + 1)]
    return dict(zip(map(normalize, task.labels), values, strict=True))


def pair_with_reference(scale: dict[str, float]) -> Callable[[Output, Example], Parts | None]:
    """Return what scores an answer as its value and the reference's; a wrong label as the farthest."""

    def score(output: Output, example: Example) -> Parts | None:
        gold = scale.get(normalize(example.references[0]))
        value = scale.get(normalize(output.text))
        return None if gold is None else (farthest(scale, gold) if value is None else value, gold)

    return score


def farthest(scale: dict[str, float], gold: float) -> float:
    """Return the value that is farthest from one of the scale."""
    return max(scale.values(), key=lambda value: abs(value - gold))
