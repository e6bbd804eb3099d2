"""Mean over labels of each label's F1.

Invariant: only labels that occur among the references count, so two candidates on the same
items are always averaged over the same labels.
Source: Opitz & Burst 2019, arXiv:1911.03347, the "averaged F1" (formula 2).
"""

from harness.metrics import Metric, ratio
from harness.metrics._labels import macro
from harness.spec import Task

SHORT = "macro F1"
READS_WHOLE = True  # an answer that is a label and nothing else


def metric(task: Task) -> Metric:
    """Build macro-F1 in [0, 1] over the labels of the task."""
    return macro("macro_f1", task, lambda tp, fp, fn: ratio(2 * tp, 2 * tp + fp + fn))
