"""Validation score of weights, by which trials of a sweep are ranked and tracked points are shown."""

from collections.abc import Iterable

import numpy as np

from harness import store
from harness.evaluation.candidates import ResolvedCandidate
from harness.evaluation.judges.judging_stage import score_answered
from harness.evaluation.rows.row_sets import is_there, target_sets
from harness.evaluation.runner import fill, measure_control, open_weights
from harness.evaluation.session import Session
from harness.metrics import Metric, extremes
from harness.records import SampleResult
from harness.training import Weights


def score_on_validation(
    session: Session, trial: ResolvedCandidate, weights: Weights, *, make: bool
) -> float | None:
    """Return a trial's score on the validation rows of the target; None where they are missing."""
    rows = target_sets(session, trial.source, weights, session.experiment.seeds[0])[0]
    if not is_there(session, rows):
        if not make:
            return None
        if lacking := score_answered(session, [rows]):
            beside = measure_control(session, trial.base, weights)
            with open_weights(session, weights) as candidate:
                fill(session, candidate, lacking, "sweep", control=beside)
            score_answered(session, lacking)
    answered = store.read_rows(session.store, rows.identity.digest, len(rows.ids))
    return mean_score(session.target.primary, answered)


def mean_score(metric: Metric, rows: Iterable[SampleResult]) -> float | None:
    """Return the score of rows, a failed answer as the metric's worst value, if it has one; None without any.

    So no trial is favoured for the answers that it owes.
    """
    parts = [p for row in rows if (p := _parts(metric, row)) is not None]
    return float(metric.aggregate(np.array(parts), np.ones(len(parts)))) if parts else None


def _parts(metric: Metric, row: SampleResult) -> tuple[float, ...] | None:
    parts = row.parts.get(metric.name)
    if parts is None and (row.status == "error" or row.error):
        known = extremes(metric, row.references)
        return known.worst if known else None
    return parts
