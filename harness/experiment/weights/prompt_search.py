"""Prompt of a candidate that trains nothing: the best of its sweep or search on validation.

Invariant: a candidate whose prompt was chosen answers by that one alone, so no other prompt of it sees a test
item; what was chosen follows from stored answers, and whoever reads them chooses the same.
"""

from collections.abc import Iterable
from dataclasses import replace
from functools import partial

from harness.errors import HarnessError, UserError
from harness.evaluation.candidates import ResolvedCandidate
from harness.evaluation.session import Session
from harness.experiment.weights import proposals
from harness.experiment.weights.candidate_weights import ensure_weights, rank_trial
from harness.experiment.weights.capability_on_validation import validate
from harness.experiment.weights.trial_record import record_trial
from harness.records import Trial


def choose_prompts(session: Session, names: Iterable[str]) -> dict[str, ResolvedCandidate]:
    """Return those of these candidates that search for a prompt, with the one that validation chooses.

    One that failed is left out, and on a session that only reads one of which a trial has no stored answers.

    Raises:
        UserError: things are such that nothing could be evaluated, for example without room on the disk.
    """
    searching = [one for name in names if (one := session.candidates[name]).searches_prompts]
    return {one.name: chosen for one in searching if (chosen := _choose(session, one))}


def _choose(session: Session, candidate: ResolvedCandidate) -> ResolvedCandidate | None:
    """Try every prompt on validation; None where answers are missing, or asking for them failed."""
    try:
        tried = _trials(session, candidate)
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
    trials = tuple(replace(one, chosen=one is best) for one in tried)
    by = proposals.searcher(candidate.source) if candidate.source.search else ""
    return replace(candidate.at(best.params), prompt_trials=trials, prompts_proposed_by=by)


def _trials(session: Session, candidate: ResolvedCandidate) -> list[Trial]:
    seed, sign = session.first_seed, session.target.primary.unit.sign
    tried: list[Trial] = []
    for proposal in proposals.proposals(candidate, seed, sign, tried):
        trial = candidate.at(proposal.params)
        weights = ensure_weights(session, trial, seed)
        found = validate(session, trial, weights)
        tried.append(Trial(params=proposal.params, validation=found.score, asked=found.prompts_digest))
        if not session.reads_only:
            record_trial(session, trial, tried[-1], weights)
    return _join_alike(tried)


def _join_alike(tried: Iterable[Trial]) -> list[Trial]:
    """Leave of trials of the same prompts the first, which lists how else its prompt was written."""
    prompts: list[Trial] = []
    for one in tried:
        same = next((at for at, known in enumerate(prompts) if _is_same_prompt(one, known)), None)
        if same is None:
            prompts.append(one)
        elif one.params not in ((known := prompts[same]).params, *known.alike):
            prompts[same] = replace(known, alike=(*known.alike, one.params))
    return prompts


def _is_same_prompt(one: Trial, other: Trial) -> bool:
    """Tell whether two trials sent the same prompts, which is one try, however their recipes write it."""
    return one.asked == other.asked if one.asked else one.params == other.params
