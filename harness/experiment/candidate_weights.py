"""Weights of a candidate and seed: found, or made by one fit or the best trial; prompts are chosen so too.

Invariant: whatever weights start from or are selected among is made first. A candidate whose prompt was
chosen answers by that one alone, so no other prompt of it sees a test item; what was chosen follows from
stored answers, and whoever reads them chooses the same. A folder of weights is named by everything they
depend on, and exists only when they are complete.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from harness.errors import CandidateFailed, Diverged, HarnessError, NotStored, UserError
from harness.evaluation.candidates import ResolvedCandidate, base_weights, merge_weights, read_weights
from harness.evaluation.session import Session
from harness.experiment import trials
from harness.experiment.capability_on_validation import score_forgetting, validate
from harness.experiment.live_points import describe_live_run, show_point
from harness.experiment.tracking import measure_point
from harness.experiment.training_fit import FitInputs, find_regularizer_rows, fit, folder_of
from harness.plugins import OR
from harness.records import Trial
from harness.spec import SubjectTo
from harness.training import Weights


def ensure_weights(session: Session, candidate: ResolvedCandidate, seed: int) -> Weights:
    """Return the weights of a candidate, made now or before."""
    weights = _weights(session, candidate, seed)
    # Weights as the candidate answers with them: in fp32 every adapter answers merged.
    rounds = candidate.recipe.serve_merged and session.machine.precision != "fp32"
    return merge_weights(weights) if rounds else weights


def find_stored_weights(session: Session, candidate: ResolvedCandidate, seed: int) -> Weights | None:
    """Return the weights of a candidate where they were made before; None also where making them diverged."""
    try:
        return ensure_weights(session.reading(), candidate, seed)
    except (Diverged, NotStored):
        return None


def _weights(session: Session, candidate: ResolvedCandidate, seed: int) -> Weights:
    """Find or make weights as they were trained."""
    if candidate.prompt_trials:
        found = _weights(session, replace(candidate, prompt_trials=()), seed)
        sweep, by = candidate.prompt_trials, candidate.prompts_proposed_by
        return found._replace(training=replace(found.training, sweep=sweep, searched_by=by))
    if candidate.given:
        return _add_choosers(session, candidate, seed, base_weights(candidate.given))
    if candidate.source.tried and candidate.method.trains:
        return _choose_trial(session, candidate, seed)
    return _single(session, candidate, seed)


def _begin(session: Session, candidate: ResolvedCandidate, seed: int) -> FitInputs:
    init, reward = (
        _weights(session, one, seed) if one else None for one in (candidate.init, candidate.reward)
    )
    merges = [_weights(session, one, seed) for one in candidate.merges]
    # What they start from or merge may have turned out to be of another kind than the method takes.
    wanted = {"init_from": candidate.method.init_from, "merges": candidate.method.makes}
    for key, given in (("init_from", [init] if init else []), ("merges", merges)):
        for start in given:
            kind = start.kind if start.folder else "model"
            if kind not in wanted[key].split(OR):
                found = f"{key}: weights that turned out to be of the kind {kind}"
                raise CandidateFailed(f"{found}; expected {wanted[key]}", "another candidate")
    return FitInputs(init, reward, merges, folder_of(session, candidate, seed, init, reward, merges))


def _single(session: Session, candidate: ResolvedCandidate, seed: int) -> Weights:
    return _find_or_fit(session, candidate, seed, _begin(session, candidate, seed), shows_points=True)


def _find_or_fit(
    session: Session, candidate: ResolvedCandidate, seed: int, begun: FitInputs, *, shows_points: bool = False
) -> Weights:
    found = read_weights(candidate, begun.folder)
    if found is None:
        session.refuse_if_reading(f"weights {begun.folder.name}")
        with session.claim(begun.folder.name):
            found = read_weights(candidate, begun.folder)
            if found is None and shows_points:
                _fit_and_show_points(session, candidate, seed, begun)
                found = read_weights(candidate, begun.folder)
            if found is None:
                _fit_anew(session, candidate, seed, begun)
                found = read_weights(candidate, begun.folder)
    assert found is not None
    known = [weights for weights in (begun.init, begun.reward, *begun.merges) if weights]
    if not known:
        return _add_choosers(session, candidate, seed, found)
    before_s = round(sum(weights.training.total_s for weights in known), 3)
    began_with = replace(found.training, init_wall_s=before_s, stands_on=stands_on(*known))
    if begun.reward:
        curve = begun.reward.training.heldout_accuracy
        began_with = replace(began_with, reward_model_accuracy=curve[-1][1] if curve else None)
    return _add_choosers(session, candidate, seed, found._replace(training=began_with))


def _add_choosers(session: Session, candidate: ResolvedCandidate, seed: int, weights: Weights) -> Weights:
    if not candidate.choosers:
        return weights
    choosers = tuple((one.name, _weights(session, one, seed)) for one in candidate.choosers)
    training = weights.training
    made = [one for _, one in choosers]
    before_s = round((training.init_wall_s or 0.0) + sum(one.training.total_s for one in made), 3)
    training = replace(training, init_wall_s=before_s, stands_on={**training.stands_on, **stands_on(*made)})
    return weights._replace(training=training, choosers=choosers)


def _fit_and_show_points(session: Session, candidate: ResolvedCandidate, seed: int, begun: FitInputs) -> None:
    """Train up to each planned point along a training, and show trackers the target's score there."""
    track = candidate.source.track
    if track is None or describe_live_run(session, candidate, seed, begun.folder) is None:
        return
    for place in range(1, track.points + 1):
        _fit_anew(session, candidate, seed, begun._replace(show_at=place))
        kept = trials.read_kept_points(candidate, begun.folder)
        for step, weights in list(kept.items())[-1:]:
            point = measure_point(session, candidate, step, weights, seed)
            show_point(session, candidate, seed, begun.folder, point)
        if begun.folder.exists():
            return


def _fit_anew(
    session: Session, candidate: ResolvedCandidate, seed: int, begun: FitInputs, pause_at: int = 0
) -> None:
    """Make weights that are not there, on the rows of the target and those of the regularisers."""
    # With `pause_at` only until so many points along the training are kept.
    mixed, general = find_regularizer_rows(session, candidate, seed)
    if session.experiment.engine == "vllm" or session.machine.device == "cuda":
        session.unload()  # training has a base of its own, and a GPU rarely room for two
    fit(session, candidate, seed, begun._replace(mixed=mixed, general=general), pause_at)


def stands_on(*weights: Weights) -> dict[str, str]:
    """Map the keys of weights, and of those that they in turn stand on, to their digests."""
    behind: dict[str, str] = {}
    for one in weights:
        own = one.training.fit_key
        behind |= one.training.stands_on | ({own: one.digest} if own else {})
    return behind


class Tried(NamedTuple):
    """A trial with its weights, or the error that it failed by, now or before."""

    trial: Trial
    weights: Weights | None = None
    error: Exception | None = None


def _choose_trial(session: Session, candidate: ResolvedCandidate, seed: int) -> Weights:
    """Return the weights of the trial of a sweep or search that is best on validation with the first seed."""
    first, sign = session.first_seed, session.target.primary.unit.sign
    tried = _find_or_try_all(session, candidate)
    best = max((one.trial for one in tried), key=partial(rank_trial, sign=sign))
    if not _is_whole(best):
        session.refuse_if_reading(f"finished trial of {candidate.source_name}")
        raise trials.phrase_no_trial([(one.trial.params, one.error) for one in tried if one.error])
    found = _single(session, candidate.at(best.params), seed)
    again = 0.0 if seed == first else found.training.wall_s or 0.0
    training = replace(
        found.training,
        wall_s=round(sum(one.trial.wall_s for one in tried) + again, 3),
        sweep=tuple(replace(one.trial, chosen=one.trial is best) for one in tried),
        searched_by=trials.searcher(candidate.source) if candidate.source.search else "",
        stands_on=stands_on(*(one.weights for one in tried if one.weights)),
    )
    return found._replace(training=training)


def _find_or_try_all(session: Session, candidate: ResolvedCandidate) -> list[Tried]:
    # Every trial has the same budget, unless it is pruned; those that lose stay in the store. One that failed
    # is a trial as well, and is made again only by a search that has not chosen yet, once a session.
    if not session.reads_only:
        with suppress(NotStored):
            tried = _try_all(session.reading(), candidate)
            if candidate.source_name in session.searched or any(_is_whole(one.trial) for one in tried):
                return tried
    tried = _try_all(session, candidate)
    if not session.reads_only:
        session.searched.add(candidate.source_name)
    return tried


def _try_all(session: Session, candidate: ResolvedCandidate) -> list[Tried]:
    tried: list[Tried] = []
    made: list[Trial] = []
    for proposal in _propose(session, candidate, made):
        one = _try(session, candidate, proposal)
        is_again = any(one.trial.params == before.params for before in made)
        counted = replace(one.trial, wall_s=0.0) if is_again else one.trial  # its training is counted once
        tried.append(one._replace(trial=counted))
        made.append(one.trial)
    return tried


def _propose(
    session: Session, candidate: ResolvedCandidate, made: Sequence[Trial]
) -> Iterator[trials.TrialProposal]:
    """Yield the points of a sweep or search, each by what the trials of those before it found."""
    return trials.proposals(candidate, session.first_seed, session.target.primary.unit.sign, made)


class _Attempt(NamedTuple):
    """A trial to make: a candidate at one point, the inputs of its fit, and what may be forgotten."""

    trial: ResolvedCandidate
    proposal: trials.TrialProposal
    begun: FitInputs
    bound: SubjectTo | None

    @property
    def key(self) -> str:
        """The key of its weights."""
        return self.begun.folder.name


def _try(session: Session, candidate: ResolvedCandidate, proposal: trials.TrialProposal) -> Tried:
    trial = candidate.at(proposal.params)
    begun = _begin(session, trial, session.first_seed)
    attempt = _Attempt(trial, proposal, begun, candidate.source.subject_to)
    is_again = not session.reads_only and candidate.source_name in session.searched
    if is_again and (failed := _recall(session, attempt)):
        return failed
    is_made_here = session.is_worker and not session.reads_only
    with trials.note_under_way(session, candidate, attempt.key) if is_made_here else nullcontext():
        try:
            found = _train_and_score(session, attempt)
        except NotStored:
            if known := _recall(session, attempt):
                return known
            raise
        except Exception as error:
            if not trials.fails_alone(error):
                raise
            return Tried(
                trials.record_failed_trial(session, trial, proposal.params, attempt.key, error), error=error
            )
        if found.weights and not session.reads_only:
            trials.record_trial(session, trial, found.trial, found.weights)
        return found


def _recall(session: Session, attempt: _Attempt) -> Tried | None:
    """Return a trial that failed before, as its record keeps it: the reason, and what to turn."""
    known = trials.find_failed_trial(session, attempt.trial, attempt.key)
    if known is None:
        return None
    reason, _, knob = known.error.partition("; try: ")
    return Tried(replace(known, params=attempt.proposal.params), error=CandidateFailed(reason, knob))


def _train_and_score(session: Session, attempt: _Attempt) -> Tried:
    trial, proposal, begun, bound = attempt
    watched = trials.TrialScores()
    if proposal.should_prune:

        def train(n_points: int) -> None:
            with session.claim(attempt.key):
                if read_weights(trial, begun.folder) is None:
                    _fit_anew(session, trial, session.first_seed, begun, n_points)

        watched = trials.train_until_pruned(session, trial, begun.folder, train, proposal.should_prune)
    found = watched.pruned or _find_or_fit(session, trial, session.first_seed, begun)
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
    scored = validate(session, trial, found)
    forgetting = score_forgetting(session, trial, found, bound) if bound else None
    return Tried(
        replace(made, validation=scored.score, asked=scored.prompts_digest, forgetting=forgetting), found
    )


def make_trial(session: Session, candidate: ResolvedCandidate, place: int) -> Weights | None:
    """Make and validate the trial at one point of its sweep; None where it failed, as is noted."""
    return _try(session, candidate, trials.TrialProposal(candidate.points[place])).weights


def note_failed_trial(session: Session, candidate: ResolvedCandidate, place: int, error: Exception) -> bool:
    """Note a trial as a failed one: at one point of a sweep, or the one that a search is at.

    False where what it starts from is missing, or a search is at no trial.
    """
    point = candidate.points[place] if candidate.source.sweep else _find_point_under_way(session, candidate)
    if point is None:
        return False
    trial = candidate.at(point)
    try:
        begun = _begin(session.reading(), trial, session.first_seed)
    except NotStored:
        return False
    trials.record_failed_trial(session, trial, point, begun.folder.name, error)
    trials.forget_under_way(session, candidate)
    return True


def _find_point_under_way(session: Session, candidate: ResolvedCandidate) -> dict[str, Any] | None:
    """Find the point of the trial that a search is at: what it proposes behind those that are known."""
    key, made, stored = trials.find_under_way(session, candidate), list[Trial](), session.reading()
    with suppress(NotStored):
        for proposal in _propose(session, candidate, made) if key else ():
            begun = _begin(stored, candidate.at(proposal.params), session.first_seed)
            if begun.folder.name == key:
                return proposal.params
            made.append(_try(stored, candidate, proposal).trial)
    return None


def rank_trial(trial: Trial, sign: int) -> tuple[bool, bool, float, float]:
    """Order trials by their validation score; of equal ones the lower validation loss is the better.

    Those that were trained whole come first, and of them those that forgot no more than they may; where all
    of them forgot more, the one that forgot least is the best.
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
    """Return those of these candidates that search for a prompt, with the one that validation chooses.

    One that failed is left out, and on a session that only reads one of which a trial has no stored answers.

    Raises:
        UserError: things are such that nothing could be evaluated, for example without room on the disk.
    """
    searching = [one for name in names if (one := session.candidates[name]).searches_prompts]
    return {one.name: chosen for one in searching if (chosen := _choose_prompt(session, one))}


def _choose_prompt(session: Session, candidate: ResolvedCandidate) -> ResolvedCandidate | None:
    """Try every prompt on validation; None where answers are missing, or asking for them failed."""
    try:
        tried = _try_prompts(session, candidate)
    except UserError:
        raise
    except Exception as error:
        if session.reads_only:
            if isinstance(error, HarnessError):
                return None
            raise
        session.failures[candidate.name, session.first_seed] = error  # it must not stop the others
        return None
    best = max(tried, key=partial(rank_trial, sign=session.target.primary.unit.sign))
    chosen = tuple(replace(one, chosen=one is best) for one in tried)
    by = trials.searcher(candidate.source) if candidate.source.search else ""
    return replace(candidate.at(best.params), prompt_trials=chosen, prompts_proposed_by=by)


def _try_prompts(session: Session, candidate: ResolvedCandidate) -> list[Trial]:
    tried: list[Trial] = []
    for proposal in _propose(session, candidate, tried):
        trial = candidate.at(proposal.params)
        weights = ensure_weights(session, trial, session.first_seed)
        found = validate(session, trial, weights)
        tried.append(Trial(params=proposal.params, validation=found.score, asked=found.prompts_digest))
        if not session.reads_only:
            trials.record_trial(session, trial, tried[-1], weights)
    prompts: list[Trial] = []
    for one in tried:
        # Trials that sent the same prompts are one try, however their recipes write them; the first stays.
        alike = (one.asked == known.asked if one.asked else one.params == known.params for known in prompts)
        same = next((at for at, is_alike in enumerate(alike) if is_alike), None)
        if same is None:
            prompts.append(one)
        elif one.params not in ((known := prompts[same]).params, *known.alike):
            prompts[same] = replace(known, alike=(*known.alike, one.params))
    return prompts
