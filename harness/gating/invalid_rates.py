"""Rate of unusable answers over the generated tasks of both arms, pooled.

Invariant: items of several tasks that ask the same document are one cluster, so a copy of a task adds no
evidence.
"""

from collections.abc import Mapping, Sequence

from harness import comparison
from harness.comparison import Comparison
from harness.gating.admission import Measurement
from harness.gating.shared_documents import documents_of, join_clusters


def compare_invalid_rates(
    measured: Sequence[Measurement], alpha: float, identical: bool
) -> Comparison | None:
    """Compare the share of invalid answers over the generated rows of tasks where none is wanted."""
    generated = [m for m in measured if m.task.kind == "generate" and m.role != "safety"]
    if not generated:
        return None
    base, new = ([row for m in generated for row in getattr(m, arm)] for arm in ("base", "new"))
    if all(row.status == "error" for row in base):
        return None
    return comparison.compare_validity(
        base, new, clusters=_clusters(generated), alpha=alpha, identical=identical, base_errors="bounds"
    )


def _clusters(measured: Sequence[Measurement]) -> Mapping[str, str]:
    """Join the pooled clusters of tasks that hold the same document."""
    known = ((m, documents_of(m.base, m.documents)) for m in measured)
    return join_clusters(
        (documents[row.example_id], comparison.pooled_cluster(row))
        for m, documents in known
        for row in m.base
        if row.example_id in documents
    )
