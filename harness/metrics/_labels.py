"""Metrics over a closed set of labels: counts per label, and values of ordered labels.

Invariant: only labels that occur among the references count, so candidates are averaged over the same ones.
Labels' values are their numbers if all have different ones (`4 stars`), otherwise their positions from 1.
"""

import re
from collections.abc import Callable

import numpy as np

from harness.errors import Problem, UserError
from harness.metrics import Array, Metric, Parts, normalize, ratio
from harness.records import Example, Output
from harness.spec import Task


def macro(name: str, task: Task, of_label: Callable[[Array, Array, Array], Array]) -> Metric:
    """Build the mean over labels of `of_label` (true positives, false positives, false negatives)."""
    if not task.labels:
        raise UserError(phrase_no_labels(name, task))
    index = {normalize(label): i for i, label in enumerate(task.labels)}

    def score(output: Output, example: Example) -> Parts | None:
        gold = index.get(normalize(example.references[0]))
        return None if gold is None else _counts(index.get(normalize(output.text)), gold, len(index))

    def worst(example: Example) -> Parts:
        return _counts(None, index[normalize(example.references[0])], len(index))

    def aggregate(parts: Array, weights: Array) -> Array:
        sums = weights @ parts  # (…, 3·labels)
        tp, fp, fn = sums[..., 0::3], sums[..., 1::3], sums[..., 2::3]  # (…, labels)
        occurs = tp + fn > 0
        return ratio(np.where(occurs, of_label(tp, fp, fn), 0.0).sum(axis=-1), occurs.sum(axis=-1))

    names = tuple(f"{count}:{label}" for label in index for count in ("tp", "fp", "fn"))
    return Metric(name, True, (0.0, 1.0), names, score, aggregate, worst)


def _counts(predicted: int | None, gold: int, n_labels: int) -> Parts:
    counts = [0.0] * (3 * n_labels)
    if predicted == gold:
        counts[3 * gold] = 1.0
    else:
        counts[3 * gold + 2] = 1.0
        if predicted is not None:
            counts[3 * predicted + 1] = 1.0
    return tuple(counts)


def phrase_no_labels(name: str, task: Task) -> Problem:
    """Describe that a metric needs a closed set of labels."""
    step = "add `labels: [...]` to the task, or use exact_match"
    return Problem(f"task {task.name}", f"metric {name} on a task without labels", "a closed label set", step)


_NUMBER = re.compile(r"[-−]?\d+(?:\.\d+)?")


def read_scale(name: str, task: Task) -> dict[str, float]:
    """Map the labels of a task, as metrics compare them, to their values."""
    if not task.labels:
        raise UserError(phrase_no_labels(name, task))
    found = [_NUMBER.findall(label) for label in task.labels]
    values = [float(numbers[0].replace("−", "-")) for numbers in found if len(numbers) == 1]
    if len(set(values)) < len(task.labels):
        values = [float(place) for place in range(1, len(task.labels) + 1)]
    return dict(zip(map(normalize, task.labels), values, strict=True))


def pair_with_reference(scale: dict[str, float]) -> Callable[[Output, Example], Parts | None]:
    """Return a function from an answer to its value and the reference's; other texts count as farthest."""

    def score(output: Output, example: Example) -> Parts | None:
        gold = scale.get(normalize(example.references[0]))
        value = scale.get(normalize(output.text))
        return None if gold is None else (farthest(scale, gold) if value is None else value, gold)

    return score


def farthest(scale: dict[str, float], gold: float) -> float:
    """Return the value of the scale that is farthest from a value."""
    return max(scale.values(), key=lambda value: abs(value - gold))
