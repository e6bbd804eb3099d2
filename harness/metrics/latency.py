"""Compute time of an answer, its share of its batch's wall time, in seconds; differs between equal runs."""

from harness.metrics import Metric, mean_metric
from harness.spec import Task


def metric(task: Task) -> Metric:
    """Return the mean compute time in seconds; lower is better."""
    return mean_metric("latency", lambda output, _: output.compute_s, False, (0.0, 3600.0))
