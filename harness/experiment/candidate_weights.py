"""Weights of a candidate and seed: stored ones, or made by one fit or the best trial; also chosen prompts.

    runs/weights/<key>/pruned.json      with the points: the digest of the last one, and the log

Invariant: a candidate whose prompt was chosen answers only with that one, so no other prompt sees a test
item. A folder of weights is named by everything they depend on, and exists only when complete. Each trial is
stored as a run.
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
from harness.spec import SubjectTo
from harness.store import TrialRun, write_whole
from harness.training import Weights

_KEY_DIGITS = 8


def ensure_weights(session: Session, candidate: ResolvedCandidate, seed: int) -> Weights:
    """Return the weights of a candidate, made now or before."""
    weights = _Maker(session, candidate, seed).weights()
    # Weights as the candidate answers with them: in fp32 every adapter answers merged.
    rounds = candidate.recipe.serve_merged and session.machine.precision != "fp32"
    return merge_weights(weights) if rounds else weights


def find_stored_weights(session: Session, candidate: ResolvedCandidate, seed: int) -> Weights | None:
    """Return the stored weights of a candidate; None if there are none or their training diverged."""
    try:
        return ensure_weights(session.reading(), candidate, seed)
    except (Diverged, NotStored):
        return None


class Tried(NamedTuple):
    """A trial with its weights, or the error that it failed by, now or before."""

    trial: Trial
    weights: Weights | None = None
    error: Exception | None = None


class _Maker(NamedTuple):
    # Makes the weights of a candidate and seed, or finds them.
    session: Session
    candidate: ResolvedCandidate
    seed: int

    @property
    def fit(self) -> Fit:
        return Fit(*self)

    def weights(self) -> Weights:
        if self.candidate.prompt_trials:
            found = self._replace(candidate=replace(self.candidate, prompt_trials=())).weights()
            sweep, by = self.candidate.prompt_trials, self.candidate.prompts_proposed_by
            return found._replace(training=replace(found.training, sweep=sweep, searched_by=by))
        if self.candidate.given:
            return self.add_choosers(base_weights(self.candidate.given))
        if self.candidate.source.tried and self.candidate.method.trains:
            return self.choose_trial()
        return self.find_or_fit(self.begin(), shows_points=True)

    def begin(self) -> FitInputs:
        init, reward = (
            self._replace(candidate=maker).weights() if maker else None
            for maker in (self.candidate.init, self.candidate.reward)
        )
        merges = [self._replace(candidate=maker).weights() for maker in self.candidate.merges]
        # What they start from or merge may have turned out to be of another kind than the method takes.
        wanted = {"init_from": self.candidate.method.init_from, "merges": self.candidate.method.makes}
        for key, given in (("init_from", [init] if init else []), ("merges", merges)):
            for start in given:
                kind = start.kind if start.folder else "model"
                if kind not in wanted[key].split(OR):
                    found = f"{key}: weights that turned out to be of the kind {kind}"
                    raise CandidateFailed(f"{found}; expected {wanted[key]}", "another candidate")
        return FitInputs(init, reward, merges, self.fit.folder(init, reward, merges))

    def find_or_fit(self, begun: FitInputs, *, shows_points: bool = False) -> Weights:
        found = read_weights(self.candidate, begun.folder)
        if found is None:
            self.session.refuse_if_reading(f"weights {begun.folder.name}")
            with self.session.claim(begun.folder.name):
                found = read_weights(self.candidate, begun.folder)
                if found is None and shows_points:
                    # Up to each planned point along a training; trackers are shown the target's score there.
                    track, live = self.candidate.source.track, self.fit.live_run(begun.folder)
                    for place in range(1, track.points + 1) if track and live else ():
                        self.fit.make(begun, show_at=place)
                        kept = read_points_so_far(self.candidate, begun.folder)
                        for step, weights in list(kept.items())[-1:]:
                            point = measure_point(self.session, self.candidate, step, weights, self.seed)
                            show_point(live, point)
                        if begun.folder.exists():
                            break
                    found = read_weights(self.candidate, begun.folder)
                if found is None:
                    self.fit.make(begun)
                    found = read_weights(self.candidate, begun.folder)
        assert found is not None
        known = [weights for weights in (begun.init, begun.reward, *begun.merges) if weights]
        if not known:
            return self.add_choosers(found)
        before_s = round(sum(weights.training.total_s for weights in known), 3)
        began_with = replace(found.training, init_wall_s=before_s, stands_on=stands_on(*known))
        if begun.reward:
            by = begun.reward.training
            accuracy = by.heldout_accuracy[-1][1] if by.heldout_accuracy else None
            began_with = replace(began_with, reward_model_accuracy=accuracy, n_heldout=by.n_heldout)
        return self.add_choosers(found._replace(training=began_with))

    def add_choosers(self, weights: Weights) -> Weights:
        choosers = tuple(
            (chooser.name, self._replace(candidate=chooser).weights()) for chooser in self.candidate.choosers
        )
        if not choosers:
            return weights
        record, made = weights.training, [chooser for _, chooser in choosers]
        before_s = round((record.init_wall_s or 0.0) + sum(chooser.training.total_s for chooser in made), 3)
        record = replace(record, init_wall_s=before_s, stands_on={**record.stands_on, **stands_on(*made)})
        return weights._replace(training=record, choosers=choosers)

    def choose_trial(self) -> Weights:
        first, sign = self.session.first_seed, self.session.target.primary.unit.sign
        # Every trial has the same budget, unless it is pruned; those that lose stay in the store. One that
        # failed is a trial as well, and is made again only by a search that has not chosen yet, once a
        # session.
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
        best = max((attempt.trial for attempt in tried), key=partial(rank_trial, sign=sign))
        if not _is_whole(best):
            self.session.refuse_if_reading(f"finished trial of {self.candidate.source_name}")
            raise phrase_no_trial(
                [(attempt.trial.params, attempt.error) for attempt in tried if attempt.error]
            )
        chosen = self._replace(candidate=self.candidate.at(best.params))
        found = chosen.find_or_fit(chosen.begin(), shows_points=True)
        again = 0.0 if self.seed == first else found.training.wall_s or 0.0
        record = replace(
            found.training,
            wall_s=round(sum(attempt.trial.wall_s for attempt in tried) + again, 3),
            sweep=tuple(replace(attempt.trial, chosen=attempt.trial is best) for attempt in tried),
            searched_by=trials.searcher(self.candidate.source) if self.candidate.source.search else "",
            stands_on=stands_on(*(attempt.weights for attempt in tried if attempt.weights)),
        )
        return found._replace(training=record)

    def try_all(self) -> list[Tried]:
        tried, made = list[Tried](), list[Trial]()
        for proposal in self.propose(made):
            attempt = self.attempt(proposal)
            is_again = any(attempt.trial.params == before.params for before in made)
            counted = (
                replace(attempt.trial, wall_s=0.0) if is_again else attempt.trial
            )  # a training counts once
            tried.append(attempt._replace(trial=counted))
            made.append(attempt.trial)
        return tried

    def propose(self, made: Sequence[Trial]) -> Iterator[trials.TrialProposal]:
        sign = self.session.target.primary.unit.sign
        return trials.proposals(self.candidate, self.session.first_seed, sign, made)

    def at(self, params: Mapping[str, Any]) -> "_Maker":
        return self._replace(candidate=self.candidate.at(params), seed=self.session.first_seed)

    def attempt(self, proposal: trials.TrialProposal) -> Tried:
        session, trial = self.session, self.at(proposal.params)
        begun = trial.begin()
        key = begun.folder.name
        is_again = not session.reads_only and self.candidate.source_name in session.searched
        if is_again and (failed := trial.recall(key, proposal)):
            return failed
        try:
            found = trial.train_and_score(proposal, begun, self.candidate.source.subject_to)
        except NotStored:
            if known := trial.recall(key, proposal):
                return known
            raise
        except Exception as error:
            if not fails_alone(error):
                raise
            # That it diverged, its folder of weights says.
            reason = "" if isinstance(error, Diverged) else one_line(error)
            made = Trial(params=dict(proposal.params), validation=None, fit_key=key, error=reason)
            if not session.reads_only:
                trial.save(made, key, weights_digest="", state="failed", rows={}, error=one_line(error))
            return Tried(made, error=error)
        if found.weights and not session.reads_only:
            trial.record(found.trial, found.weights)
        return found

    def recall(self, key: str, proposal: trials.TrialProposal) -> Tried | None:
        stored = store.find_trial(self.session.store, self.name_trial(key))
        if not stored or not stored.trial.error or stored.trial.fit_key != key:
            return None
        reason, _, knob = stored.trial.error.partition("; try: ")
        return Tried(replace(stored.trial, params=proposal.params), error=CandidateFailed(reason, knob))

    def train_and_score(
        self, proposal: trials.TrialProposal, begun: FitInputs, bound: SubjectTo | None
    ) -> Tried:
        session, candidate = self.session, self.candidate
        scores, pruned = self.train_until_pruned(begun, proposal.should_prune)
        found = pruned or self.find_or_fit(begun)
        record = found.training
        made = Trial(
            params=proposal.params,
            validation=None,
            best_validation_loss=record.best_validation_loss,
            wall_s=record.wall_s or 0.0,
            loss=record.loss,
            validation_loss=record.validation_loss,
            points=scores,
            most_forgetting=bound.forgetting if bound else None,
            fit_key=record.fit_key,
        )
        if pruned:
            return Tried(replace(made, validation=scores[-1][1], pruned_at=record.n_steps), found)
        score, prompts_digest = validate(session, candidate, found)
        forgetting = score_forgetting(session, candidate, found, bound) if bound else None
        return Tried(replace(made, validation=score, asked=prompts_digest, forgetting=forgetting), found)

    def record(self, made: Trial, weights: Weights) -> None:
        # Whole or until it was pruned, with its answers on validation.
        session = self.session
        rows = target_sets(session, self.candidate.source, weights, session.first_seed)[0]
        self.save(
            made,
            made.fit_key or rows.identity.digest,
            weights_digest=weights.digest,
            state="done",
            rows={rows.name: rows.identity.digest},
            training=weights.training,
            provenance=provenance.collect(session.machine.name) | {"precision": session.machine.precision},
            metrics=metric_ranges([rows]),
        )

    def save(self, made: Trial, key: str, **of_run: Any) -> None:
        # The candidate that makes the weights, also where another one takes them.
        maker = replace(self.candidate, name=self.candidate.source_name, recipe=self.candidate.source)
        name, seed, run_id = self.session.experiment.name, self.session.first_seed, self.name_trial(key)
        run = describe_run(name, maker, seed, run_id=run_id, **of_run)
        curveless = replace(made, loss=(), validation_loss=())  # the run's training has them
        store.save_trial(self.session.store, TrialRun(run, curveless, self.session.target.primary.name))

    def name_trial(self, fit_key: str) -> str:
        named = self.session.name_begun(self.candidate.source_name, self.session.first_seed)
        return f"{named}-trial-{fit_key[:_KEY_DIGITS]}"

    def train_until_pruned(
        self, begun: FitInputs, should_prune: trials.ShouldPrune | None
    ) -> tuple[Curve, Weights | None]:
        # Scored on validation at each point. Returns the scores by step; the last weights if it was pruned.
        session, candidate, folder = self.session, self.candidate, begun.folder
        scores, track = list[tuple[float, float | None]](), candidate.source.track
        if track is None or should_prune is None:
            return (), None
        for place in range(1, track.points + 1):
            kept = read_points_so_far(candidate, folder)
            if len(kept) < place and read_weights(candidate, folder) is None:
                session.refuse_if_reading(f"point {place} of {folder.name}")
                with session.claim(folder.name):
                    if read_weights(candidate, folder) is None:
                        self.fit.make(begun, place)
                kept = read_points_so_far(candidate, folder)
            if len(kept) < place:  # it has fewer checkpoints than points were requested
                break
            step, weights = list(kept.items())[place - 1]
            score, _ = validate(session, candidate, weights)
            scores.append((step, score))
            if not session.reads_only:
                show_point(self.fit.live_run(folder), TrackedPoint(step=step, target=score))
            if should_prune(place, score) and place < track.points:
                return tuple(scores), self.set_pruned(folder, step, weights)
        return tuple(scores), None

    def set_pruned(self, folder: Path, step: int, weights: Weights) -> Weights:
        part = _part(folder)
        if part.exists() and not (part / PRUNED).exists():
            elapsed_s, *curves = training.read_log_until(part / training.CHECKPOINTS, step)
            logged = TrainingRecord(wall_s=elapsed_s, n_steps=step, fit_key=folder.name)
            logged = replace(logged, loss=curves[0], validation_loss=curves[1])
            content = json.dumps({"digest": weights.digest, "training": logged.to_plain()})
            write_whole(self.session.store, part / PRUNED, content)
        if part.exists():
            training.remove_all_but(part, (training.TRACKED, PRUNED))
            part.rename(folder)
        if (folder / PRUNED).exists():
            made = read_training_record(json.loads((folder / PRUNED).read_text("utf-8"))["training"])
        else:  # it was completely trained before its search had this pruner
            whole = read_weights(self.candidate, folder)
            assert whole is not None
            made = whole.training
        loss, validation_loss = (
            tuple(at for at in curve if at[0] <= step) for curve in (made.loss, made.validation_loss)
        )
        record = TrainingRecord(wall_s=made.wall_s, n_steps=step, fit_key=folder.name)
        return weights._replace(training=replace(record, loss=loss, validation_loss=validation_loss))

    def choose_prompt(self) -> ResolvedCandidate | None:
        tried, sign = list[Trial](), self.session.target.primary.unit.sign
        try:
            for proposal in self.propose(tried):
                trial = self.at(proposal.params)
                weights = ensure_weights(*trial)
                score, prompts_digest = validate(self.session, trial.candidate, weights)
                tried.append(Trial(params=proposal.params, validation=score, asked=prompts_digest))
                if not self.session.reads_only:
                    trial.record(tried[-1], weights)
        except UserError:
            raise
        except Exception as error:
            if self.session.reads_only:
                if isinstance(error, HarnessError):
                    return None
                raise
            # It must not stop the others.
            self.session.failures[self.candidate.name, self.session.first_seed] = error
            return None
        prompts: list[Trial] = []
        for one in tried:
            # Trials that sent the same prompts are one try, however their recipes write them; of these the
            # first stays.
            key = "asked" if one.asked else "params"
            same = next((i for i, k in enumerate(prompts) if getattr(k, key) == getattr(one, key)), None)
            if same is None:
                prompts.append(one)
            elif one.params not in ((known := prompts[same]).params, *known.alike):
                prompts[same] = replace(known, alike=(*known.alike, one.params))
        best = max(prompts, key=partial(rank_trial, sign=sign))
        chosen = tuple(replace(one, chosen=one is best) for one in prompts)
        by = trials.searcher(self.candidate.source) if self.candidate.source.search else ""
        return replace(self.candidate.at(best.params), prompt_trials=chosen, prompts_proposed_by=by)


def read_points_so_far(trial: ResolvedCandidate, folder: Path) -> dict[int, Weights]:
    """Read the weights at the points of a training, by step, whether it is finished, pruned or under way."""
    return read_kept_points(trial, folder if folder.exists() else _part(folder))


def _part(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.part")


def fails_alone(error: Exception) -> bool:
    """Tell whether an error fails only one trial, because other points may avoid it."""
    if isinstance(error, HarnessError):
        return isinstance(error, CandidateFailed) and not isinstance(error, SharedFailure)
    return not isinstance(error, OSError)


def phrase_no_trial(failed: Sequence[tuple[Mapping[str, Any], Exception]]) -> CandidateFailed:
    """Return the error of a candidate without a complete trial: each reason, once."""
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
    """Map the keys of weights, and of all weights that they are based on, to their digests."""
    behind: dict[str, str] = {}
    for made in weights:
        own = made.training.fit_key
        behind |= made.training.stands_on | ({own: made.digest} if own else {})
    return behind


def make_trial(session: Session, candidate: ResolvedCandidate, place: int) -> Weights | None:
    """Make and validate the trial at one point of its sweep; None if it failed, which is recorded."""
    maker = _Maker(session, candidate, session.first_seed)
    return maker.attempt(trials.TrialProposal(candidate.points[place])).weights


def rank_trial(trial: Trial, sign: int) -> tuple[bool, bool, float, float]:
    """Order trials by their validation score; of equal ones the lower validation loss is the better.

    Complete trials come first, then those that forgot no more than they may; if all forgot more, the one that
    forgot least is the best.
    """
    score, loss, forgetting = trial.validation, trial.best_validation_loss, trial.forgetting
    most = trial.most_forgetting
    keeps = most is None or forgetting is None or forgetting <= most
    value = -np.inf if score is None else sign * score
    if not keeps and forgetting is not None:
        value = -forgetting
    return _is_whole(trial), keeps, value, -np.inf if loss is None else -loss


def _is_whole(trial: Trial) -> bool:
    return trial.validation is not None and not trial.is_pruned


def choose_prompts(session: Session, names: Iterable[str]) -> dict[str, ResolvedCandidate]:
    """Return the candidates that search for a prompt, with the prompt that validation chooses.

    Failed ones are left out, and on a read-only session those with a trial without stored answers.
    """
    searching = [candidate for name in names if (candidate := session.candidates[name]).searches_prompts]
    chosen = (
        (candidate.name, _Maker(session, candidate, session.first_seed).choose_prompt())
        for candidate in searching
    )
    return {name: candidate for name, candidate in chosen if candidate}
