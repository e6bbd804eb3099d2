"""Mean over labels of the share of each label's items that were given it.

Invariant: only labels that occur among the references count. Where every answer is one of the
labels this is the balanced accuracy.
Source: Grandini et al. 2020, arXiv:2008.05756, formulas 5 and 8.
"""

from harness.metrics import Metric, ratio
from harness.metrics._labels import macro
from harness.spec import Task

READS_WHOLE = True  # an answer that is a label and nothing else


def metric(task: Task) -> Metric:
    """Build macro-averaged recall in [0, 1] over the labels of the task."""
    return macro("recall", task, lambda tp, fp, fn: ratio(tp, tp + fn))
