"""Share of answers in which a reference occurs as whole words.

Invariant: "cat" is not in "category"; letter case and spacing never decide. Where a reference has letters of
a script that writes no blanks (Chinese, Japanese, Thai …), each of these letters is a word.
"""

import re

from harness.metrics import Metric, mean_metric, normalize
from harness.prompting import is_unspaced, split_into_letters
from harness.records import Example, Output
from harness.spec import Task

WORDS_ARE_LETTERS = True  # where references are of a script without blanks


def metric(task: Task) -> Metric:
    """Build containment in [0, 1]."""
    return mean_metric("contains", _contains)


def _contains(output: Output, example: Example) -> float:
    phrases, answer = list(map(normalize, example.references)), output.text.casefold()
    if is_unspaced(phrases):
        answer = split_into_letters(answer)
        phrases = [" ".join(split_into_letters(p).rstrip("。 ").split()) for p in phrases]
    answer = " ".join(answer.split())
    return float(any(_occurs(phrase, answer) for phrase in phrases))


def _occurs(phrase: str, text: str) -> bool:
    return bool(phrase) and re.search(rf"(?<!\w){re.escape(phrase)}(?!\w)", text) is not None
