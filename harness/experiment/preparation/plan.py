"""Work plan of a comparison: its steps for workers, and which of them each one waits for.

Invariant: pure and cheap: no file is read for it. A step says what is to be there, not how much of it is
missing, so one that is run twice, or again after it was killed, makes the same and computes nothing twice.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Literal, NamedTuple

from harness.evaluation.candidates import ResolvedCandidate
from harness.evaluation.row_sets import RunRequest
from harness.evaluation.session import Session
from harness.experiment.preparation.planned_work import list_measured_bases
from harness.experiment.runs.k_fold import is_cross_validated
from harness.formatting import count
from harness.models.hub import ModelSource


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
    plan = Plan({}, {})
    shared = [one for one in requests if _is_for_workers(session, one.candidate, answers)]
    if answers:
        for source in list_measured_bases([one.candidate for one in shared if _has_base(one.candidate)]):
            _base_steps(session, plan, source, n_workers)
    for one in shared:
        made = _weights_step(session, plan, one.candidate, one.seed, n_workers)
        plan.rests_on[one.candidate.name, one.seed] = (made,) if made else ()
    if answers:
        _answer_steps(session, plan, shared, n_workers)
    return plan


def _is_for_workers(session: Session, candidate: ResolvedCandidate, answers: bool) -> bool:
    chooses = any(recipe.tried for recipe in candidate.lineage.values())
    needs_judge = session.target.task.primary_metric in session.target.judged
    apart = candidate.is_remote or candidate.choosers or is_cross_validated(session, candidate)
    return not (apart or (chooses and (needs_judge or not answers)))


def _has_base(candidate: ResolvedCandidate) -> bool:
    """Tell whether a candidate is compared with a base, whose answers may have moved."""
    return candidate.method.makes_language_model


def _base_steps(session: Session, plan: Plan, source: ModelSource, n_workers: int) -> tuple[Step, ...]:
    """Add the answers of a base to the suites."""
    parts = min(n_workers, len(session.suites))
    steps = tuple(Step("base", source.weights_digest, part=part, parts=parts) for part in range(parts))
    plan.needs.update(dict.fromkeys(steps, ()))
    return steps


def _control_steps(session: Session, plan: Plan, source: ModelSource, n_workers: int) -> tuple[Step, ...]:
    """Add the control arm of a base, which asks some of its stored answers again; none without suites."""
    if not session.suites:
        return ()
    step = Step("control", source.weights_digest)
    if step not in plan.needs:
        plan.needs[step] = _base_steps(session, plan, source, n_workers)
    return (step,)


def _weights_step(
    session: Session, plan: Plan, candidate: ResolvedCandidate, seed: int, n_workers: int
) -> Step | None:
    """Add what makes a candidate's weights, after all that they start from; None where they are given."""
    if candidate.given:
        return None
    step = Step("fit", candidate.source_name, seed)
    if step in plan.needs:
        return step
    needs = _steps_before(session, plan, candidate, seed, n_workers)
    if candidate.source.tried and candidate.method.trains:
        needs += _steps_of_trials(session, plan, candidate, n_workers)
        first = session.first_seed
        if candidate.source.search and seed != first:  # whose step is the search
            needs += tuple(filter(None, [_weights_step(session, plan, candidate, first, n_workers)]))
    plan.needs[step] = needs
    return step


def _steps_of_trials(
    session: Session, plan: Plan, candidate: ResolvedCandidate, n_workers: int
) -> tuple[Step, ...]:
    """Add what a choice waits for: the trials of a sweep; those of a search are one step, in turn."""
    first = session.first_seed
    before = _steps_before(session, plan, candidate, first, n_workers)
    before += _control_steps(session, plan, candidate.base, n_workers) if _has_base(candidate) else ()
    if candidate.source.search:
        return before
    n = len(candidate.points)
    trials = tuple(Step("trial", candidate.source_name, first, part, n) for part in range(n))
    plan.needs.update(dict.fromkeys(trials, before))
    return trials


def _steps_before(
    session: Session, plan: Plan, candidate: ResolvedCandidate, seed: int, n_workers: int
) -> tuple[Step, ...]:
    """Add the steps of the candidates that weights start from, are rewarded by, or merge."""
    behind = filter(None, (candidate.init, candidate.reward, *candidate.merges))
    made = (_weights_step(session, plan, one, seed, n_workers) for one in behind)
    return tuple(step for step in made if step)


def _answer_steps(session: Session, plan: Plan, shared: Sequence[RunRequest], n_workers: int) -> None:
    """Add the answers of runs, in as many parts that no worker is idle; the suites once for each weights."""
    parts = -(-n_workers // max(1, len(shared)))
    answered: dict[tuple[str, int, str], tuple[Step, ...]] = {}
    for candidate, seed in shared:
        run = (candidate.name, seed)
        weights = (candidate.source_name, seed, candidate.served_base.weights_digest)
        gated = _has_base(candidate) and not candidate.is_target_only
        suites = gated and candidate.given != candidate.base and weights not in answered
        n = min(parts, 2 + suites * len(session.suites))
        steps = tuple(Step("answer", *run, part, n, suites) for part in range(n))
        controls = _control_steps(session, plan, candidate.base, n_workers) if _has_base(candidate) else ()
        plan.needs.update(dict.fromkeys(steps, (*plan.rests_on[run], *controls)))
        plan.rests_on[run] += (*steps, *(answered.get(weights, ()) if gated else ()))
        if suites:
            answered[weights] = steps
