"""Search of a candidate's recipe or prompt: carries trials out, records each, and ranks them by validation.

    runs/weights/<key>/pruned.json      of a pruned trial: its points, the digest of the last one, and the log

Invariant: a candidate answers only with its selected prompt, so no other prompt sees a test item. Each trial
is stored as a run. The weights of a trial are made by the caller (`candidate_weights`).
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from harness import provenance, store, training
from harness.errors import (
    CandidateFailed,
    Diverged,
    HarnessError,
    NotStored,
    SharedFailure,
    UserError,
    one_line,
)
from harness.evaluation.candidates import ResolvedCandidate, read_weights
from harness.evaluation.row_sets import describe_run, metric_ranges, target_sets
from harness.evaluation.session import Session
from harness.experiment import trials
from harness.experiment.trials import read_kept_points, score_forgetting, validate
from harness.records import Curve, TrackedPoint, TrainingRecord, Trial, read_training_record
from harness.store import TrialRun, write_whole
from harness.training import Weights

PRUNED = "pruned.json"  # in the folder of a trial that was pruned
_KEY_DIGITS = 8


class Tried(NamedTuple):
    """A trial with its weights, or the error by which it failed, now or earlier."""

    trial: Trial
    weights: Weights | None = None
    error: Exception | None = None


class TrialFit(NamedTuple):
    """Fit of one trial: its folder, and how to finish it, to train it to a point, and to show a score."""

    folder: Path
    finish: Callable[[], Weights]
    train_to: Callable[[int], None]
    show: Callable[[TrackedPoint], None]


class TrialSearch(NamedTuple):
    """Trials of a candidate's sweep or search; `begin` begins the fit of the candidate at one point."""

    session: Session
    candidate: ResolvedCandidate
    begin: Callable[[ResolvedCandidate], TrialFit]

    def try_all(self) -> list[Tried]:
        """Make and validate every trial; failed ones are included."""
        tried, finished_trials = list[Tried](), list[Trial]()
        for proposal in self.propose(finished_trials):
            attempt = self.attempt(proposal)
            is_again = any(attempt.trial.params == before.params for before in finished_trials)
            # A training is counted once.
            counted = replace(attempt.trial, wall_s=0.0) if is_again else attempt.trial
            tried.append(attempt._replace(trial=counted))
            finished_trials.append(attempt.trial)
        return tried

    def propose(self, finished_trials: Sequence[Trial]) -> Iterator[trials.TrialProposal]:
        """Yield the points to try; the caller appends the trial of each to `finished_trials`."""
        sign = self.session.target.primary.unit.sign
        return trials.proposals(self.candidate, self.session.first_seed, sign, finished_trials)

    def at(self, params: Mapping[str, Any]) -> "TrialSearch":
        """Return the search of the candidate at one point, which records that trial."""
        return self._replace(candidate=self.candidate.at(params))

    def attempt(self, proposal: trials.TrialProposal) -> Tried:
        """Make and validate one trial, and record it, unless the session only reads."""
        session, trial = self.session, self.at(proposal.params)
        fit = self.begin(trial.candidate)
        key = fit.folder.name
        is_again = not session.reads_only and self.candidate.source_name in session.searched
        if is_again and (stored_failure := trial.recall(key, proposal)):
            return stored_failure
        try:
            points, pruned = trial.train_until_pruned(fit, proposal.should_prune)
            weights, bound = pruned or fit.finish(), self.candidate.source.subject_to
            record = weights.training
            made = Trial(
                params=proposal.params,
                validation=None,
                best_validation_loss=record.best_validation_loss,
                wall_s=record.wall_s or 0.0,
                loss=record.loss,
                validation_loss=record.validation_loss,
                points=points,
                most_forgetting=bound.forgetting if bound else None,
                fit_key=record.fit_key,
            )
            if pruned:
                made = replace(made, validation=points[-1][1], pruned_at=record.n_steps)
            else:
                score, prompts_digest = validate(session, trial.candidate, weights)
                forgetting = score_forgetting(session, trial.candidate, weights, bound) if bound else None
                made = replace(made, validation=score, asked=prompts_digest, forgetting=forgetting)
        except NotStored:
            if stored_outcome := trial.recall(key, proposal):
                return stored_outcome
            raise
        except Exception as error:
            if not fails_alone(error):
                raise
            # The folder of the weights records a divergence.
            reason = "" if isinstance(error, Diverged) else one_line(error)
            failed = Trial(params=dict(proposal.params), validation=None, fit_key=key, error=reason)
            if not session.reads_only:
                trial.save(failed, key, weights_digest="", state="failed", rows={}, error=one_line(error))
            return Tried(failed, error=error)
        if not session.reads_only:
            trial.record(made, weights)
        return Tried(made, weights)

    def recall(self, key: str, proposal: trials.TrialProposal) -> Tried | None:
        """Return the recorded failure of this trial; None if it did not fail."""
        stored = store.find_trial(self.session.store, self.name_trial(key))
        if not stored or not stored.trial.error or stored.trial.fit_key != key:
            return None
        reason, _, knob = stored.trial.error.partition("; try: ")
        return Tried(replace(stored.trial, params=proposal.params), error=CandidateFailed(reason, knob))

    def record(self, trial: Trial, weights: Weights) -> None:
        """Store a complete or pruned trial with its answers on validation."""
        session = self.session
        rows = target_sets(session, self.candidate.source, weights, session.first_seed)[0]
        self.save(
            trial,
            trial.fit_key or rows.identity.digest,
            weights_digest=weights.digest,
            state="done",
            rows={rows.name: rows.identity.digest},
            training=weights.training,
            provenance=provenance.collect(session.machine.name) | {"precision": session.machine.precision},
            metrics=metric_ranges([rows]),
        )

    def save(self, trial: Trial, key: str, **run_fields: Any) -> None:
        """Store a trial as a run of the candidate that makes the weights, also if another one uses them."""
        maker = replace(self.candidate, name=self.candidate.source_name, recipe=self.candidate.source)
        name, seed, run_id = self.session.experiment.name, self.session.first_seed, self.name_trial(key)
        run = describe_run(name, maker, seed, run_id=run_id, **run_fields)
        curveless = replace(trial, loss=(), validation_loss=())  # the run's training record has them
        store.save_trial(self.session.store, TrialRun(run, curveless, self.session.target.primary.name))

    def name_trial(self, fit_key: str) -> str:
        """Return the id of a trial's run."""
        run_name = self.session.name_begun(self.candidate.source_name, self.session.first_seed)
        return f"{run_name}-trial-{fit_key[:_KEY_DIGITS]}"

    def train_until_pruned(
        self, fit: TrialFit, should_prune: trials.ShouldPrune | None
    ) -> tuple[Curve, Weights | None]:
        """Score validation at each point; return the scores by step, and the last weights if pruned."""
        session, candidate, folder = self.session, self.candidate, fit.folder
        scores, track = list[tuple[float, float | None]](), candidate.source.track
        if track is None or should_prune is None:
            return (), None
        for point_number in range(1, track.points + 1):
            weights_by_step = read_points_so_far(candidate, folder)
            if len(weights_by_step) < point_number and read_weights(candidate, folder) is None:
                session.refuse_if_reading(f"point {point_number} of {folder.name}")
                with session.claim(folder.name):
                    if read_weights(candidate, folder) is None:
                        fit.train_to(point_number)
                weights_by_step = read_points_so_far(candidate, folder)
            if len(weights_by_step) < point_number:  # fewer checkpoints than requested points
                return tuple(scores), None
            step, weights = list(weights_by_step.items())[point_number - 1]
            score, _ = validate(session, candidate, weights)
            scores.append((step, score))
            if not session.reads_only:
                fit.show(TrackedPoint(step=step, target=score))
            if should_prune(point_number, score) and point_number < track.points:
                break
        else:
            return tuple(scores), None
        partial_folder = _part(folder)
        if partial_folder.exists() and not (partial_folder / PRUNED).exists():
            elapsed_s, *curves = training.read_log_until(partial_folder / training.CHECKPOINTS, step)
            logged = TrainingRecord(wall_s=elapsed_s, n_steps=step, fit_key=folder.name)
            logged = replace(logged, loss=curves[0], validation_loss=curves[1])
            content = json.dumps({"digest": weights.digest, "training": logged.to_plain()})
            write_whole(session.store, partial_folder / PRUNED, content)
        if partial_folder.exists():
            training.remove_all_but(partial_folder, (training.TRACKED, PRUNED))
            partial_folder.rename(folder)
        if (folder / PRUNED).exists():
            history = read_training_record(json.loads((folder / PRUNED).read_text("utf-8"))["training"])
        else:  # trained completely before its search had this pruner
            whole = read_weights(candidate, folder)
            assert whole is not None
            history = whole.training
        whole_curves = history.loss, history.validation_loss
        loss, validation_loss = (tuple(at for at in curve if at[0] <= step) for curve in whole_curves)
        record = TrainingRecord(wall_s=history.wall_s, n_steps=step, fit_key=folder.name)
        record = replace(record, loss=loss, validation_loss=validation_loss)
        return tuple(scores), weights._replace(training=record)

    def choose_prompt(self, ensure: Callable[[ResolvedCandidate], Weights]) -> ResolvedCandidate | None:
        """Return the candidate with the prompt that validation selects; None if the search failed."""
        session, tried = self.session, list[Trial]()
        try:
            for proposal in self.propose(tried):
                trial = self.at(proposal.params)
                weights = ensure(trial.candidate)
                score, prompts_digest = validate(session, trial.candidate, weights)
                tried.append(Trial(params=proposal.params, validation=score, asked=prompts_digest))
                if not session.reads_only:
                    trial.record(tried[-1], weights)
        except UserError:
            raise
        except Exception as error:
            if not session.reads_only:  # a failure must not stop the other candidates
                session.failures[self.candidate.name, session.first_seed] = error
            elif not isinstance(error, HarnessError):
                raise
            return None
        prompts: list[Trial] = []
        for finished_trial in tried:
            # Trials that sent the same prompts count as one, however their recipes are written; the first
            # is kept.
            key = "asked" if finished_trial.asked else "params"
            value = getattr(finished_trial, key)
            index = next((i for i, known in enumerate(prompts) if getattr(known, key) == value), None)
            if index is None:
                prompts.append(finished_trial)
            elif finished_trial.params not in ((same_prompt := prompts[index]).params, *same_prompt.alike):
                prompts[index] = replace(same_prompt, alike=(*same_prompt.alike, finished_trial.params))
        best = max(prompts, key=partial(rank_trial, sign=session.target.primary.unit.sign))
        chosen = tuple(replace(finished_trial, chosen=finished_trial is best) for finished_trial in prompts)
        by = trials.searcher(self.candidate.source) if self.candidate.source.search else ""
        return replace(self.candidate.at(best.params), prompt_trials=chosen, prompts_proposed_by=by)


def read_points_so_far(trial: ResolvedCandidate, folder: Path) -> dict[int, Weights]:
    """Read the weights at the points of a finished, pruned or running training, by step."""
    return read_kept_points(trial, folder if folder.exists() else _part(folder))


def _part(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.part")


def fails_alone(error: Exception) -> bool:
    """Tell whether an error fails only one trial, so that other points may succeed."""
    if isinstance(error, HarnessError):
        return isinstance(error, CandidateFailed) and not isinstance(error, SharedFailure)
    return not isinstance(error, OSError)


def phrase_no_trial(failed: Sequence[tuple[Mapping[str, Any], Exception]]) -> CandidateFailed:
    """Return the error of a candidate without a complete trial, with each reason once."""
    if all(isinstance(error, Diverged) for _, error in failed):
        return Diverged("the training loss is not a number in any trial", "lower learning rates to try")
    points: dict[str, list[str]] = {}
    for params, error in failed:
        reason = error.reason if isinstance(error, CandidateFailed) else one_line(error)
        points.setdefault(reason, []).append(", ".join(f"{name} {value}" for name, value in params.items()))
    knobs = dict.fromkeys(error.knob for _, error in failed if isinstance(error, CandidateFailed))
    if len(points) == 1:
        return CandidateFailed(f"every trial failed: {next(iter(points))}", ", or ".join(filter(None, knobs)))
    reasons = "; ".join(f"{settings[0]}: {reason}" for reason, settings in points.items())
    return CandidateFailed(f"every trial failed: {reasons}", ", or ".join(filter(None, knobs)))


def rank_trial(trial: Trial, sign: int) -> tuple[bool, bool, float, float]:
    """Return the sort key of a trial: its validation score, then its validation loss if scores are equal.

    Complete trials rank first, then those within their forgetting limit; if none is, the least forgetting
    ranks best.
    """
    score, loss, forgetting = trial.validation, trial.best_validation_loss, trial.forgetting
    forgetting_limit = trial.most_forgetting
    keeps = forgetting_limit is None or forgetting is None or forgetting <= forgetting_limit
    value = -np.inf if score is None else sign * score
    if not keeps and forgetting is not None:
        value = -forgetting
    return is_whole(trial), keeps, value, -np.inf if loss is None else -loss


def is_whole(trial: Trial) -> bool:
    """Tell whether a trial was trained to its end and validated."""
    return trial.validation is not None and not trial.is_pruned
