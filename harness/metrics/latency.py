"""Compute time of an answer in seconds, its share of its batch's wall time: lower is better.

It differs between equal runs; the worst is an hour.
"""

from harness.metrics import mean_metric

metric = mean_metric("latency", lambda output, _: output.compute_s, False, (0.0, 3600.0))
