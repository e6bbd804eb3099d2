"""Rate of unusable answers over the generated tasks of both arms, pooled.

Invariant: items of several tasks that ask the same document are one cluster, so a copy of a task adds no
evidence.
"""

from collections.abc import Sequence

from harness import comparison
from harness.comparison import Comparison
from harness.gating.admission import Measurement
from harness.gating.shared_documents import join_rows


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
    clusters = join_rows(((m.base, m.documents) for m in generated), comparison.name_pooled_cluster)
    return comparison.compare_validity(
        base, new, clusters=clusters, alpha=alpha, identical=identical, base_errors="bounds"
    )
