"""Rescue of a fine-tune that gains but forgets too much: trials, cheapest first, on the search half of items.

A trial that passes there is judged again on the other half, which is evaluated for at most one trial. A trial
is an ordinary run, so a second call reuses what the first one made.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple, NoReturn

from harness import experiment, formatting, plugins, store
from harness.analysis import candidate_facts
from harness.analysis.admission import HALVES
from harness.analysis.margins import scale_share
from harness.analysis.target_scores import TargetScore
from harness.analysis.verdict import Half
from harness.errors import IncompatibleRuns, Problem, UserError, did_you_mean
from harness.evaluation.candidate_rows import regularization_problems
from harness.evaluation.session import MeasuredTask, Session
from harness.lifecycle.rescue_result import (
    HalfVerdict,
    Rescue,
    TrialResult,
    exit_code,
    read,
    report_files,
    rescue_document,
    to_json,
    write,
)
from harness.lifecycle.rescue_trials import (
    RescueTrial,
    TrialSchedule,
    estimate_trials,
    largest_work,
    plan_document,
    schedule_for_run,
)
from harness.records import FEWER, Run
from harness.report import ExperimentReport, live_line

_RETENTION = ("macro", "each", "safety", "critical", "regressions", "validity", "mode collapse", "drift")
_AGAIN = "fix that, then harness compare"


class RescueCase(NamedTuple):
    """Run to rescue, the untrained `reference` of its gain, and the finished runs by candidate."""

    facts: candidate_facts.CandidateFacts
    run: Run
    reference: candidate_facts.CandidateFacts
    runs: Mapping[str, Run] = {}


def find_case(session: Session, selected: Sequence[str], wanted: str) -> RescueCase:
    """Find the run with a name or id, and refuse it if it cannot or need not be rescued."""
    runs = {run.run_id: run for run in store.list_runs(session.store, session.experiment.name)}
    name = wanted
    if wanted not in selected:
        if wanted not in runs:
            expected = "a candidate of the file, or a run's id"
            hint = did_you_mean(wanted, [*selected, *runs])
            raise UserError("run", repr(wanted), expected, hint)
        run = runs[wanted]
        if run.state == "failed":
            _refuse(wanted, f"a run that failed: {run.error}", "a finished one", _AGAIN)
        name, now = run.candidate, session.experiment.candidates.get(run.candidate)
        if now is None or not now.is_stored_as(run.recipe, session.store.folder.parent):
            raise IncompatibleRuns(
                f"{wanted}: found a run of a recipe that the file does not have now; expected {name} as it "
                "was; next: write it down as it was, or harness compare"
            )
    report = experiment.report_stored(session, selected, name)
    known = [f for f in report.facts if f.name == name and wanted in (name, f.run_id)]
    if not known:
        raise IncompatibleRuns(
            f"{wanted}: found a run of other items or code than now; expected one of {name} as written now; "
            f"next: harness rescue {name}"
        )
    # A recipe passes with all of its seeds; the first that does not pass is rescued.
    facts = next((f for f in known if f.verdict is None or f.verdict.outcome != "pass"), known[0])
    return _case(report, runs, facts)


def answer_whole_tasks(session: Session, selected: Sequence[str], wanted: str) -> str:
    """Answer whole tasks for a run of sampled items, and return the new run's id, else what is `wanted`."""
    every = store.list_runs(session.store)
    of_sampled = [run for run in every if run.experiment == f"{session.experiment.name}{FEWER}"]
    sampled = [run for run in of_sampled if run.state == "done"]
    named = [r for r in sampled if r.run_id == wanted]
    if not named:
        whole_done = (wanted, session.experiment.name, "done")
        has_whole = any((run.candidate, run.experiment, run.state) == whole_done for run in every)
        named = [] if has_whole else [run for run in sampled if run.candidate == wanted]
    if not named:
        return wanted
    verdicts = [store.newest_verdict(session.store, run.run_id, run.base_digest) for run in named]
    if all(verdict is not None and verdict.outcome == "pass" for verdict in verdicts):
        _refuse(wanted, "a run that the gate passes", "one that it does not", f"harness promote {wanted}")
    if session.dry_run:
        found = "a run of --sequential, whose weights have not answered whole tasks yet"
        step = "leave --dry-run out, or harness compare --all-items first"
        _refuse(wanted, found, "whole tasks: one half chooses, the other judges", step)
    recipe = {run.candidate for run in named}
    newest = {(run.candidate, run.seed): run for run in sampled if run.candidate in {*selected, *recipe}}
    needed = []
    for run in newest.values():
        is_tuned = (
            run.weights_digest != run.base_digest and plugins.find_method(run.method).makes_language_model
        )
        if run.candidate in recipe or not is_tuned:
            needed.append(run)
    whole = {run.run_id: experiment.answer_all_items(session, run).run_id for run in needed}
    return whole.get(wanted, wanted)


def select_case(report: ExperimentReport, runs: Sequence[Run]) -> RescueCase | None:
    """Choose from a finished experiment the fine-tune to rescue that is best on validation."""
    by_id = {run.run_id: run for run in runs}
    failing = [f for f in report.facts if not list(_reasons(f))]
    run = candidate_facts.strongest_run(failing)
    return _case(report, by_id, next(f for f in failing if f.name == run.name)) if run else None


def _case(
    report: ExperimentReport, runs: dict[str, Run], facts: candidate_facts.CandidateFacts
) -> RescueCase:
    for found, expected, step in _reasons(facts):
        _refuse(facts.label, found, expected, step)
    name = candidate_facts.best_untrained(report.facts)
    reference = next(f for f in report.facts if f.name == name and f.state == "done")
    done = {f.name: runs[f.run_id] for f in report.facts if f.state == "done"}
    return RescueCase(facts, runs[facts.run_id], reference, done)


def _reasons(f: candidate_facts.CandidateFacts) -> list[tuple[str, str, str]]:
    """Return why a run is not to be rescued: found, expected, next step; empty if it is."""
    if f.state == "failed":
        return [(f"a run that failed: {f.error}", "a finished one", _AGAIN)]
    if not candidate_facts.is_fine_tuned(f):
        found = "a candidate that fine-tunes nothing, so it has forgotten nothing"
        return [(found, "a fine-tune", "choose one with weights of its own")]
    if plugins.find_method(f.method).is_remote:
        found = "an endpoint, whose weights are elsewhere"
        return [(found, "weights that can be scaled or trained", "rescue them where they lie")]
    if f.verdict is None:
        step = "add a suite of the role capability"
        return [("a run without a verdict", "one that the gate has judged", step)]
    if f.verdict.outcome == "pass":
        return [("a run that the gate passes", "one that it does not", f"harness promote {f.name}")]
    g = candidate_facts.gain(f.vs_untrained)
    if g is None:
        found = "no candidate without training to measure the gain against"
        step = "add prompt: {method: base}, then harness compare"
        return [(found, "one in the same experiment", step)]
    if g.low <= 0:
        gained = formatting.change(g.unit, g.delta, g.low, g.high)
        found = f"no gain that is shown ({gained} over the best untrained candidate)"
        return [(found, "a fine-tune that gains", "rescue keeps a gain, and makes none")]
    if not any(r.outcome in ("fail", "inconclusive") for r in f.verdict.rules if r.name in _RETENTION):
        said = "; ".join(r.sentence for r in f.verdict.deciding)
        found = f"a run that has kept what it could; what stops it is {said}"
        return [(found, "a rule on capability that does not pass", "rescue cannot fix that")]
    return []


def _refuse(name: str, found: str, expected: str, step: str) -> NoReturn:
    raise UserError(f"rescue {name}", found, expected, step)


class _OtherTarget(NamedTuple):
    """Additional target, and whether the run gains on it over the best untrained run, else the prompt."""

    name: str
    measured: MeasuredTask
    untrained: Run | None
    prompt: Run | None
    gains: bool


def _shows_gain(score: TargetScore) -> bool:
    g = candidate_facts.gain(score.vs_untrained or score.vs_prompt)
    return g is not None and g.low > 0


class _Context(NamedTuple):
    session: Session
    reader: experiment.Reader
    study: experiment.Study
    reference: Run
    others: tuple[_OtherTarget, ...]


class PreparedRescue(NamedTuple):
    """Run to rescue, its trials, and a session with the recipes."""

    session: Session
    case: RescueCase
    schedule: TrialSchedule


def prepare(session: Session, selected: Sequence[str], wanted: str) -> PreparedRescue:
    """Find the run with a candidate's name or a run's id, and list its trials."""
    experiment.refuse_folds(
        session.folds, "harness rescue", "where every trial would have to be made again in each"
    )
    return _prepare(session, find_case(session, selected, answer_whole_tasks(session, selected, wanted)))


def prepare_from_report(session: Session, found: ExperimentReport) -> PreparedRescue | None:
    """Choose what to rescue in a finished experiment; None if nothing."""
    if session.folds:
        return None  # every trial would have to be repeated in each fold
    case = select_case(found, store.list_runs(session.store, session.experiment.name))
    return _prepare(session, case) if case else None


def _prepare(session: Session, case: RescueCase) -> PreparedRescue:
    found = schedule_for_run(session, case.run)
    problems: dict[Problem, None] = {}
    for trial in found.trials:
        context = session.mix_context(trial.source, session.first_seed)
        problems |= dict.fromkeys(regularization_problems(trial.source, context))
    if problems:
        raise UserError(problems)
    recipes = {name: recipe for trial in found.trials for name, recipe in trial.recipes.items()}
    return PreparedRescue(session.with_candidates(recipes), case, found)


def run(prepared: PreparedRescue) -> Rescue:
    """Run the trials that are not done yet, one after the other."""
    session, case, found = prepared.session, prepared.case, prepared.schedule
    names = [trial.name for trial in found.trials]
    noted = store.StoredProgress(session.progress, session.store, "A rescue", names)
    session = replace(session, progress=noted)
    with store.hold(session.store), noted:
        reader = experiment.Reader(session.store, session.tasks)
        study = experiment.study_session(session, reader)
        scores = {one.task: one for one in case.facts.more_targets}
        prompt, others = experiment.find_prompt(study, case.runs.values(), case.run), list[_OtherTarget]()
        for m in session.more_targets:
            if (own := scores.get(m.task.name)) is not None:
                untrained = case.runs.get(own.untrained or "") if own.vs_untrained else None
                named = prompt if own.vs_prompt else None
                others.append(_OtherTarget(m.task.name, m, untrained, named, _shows_gain(own)))
        reference = store.get_run(session.store, case.reference.run_id)
        context = _Context(session, reader, study, reference, tuple(others))
        recipe = context.session.experiment.candidates[case.facts.name].model_dump(mode="json")
        seen = _judge_search(context, case.run)
        original = TrialResult(case.facts.name, "", "as it is", {case.facts.name: recipe}, case.facts, seen)
        tried: list[TrialResult] = []
        for trial in found.trials:
            one, made = _run_trial(context, trial, case.run.seed)
            passes = one.search is not None and one.search.passes
            tried.append(_confirm(context, one, made) if passes else one)
            if passes:
                break
    rest = [f"{t.says}: an earlier one passed on the search half" for t in found.trials[len(tried) :]]
    policy = session.experiment.gate
    return Rescue(
        experiment=session.experiment.name,
        base_model=session.experiment.base_model,
        candidate=case.facts.name,
        seed=case.run.seed,
        metric=session.target.primary.name,
        reference=case.reference.name,
        original=original,
        tried=tuple(tried),
        left_out=(*found.left_out, *rest),
        macro_margin=scale_share(policy.macro),
        notes=tuple(_notes(context, case.run)),
    )


def _notes(context: _Context, run: Run) -> Iterator[str]:
    everything = experiment.measure(context.study, run)
    for half in HALVES:
        there = {m.task.name for m in experiment.measure(context.study, run, half)}
        if absent := [m.task.name for m in everything if m.task.name not in there]:
            yield f"too few clusters on the {half} half to judge {', '.join(absent)} there"
    kept = [one.name for one in context.others if one.gains]
    unshown = [one.name for one in context.others if not one.gains]
    unseen = [one.name for one in context.others if one.gains and not one.measured.size("validation")]
    alone = "no validation rows, so the gain is judged on test alone, of the confirmed trial"
    for names, said in (
        (kept, "the gain on {} must be kept as well"),
        (unshown, "no gain is shown on {}, so none is required of a trial there"),
        (unseen, f"{{}}: {alone}"),
    ):
        yield from [said.format(", ".join(names))] if names else []


def _run_trial(context: _Context, trial: RescueTrial, seed: int) -> tuple[TrialResult, Run]:
    session, recipes = context.session, {n: r.model_dump(mode="json") for n, r in trial.recipes.items()}
    run, facts = experiment.attempt(session, context.reader, session.candidates[trial.name], seed)
    session.progress.finish(trial.name, live_line(facts, session.target.task.primary_metric))
    if run.state == "failed":
        return TrialResult(trial.name, trial.step, trial.says, recipes, facts), run
    study = context.study
    more = tuple(
        TargetScore(
            one.name,
            one.measured.primary.name,
            experiment.score_on(study, run, one.measured.task),
            one.untrained.candidate if one.untrained else None,
            experiment.compare_on(study, run, one.untrained, one.measured.task),
            experiment.compare_on(study, run, one.prompt, one.measured.task),
        )
        for one in context.others
        if experiment.is_answered(study, run, one.measured.task)
    )
    facts = replace(
        facts, vs_untrained=experiment.compare_on(study, run, context.reference), more_targets=more
    )
    seen = _judge_search(context, run)
    session.progress.finish(trial.name, f"{trial.name}: {seen.sentence}")
    return TrialResult(trial.name, trial.step, trial.says, recipes, facts, seen), run


def _judge_search(context: _Context, run: Run) -> HalfVerdict:
    """Judge capability on the search half and gains on validation: test rows choose nothing."""
    study = context.study
    gains = experiment.is_better_on_validation(study, run, context.reference, study.target)
    seen = _judge_half(context, run, "search", gains=gains)
    lost_on = tuple(
        one.name
        for one in context.others
        if one.gains
        and (reference := one.untrained or one.prompt)
        and one.measured.size("validation")
        and not experiment.is_better_on_validation(study, run, reference, one.measured.task)
    )
    return replace(seen, lost_on=lost_on)


def _confirm(context: _Context, tried: TrialResult, run: Run) -> TrialResult:
    facts, g = tried.facts, candidate_facts.gain(tried.facts.vs_untrained)
    experiment.judge_pairs(
        context.session, context.reader, [run], context.reference
    )  # the judge of pairs is asked now
    seen = _judge_half(context, run, "confirm", gains=g is not None and g.low > 0)
    kept = {one.task for one in facts.more_targets if _shows_gain(one)}
    seen = replace(
        seen,
        lost_on=tuple(one.name for one in context.others if one.gains and one.name not in kept),
        labels_missing=experiment.count_missing(context.study, run, context.reference),
    )
    context.session.progress.finish(tried.name, f"{tried.name}: {seen.sentence}")
    return replace(tried, confirm=seen)


def _judge_half(context: _Context, run: Run, half: Half, *, gains: bool) -> HalfVerdict:
    verdict = experiment.judge_stored_run(context.study, run, items=half).verdict
    n_items, n_all = (
        sum(len(m.new) for m in experiment.measure(context.study, run, part)) for part in (half, None)
    )
    return HalfVerdict(half, n_items, n_all, verdict, gains)
