"""Quadratic weighted kappa of ratings: agreement with the references beyond that of chance.

Invariant: an answer that is not a label counts as the farthest; if all ratings are equal, they agree.
Source: Cohen 1968, with squared distances: 1 − E(a − r)² / (Var a + Var r + (mean a − mean r)²).
"""

import numpy as np

from harness.metrics import Array, Metric
from harness.metrics._labels import farthest, pair_with_reference, read_scale
from harness.records import Example, Output
from harness.spec import Task


def metric(task: Task) -> Metric:
    """Build the kappa in [−1, 1] over the ordered labels of the task."""
    scale = read_scale("weighted_kappa", task)
    pair = pair_with_reference(scale)

    def worst(example: Example) -> tuple[float, float]:
        found = pair(Output(example.references[0]), example)
        gold = min(scale.values()) if found is None else found[1]
        return farthest(scale, gold), gold

    return Metric("weighted_kappa", True, (-1.0, 1.0), ("answer", "reference"), pair, _kappa, worst)


def _kappa(parts: Array, weights: Array) -> Array:
    shares = weights / weights.sum(axis=-1, keepdims=True)
    answers, references = parts[:, 0], parts[:, 1]
    found = shares @ (answers - references) ** 2
    # The mean squared distance of an answer from the reference of any item.
    by_chance = shares @ answers**2 + shares @ references**2 - 2 * (shares @ answers) * (shares @ references)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(by_chance > 1e-12, 1 - found / by_chance, 1.0)
