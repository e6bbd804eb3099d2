"""Share of an answer's citations that name a passage of its prompt which holds the answer.

Invariant: each passage counts once, however often it is cited; an answer that cites nothing scores 0.
"""

from harness.metrics import Metric, _citations, mean_metric
from harness.spec import Task


def metric(task: Task) -> Metric:
    """Build citation precision in [0, 1], averaged over items."""
    return mean_metric("citation_precision", lambda out, example: _citations.precision(out.text, example))
