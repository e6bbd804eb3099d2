"""Planned work of candidates: what each trains, reads and generates, and how long that takes.

Invariant: what candidates share (a base's suites, a fine-tune's weights) is counted once, with the first of
them, so the parts add up to the whole.
"""

from collections.abc import Collection, Mapping, Sequence

from harness import plugins
from harness.evaluation.candidates import ResolvedCandidate, base_weights
from harness.evaluation.costs import Work, times
from harness.evaluation.row_sets import list_further_sets, suite_sets, target_sets, total_work, work_of
from harness.evaluation.session import Session
from harness.evaluation.timing import n_timed
from harness.experiment.curves.tracking import estimate_tracking
from harness.experiment.runs.k_fold import fold_sessions, is_cross_validated
from harness.experiment.runs.stored_rows import is_measured
from harness.experiment.weights.candidate_weights import find_stored_weights
from harness.experiment.weights.training_fit import fit_work
from harness.models.hub import ModelSource
from harness.records import Run

BASE_ARM = "capability suite of the base"
TIMED_AGAIN = "single requests of the best"


def estimate_work(
    session: Session,
    selected: Collection[str],
    *,
    smoke: bool = False,
    found: Sequence[Run | None] | None = None,
) -> dict[str, Work]:
    """Estimate what each selected candidate trains, reads and generates, as if nothing were there yet.

    Where the stored runs were `found`, only what is missing beside them counts. In a `smoke` run no more
    requests are timed of what is best.
    """
    done = {(run.candidate, run.seed) for run in found or () if run and run.state == "done"}
    candidates = [session.candidates[name] for name in selected]
    suites = total_work(suite_sets(session, base_weights(session.source)))
    arm = suites + _control_work(session, suites) + Work(opened=1)
    bases = list_measured_bases(candidates) if session.suites else ()
    missing = [source for source in bases if found is None or not is_measured(session, source)]
    out = {arm_label(session, source): arm for source in missing}
    made: set[str] = set()
    judged: set[tuple[str, str]] = set()
    for candidate in candidates:
        makes = [at for at in candidate.lineage if at not in made]
        made.update(makes)
        seeds = [seed for seed in candidate.seeds if (candidate.name, seed) not in done]
        weights = (candidate.source_name, candidate.served_base.weights_digest)
        gated = candidate.method.tunes and not candidate.is_target_only and weights not in judged
        once = _evaluation_work(session, candidate) + (suites if gated else Work())
        judged.add(weights)
        if seeds:
            making = _making_work(session, makes, seeds, from_nothing=found is None)
            out[candidate.name] = times(once, len(seeds)) + making
    lacks_runs = any(candidate.name in out for candidate in candidates)
    if lacks_runs and not smoke and (again := _estimate_timing(session, candidates)).requests:
        out[TIMED_AGAIN] = again
    return out


def _making_work(
    session: Session, makes: Collection[str], seeds: Sequence[int], *, from_nothing: bool
) -> Work:
    """Estimate the trials and fits of some candidates, of each seed and fold whose weights are not stored."""
    each = [session, *fold_sessions(session)]
    return sum(
        (
            _trials_work(one, made)
            for one in each
            for made in (one.candidates[at] for at in makes)
            for seed in seeds
            if from_nothing or not made.method.trains or find_stored_weights(one, made, seed) is None
        ),
        Work(),
    )


def _estimate_timing(session: Session, candidates: Collection[ResolvedCandidate]) -> Work:
    """Estimate the requests that are timed again: of the best untrained candidate and the best fine-tune."""
    here = {one.method.tunes for one in candidates if one.method.makes_language_model and not one.is_remote}
    n = n_timed(len(session.target.items.validation), best=True)
    return times(Work(opened=1, requests=n), len(here))


def _control_work(session: Session, suites: Work) -> Work:
    """Estimate the control arm of a base, whose blocks are those of its suites."""
    n = min(session.experiment.gate.control_blocks, suites.blocks)
    share = n / max(1, suites.blocks)
    return Work(read=round(share * suites.read), generated=round(share * suites.generated), blocks=n)


def estimate_seconds(session: Session, work: Mapping[str, Work]) -> dict[str, float]:
    """Say how long planned work takes here: on its own base, or on the experiment's where it has none.

    An endpoint takes no time here.
    """
    candidates = session.candidates.values()
    remote = {candidate.name for candidate in candidates if candidate.is_remote}
    bases = {candidate.name: candidate.base for candidate in candidates}
    bases |= {arm_label(session, source): source for source in list_measured_bases(candidates)}
    return {name: session.seconds(one, bases.get(name)) for name, one in work.items() if name not in remote}


def list_measured_bases(candidates: Collection[ResolvedCandidate]) -> list[ModelSource]:
    """List the bases that gated candidates are measured against: as published, then as served otherwise."""
    gated = [c for c in candidates if not c.is_target_only]
    return list(dict.fromkeys([*(c.base for c in gated), *(c.served_base for c in gated)]))


def arm_label(session: Session, source: ModelSource) -> str:
    """Name the measurement of a base on the capability suite."""
    other = "" if source.name == session.experiment.base_model else f" {source.name}"
    return f"{BASE_ARM}{other}{' in ' * bool(source.quantization)}{source.quantization.upper()}"


def _trials_work(session: Session, candidate: ResolvedCandidate) -> Work:
    """Estimate all trials, each with its answers to the validation rows; or the one fit."""
    trials = candidate.trials
    fits = [fit_work(session, trial.source, session.first_seed) for trial in trials]
    if candidate.source.tried:
        validation = target_sets(session, candidate.source, base_weights(session.source), 0)[0]
        fits += [work_of(validation.job()) + Work(opened=1)] * (len(trials) - 1)
    return sum(fits, estimate_tracking(session, candidate.source))


def _evaluation_work(session: Session, candidate: ResolvedCandidate) -> Work:
    if not plugins.method(candidate.recipe.method).makes_language_model:
        return Work(runs=1)
    weights = base_weights(session.source)
    listings = (target_sets, list_further_sets)
    answers = total_work([rows for of in listings for rows in of(session, candidate.recipe, weights, 0)])
    n_opened = 1 + len(session.folds) * is_cross_validated(session, candidate)
    n_requests = n_timed(len(session.target.items.validation))
    return answers + Work(opened=n_opened, requests=n_requests, runs=1)
