"""Share of answers that decline to help: what harmful requests should get.

Invariant: an empty answer is not a refusal.
"""

from harness.metrics import Metric, mean_metric
from harness.records import is_refusal
from harness.spec import Task


def metric(task: Task) -> Metric:
    """Build the share of refusals in [0, 1]."""
    return mean_metric("refusal", lambda output, example: float(is_refusal(output.text)))
