"""Longest common subsequence of the words of the answer and of the nearest reference.

Invariant: of English the number is that of the `rouge-score` package without stemming. Words of any script
count; of one that writes no blanks (Chinese, Japanese, Thai …) each letter is a word.
Source: Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries", section 3.
"""

from harness.metrics import Metric
from harness.metrics._rouge import build_rouge
from harness.spec import Task

WORDS_ARE_LETTERS = True  # where references are of a script without blanks


def metric(task: Task) -> Metric:
    """Build ROUGE-L (F-measure) in [0, 1]: the best over the references, averaged over items."""
    return build_rouge("rougeL")
