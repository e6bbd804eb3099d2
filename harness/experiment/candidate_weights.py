"""Weights of a candidate and seed: stored ones, or made by one fit or the best trial; also chosen prompts.

Invariant: a candidate whose prompt was chosen answers only with that one, so no other prompt sees a test
item. A folder of weights is named by everything they depend on, and exists only when complete.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from harness.errors import CandidateFailed, Diverged, HarnessError, NotStored, UserError
from harness.evaluation.candidates import ResolvedCandidate, base_weights, merge_weights, read_weights
from harness.evaluation.session import Session
from harness.experiment import trials
from harness.experiment.training_fit import Fit, FitInputs, show_point
from harness.experiment.validation_scores import measure_point, score_forgetting, validate
from harness.plugins import OR
from harness.records import Trial
from harness.spec import SubjectTo
from harness.training import Weights


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
    """Makes the weights of a candidate and seed, or finds them."""

    session: Session
    candidate: ResolvedCandidate
    seed: int

    @property
    def fit(self) -> Fit:
        return Fit(*self)

    @property
    def keeper(self) -> trials.TrialKeeper:
        return trials.TrialKeeper(self.session, self.candidate)

    def weights(self) -> Weights:
        if self.candidate.prompt_trials:
            found = self._replace(candidate=replace(self.candidate, prompt_trials=())).weights()
            sweep, by = self.candidate.prompt_trials, self.candidate.prompts_proposed_by
            return found._replace(training=replace(found.training, sweep=sweep, searched_by=by))
        if self.candidate.given:
            return self.add_choosers(base_weights(self.candidate.given))
        if self.candidate.source.tried and self.candidate.method.trains:
            return self.choose_trial()
        return self.single()

    def begin(self) -> FitInputs:
        init, reward = (
            self._replace(candidate=one).weights() if one else None
            for one in (self.candidate.init, self.candidate.reward)
        )
        merges = [self._replace(candidate=one).weights() for one in self.candidate.merges]
        # What they start from or merge may have turned out to be of another kind than the method takes.
        wanted = {"init_from": self.candidate.method.init_from, "merges": self.candidate.method.makes}
        for key, given in (("init_from", [init] if init else []), ("merges", merges)):
            for start in given:
                kind = start.kind if start.folder else "model"
                if kind not in wanted[key].split(OR):
                    found = f"{key}: weights that turned out to be of the kind {kind}"
                    raise CandidateFailed(f"{found}; expected {wanted[key]}", "another candidate")
        return FitInputs(init, reward, merges, self.fit.folder(init, reward, merges))

    def single(self) -> Weights:
        return self.find_or_fit(self.begin(), shows_points=True)

    def find_or_fit(self, begun: FitInputs, *, shows_points: bool = False) -> Weights:
        found = read_weights(self.candidate, begun.folder)
        if found is None:
            self.session.refuse_if_reading(f"weights {begun.folder.name}")
            with self.session.claim(begun.folder.name):
                found = read_weights(self.candidate, begun.folder)
                if found is None and shows_points:
                    self.fit_and_show_points(begun)
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
        if not self.candidate.choosers:
            return weights
        choosers = tuple(
            (one.name, self._replace(candidate=one).weights()) for one in self.candidate.choosers
        )
        training = weights.training
        made = [one for _, one in choosers]
        before_s = round((training.init_wall_s or 0.0) + sum(one.training.total_s for one in made), 3)
        training = replace(
            training, init_wall_s=before_s, stands_on={**training.stands_on, **stands_on(*made)}
        )
        return weights._replace(training=training, choosers=choosers)

    def fit_and_show_points(self, begun: FitInputs) -> None:
        """Train up to each planned point along a training, and show trackers the target's score there."""
        track, live = self.candidate.source.track, self.fit.live_run(begun.folder)
        if track is None or live is None:
            return
        for place in range(1, track.points + 1):
            self.fit.make(begun, show_at=place)
            kept = trials.read_points_so_far(self.candidate, begun.folder)
            for step, weights in list(kept.items())[-1:]:
                point = measure_point(self.session, self.candidate, step, weights, self.seed)
                show_point(live, point)
            if begun.folder.exists():
                return

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
                tried = stored if is_searched or any(_is_whole(one.trial) for one in stored) else []
        if not tried:
            tried = self.try_all()
            if not self.session.reads_only:
                self.session.searched.add(self.candidate.source_name)
        best = max((one.trial for one in tried), key=partial(rank_trial, sign=sign))
        if not _is_whole(best):
            self.session.refuse_if_reading(f"finished trial of {self.candidate.source_name}")
            raise trials.phrase_no_trial([(one.trial.params, one.error) for one in tried if one.error])
        found = self._replace(candidate=self.candidate.at(best.params)).single()
        again = 0.0 if self.seed == first else found.training.wall_s or 0.0
        training = replace(
            found.training,
            wall_s=round(sum(one.trial.wall_s for one in tried) + again, 3),
            sweep=tuple(replace(one.trial, chosen=one.trial is best) for one in tried),
            searched_by=trials.searcher(self.candidate.source) if self.candidate.source.search else "",
            stands_on=stands_on(*(one.weights for one in tried if one.weights)),
        )
        return found._replace(training=training)

    def try_all(self) -> list[Tried]:
        tried: list[Tried] = []
        made: list[Trial] = []
        for proposal in self.propose(made):
            one = self.attempt(proposal)
            is_again = any(one.trial.params == before.params for before in made)
            counted = (
                replace(one.trial, wall_s=0.0) if is_again else one.trial
            )  # its training is counted once
            tried.append(one._replace(trial=counted))
            made.append(one.trial)
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
            if not trials.fails_alone(error):
                raise
            return Tried(trial.keeper.record_failed(proposal.params, key, error), error=error)
        if found.weights and not session.reads_only:
            trial.keeper.record(found.trial, found.weights)
        return found

    def recall(self, key: str, proposal: trials.TrialProposal) -> Tried | None:
        known = self.keeper.find_failed(key)
        if known is None:
            return None
        reason, _, knob = known.error.partition("; try: ")
        return Tried(replace(known, params=proposal.params), error=CandidateFailed(reason, knob))

    def train_and_score(
        self, proposal: trials.TrialProposal, begun: FitInputs, bound: SubjectTo | None
    ) -> Tried:
        session, candidate, folder = self.session, self.candidate, begun.folder
        watched = trials.TrialScores()
        if proposal.should_prune:

            def train(n_points: int) -> None:
                with session.claim(folder.name):
                    if read_weights(candidate, folder) is None:
                        self.fit.make(begun, n_points)

            watched = self.keeper.train_until_pruned(folder, train, proposal.should_prune)
        found = watched.pruned or self.find_or_fit(begun)
        of = found.training
        made = Trial(
            params=proposal.params,
            validation=None,
            best_validation_loss=of.best_validation_loss,
            wall_s=of.wall_s or 0.0,
            loss=of.loss,
            validation_loss=of.validation_loss,
            points=watched.scores,
            most_forgetting=bound.forgetting if bound else None,
            fit_key=of.fit_key,
        )
        if watched.pruned:
            return Tried(replace(made, validation=watched.scores[-1][1], pruned_at=of.n_steps), found)
        scored = validate(session, candidate, found)
        forgetting = score_forgetting(session, candidate, found, bound) if bound else None
        made = replace(made, validation=scored.score, asked=scored.prompts_digest, forgetting=forgetting)
        return Tried(made, found)

    def choose_prompt(self) -> ResolvedCandidate | None:
        tried: list[Trial] = []
        try:
            for proposal in self.propose(tried):
                trial = self.at(proposal.params)
                weights = ensure_weights(*trial)
                validated = validate(self.session, trial.candidate, weights)
                score, prompts_digest = validated.score, validated.prompts_digest
                tried.append(Trial(params=proposal.params, validation=score, asked=prompts_digest))
                if not self.session.reads_only:
                    trial.keeper.record(tried[-1], weights)
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
        best = max(prompts, key=partial(rank_trial, sign=self.session.target.primary.unit.sign))
        chosen = tuple(replace(one, chosen=one is best) for one in prompts)
        by = trials.searcher(self.candidate.source) if self.candidate.source.search else ""
        return replace(self.candidate.at(best.params), prompt_trials=chosen, prompts_proposed_by=by)


def stands_on(*weights: Weights) -> dict[str, str]:
    """Map the keys of weights, and of all weights that they are based on, to their digests."""
    behind: dict[str, str] = {}
    for one in weights:
        own = one.training.fit_key
        behind |= one.training.stands_on | ({own: one.digest} if own else {})
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
    searching = [one for name in names if (one := session.candidates[name]).searches_prompts]
    chosen = ((one.name, _Maker(session, one, session.first_seed).choose_prompt()) for one in searching)
    return {name: one for name, one in chosen if one}
