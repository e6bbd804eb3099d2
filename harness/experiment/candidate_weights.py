"""Weights of a candidate and seed: stored, or made by one fit or the best trial; also prompt selection.

    runs/weights/<key>/pruned.json      of a pruned trial: its points, the digest of the last one, and the log

Invariant: a candidate answers only with its selected prompt, so no other prompt sees a test item. A folder
of weights is named by the digest of all their inputs, and exists only when complete. Each trial is stored as
a run.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
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
from harness.evaluation.candidates import ResolvedCandidate, base_weights, merge_weights, read_weights
from harness.evaluation.row_sets import describe_run, metric_ranges, target_sets
from harness.evaluation.session import Session
from harness.experiment import trials
from harness.experiment.training_fit import PRUNED, Fit, FitInputs, show_point
from harness.experiment.trials import measure_point, read_kept_points, score_forgetting, validate
from harness.plugins import OR
from harness.records import Curve, TrackedPoint, TrainingRecord, Trial, read_training_record
from harness.store import TrialRun, write_whole
from harness.training import Weights

_KEY_DIGITS = 8


def ensure_weights(session: Session, candidate: ResolvedCandidate, seed: int) -> Weights:
    """Return the weights of a candidate; make them if they are not stored."""
    weights = _Maker(session, candidate, seed).weights()
    # In fp32 every adapter answers merged already.
    rounds = candidate.recipe.serve_merged and session.machine.precision != "fp32"
    return merge_weights(weights) if rounds else weights


def find_stored_weights(session: Session, candidate: ResolvedCandidate, seed: int) -> Weights | None:
    """Return the stored weights of a candidate; None if there are none or their training diverged."""
    try:
        return ensure_weights(session.reading(), candidate, seed)
    except (Diverged, NotStored):
        return None


class Tried(NamedTuple):
    """A trial with its weights, or the error by which it failed, now or earlier."""

    trial: Trial
    weights: Weights | None = None
    error: Exception | None = None


class _Maker(NamedTuple):
    # Finds or makes the weights of a candidate and seed.
    session: Session
    candidate: ResolvedCandidate
    seed: int

    @property
    def fit(self) -> Fit:
        return Fit(*self)

    def weights(self) -> Weights:
        if self.candidate.prompt_trials:
            weights = self._replace(candidate=replace(self.candidate, prompt_trials=())).weights()
            sweep, by = self.candidate.prompt_trials, self.candidate.prompts_proposed_by
            return weights._replace(training=replace(weights.training, sweep=sweep, searched_by=by))
        if self.candidate.given:
            return self.add_choosers(base_weights(self.candidate.given))
        if not self.candidate.source.tried or not self.candidate.method.trains:
            return self.find_or_fit(self.begin(), shows_points=True)
        # Every trial has the same budget unless it is pruned; losing trials stay in the store. A failed trial
        # counts too, and is repeated only by a search that has not chosen yet, once per session.
        tried: list[Tried] = []
        if not self.session.reads_only:
            with suppress(NotStored):
                stored = self._replace(session=self.session.reading()).try_all()
                is_searched = self.candidate.source_name in self.session.searched
                tried = stored if is_searched or any(_is_whole(attempt.trial) for attempt in stored) else []
        if not tried:
            tried = self.try_all()
            if not self.session.reads_only:
                self.session.searched.add(self.candidate.source_name)
        sign = self.session.target.primary.unit.sign
        best = max((attempt.trial for attempt in tried), key=partial(rank_trial, sign=sign))
        if not _is_whole(best):
            self.session.refuse_if_reading(f"finished trial of {self.candidate.source_name}")
            raise phrase_no_trial([(t.trial.params, t.error) for t in tried if t.error])
        chosen = self._replace(candidate=self.candidate.at(best.params))
        weights = chosen.find_or_fit(chosen.begin(), shows_points=True)
        again_s = 0.0 if self.seed == self.session.first_seed else weights.training.wall_s or 0.0
        record = replace(
            weights.training,
            wall_s=round(sum(attempt.trial.wall_s for attempt in tried) + again_s, 3),
            sweep=tuple(replace(attempt.trial, chosen=attempt.trial is best) for attempt in tried),
            searched_by=trials.searcher(self.candidate.source) if self.candidate.source.search else "",
            stands_on=stands_on(*(attempt.weights for attempt in tried if attempt.weights)),
        )
        return weights._replace(training=record)

    def begin(self) -> FitInputs:
        """Make the weights that this fit starts from, merges or is rewarded by; return its inputs."""
        makers = self.candidate.init, self.candidate.reward
        init, reward = (self._replace(candidate=m).weights() if m else None for m in makers)
        merges = [self._replace(candidate=maker).weights() for maker in self.candidate.merges]
        # The weights to start from or to merge may be of a kind that the method does not accept.
        expected_kinds = {"init_from": self.candidate.method.init_from, "merges": self.candidate.method.makes}
        for key, starts in (("init_from", [init] if init else []), ("merges", merges)):
            for start in starts:
                kind = start.kind if start.folder else "model"
                if kind not in expected_kinds[key].split(OR):
                    found = f"{key}: weights that turned out to be of the kind {kind}"
                    raise CandidateFailed(f"{found}; expected {expected_kinds[key]}", "another candidate")
        return FitInputs(init, reward, merges, self.fit.folder(init, reward, merges))

    def find_or_fit(self, inputs: FitInputs, *, shows_points: bool = False) -> Weights:
        stored_weights = read_weights(self.candidate, inputs.folder)
        if stored_weights is None:
            self.session.refuse_if_reading(f"weights {inputs.folder.name}")
            with self.session.claim(inputs.folder.name):
                stored_weights = read_weights(self.candidate, inputs.folder)
                if stored_weights is None and shows_points:
                    # Trains up to each planned point, and sends the target's score there to the trackers.
                    track, live = self.candidate.source.track, self.fit.live_run(inputs.folder)
                    for n_points in range(1, track.points + 1) if track and live else ():
                        self.fit.make_weights(inputs, show_at=n_points)
                        weights_by_step = read_points_so_far(self.candidate, inputs.folder)
                        for step, weights in list(weights_by_step.items())[-1:]:
                            point = measure_point(self.session, self.candidate, step, weights, self.seed)
                            show_point(live, point)
                        if inputs.folder.exists():
                            break
                    stored_weights = read_weights(self.candidate, inputs.folder)
                if stored_weights is None:
                    self.fit.make_weights(inputs)
                    stored_weights = read_weights(self.candidate, inputs.folder)
        assert stored_weights is not None
        start_weights = [weights for weights in (inputs.init, inputs.reward, *inputs.merges) if weights]
        if not start_weights:
            return self.add_choosers(stored_weights)
        before_s = round(sum(weights.training.total_s for weights in start_weights), 3)
        record = replace(stored_weights.training, init_wall_s=before_s, stands_on=stands_on(*start_weights))
        if inputs.reward:
            reward_record = inputs.reward.training
            accuracy = reward_record.heldout_accuracy[-1][1] if reward_record.heldout_accuracy else None
            record = replace(record, reward_model_accuracy=accuracy, n_heldout=reward_record.n_heldout)
        return self.add_choosers(stored_weights._replace(training=record))

    def add_choosers(self, weights: Weights) -> Weights:
        made = {c.name: self._replace(candidate=c).weights() for c in self.candidate.choosers}
        if not made:
            return weights
        record = weights.training
        before_s = (record.init_wall_s or 0.0) + sum(c.training.total_s for c in made.values())
        digests = {**record.stands_on, **stands_on(*made.values())}
        record = replace(record, init_wall_s=round(before_s, 3), stands_on=digests)
        return weights._replace(training=record, choosers=tuple(made.items()))

    def try_all(self) -> list[Tried]:
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
        sign = self.session.target.primary.unit.sign
        return trials.proposals(self.candidate, self.session.first_seed, sign, finished_trials)

    def at(self, params: Mapping[str, Any]) -> "_Maker":
        return self._replace(candidate=self.candidate.at(params), seed=self.session.first_seed)

    def attempt(self, proposal: trials.TrialProposal) -> Tried:
        session, trial = self.session, self.at(proposal.params)
        inputs = trial.begin()
        key = inputs.folder.name
        is_again = not session.reads_only and self.candidate.source_name in session.searched
        if is_again and (stored_failure := trial.recall(key, proposal)):
            return stored_failure
        try:
            points, pruned = trial.train_until_pruned(inputs, proposal.should_prune)
            weights, bound = pruned or trial.find_or_fit(inputs), self.candidate.source.subject_to
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
        stored = store.find_trial(self.session.store, self.name_trial(key))
        if not stored or not stored.trial.error or stored.trial.fit_key != key:
            return None
        reason, _, knob = stored.trial.error.partition("; try: ")
        return Tried(replace(stored.trial, params=proposal.params), error=CandidateFailed(reason, knob))

    def record(self, trial: Trial, weights: Weights) -> None:
        # Stores a complete or pruned trial with its answers on validation.
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
        # The candidate that makes the weights, also if another candidate uses them.
        maker = replace(self.candidate, name=self.candidate.source_name, recipe=self.candidate.source)
        name, seed, run_id = self.session.experiment.name, self.session.first_seed, self.name_trial(key)
        run = describe_run(name, maker, seed, run_id=run_id, **run_fields)
        curveless = replace(trial, loss=(), validation_loss=())  # the run's training record has them
        store.save_trial(self.session.store, TrialRun(run, curveless, self.session.target.primary.name))

    def name_trial(self, fit_key: str) -> str:
        run_name = self.session.name_begun(self.candidate.source_name, self.session.first_seed)
        return f"{run_name}-trial-{fit_key[:_KEY_DIGITS]}"

    def train_until_pruned(
        self, inputs: FitInputs, should_prune: trials.ShouldPrune | None
    ) -> tuple[Curve, Weights | None]:
        # Scores validation at each point. Returns the scores by step, and the last weights if pruned.
        session, candidate, folder = self.session, self.candidate, inputs.folder
        scores, track = list[tuple[float, float | None]](), candidate.source.track
        if track is None or should_prune is None:
            return (), None
        for point_number in range(1, track.points + 1):
            weights_by_step = read_points_so_far(candidate, folder)
            if len(weights_by_step) < point_number and read_weights(candidate, folder) is None:
                session.refuse_if_reading(f"point {point_number} of {folder.name}")
                with session.claim(folder.name):
                    if read_weights(candidate, folder) is None:
                        self.fit.make_weights(inputs, point_number)
                weights_by_step = read_points_so_far(candidate, folder)
            if len(weights_by_step) < point_number:  # fewer checkpoints than requested points
                return tuple(scores), None
            step, weights = list(weights_by_step.items())[point_number - 1]
            score, _ = validate(session, candidate, weights)
            scores.append((step, score))
            if not session.reads_only:
                show_point(self.fit.live_run(folder), TrackedPoint(step=step, target=score))
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


def stands_on(*weights: Weights) -> dict[str, str]:
    """Map the keys of weights, and of all weights they were made from, to digests."""
    digests: dict[str, str] = {}
    for start in weights:
        key = start.training.fit_key
        digests |= start.training.stands_on | ({key: start.digest} if key else {})
    return digests


def make_trial(session: Session, candidate: ResolvedCandidate, point: int) -> Weights | None:
    """Make and validate the trial at one point of its sweep; None if it failed, which is recorded."""
    maker = _Maker(session, candidate, session.first_seed)
    return maker.attempt(trials.TrialProposal(candidate.points[point])).weights


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
    return _is_whole(trial), keeps, value, -np.inf if loss is None else -loss


def _is_whole(trial: Trial) -> bool:
    return trial.validation is not None and not trial.is_pruned


def choose_prompts(session: Session, names: Iterable[str]) -> dict[str, ResolvedCandidate]:
    """Return the candidates that search for a prompt, with the prompt that validation selects.

    Failed searches are left out, as are searches with missing answers on a read-only session.
    """
    candidates, sign = dict[str, ResolvedCandidate](), session.target.primary.unit.sign
    for candidate in (session.candidates[name] for name in names):
        if not candidate.searches_prompts:
            continue
        maker, tried = _Maker(session, candidate, session.first_seed), list[Trial]()
        try:
            for proposal in maker.propose(tried):
                trial_maker = maker.at(proposal.params)
                weights = ensure_weights(*trial_maker)
                score, prompts_digest = validate(session, trial_maker.candidate, weights)
                tried.append(Trial(params=proposal.params, validation=score, asked=prompts_digest))
                if not session.reads_only:
                    trial_maker.record(tried[-1], weights)
        except UserError:
            raise
        except Exception as error:
            if not session.reads_only:  # a failure must not stop the other candidates
                session.failures[candidate.name, session.first_seed] = error
            elif not isinstance(error, HarnessError):
                raise
            continue
        prompts: list[Trial] = []
        for trial in tried:
            # Trials that sent the same prompts count as one, however their recipes are written; the first
            # is kept.
            key = "asked" if trial.asked else "params"
            index = next((i for i, k in enumerate(prompts) if getattr(k, key) == getattr(trial, key)), None)
            if index is None:
                prompts.append(trial)
            elif trial.params not in ((same_prompt := prompts[index]).params, *same_prompt.alike):
                prompts[index] = replace(same_prompt, alike=(*same_prompt.alike, trial.params))
        best = max(prompts, key=partial(rank_trial, sign=sign))
        chosen = tuple(replace(trial, chosen=trial is best) for trial in prompts)
        by = trials.searcher(candidate.source) if candidate.source.search else ""
        with_prompt = replace(candidate.at(best.params), prompt_trials=chosen, prompts_proposed_by=by)
        candidates[candidate.name] = with_prompt
    return candidates
