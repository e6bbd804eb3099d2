"""Share of the documents with the answer that an answer cites from its prompt.

Invariant: a document that was not retrieved cannot be cited, and counts against who did not retrieve it.
"""

from harness.metrics import Metric, _citations, mean_metric
from harness.spec import Task


def metric(task: Task) -> Metric:
    """Build citation recall in [0, 1], averaged over items."""
    return mean_metric("citation_recall", lambda out, example: _citations.recall(out.text, example))
