"""Plan of a comparison: its steps, which of them each one waits for, and the work that candidates are.

Invariant: pure and cheap, no file is read for it. A step says what is to be there, so one that is run again
computes nothing twice. Work that candidates share (a base's suites, weights) counts with the first of them.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Literal, NamedTuple

from harness.evaluation.candidates import ResolvedCandidate, base_weights
from harness.evaluation.costs import Work, times
from harness.evaluation.row_sets import (
    RowSet,
    RunRequest,
    list_further_sets,
    suite_sets,
    target_sets,
    total_work,
    work_of,
)
from harness.evaluation.session import Session
from harness.evaluation.timing import n_timed
from harness.experiment.candidate_weights import find_stored_weights
from harness.experiment.stored_rows import fold_sessions, is_cross_validated, is_measured
from harness.experiment.training_fit import fit_work
from harness.experiment.validation_scores import estimate_tracking
from harness.formatting import count
from harness.models.hub import ModelSource
from harness.records import Run
from harness.spec import Recipe


class Step(NamedTuple):
    """Work for one worker: a base's answers, its control arm, a trial or fit of weights, or a run's answers.

    `name` is a candidate's, or the weights digest of a base. Of answers it is every `parts`-th row set from
    `part` on, of a trial `part` is the point of the sweep. Only with `suites` a run answers those too.
    """

    kind: Literal["base", "control", "trial", "fit", "answer"]
    name: str
    seed: int = 0
    part: int = 0
    parts: int = 1
    suites: bool = False


class Plan(NamedTuple):
    """Steps with those that each waits for, and by candidate and seed the steps that its run rests on."""

    needs: dict[Step, tuple[Step, ...]]
    rests_on: dict[tuple[str, int], tuple[Step, ...]]

    def __str__(self) -> str:
        """Say how many steps there are of each kind."""
        kinds = Counter(step.kind for step in self.needs)
        said = ", ".join(f"{kind} {count(n)}" for kind, n in kinds.items())
        return f"{count(len(self.needs))} steps ({said})"


def make_plan(
    session: Session, requests: Sequence[RunRequest], n_workers: int, *, answers: bool = True
) -> Plan:
    """Plan what workers make of the runs that are requested; the rest is made where the command runs.

    That is what an endpoint answers, what is made in folds, and what a judge has to grade before a sweep can
    choose. Without `answers` only weights are made that no answer decides on.
    """
    needs_judge = session.target.task.primary_metric in session.target.judged
    shared = []
    for one in requests:
        chooses = any(recipe.tried for recipe in one.candidate.lineage.values())
        apart = one.candidate.is_remote or bool(one.candidate.choosers)
        apart = apart or is_cross_validated(session, one.candidate)
        if not (apart or (chooses and (needs_judge or not answers))):
            shared.append(one)
    plan = Plan({}, {})
    planner = _Planner(session, plan.needs, n_workers)
    if answers:
        compared = [one.candidate for one in shared if one.candidate.method.makes_language_model]
        for source in list_measured_bases(compared):
            planner.base_steps(source)
    for one in shared:
        made = planner.weights_step(one.candidate, one.seed)
        plan.rests_on[one.candidate.name, one.seed] = (made,) if made else ()
    if not answers:
        return plan
    # Answers come in as many parts that no worker is idle, the suites once for each weights.
    parts = -(-n_workers // max(1, len(shared)))
    answered: dict[tuple[str, int, str], tuple[Step, ...]] = {}
    for candidate, seed in shared:
        run = (candidate.name, seed)
        weights = (candidate.source_name, seed, candidate.served_base.weights_digest)
        gated = candidate.method.makes_language_model and not candidate.is_target_only
        suites = gated and candidate.given != candidate.base and weights not in answered
        n = min(parts, 2 + suites * len(session.suites))
        steps = tuple(Step("answer", *run, part, n, suites) for part in range(n))
        plan.needs.update(dict.fromkeys(steps, (*plan.rests_on[run], *planner.control_steps(candidate))))
        plan.rests_on[run] += (*steps, *(answered.get(weights, ()) if gated else ()))
        if suites:
            answered[weights] = steps
    return plan


class _Planner(NamedTuple):
    """Adds steps of a session to `needs`, in parts for so many workers."""

    session: Session
    needs: dict[Step, tuple[Step, ...]]
    n_workers: int

    def base_steps(self, source: ModelSource) -> tuple[Step, ...]:
        """Add the answers of a base to the suites."""
        parts = min(self.n_workers, len(self.session.suites))
        steps = tuple(Step("base", source.weights_digest, part=part, parts=parts) for part in range(parts))
        self.needs.update(dict.fromkeys(steps, ()))
        return steps

    def control_steps(self, candidate: ResolvedCandidate) -> tuple[Step, ...]:
        """Add the control arm of a candidate's base, which answers some stored items of the suites again."""
        if not self.session.suites or not candidate.method.makes_language_model:
            return ()
        step = Step("control", candidate.base.weights_digest)
        if step not in self.needs:
            self.needs[step] = self.base_steps(candidate.base)
        return (step,)

    def weights_step(self, candidate: ResolvedCandidate, seed: int) -> Step | None:
        """Add what makes a candidate's weights, after all that they start from; None where they are given."""
        if candidate.given:
            return None
        step = Step("fit", candidate.source_name, seed)
        if step in self.needs:
            return step
        needs = self.steps_before(candidate, seed)
        if candidate.source.tried and candidate.method.trains:
            # A choice waits for the trials of a sweep; those of a search are one step, in turn.
            first = self.session.first_seed
            before = (*self.steps_before(candidate, first), *self.control_steps(candidate))
            if candidate.source.search:
                needs += before
                if seed != first:  # whose step is the search
                    needs += tuple(filter(None, [self.weights_step(candidate, first)]))
            else:
                n = len(candidate.points)
                trials = tuple(Step("trial", candidate.source_name, first, part, n) for part in range(n))
                self.needs.update(dict.fromkeys(trials, before))
                needs += trials
        self.needs[step] = needs
        return step

    def steps_before(self, candidate: ResolvedCandidate, seed: int) -> tuple[Step, ...]:
        """Add the steps of the candidates that weights start from, are rewarded by, or merge."""
        behind = filter(None, (candidate.init, candidate.reward, *candidate.merges))
        made = (self.weights_step(one, seed) for one in behind)
        return tuple(step for step in made if step)


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
    n_control = min(session.experiment.gate.control_blocks, suites.blocks)
    share = n_control / max(1, suites.blocks)
    control = Work(
        read=round(share * suites.read), generated=round(share * suites.generated), blocks=n_control
    )
    arm = suites + control + Work(opened=1)
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
            making = making_work(session, makes, seeds, from_nothing=found is None)
            out[candidate.name] = times(once, len(seeds)) + making
    if not smoke and any(candidate.name in out for candidate in candidates):
        # The best untrained candidate and the best fine-tune are timed again.
        local = (one for one in candidates if one.method.makes_language_model and not one.is_remote)
        n_best = len({one.method.tunes for one in local})
        n_requests = n_best * n_timed(len(session.target.items.validation), best=True)
        if n_requests:
            out[TIMED_AGAIN] = Work(opened=n_best, requests=n_requests)
    return out


def making_work(
    session: Session, makes: Collection[str], seeds: Sequence[int], *, from_nothing: bool
) -> Work:
    """Estimate the trials and fits of some candidates, of each seed and fold whose weights are not stored.

    Each trial of a sweep answers the validation rows as well.
    """
    total = Work()
    for one in (session, *fold_sessions(session)):
        for made in (one.candidates[name] for name in makes):
            may_be_stored = made.method.trains and not from_nothing
            lacking = [
                seed for seed in seeds if not may_be_stored or find_stored_weights(one, made, seed) is None
            ]
            if not lacking:
                continue
            fits = [fit_work(one, trial.source, one.first_seed) for trial in made.trials]
            if made.source.tried:
                validation = target_sets(one, made.source, base_weights(one.source), 0)[0]
                fits += [work_of(validation.job()) + Work(opened=1)] * (len(made.trials) - 1)
            total += times(sum(fits, estimate_tracking(one, made.source)), len(lacking))
    return total


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


def list_answered_sets(session: Session, recipe: Recipe) -> list[RowSet]:
    """List the row sets of the targets that a recipe answers, as if the base answered them."""
    weights = base_weights(session.source)
    return [*target_sets(session, recipe, weights, 0), *list_further_sets(session, recipe, weights, 0)]


def _evaluation_work(session: Session, candidate: ResolvedCandidate) -> Work:
    if not candidate.method.makes_language_model:
        return Work(runs=1)
    answers = total_work(list_answered_sets(session, candidate.recipe))
    n_opened = 1 + len(session.folds) * is_cross_validated(session, candidate)
    n_requests = n_timed(len(session.target.items.validation))
    return answers + Work(opened=n_opened, requests=n_requests, runs=1)
