"""Arms of a comparison on the suites: a base or other weights, measured as far as that is not done yet."""

from collections.abc import Sequence

from harness.evaluation.candidates import base_weights
from harness.evaluation.judges.judging_stage import score_answered
from harness.evaluation.rows.row_sets import RowSet, is_there, suite_sets
from harness.evaluation.runner import fill, find_base_rows, open_weights
from harness.evaluation.session import Session
from harness.models.hub import ModelSource
from harness.training import Weights


def base_arm(session: Session, source: ModelSource) -> dict[str, str]:
    """Measure a base on the capability suite, as it is served; returns the row set of each task.

    What was measured of it on this machine before, in whatever folder, is taken from there.
    """
    return suite_arm(session, base_weights(source), f"base {source.quantization}".rstrip(), shared=True)


def suite_arm(session: Session, weights: Weights, name: str, *, shared: bool = False) -> dict[str, str]:
    """Measure weights on the suites, as far as that is not done yet; returns the row set of each task.

    What is `shared` is looked for, and left, where experiments in other folders on this machine find it.
    """
    sets = suite_sets(session, weights)
    if lacking := _list_missing(session, sets, shared=shared):
        with open_weights(session, weights) as candidate:
            fill(session, candidate, lacking, name, shared=shared)
        score_answered(session, lacking)
    return {s.measured.task.name: s.identity.digest for s in sets}


def _list_missing(session: Session, sets: Sequence[RowSet], *, shared: bool) -> list[RowSet]:
    """List the sets that have to be asked; what is `shared` is fetched first."""
    lacking = score_answered(session, sets)
    return find_base_rows(session, lacking) if shared else lacking


def is_measured(session: Session, source: ModelSource) -> bool:
    """Tell whether a base has nothing left to be asked on the suites, here or in another folder before."""
    return not _list_missing(session, suite_sets(session, base_weights(source)), shared=True)


def find_measured_arm(session: Session, source: ModelSource) -> dict[str, str] | None:
    """Find a base's rows of the capability suite where it was measured; None where rows are missing."""
    sets = suite_sets(session, base_weights(source))
    if not all(is_there(session, s) for s in sets):
        return None
    return {s.measured.task.name: s.identity.digest for s in sets}
