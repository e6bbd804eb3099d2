"""Micro-F1 of the spans that an answer names, such as entities: everything said of a span has to agree.

Invariant: the order of spans never counts, their number does. Spans are the elements of a JSON list, the
values of a JSON object's lists with their key, or the lines of a text (`PER: Anna`).
Source: entity-level F1 over a corpus, Tjong Kim Sang & De Meulder 2003 (CoNLL-2003).
"""

import json
import re
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np

from harness.metrics import Array, Metric, Parts, fold_leaf, normalize
from harness.records import Example, Output
from harness.spec import Task

_FENCE = re.compile(r"^```\w*\s*\n(.*?)\n?```$", re.DOTALL)


def metric(task: Task) -> Metric:
    """Build span F1 in [0, 1] against the nearest reference; without any span on either side it is 1."""

    def worst(example: Example) -> Parts:
        return 0.0, 0.0, float(max((read_spans(r).total() for r in example.references), default=0) or 1)

    parts = ("right", "wrong", "missed")
    built = Metric("span_f1", True, (0.0, 1.0), parts, _score, _f1, worst)
    return replace(built, same=lambda text: frozenset(read_spans(text).items()))


def read_spans(text: str) -> Counter[str]:
    """Count the spans that an answer or a reference names."""
    fenced = _FENCE.match(text.strip())
    inner = fenced[1] if fenced else text
    try:
        value = json.loads(inner)
        if isinstance(value, dict) and value and all(isinstance(spans, list) for spans in value.values()):
            folded = [[normalize(key), _fold(span)] for key, spans in value.items() for span in spans]
        else:
            spans = value if isinstance(value, list) else [value] if value else []
            folded = list(map(_fold, spans))
        return Counter(json.dumps(span, sort_keys=True) for span in folded)
    except (ValueError, RecursionError):
        return Counter(filter(None, map(normalize, re.split(r"[\n;]", inner))))


def _fold(value: Any) -> Any:
    if isinstance(value, dict):
        return {normalize(key): _fold(inner) for key, inner in value.items()}
    return list(map(_fold, value)) if isinstance(value, list) else fold_leaf(value)


def _score(output: Output, example: Example) -> Parts | None:
    given = read_spans(output.text)
    counted: list[Parts] = []
    for wanted in map(read_spans, example.references):
        right = (given & wanted).total()
        counted.append((float(right), float(given.total() - right), float(wanted.total() - right)))
    return max(counted, key=lambda parts: float(_f1(np.array([parts]), np.ones(1))), default=None)


def _f1(parts: Array, weights: Array) -> Array:
    sums = weights @ parts
    right, wrong, missed = sums[..., 0], sums[..., 1], sums[..., 2]
    whole = 2 * right + wrong + missed
    return np.where(whole > 0, 2 * right / np.where(whole > 0, whole, 1.0), 1.0)
