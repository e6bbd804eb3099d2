"""Share of answers that are one of the references.

Invariant: what `records.normalize` folds never decides: case, spacing, typography, surrounding quotes and a
final full stop.
"""

from harness.metrics import Metric, mean_metric, normalize
from harness.records import Example, Output
from harness.spec import Task

SHORT = "EM"
READS_WHOLE = True  # an answer that is a label and nothing else
IS_SHARE_OF_RIGHT_LABELS = True


def metric(task: Task) -> Metric:
    """Build exact match in [0, 1]."""
    return mean_metric("exact_match", _matches)


def _matches(output: Output, example: Example) -> float:
    answer = normalize(output.text)
    return float(any(answer == normalize(reference) for reference in example.references))
