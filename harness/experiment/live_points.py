"""Trainings in trackers while they run: what these call one, and the target's score at points along it.

Invariant: a score that is shown is that of a point whose weights are kept, as the report has it.
"""

from pathlib import Path

from harness.evaluation.candidates import ResolvedCandidate
from harness.evaluation.session import Session
from harness.masking import mask_values
from harness.records import TrackedPoint
from harness.training import LiveRun, make_live_id, open_trackers


def describe_live_run(
    session: Session, candidate: ResolvedCandidate, seed: int, folder: Path, show_at: int = 0
) -> LiveRun | None:
    """Return what trackers call the training whose weights get a folder; None where none sees it."""
    names, source, name = session.experiment.report_to, candidate.source, candidate.source_name
    if not (names and session.trackers and candidate.method.trains):
        return None
    params = {"method": source.method, "seed": seed, "base_model": session.experiment.base_model}
    return LiveRun(
        make_live_id(name, seed, folder.name),
        name,
        session.experiment.name + ("-smoke" if session.store.folder.name == "smoke" else ""),
        session.trackers.absolute(),
        names,
        {key: str(value) for key, value in mask_values(params | source.params).items()},
        show_at,
    )


def show_point(
    session: Session, candidate: ResolvedCandidate, seed: int, folder: Path, point: TrackedPoint
) -> None:
    """Send the target's score on validation at a point along a training to the trackers that see it."""
    run = describe_live_run(session, candidate, seed, folder)
    if run and point.target is not None:
        with open_trackers(run, point.step) as send:
            send({"training/target": point.target}, point.step)
