"""Record of a trial as a run of its own, written as soon as it is known what became of it.

Invariant: its name is the key of the trial's weights, so whoever makes it, however often, writes the same.
"""

from dataclasses import replace

from harness import provenance, store
from harness.errors import CandidateFailed, in_a_line
from harness.evaluation.candidates import ResolvedCandidate
from harness.evaluation.rows.row_sets import begun_as, describe_run, metric_ranges, target_sets
from harness.evaluation.session import Session
from harness.records import Trial
from harness.store import TrialRun
from harness.training import Weights

_KEY_DIGITS = 8


def record_trial(session: Session, candidate: ResolvedCandidate, made: Trial, weights: Weights) -> None:
    """Keep a trial that was trained, whole or until it was pruned, with its answers to the validation items.

    Raises:
        HarnessError: the disk is full.
    """
    seed = session.experiment.seeds[0]
    rows = target_sets(session, candidate.source, weights, seed)[0]
    run = describe_run(
        session,
        _maker_of(candidate),
        seed,
        run_id=_run_id(session, candidate, made.fit_key or rows.identity.digest),
        weights_digest=weights.digest,
        state="done",
        rows={rows.name: rows.identity.digest},
        training=weights.training,
        provenance=provenance.collect(session.machine.name) | {"precision": session.machine.precision},
        metrics=metric_ranges([rows]),
    )
    _save(session, TrialRun(run, made, session.target.primary.name))


def record_failed_trial(
    session: Session, candidate: ResolvedCandidate, made: Trial, error: CandidateFailed
) -> None:
    """Keep a trial that could not be trained, with its reason.

    Raises:
        HarnessError: the disk is full.
    """
    run = describe_run(
        session,
        _maker_of(candidate),
        session.experiment.seeds[0],
        run_id=_run_id(session, candidate, made.fit_key),
        weights_digest="",
        state="failed",
        rows={},
        error=in_a_line(error),
    )
    _save(session, TrialRun(run, made, session.target.primary.name))


def _save(session: Session, found: TrialRun) -> None:
    curveless = replace(found.trial, loss=(), validation_loss=())  # the run's training has them
    store.save_trial(session.store, replace(found, trial=curveless))


def _maker_of(candidate: ResolvedCandidate) -> ResolvedCandidate:
    """Return the candidate that makes the weights, also where another one takes them."""
    return replace(candidate, name=candidate.source_name, recipe=candidate.source)


def _run_id(session: Session, candidate: ResolvedCandidate, fit_key: str) -> str:
    named = begun_as(session, candidate.source_name, session.experiment.seeds[0])
    return f"{named}-trial-{fit_key[:_KEY_DIGITS]}"
