"""Longest common subsequence of the words of the answer and of the nearest reference.

Invariant: the number is that of the `rouge-score` package without stemming. Its tokeniser
keeps Latin letters and digits only: an item whose references have none is not scored.
Source: Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries", section 3.
"""

from harness.metrics import Metric
from harness.metrics._rouge import build_rouge
from harness.spec import Task


def metric(task: Task) -> Metric:
    """Build ROUGE-L (F-measure) in [0, 1]: the best over the references, averaged over items."""
    return build_rouge("rougeL")
