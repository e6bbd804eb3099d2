"""Overlap of the words of the answer and of the nearest reference.

Invariant: articles, punctuation and letter case never count. Where a reference has letters of a script that
writes no blanks (Chinese, Japanese, Thai …), each of these letters is a word, and punctuation of any script
is left out; other words beside them stay whole.
Source: Rajpurkar et al. 2016, arXiv:1606.05250, section 6.1 (SQuAD's F1); by letters as MLQA (Lewis et al.
2020, arXiv:1910.07475) scores Chinese, by what it calls mixed segmentation.
"""

import re
import string
import unicodedata
from collections import Counter

from harness.metrics import Metric, mean_metric
from harness.prompting import is_unspaced, split_into_letters
from harness.records import Example, Output
from harness.spec import Task

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


WORDS_ARE_LETTERS = True  # where references are of a script without blanks


def metric(task: Task) -> Metric:
    """Build token F1 in [0, 1]: the best over the references, averaged over items."""
    return mean_metric("token_f1", _best)


def _best(output: Output, example: Example) -> float:
    words = _letters if is_unspaced(example.references) else _words
    answer = words(output.text)
    return max((_f1(answer, words(reference)) for reference in example.references), default=0.0)


def _words(text: str) -> list[str]:
    return _ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split()


def _letters(text: str) -> list[str]:
    """Cut a text into words, of which each letter of a script without blanks is one."""
    kept = "".join(sign for sign in text if not unicodedata.category(sign).startswith("P"))
    return _words(split_into_letters(kept))


def _f1(answer: list[str], reference: list[str]) -> float:
    if not answer or not reference:
        return float(answer == reference)
    shared = (Counter(answer) & Counter(reference)).total()
    return 2 * shared / (len(answer) + len(reference))
