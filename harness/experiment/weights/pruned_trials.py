"""Trials that a pruner may end early: trained from one tracked point to the next, and scored at each.

Invariant: what a trial scored at its points is stored like any other answers, so a pruner that is asked
again ends the same trials at the same points, and trains none of them again. A pruned trial keeps the weights
of its points and no checkpoint; whoever wants it whole trains it from its beginning.

    runs/weights/<key>/pruned.json      beside the points: the digest of the last one, and what was logged
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from harness.evaluation.candidates import ResolvedCandidate, read_weights
from harness.evaluation.session import Session
from harness.experiment.weights.capability_on_validation import validate
from harness.records import Curve, TrainingRecord, read_training_record
from harness.store import write_whole
from harness.training import (
    CHECKPOINTS,
    TRACKED,
    Weights,
    map_tracked_folders,
    read_log_until,
    remove_all_but,
)

PRUNED = "pruned.json"


class TrialScores(NamedTuple):
    """Scores of a trial at its points, by step; its last weights with their record where it was pruned."""

    scores: Curve = ()
    pruned: Weights | None = None


def train_until_pruned(
    session: Session,
    trial: ResolvedCandidate,
    folder: Path,
    train: Callable[[int], None],
    should_prune: Callable[[int, float], bool],
) -> TrialScores:
    """Train a trial as far as its pruner lets it, and score it at each point on validation.

    `train(n)` trains until `n` points are kept, the last of which is the end; `should_prune` is told the
    number of a point and its score.

    Raises:
        NotStored: something is missing, and the session only reads.
    """
    assert trial.source.track
    scores: list[tuple[float, float | None]] = []
    n_points = trial.source.track.points
    for place in range(1, n_points + 1):
        kept = read_kept_points(trial, folder)
        if len(kept) < place and read_weights(trial, folder) is None:
            session.refuse_if_reading(f"point {place} of {folder.name}")
            train(place)
            kept = read_kept_points(trial, folder)
        if len(kept) < place:  # it has fewer checkpoints than points were requested
            break
        step, weights = list(kept.items())[place - 1]
        score = validate(session, trial, weights).score
        scores.append((step, score))
        if should_prune(place, score) and place < n_points:
            return TrialScores(tuple(scores), _set_pruned(session, trial, folder, step, weights))
    return TrialScores(tuple(scores))


def read_kept_points(trial: ResolvedCandidate, folder: Path) -> dict[int, Weights]:
    """Read the weights at the points of a training, by step, whether it is finished, pruned or under way."""
    at = folder if folder.exists() else _part(folder)
    found = {step: read_weights(trial, point) for step, point in map_tracked_folders(at / TRACKED).items()}
    return {step: weights for step, weights in found.items() if weights}


def unset_pruned(folder: Path, part: Path) -> None:
    """Let a trial that was pruned be trained again, whole."""
    if (folder / PRUNED).exists():
        (folder / PRUNED).unlink()
        folder.rename(part)


def _set_pruned(
    session: Session, trial: ResolvedCandidate, folder: Path, step: int, weights: Weights
) -> Weights:
    """Give the folder of a trial its name with what it has, and return its last weights with their record."""
    part = _part(folder)
    if part.exists() and not (part / PRUNED).exists():
        elapsed_s, loss, validation_loss = read_log_until(part / CHECKPOINTS, step)
        logged = TrainingRecord(
            wall_s=elapsed_s, n_steps=step, loss=loss, validation_loss=validation_loss, fit_key=folder.name
        )
        content = json.dumps({"digest": weights.digest, "training": logged.to_plain()})
        write_whole(session.store, part / PRUNED, content)
    if part.exists():
        remove_all_but(part, (TRACKED, PRUNED))
        part.rename(folder)
    if (folder / PRUNED).exists():
        made = read_training_record(json.loads((folder / PRUNED).read_text("utf-8"))["training"])
    else:  # it was trained whole before its search had this pruner
        whole = read_weights(trial, folder)
        assert whole is not None
        made = whole.training
    return weights._replace(training=_cut_record(step, made, folder.name))


def _cut_record(step: int, made: TrainingRecord, fit_key: str) -> TrainingRecord:
    """Return what was logged of a training until a step, with all the time that it took."""
    losses = (made.loss, made.validation_loss)
    loss, validation_loss = (tuple(at for at in curve if at[0] <= step) for curve in losses)
    return TrainingRecord(
        wall_s=made.wall_s, n_steps=step, loss=loss, validation_loss=validation_loss, fit_key=fit_key
    )


def _part(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.part")
