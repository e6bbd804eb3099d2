"""Prompt of a candidate that trains nothing: the best of its sweep or search on validation.

Invariant: a candidate whose prompt was chosen answers by that one alone, so no other prompt of it sees a test
item; what was chosen follows from stored answers, and whoever reads them chooses the same.
"""

from collections.abc import Iterable
from dataclasses import replace
from functools import partial

from harness.errors import CandidateFailed, HarnessError, UserError
from harness.evaluation.candidates import ResolvedCandidate
from harness.evaluation.session import Session
from harness.experiment.weights import proposals
from harness.experiment.weights.candidate_weights import ensure_weights, find_stored_weights, rank_trial
from harness.experiment.weights.trial_record import record_trial
from harness.experiment.weights.validation_score import digest_prompts, mean_score, validation_rows
from harness.records import Trial


def choose_prompts(session: Session, names: Iterable[str], *, make: bool) -> bool:
    """Let these candidates answer by the prompt that validation chooses; returns whether one changed.

    Without `make` those stay as they are of which a trial has no stored answers.

    Raises:
        UserError: things are such that nothing could be asked, for example without room on the disk.
    """
    searching = [one for name in names if (one := session.candidates[name]).searches_prompts]
    found = {one.name: chosen for one in searching if (chosen := _choose(session, one, make=make))}
    session.candidates = {name: found.get(name, one) for name, one in session.candidates.items()}
    return bool(found)


def _choose(session: Session, candidate: ResolvedCandidate, *, make: bool) -> ResolvedCandidate | None:
    """Try every prompt on validation; None where answers are missing, or asking for them failed."""
    try:
        tried = _trials(session, candidate, make=make)
    except UserError:
        raise
    except Exception as error:
        if not (make or isinstance(error, HarnessError)):
            raise
        if make:  # one candidate must not stop the others
            session.failures[candidate.name, session.experiment.seeds[0]] = error
        return None
    if tried is None:
        return None
    best = max(tried, key=partial(rank_trial, sign=session.target.primary.unit.sign))
    trials = tuple(replace(one, chosen=one is best) for one in tried)
    by = proposals.searcher(candidate.source) if candidate.source.search else ""
    return replace(candidate.at(best.params), prompt_trials=trials, prompts_proposed_by=by)


def _trials(session: Session, candidate: ResolvedCandidate, *, make: bool) -> list[Trial] | None:
    seed, sign = session.experiment.seeds[0], session.target.primary.unit.sign
    points, tried = proposals.proposals(candidate, seed, sign), list[Trial]()
    proposal = next(points, None)
    while proposal is not None:
        trial = candidate.at(proposal.params)
        weights = (ensure_weights if make else find_stored_weights)(session, trial, seed)
        rows = validation_rows(session, trial, weights, make=make) if weights else None
        if weights is None or rows is None:
            return None
        score = mean_score(session.target.primary, rows)
        if score is None and not make:
            return None
        if score is None:
            raise CandidateFailed("no answer to the validation rows could be scored", "other prompts to try")
        asked = digest_prompts(weights.digest, trial.source, rows)
        found = Trial(params=proposal.params, validation=score, asked=asked)
        if make:
            record_trial(session, trial, found, weights)
        same = next((at for at, one in enumerate(tried) if _is_same_prompt(found, one)), None)
        if same is None:
            tried.append(found)
        elif found.params not in ((known := tried[same]).params, *known.alike):
            tried[same] = replace(known, alike=(*known.alike, found.params))
        try:
            proposal = points.send(found)
        except StopIteration:
            proposal = None
    return tried


def _is_same_prompt(one: Trial, other: Trial) -> bool:
    """Tell whether two trials asked the same, which is one try, in whatever way their recipes write it."""
    return one.asked == other.asked if one.asked else one.params == other.params
