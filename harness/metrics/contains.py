"""Share of answers in which a reference occurs as whole words.

Invariant: "cat" is not in "category"; what `records.normalize` folds never decides. If a reference has
letters of a script without blanks (Chinese, Japanese, Thai …), each of these letters is a word.
"""

import unicodedata

from harness.metrics import Metric, mean_metric, normalize
from harness.records import Example, Output, fold_text, is_unspaced, split_into_letters
from harness.spec import Task

WORDS_ARE_LETTERS = True  # where references are of a script without blanks


def metric(task: Task) -> Metric:
    """Build containment in [0, 1]."""
    return mean_metric("contains", _contains)


def _contains(output: Output, example: Example) -> float:
    phrases, answer = [normalize(reference) for reference in example.references], fold_text(output.text)
    if is_unspaced(phrases):
        answer, *phrases = (" ".join(split_into_letters(text).split()) for text in (answer, *phrases))
    for phrase in filter(None, phrases):
        at = answer.find(phrase)
        while at >= 0:
            if not (_is_of_word(answer[max(at - 1, 0) : at]) or _is_of_word(answer[at + len(phrase) :][:1])):
                return 1.0
            at = answer.find(phrase, at + 1)
    return 0.0


def _is_of_word(sign: str) -> bool:
    return sign.isalnum() or sign == "_" or (bool(sign) and unicodedata.category(sign).startswith("M"))
