"""Overlap of the words of the answer and of the nearest reference.

Invariant: articles, punctuation and letter case never count.
Source: Rajpurkar et al. 2016, arXiv:1606.05250, section 6.1 (SQuAD's F1).
"""

import re
import string
from collections import Counter

from harness.metrics import Metric, mean_metric
from harness.records import Example, Output
from harness.spec import Task

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def metric(task: Task) -> Metric:
    """Build token F1 in [0, 1]: the best over the references, averaged over items."""
    return mean_metric("token_f1", _best)


def _best(output: Output, example: Example) -> float:
    answer = _words(output.text)
    return max((_f1(answer, _words(reference)) for reference in example.references), default=0.0)


def _words(text: str) -> list[str]:
    return _ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split()


def _f1(answer: list[str], reference: list[str]) -> float:
    if not answer or not reference:
        return float(answer == reference)
    shared = (Counter(answer) & Counter(reference)).total()
    return 2 * shared / (len(answer) + len(reference))
