"""Record of a trial as a run of its own, written as soon as it is known what became of it; failed trials.

Invariant: its name is the key of the trial's weights, so whoever makes it, however often, writes the same.
A trial fails alone by what another point may not meet; what every trial would meet ends them all.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness import provenance, store
from harness.errors import CandidateFailed, Diverged, HarnessError, SharedFailure, one_line
from harness.evaluation.candidates import ResolvedCandidate
from harness.evaluation.row_sets import describe_run, metric_ranges, name_begun_run, target_sets
from harness.evaluation.session import Session
from harness.records import Trial
from harness.store import CLAIMS, TrialRun
from harness.training import Weights

_KEY_DIGITS = 8


def record_trial(session: Session, candidate: ResolvedCandidate, made: Trial, weights: Weights) -> None:
    """Keep a trial that was trained, whole or until it was pruned, with its answers on validation."""
    seed = session.first_seed
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


def make_failed_trial(params: dict[str, Any], fit_key: str, error: Exception) -> Trial:
    """Describe a trial that failed; that it diverged, its folder of weights says."""
    reason = "" if isinstance(error, Diverged) else one_line(error)
    return Trial(params=params, validation=None, fit_key=fit_key, error=reason)


def record_failed_trial(
    session: Session, candidate: ResolvedCandidate, made: Trial, error: Exception
) -> None:
    """Keep a trial that could not be trained or evaluated, with its reason."""
    run = describe_run(
        session,
        _maker_of(candidate),
        session.first_seed,
        run_id=_run_id(session, candidate, made.fit_key),
        weights_digest="",
        state="failed",
        rows={},
        error=one_line(error),
    )
    _save(session, TrialRun(run, made, session.target.primary.name))


def find_failed_trial(session: Session, candidate: ResolvedCandidate, fit_key: str) -> Trial | None:
    """Find a trial that failed otherwise than by divergence, which its folder of weights remembers."""
    known = store.find_trial(session.store, _run_id(session, candidate, fit_key))
    return known.trial if known and known.trial.error and known.trial.fit_key == fit_key else None


@contextmanager
def note_under_way(session: Session, candidate: ResolvedCandidate, fit_key: str) -> Iterator[None]:
    """Note which trial a search is at: a worker that is killed leaves no other trace of it."""
    file = _file_under_way(session, candidate)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(fit_key, "utf-8")
    yield
    forget_under_way(session, candidate)


def forget_under_way(session: Session, candidate: ResolvedCandidate) -> None:
    """Forget which trial a search is at: what became of it is known."""
    _file_under_way(session, candidate).unlink(missing_ok=True)


def find_under_way(session: Session, candidate: ResolvedCandidate) -> str:
    """Return the key of the trial that a search is at; empty where it is at none."""
    file = _file_under_way(session, candidate)
    return file.read_text("utf-8") if file.exists() else ""


def _file_under_way(session: Session, candidate: ResolvedCandidate) -> Path:
    return session.store.folder / CLAIMS / f"{candidate.source_name}.trial"


def read_stored_error(failed: Trial) -> CandidateFailed:
    """Return the error of a trial that failed, as its record keeps it: the reason, and what to turn."""
    reason, _, knob = failed.error.partition("; try: ")
    return CandidateFailed(reason, knob)


def fails_alone(error: Exception) -> bool:
    """Tell whether an error fails one trial, as other points may not meet it."""
    if isinstance(error, HarnessError):
        return isinstance(error, CandidateFailed) and not isinstance(error, SharedFailure)
    return not isinstance(error, OSError)


def phrase_no_trial(failed: Sequence[tuple[Mapping[str, Any], Exception]]) -> CandidateFailed:
    """Return what a candidate fails by where none of its trials was made whole: each reason, once."""
    if all(isinstance(error, Diverged) for _, error in failed):
        return Diverged("the training loss is not a number in any trial", "lower learning rates to try")
    points: dict[str, list[str]] = {}
    for params, error in failed:
        reason = error.reason if isinstance(error, CandidateFailed) else one_line(error)
        points.setdefault(reason, []).append(", ".join(f"{name} {value}" for name, value in params.items()))
    knobs = dict.fromkeys(error.knob for _, error in failed if isinstance(error, CandidateFailed))
    if len(points) == 1:
        return CandidateFailed(f"every trial failed: {next(iter(points))}", ", or ".join(filter(None, knobs)))
    said = "; ".join(f"{of[0]}: {reason}" for reason, of in points.items())
    return CandidateFailed(f"every trial failed: {said}", ", or ".join(filter(None, knobs)))


def _save(session: Session, found: TrialRun) -> None:
    curveless = replace(found.trial, loss=(), validation_loss=())  # the run's training has them
    store.save_trial(session.store, replace(found, trial=curveless))


def _maker_of(candidate: ResolvedCandidate) -> ResolvedCandidate:
    """Return the candidate that makes the weights, also where another one takes them."""
    return replace(candidate, name=candidate.source_name, recipe=candidate.source)


def _run_id(session: Session, candidate: ResolvedCandidate, fit_key: str) -> str:
    named = name_begun_run(session, candidate.source_name, session.first_seed)
    return f"{named}-trial-{fit_key[:_KEY_DIGITS]}"
