"""ROUGE-L of texts of several lines: the union of the common subsequences, line by line.

Invariant: of English the number is that of the `rouge-score` package without stemming, which takes every
line for a sentence. Words are those of `rougeL`.
Source: Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries", section 3.2.
"""

from harness.metrics import Metric
from harness.metrics._rouge import build_rouge
from harness.spec import Task

WORDS_ARE_LETTERS = True  # where references are of a script without blanks


def metric(task: Task) -> Metric:
    """Build summary-level ROUGE-L (F-measure) in [0, 1]: the best over the references, averaged."""
    return build_rouge("rougeLsum")
