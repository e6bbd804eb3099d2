"""Search over the trials: each judged on the search half, the first that passes confirmed once.

Invariant: a trial is a run like any other, made as far as it is not done, so a second call finds
what the first one made; the confirmation half is evaluated for one trial at most.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from harness import store
from harness.comparison import Comparison
from harness.decision import TargetScore, gain
from harness.evaluation.session import MeasuredTask, Session
from harness.experiment import (
    Reader,
    Study,
    attempt,
    compare_on,
    count_missing,
    find_prompt,
    is_answered,
    is_better_on_validation,
    judge,
    judge_pairs,
    measure,
    score_on,
    study_session,
)
from harness.gating.halves import HALVES, Half
from harness.records import Run
from harness.report import live_line
from harness.rescue.result import HalfVerdict, Rescue, TrialResult
from harness.rescue.select import RescueCase
from harness.rescue.trials import RescueTrial, TrialSchedule


class OtherTarget(NamedTuple):
    """Target beside the one that decides: what a trial is compared with there, and whether the run gains.

    `untrained` is the best that trains nothing, by that target's validation rows; without any the plain
    `prompt` is what a gain is measured against.
    """

    measured: MeasuredTask
    untrained: Run | None
    prompt: Run | None
    gains: bool

    @property
    def name(self) -> str:
        """The name of its task."""
        return self.measured.task.name

    @property
    def reference(self) -> Run | None:
        """The run that a gain is measured against."""
        return self.untrained or self.prompt


def list_other_targets(session: Session, study: Study, case: RescueCase) -> tuple[OtherTarget, ...]:
    """List the further targets that a run answered, with what it is compared with there."""
    scores = {one.task: one for one in case.facts.more_targets}
    prompt = find_prompt(study, case.runs.values(), case.run)
    out = []
    for m in session.more_targets:
        if (own := scores.get(m.task.name)) is not None:
            untrained = case.runs.get(own.untrained or "") if own.vs_untrained else None
            found = OtherTarget(m, untrained, prompt if own.vs_prompt else None, _is_shown(_difference(own)))
            out.append(found)
    return tuple(out)


def scores_of(study: Study, run: Run, targets: Sequence[OtherTarget]) -> tuple[TargetScore, ...]:
    """Score a trial on further targets; one of which no answer could be scored is left out."""
    return tuple(
        TargetScore(
            one.name,
            one.measured.primary.name,
            score_on(study, run, one.measured.task),
            one.untrained.candidate if one.untrained else None,
            compare_on(study, run, one.untrained, one.measured.task),
            compare_on(study, run, one.prompt, one.measured.task),
        )
        for one in targets
        if is_answered(study, run, one.measured.task)
    )


def name_lost_on_validation(study: Study, run: Run, targets: Sequence[OtherTarget]) -> tuple[str, ...]:
    """Name the further targets on which a gain is gone by validation rows, where there are any."""
    return tuple(
        one.name
        for one in targets
        if one.gains
        and one.reference
        and one.measured.size("validation")
        and not is_better_on_validation(study, run, one.reference, one.measured.task)
    )


def name_lost_on_test(scores: Sequence[TargetScore], targets: Sequence[OtherTarget]) -> tuple[str, ...]:
    """Name the further targets on which a gain that the run shows is not shown by a trial."""
    kept = {one.task for one in scores if _is_shown(_difference(one))}
    return tuple(one.name for one in targets if one.gains and one.name not in kept)


def target_notes(targets: Sequence[OtherTarget]) -> Iterator[str]:
    """Say on which further targets a gain has to be kept, and on which none is required of a trial."""
    kept = [one.name for one in targets if one.gains]
    unshown = [one.name for one in targets if not one.gains]
    unseen = [one.name for one in targets if one.gains and not one.measured.size("validation")]
    if kept:
        yield f"the gain on {', '.join(kept)} must be kept as well"
    if unshown:
        yield f"no gain is shown on {', '.join(unshown)}, so none is required of a trial there"
    if unseen:
        said = "no validation rows, so the gain is judged on test alone, of the confirmed trial"
        yield f"{', '.join(unseen)}: {said}"


def _difference(score: TargetScore) -> Comparison | None:
    return score.vs_untrained or score.vs_prompt


def _is_shown(found: Comparison | None) -> bool:
    g = gain(found)
    return g is not None and g.low > 0


class _Context(NamedTuple):
    """Context in which every trial is judged: the study, and the run that gains are measured against."""

    session: Session
    reader: Reader
    study: Study
    reference: Run
    others: tuple[OtherTarget, ...]


def search(session: Session, case: RescueCase, found: TrialSchedule) -> Rescue:
    """Try the trials of a schedule for one run, on a session that knows their recipes.

    Raises:
        UserError: a trial cannot be run as things are, for example for want of room on the disk.
        HarnessError: another process is working in the same runs folder.
    """
    names = [trial.name for trial in found.trials]
    noted = store.StoredProgress(session.progress, session.store, "A rescue", names)
    session = replace(session, progress=noted)
    with store.hold(session.store), noted:
        context = _prepare_context(session, case)
        recipe = context.session.experiment.candidates[case.facts.name].model_dump(mode="json")
        seen = _judge_search(context, case.run)
        original = TrialResult(case.facts.name, "", "as it is", {case.facts.name: recipe}, case.facts, seen)
        tried: list[TrialResult] = []
        for trial in found.trials:
            one, run = _run_trial(context, trial, case.run.seed)
            passes = one.search is not None and one.search.passes
            tried.append(_confirm(context, one, run) if passes else one)
            if passes:
                break
    rest = [f"{t.says}: an earlier one passed on the search half" for t in found.trials[len(tried) :]]
    policy = session.experiment.gate
    metric = session.target.primary
    return Rescue(
        experiment=session.experiment.name,
        base_model=session.experiment.base_model,
        candidate=case.facts.name,
        seed=case.run.seed,
        metric=metric.name,
        reference=case.reference.name,
        original=original,
        tried=tuple(tried),
        left_out=(*found.left_out, *rest),
        macro_margin=policy.macro if isinstance(policy.macro, float) else None,
        notes=tuple(_notes(context, case.run)),
    )


def add_trials(session: Session, trials: Sequence[RescueTrial]) -> Session:
    """Return the session with the recipes of trials among its candidates."""
    return session.with_candidates({n: recipe for trial in trials for n, recipe in trial.recipes.items()})


def _prepare_context(session: Session, case: RescueCase) -> _Context:
    reader = Reader(session)
    reference = store.get_run(session.store, case.reference.run_id)
    study = study_session(session, reader)
    return _Context(session, reader, study, reference, list_other_targets(session, study, case))


def _notes(context: _Context, run: Run) -> Iterator[str]:
    """Name the tasks that are judged on one half or on none, and more targets whose gain is to be kept."""
    everything = measure(context.study, run)
    for half in HALVES:
        there = {m.task.name for m in measure(context.study, run, half)}
        if absent := [m.task.name for m in everything if m.task.name not in there]:
            yield f"too few clusters on the {half} half to judge {', '.join(absent)} there"
    yield from target_notes(context.others)


def _run_trial(context: _Context, trial: RescueTrial, seed: int) -> tuple[TrialResult, Run]:
    """Make one trial and judge it on the search half; one that fails is recorded, and the next one starts."""
    session, recipes = context.session, {n: r.model_dump(mode="json") for n, r in trial.recipes.items()}
    run, facts = attempt(session, context.reader, session.candidates[trial.name], seed)
    session.progress.finish(trial.name, live_line(facts, session.target.task.primary_metric))
    if run.state == "failed":
        return TrialResult(trial.name, trial.step, trial.says, recipes, facts), run
    more = scores_of(context.study, run, context.others)
    gained = compare_on(context.study, run, context.reference)
    facts = replace(facts, vs_untrained=gained, more_targets=more)
    seen = _judge_search(context, run)
    session.progress.finish(trial.name, f"{trial.name}: {seen.sentence}")
    return TrialResult(trial.name, trial.step, trial.says, recipes, facts, seen), run


def _judge_search(context: _Context, run: Run) -> HalfVerdict:
    """Judge capability on the search half, and gains on validation: test rows choose nothing."""
    study = context.study
    gains = is_better_on_validation(study, run, context.reference, study.target)
    seen = _judge_half(context, run, "search", gains=gains)
    return replace(seen, lost_on=name_lost_on_validation(study, run, context.others))


def _confirm(context: _Context, tried: TrialResult, run: Run) -> TrialResult:
    """Judge the one that passed by every rule on the other half, and its gains on test."""
    facts, g = tried.facts, gain(tried.facts.vs_untrained)
    judge_pairs(context.session, context.reader, [run], context.reference)  # the judge of pairs is asked now
    seen = _judge_half(context, run, "confirm", gains=g is not None and g.low > 0)
    seen = replace(
        seen,
        lost_on=name_lost_on_test(facts.more_targets, context.others),
        labels_missing=count_missing(context.study, run, context.reference),
    )
    context.session.progress.finish(tried.name, f"{tried.name}: {seen.sentence}")
    return replace(tried, confirm=seen)


def _judge_half(context: _Context, run: Run, half: Half, *, gains: bool) -> HalfVerdict:
    verdict = judge(context.study, run, items=half).verdict
    n_items, n_all = (sum(len(m.new) for m in measure(context.study, run, part)) for part in (half, None))
    return HalfVerdict(half, n_items, n_all, verdict, gains)
