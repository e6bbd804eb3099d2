"""Mean over labels of the share of each label's answers that were right.

Invariant: only labels that occur among the references count; one that was never answered has
precision 0, as in scikit-learn with `zero_division=0`.
Source: Grandini et al. 2020, arXiv:2008.05756, formulas 4 and 7.
"""

import numpy as np

from harness.metrics import Metric, ratio
from harness.metrics._labels import macro
from harness.spec import Task

READS_WHOLE = True  # an answer that is a label and nothing else


def metric(task: Task) -> Metric:
    """Build macro-averaged precision in [0, 1] over the labels of the task."""
    return macro("precision", task, lambda tp, fp, fn: np.where(tp > 0, ratio(tp, tp + fp), 0.0))
