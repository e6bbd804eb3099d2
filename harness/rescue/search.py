"""Search over the trials: each judged on the search half, the first that passes confirmed once.

Invariant: a trial is a run like any other, made as far as it is not done, so a second call finds
what the first one made; the confirmation half is evaluated for one trial at most. At a matched target score,
score and capability are interpolated linearly between two scales, and no scale is extrapolated.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

from harness import comparison, gating, store
from harness.comparison import Comparison, Estimate
from harness.decision import gain
from harness.evaluation.session import Session
from harness.experiment import (
    Reader,
    Study,
    attempt,
    compare_on,
    count_missing,
    facts_of,
    judge,
    measure,
    study_session,
    wins_over,
)
from harness.gating import Measurement
from harness.gating.halves import HALVES, Half
from harness.records import Run, SampleResult
from harness.report import live_line
from harness.rescue.kept_gains import (
    OtherTarget,
    list_other_targets,
    name_lost_on_test,
    name_lost_on_validation,
    scores_of,
    target_notes,
)
from harness.rescue.result import HalfVerdict, Rescue, TrialResult
from harness.rescue.select import RescueCase
from harness.rescue.trials import RescueTrial, TrialSchedule

_PROMPTED_BY = ("prompting", "answer", "system", "template")  # what decides the prompts of the target


class ScaledAdapter(NamedTuple):
    """One scale of the adapter: 0 is the base, 1 the fine-tune; its score on the target, its rows by task."""

    scale: float
    target: float
    rows: Mapping[str, Sequence[SampleResult]]


class _Bracket(NamedTuple):
    low: ScaledAdapter
    high: ScaledAdapter
    weight: float  # of the high one, so that the mixed target score is the wanted one


class _Context(NamedTuple):
    """Context in which every trial is judged: the study, and the run that gains are measured against."""

    session: Session
    reader: Reader
    study: Study
    reference: Run
    others: tuple[OtherTarget, ...]

    def score_on_validation(self, run: Run) -> float:
        """Return a run's score on validation as the metric gives it, turned so that more is better."""
        target = self.session.target
        rows = self.reader.read(run, target, "validation")
        return target.primary.unit.sign * comparison.estimate(target.primary, rows).score


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
        tried: list[tuple[TrialResult, Run]] = []
        for trial in found.trials:
            one, run = _run_trial(context, trial, case.run.seed)
            passes = one.search is not None and one.search.passes
            tried.append((_confirm(context, one, run) if passes else one, run))
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
        tried=_compare_matched(context, case, original, tried),
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
    others = list_other_targets(session, case)
    return _Context(session, reader, study_session(session, reader), reference, others)


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
    more = scores_of(session, context.reader, run, context.others)
    gained = compare_on(session, context.reader, run, context.reference, session.target)
    facts = replace(facts, vs_untrained=gained, more_targets=more)
    seen = _judge_search(context, run)
    session.progress.finish(trial.name, f"{trial.name}: {seen.sentence}")
    return TrialResult(trial.name, trial.step, trial.says, recipes, facts, seen), run


def _judge_search(context: _Context, run: Run) -> HalfVerdict:
    """Judge capability on the search half, and gains on validation: test rows choose nothing."""
    gains = context.score_on_validation(run) > context.score_on_validation(context.reference)
    seen = _judge_half(context, run, "search", gains=gains)
    return replace(seen, lost_on=name_lost_on_validation(context.reader, run, context.others))


def _confirm(context: _Context, tried: TrialResult, run: Run) -> TrialResult:
    """Judge the one that passed by every rule on the other half, and its gains on test."""
    facts, g = tried.facts, gain(tried.facts.vs_untrained)
    wins_over(context.session, context.reader, run, context.reference)  # the judge of pairs is asked now
    seen = _judge_half(context, run, "confirm", gains=g is not None and g.low > 0)
    seen = replace(
        seen,
        lost_on=name_lost_on_test(facts.more_targets, context.others),
        labels_missing=count_missing(context.session, context.reader, run, context.reference),
    )
    context.session.progress.finish(tried.name, f"{tried.name}: {seen.sentence}")
    return replace(tried, confirm=seen)


def _judge_half(context: _Context, run: Run, half: Half, *, gains: bool) -> HalfVerdict:
    verdict = judge(context.study, run, items=half).verdict
    n_items, n_all = (sum(len(m.new) for m in measure(context.study, run, part)) for part in (half, None))
    return HalfVerdict(half, n_items, n_all, verdict, gains)


def _compare_matched(
    context: _Context, case: RescueCase, original: TrialResult, tried: Sequence[tuple[TrialResult, Run]]
) -> tuple[TrialResult, ...]:
    """Compare what was trained again with the scaled adapter at the same target score."""
    path = _scale_path(context, case, original, tried)
    alpha = context.session.experiment.gate.alpha
    out = []
    for one, run in tried:
        if one.step != "scale" and one.facts.target and len(path) > 1:
            part = measure(context.study, run, "search")
            counting = gating.name_admitted_tasks(part)
            one = replace(
                one, equal=_estimate_matched_change(path, part, one.facts.target.score, counting, alpha)
            )
        out.append(one)
    return tuple(out)


def _scale_path(
    context: _Context, case: RescueCase, original: TrialResult, tried: Sequence[tuple[TrialResult, Run]]
) -> list[ScaledAdapter]:
    """List the scales that were measured: the base where it was, and the fine-tune itself as 1."""
    scaled = [(one.scale, one.facts.target, run) for one, run in tried if one.scale is not None]
    if not scaled:
        return []
    points = [*scaled, (1.0, original.facts.target, case.run)]
    path = [ScaledAdapter(scale, t.score, _search_rows(context, run)) for scale, t, run in points if t]
    return [*_base_point(context, case.run), *path]


def _base_point(context: _Context, run: Run) -> list[ScaledAdapter]:
    """Find the base, evaluated on the target as the fine-tune is; none where no such candidate was run."""
    session = context.session
    prompting = [getattr(session.experiment.candidates[run.candidate], name) for name in _PROMPTED_BY]
    for other in store.list_runs(session.store, session.experiment.name):
        recipe = session.experiment.candidates.get(other.candidate)
        plain = other.state == "done" and other.weights_digest == run.base_digest == other.base_digest
        if plain and recipe and [getattr(recipe, name) for name in _PROMPTED_BY] == prompting:
            target = facts_of(session, context.reader, other).target
            part = measure(context.study, run, "search")
            rows = {m.task.name: m.base for m in part}
            return [ScaledAdapter(0.0, target.score, rows)] if target else []
    return []


def _search_rows(context: _Context, run: Run) -> dict[str, Sequence[SampleResult]]:
    return {m.task.name: m.new for m in measure(context.study, run, "search")}


def _estimate_matched_change(
    path: Sequence[ScaledAdapter],
    trial: Sequence[Measurement],
    target: float,
    counting: set[str],
    alpha: float,
) -> Estimate | None:
    """Estimate by how much a trial keeps more than the scaled adapter that scores as much on the target."""
    # `trial` holds the trial's rows as `new`; `counting` names the tasks of the macro. Where several pairs of
    # scales enclose the score, the pair that keeps most is taken. The interval holds the items of the tasks;
    # the scores on the target are taken as they were found. None where no pair encloses the score.
    found = []
    for bracket in _brackets(sorted(path, key=lambda at: at.scale), target):
        mixed = [_compare_interpolated(m, bracket, alpha) for m in trial if m.task.name in counting]
        if mixed:
            found.append(comparison.mean_change(mixed))
    return min(found, key=lambda e: e.score, default=None)


def _brackets(path: Sequence[ScaledAdapter], target: float) -> Iterator[_Bracket]:
    for low, high in pairwise(path):
        if min(low.target, high.target) <= target <= max(low.target, high.target):
            span = high.target - low.target
            yield _Bracket(low, high, (target - low.target) / span if span else 0.5)


def _compare_interpolated(m: Measurement, bracket: _Bracket, alpha: float) -> Comparison:
    name, metric = m.task.name, m.metrics[m.task.primary_metric]
    low, high, _ = comparison.fill_errors(metric, bracket.low.rows[name], bracket.high.rows[name])
    other = {row.example_id: row for row in high}
    mixed = [
        replace(row, parts=_interpolate_parts(row, other[row.example_id], bracket.weight)) for row in low
    ]
    return comparison.rescale(comparison.compare_rows(metric, mixed, m.new, alpha=alpha), metric.range.span)


def _interpolate_parts(
    a: SampleResult, b: SampleResult, weight: float
) -> dict[str, tuple[float, ...] | None]:
    out: dict[str, tuple[float, ...] | None] = {}
    for name, old in a.parts.items():
        new = b.parts.get(name)
        known = old is not None and new is not None
        out[name] = (
            tuple((1 - weight) * x + weight * y for x, y in zip(old or (), new or (), strict=True))
            if known
            else None
        )
    return out
