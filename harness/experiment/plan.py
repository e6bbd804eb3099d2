"""Plan of a comparison: its steps, what each needs, whether it is stored, and the steps of each run.

Invariant: nothing is computed. Estimates price the steps, and workers carry them out.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from itertools import chain
from typing import Literal, NamedTuple

from harness.evaluation.candidates import ResolvedCandidate, refuse_silent
from harness.evaluation.row_sets import RunRequest, list_open
from harness.evaluation.session import Session
from harness.evaluation.stored_scores import is_measured
from harness.experiment.candidate_weights import find_stored_weights
from harness.experiment.stored_rows import FoundRuns, is_cross_validated, list_measured_bases
from harness.formatting import count
from harness.models.hub import ModelSource

TIMED_AGAIN = "single requests of the best"


class Step(NamedTuple):
    """A base's answers to the suites, its control arm, a trial or fit of weights, or a run's answers.

    `time` times one of the best candidates again. `name` is a candidate's name or a base's weights digest. A
    step answers every `parts`-th row set from `part` on; `part` of a trial is the index of its point in the
    sweep. In `fold` 0 weights are made of all training rows.
    """

    kind: Literal["base", "control", "trial", "fit", "answer", "time"]
    name: str
    seed: int = 0
    part: int = 0
    parts: int = 1
    suites: bool = False
    fold: int = 0


class Plan(NamedTuple):
    """Steps with all that they need, the steps of each run by candidate and seed, and the stored steps."""

    needs: dict[Step, tuple[Step, ...]]
    runs: dict[tuple[str, int], tuple[Step, ...]]
    stored: set[Step]

    def __str__(self) -> str:
        kinds = Counter(step.kind for step in self.needs)
        counts = ", ".join(f"{kind} {count(n)}" for kind, n in kinds.items())
        return f"{count(len(self.needs))} steps ({counts})"


def make_plan(
    session: Session,
    requests: Sequence[RunRequest],
    stored_runs: FoundRuns | None = None,
    *,
    n_workers: int = 1,
    answers: bool = True,
    timed_again: bool = True,
) -> Plan:
    """Plan the requested runs, or without `answers` only their weights; None: no step counts as stored.

    Answers are split so that no worker is idle; suites are answered once per weights. With `timed_again` the
    best untrained candidate and the best fine-tune are timed again.
    """
    plan, candidates = Plan({}, {}, set()), [request.candidate for request in requests]
    planner, n_folds = _Planner(session, plan.needs, n_workers), len(session.in_folds())
    for source in list_measured_bases(candidates) if answers else ():
        planner.base_steps(source)
    for candidate, seed in requests:
        folds = range(1 + n_folds * is_cross_validated(session.folds, candidate))
        making = (planner.weights_steps(candidate, seed, fold) for fold in folds)
        plan.runs[candidate.name, seed] = tuple(chain.from_iterable(making))
    parts = -(-n_workers // max(1, len(requests)))
    answered: dict[tuple[str, int, str], tuple[Step, ...]] = {}
    for candidate, seed in requests if answers else ():
        run = (candidate.name, seed)
        weights = (candidate.source_name, seed, candidate.served_base.weights_digest)
        gated = candidate.method.tunes and not candidate.is_target_only
        suites = gated and weights not in answered
        n = min(parts, 2 + suites * len(session.suites))
        steps = tuple(Step("answer", *run, part, n, suites) for part in range(n))
        before = (*plan.runs[run], *planner.control_steps(candidate))
        plan.needs.update(dict.fromkeys(steps, before))
        if suites:
            answered[weights] = steps
        plan.runs[run] = (*before, *steps, *(answered[weights] if gated else ()))
    if answers and timed_again:
        local = (c for c in candidates if c.method.makes_language_model and not c.is_remote)
        kinds = {candidate.method.tunes for candidate in local}
        plan.needs.update((Step("time", TIMED_AGAIN, part=tunes), ()) for tunes in kinds)
    if stored_runs is not None:
        plan.stored.update(_list_stored(session, plan, list_open(requests, stored_runs)))
    return plan


def _list_stored(session: Session, plan: Plan, open_requests: Sequence[RunRequest]) -> Iterable[Step]:
    # Weights that only finished runs need count as stored.
    open_runs = {(candidate.name, seed) for candidate, seed in open_requests}
    needed, sessions = {step for run in open_runs for step in plan.runs[run]}, [session, *session.in_folds()]
    sources = {source.weights_digest: source for c in session.candidates.values() for source in c.bases}
    find_weights = cache(
        lambda name, seed, fold: find_stored_weights(sessions[fold], session.candidates[name], seed)
    )
    for step in plan.needs:
        if step.kind == "base":
            is_stored = is_measured(session, sources[step.name])
        elif step.kind in ("trial", "fit"):
            is_stored = step not in needed or bool(find_weights(step.name, step.seed, step.fold))
        elif step.kind == "time":
            is_stored = not open_runs
        else:
            is_stored = (step.name, step.seed) not in open_runs
        if is_stored:
            yield step


class _Planner(NamedTuple):
    # Adds a session's steps to `needs`, split for `n_workers`; returns them after those that they need.
    session: Session
    needs: dict[Step, tuple[Step, ...]]
    n_workers: int

    def base_steps(self, source: ModelSource) -> tuple[Step, ...]:
        parts = min(self.n_workers, len(self.session.suites))
        steps = tuple(Step("base", source.weights_digest, part=part, parts=parts) for part in range(parts))
        self.needs.update(dict.fromkeys(steps, ()))
        return steps

    def control_steps(self, candidate: ResolvedCandidate) -> tuple[Step, ...]:
        # The control arm answers some of the base's stored items again.
        if not self.session.suites or not candidate.method.makes_language_model:
            return ()
        step = Step("control", candidate.base.weights_digest)
        if step not in self.needs:
            self.needs[step] = self.base_steps(candidate.base)
        return (*self.needs[step], step)

    def weights_steps(self, candidate: ResolvedCandidate, seed: int, fold: int) -> tuple[Step, ...]:
        # Empty if the weights are given.
        if candidate.given:
            return ()
        first, step = self.session.first_seed, Step("fit", candidate.source_name, seed, fold=fold)
        if step not in self.needs:
            needs = self.steps_before(candidate, seed, fold)
            if candidate.source.tried and candidate.method.trains:
                # The trials of a sweep are steps before the choice; a search is one step with all its trials.
                before = (*self.steps_before(candidate, first, fold), *self.control_steps(candidate))
                n, name = len(candidate.points) * (not candidate.source.search), candidate.source_name
                trials = tuple(Step("trial", name, first, part, n, fold=fold) for part in range(n))
                self.needs.update(dict.fromkeys(trials, before))
                needs += (*before, *trials)
                if candidate.source.search and seed != first:  # the step of the first seed is the search
                    needs += self.weights_steps(candidate, first, fold)
            self.needs[step] = tuple(dict.fromkeys(needs))
        return (*self.needs[step], step)

    def steps_before(self, candidate: ResolvedCandidate, seed: int, fold: int) -> tuple[Step, ...]:
        # Steps of the weights that a training starts from, is rewarded by or merges, or that choose answers.
        makers = filter(None, (candidate.init, candidate.reward, *candidate.merges, *candidate.choosers))
        return tuple(step for maker in makers for step in self.weights_steps(maker, seed, fold))


def in_order(by_name: Mapping[str, ResolvedCandidate], selected: Iterable[str]) -> list[RunRequest]:
    """List candidates and seeds: untrained ones first, then trainings, then candidates that borrow weights.

    A candidate comes after the one that it starts from; candidates of one base are consecutive, as only one
    base is in memory.
    """
    candidates = [by_name[name] for name in selected]
    for candidate in candidates:
        refuse_silent(candidate)
    base_indices: dict[str, int] = {}

    def key(candidate: ResolvedCandidate) -> tuple[bool, bool, int, int]:
        base_index = base_indices.setdefault(candidate.served_base.weights_digest, len(base_indices))
        borrows = candidate.recipe.weights_of is not None
        return candidate.method.seeded, borrows, len(candidate.lineage), base_index

    return [RunRequest(c, seed) for c in sorted(candidates, key=key) for seed in c.seeds]
