"""Overlap of the words of the answer and of the nearest reference.

Invariant: articles, punctuation of any script and what `records.fold_text` folds never count. If a reference
has letters of a script without blanks (Chinese, Japanese, Thai …), each of these letters is a word.
Source: Rajpurkar et al. 2016, arXiv:1606.05250, section 6.1 (SQuAD's F1); by letters as in MLQA's mixed
segmentation (Lewis et al. 2020, arXiv:1910.07475).
"""

import re
import string
import unicodedata
from collections import Counter

from harness.metrics import Metric, mean_metric
from harness.records import Example, Output, fold_text, is_unspaced, split_into_letters
from harness.spec import Task

_ARTICLES = re.compile(r"\b(a|an|the)\b")

WORDS_ARE_LETTERS = True  # where references are of a script without blanks

SHORT = "F1"


def metric(task: Task) -> Metric:
    """Build token F1 in [0, 1]: the best over the references, averaged over items."""
    return mean_metric("token_f1", _best)


def _best(output: Output, example: Example) -> float:
    by_letters = is_unspaced(example.references)
    answer = _words(output.text, by_letters)
    return max((_f1(answer, _words(reference, by_letters)) for reference in example.references), default=0.0)


def _words(text: str, by_letters: bool) -> list[str]:
    folded = split_into_letters(fold_text(text)) if by_letters else fold_text(text)
    marks = {sign for sign in set(folded) if unicodedata.category(sign).startswith("P")}
    kept = "".join(sign for sign in folded if sign not in marks and sign not in string.punctuation)
    return _ARTICLES.sub(" ", kept).split()


def _f1(answer: list[str], reference: list[str]) -> float:
    if not answer or not reference:
        return float(answer == reference)
    shared = (Counter(answer) & Counter(reference)).total()
    return 2 * shared / (len(answer) + len(reference))
