"""Description of a run: what its recipe says of it, joined with what became of it."""

from collections.abc import Iterable
from typing import Any

from harness import provenance
from harness.evaluation.candidates import ResolvedCandidate
from harness.evaluation.rows.row_sets import RowSet
from harness.evaluation.session import Session
from harness.records import MetricRange, Run


def describe_run(session: Session, candidate: ResolvedCandidate, seed: int, **outcome: Any) -> Run:
    """Join what a recipe says of its run with what became of it."""
    recipe, base, served = candidate.recipe, candidate.base, candidate.served_base
    return Run(
        experiment=session.experiment.name,
        candidate=candidate.name,
        method=candidate.source.method,
        prompting=" + ".join(
            f"{name}({', '.join(f'{k}={v}' for k, v in params.items())})" if params else name
            for name, params in recipe.prompting.items()
        ),
        answer=recipe.answer,
        seed=seed,
        base_model=base.name,
        base_digest=base.weights_digest,
        served_digest=served.weights_digest if served != base else "",
        created=provenance.timestamp(),
        recipe=recipe.model_dump(mode="json"),
        **outcome,
    )


def metric_ranges(sets: Iterable[RowSet]) -> dict[str, dict[str, MetricRange]]:
    """Say by task and metric which values are better, and between which bounds they lie."""
    return {s.measured.task.name: {name: m.range for name, m in s.measured.metrics.items()} for s in sets}
