"""Corpus chrF of the answers against the references: overlap of character n-grams.

Invariant: with equal weights the number is sacrebleu's `corpus_chrf` of composed texts
(`records.compose_letters`) divided by 100 (n up to 6, no words, recall counts twice, no white space).
Source: Popović 2015, "chrF: character n-gram F-score for automatic MT evaluation", formula 1.
"""

from collections import Counter

import numpy as np

from harness.metrics import Array, Metric, Parts
from harness.records import Example, Output, compose_letters
from harness.spec import Task

_ORDERS = range(1, 7)
_BETA_SQUARED = 4.0
_NAMES = tuple(f"{count}{n}" for n in _ORDERS for count in ("said", "expected", "shared"))


def metric(task: Task) -> Metric:
    """Build chrF in [0, 1]; the parts are the n-gram counts of one item and its nearest reference."""
    from importlib.metadata import version

    signature = f"case:mixed|eff:yes|nc:6|nw:0|space:no|version:{version('sacrebleu')}"
    worst = lambda example: _counts("", example.references[0])  # noqa: E731
    return Metric("chrf", True, (0.0, 1.0), _NAMES, _score, _aggregate, worst, signature)


def _score(output: Output, example: Example) -> Parts:
    counted = [_counts(output.text, reference) for reference in example.references]
    scores = [float(_aggregate(np.array([parts]), np.ones(1))) for parts in counted]
    return counted[scores.index(max(scores))]


def _counts(said: str, expected: str) -> Parts:
    """Count n-grams said, expected and shared; one that no reference could hold is not counted."""
    counts: list[float] = []
    for n in _ORDERS:
        ours, theirs = _ngrams(said, n), _ngrams(expected, n)
        shared = (ours & theirs).total()
        counts += (float(ours.total() if theirs else 0), float(theirs.total()), float(shared))
    return tuple(counts)


def _ngrams(text: str, n: int) -> Counter[str]:
    letters = "".join(compose_letters(text).split())
    return Counter(letters[i : i + n] for i in range(len(letters) - n + 1))


def _aggregate(parts: Array, weights: Array) -> Array:
    sums = weights @ parts  # (…, 18)
    said, expected, shared = sums[..., 0::3], sums[..., 1::3], sums[..., 2::3]  # (…, 6)
    counts = (said > 0) & (expected > 0)
    n = np.maximum(counts.sum(axis=-1), 1)
    precision = np.divide(shared, said, out=np.zeros_like(shared), where=counts).sum(axis=-1) / n
    recall = np.divide(shared, expected, out=np.zeros_like(shared), where=counts).sum(axis=-1) / n
    weighted = _BETA_SQUARED * precision + recall
    f = (1 + _BETA_SQUARED) * precision * recall
    return np.asarray(np.divide(f, weighted, out=np.zeros_like(f), where=weighted > 0))
