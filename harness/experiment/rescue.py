"""Rescue of a fine-tune that gains but forgets too much: trials, cheapest first, on the search half of items.

A trial that passes there is judged again on the other half, which is evaluated for at most one trial. A trial
is an ordinary run, so a second call reuses what the first one made.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple, NoReturn

from harness import formatting, plugins, store
from harness.analysis import candidate_facts
from harness.analysis.admission import HALVES
from harness.analysis.margins import scale_share
from harness.analysis.target_scores import TargetScore
from harness.analysis.verdict import Half
from harness.errors import IncompatibleRuns, Problem, UserError, did_you_mean
from harness.evaluation.candidate_rows import regularization_problems
from harness.evaluation.session import MeasuredTask, Session
from harness.experiment import rescue_trials
from harness.experiment.candidate_result import settle_sweep, study_of_session
from harness.experiment.candidate_weights import find_stored_weights
from harness.experiment.main_job import attempt, judge_pairs, report_stored
from harness.experiment.rescue_trials import HalfVerdict, Rescue, RescueTrial, TrialResult, TrialSchedule
from harness.experiment.run_candidate import answer_all_items
from harness.experiment.run_verdicts import compare_on, judge_stored_run, read_both_arms, score_on
from harness.experiment.stored_rows import Reader, refuse_folds
from harness.experiment.study import Study, count_missing, find_prompt, is_answered, is_better_on_validation
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


def answer_whole_tasks(session: Session, selected: Sequence[str], run_name: str) -> str:
    """Answer whole tasks for a run of sampled items, and return the new run's id, else `run_name`."""
    all_runs = store.list_runs(session.store)
    of_sampled = [run for run in all_runs if run.experiment == f"{session.experiment.name}{FEWER}"]
    sampled = [run for run in of_sampled if run.state == "done"]
    requested_runs = [r for r in sampled if r.run_id == run_name]
    if not requested_runs:
        whole_done = (run_name, session.experiment.name, "done")
        has_whole = any((run.candidate, run.experiment, run.state) == whole_done for run in all_runs)
        requested_runs = [] if has_whole else [run for run in sampled if run.candidate == run_name]
    if not requested_runs:
        return run_name
    verdicts = [store.newest_verdict(session.store, run.run_id, run.base_digest) for run in requested_runs]
    if all(verdict is not None and verdict.outcome == "pass" for verdict in verdicts):
        _refuse(run_name, "a run that the gate passes", "one that it does not", f"harness promote {run_name}")
    if session.dry_run:
        found = "a run of --sequential, whose weights have not answered whole tasks yet"
        step = "leave --dry-run out, or harness compare --all-items first"
        _refuse(run_name, found, "whole tasks: one half chooses, the other judges", step)
    recipe = {run.candidate for run in requested_runs}
    newest = {(run.candidate, run.seed): run for run in sampled if run.candidate in {*selected, *recipe}}
    needed = [
        run
        for run in newest.values()
        if run.candidate in recipe
        or run.weights_digest == run.base_digest
        or not plugins.find_method(run.method).makes_language_model
    ]
    whole = {run.run_id: answer_all_items(session, run).run_id for run in needed}
    return whole.get(run_name, run_name)


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
    reference = candidate_facts.best_untrained_facts(report.facts)
    assert reference is not None, "a gain over an untrained candidate was measured"
    finished_runs = {f.name: runs[f.run_id] for f in report.facts if f.state == "done"}
    return RescueCase(facts, runs[facts.run_id], reference, finished_runs)


def _reasons(f: candidate_facts.CandidateFacts) -> list[tuple[str, str, str]]:
    """Return why a run cannot be rescued, as found, expected and next step; empty if it can."""
    if f.state == "failed":
        return [(f"a run that failed: {f.error}", "a finished one", _AGAIN)]
    if not candidate_facts.is_fine_tuned(f):
        found = "a candidate that fine-tunes nothing, so it has forgotten nothing"
        return [(found, "a fine-tune", "choose one with weights of its own")]
    if f.is_remote:
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
        blocking = "; ".join(r.sentence for r in f.verdict.deciding)
        found = f"a run that has kept what it could; what stops it is {blocking}"
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
    reader: Reader
    study: Study
    reference: Run
    others: tuple[_OtherTarget, ...]


class PreparedRescue(NamedTuple):
    """Run to rescue, its trials, and a session with the recipes."""

    session: Session
    case: RescueCase
    schedule: TrialSchedule


def prepare(session: Session, selected: Sequence[str], run_name: str) -> PreparedRescue:
    """Find the run with a candidate's name or a run's id, and list its trials.

    A run that cannot or need not be rescued is refused.
    """
    refuse_folds(session.folds, "harness rescue", "where every trial would have to be made again in each")
    run_name = answer_whole_tasks(session, selected, run_name)
    runs = {run.run_id: run for run in store.list_runs(session.store, session.experiment.name)}
    name = run_name
    if run_name not in selected:
        if run_name not in runs:
            expected = "a candidate of the file, or a run's id"
            raise UserError("run", repr(run_name), expected, did_you_mean(run_name, [*selected, *runs]))
        run = runs[run_name]
        if run.state == "failed":
            _refuse(run_name, f"a run that failed: {run.error}", "a finished one", _AGAIN)
        name, now = run.candidate, session.experiment.candidates.get(run.candidate)
        if now is None or not now.is_stored_as(run.recipe, session.store.folder.parent):
            found = "a run of a recipe that the file does not have now"
            step = "write it down as it was, or harness compare"
            raise IncompatibleRuns(run_name, found, f"{name} as it was", step)
    report = report_stored(session, selected, name)
    matches = [f for f in report.facts if f.name == name and run_name in (name, f.run_id)]
    if not matches:
        found, step = "a run of other items or code than now", f"harness rescue {name}"
        raise IncompatibleRuns(run_name, found, f"one of {name} as written now", step)
    # A recipe passes with all of its seeds; the first that does not pass is rescued.
    facts = next((f for f in matches if f.verdict is None or f.verdict.outcome != "pass"), matches[0])
    return _prepare(session, _case(report, runs, facts))


def prepare_from_report(session: Session, report: ExperimentReport) -> PreparedRescue | None:
    """Choose what to rescue in a finished experiment; None if nothing."""
    if session.folds:
        return None  # every trial would have to be repeated in each fold
    case = select_case(report, store.list_runs(session.store, session.experiment.name))
    return _prepare(session, case) if case else None


def _prepare(session: Session, case: RescueCase) -> PreparedRescue:
    candidate = session.candidates[case.run.candidate]
    source = settle_sweep(candidate.source, case.run)  # as it was chosen
    adapters = rescue_trials.list_adapters(session.candidates.values(), candidate)
    others = [peer for peer in adapters if find_stored_weights(session, peer, case.run.seed)]
    about, tracked = (session.experiment, session.target.primary), case.run.training.tracked
    schedule = rescue_trials.plan_trials(*about, candidate, source, others, tracked)
    problems: dict[Problem, None] = {}
    for trial in schedule.trials:
        context = session.mix_context(trial.source, session.first_seed)
        problems |= dict.fromkeys(regularization_problems(trial.source, context))
    if problems:
        raise UserError(problems)
    recipes = {name: recipe for trial in schedule.trials for name, recipe in trial.recipes.items()}
    return PreparedRescue(session.with_candidates(recipes), case, schedule)


def run(prepared: PreparedRescue) -> Rescue:
    """Run the trials that are not done yet, one after the other."""
    session, case, schedule = prepared.session, prepared.case, prepared.schedule
    names = [trial.name for trial in schedule.trials]
    progress = store.StoredProgress(session.progress, session.store, "A rescue", names)
    session = replace(session, progress=progress)
    with store.hold(session.store), progress:
        reader = Reader(session.store, session.tasks)
        study = study_of_session(session, reader)
        scores = {s.task: s for s in case.facts.more_targets}
        prompt, targets = find_prompt(study, case.runs.values(), case.run), list[_OtherTarget]()
        for m in session.more_targets:
            if (score := scores.get(m.task.name)) is not None:
                untrained = case.runs.get(score.untrained or "") if score.vs_untrained else None
                prompt_run = prompt if score.vs_prompt else None
                targets.append(_OtherTarget(m.task.name, m, untrained, prompt_run, _shows_gain(score)))
        reference = store.get_run(session.store, case.reference.run_id)
        context = _Context(session, reader, study, reference, tuple(targets))
        name = case.facts.name
        recipe = session.experiment.candidates[name].model_dump(mode="json")
        verdict = _judge_search(context, case.run)
        original = TrialResult(name, "", "as it is", {name: recipe}, case.facts, verdict)
        results: list[TrialResult] = []
        for trial in schedule.trials:
            result, trial_run = _run_trial(context, trial, case.run.seed)
            passes = result.search is not None and result.search.passes
            if passes:
                # The other half judges it, and the judge of pairs is asked now.
                judge_pairs(session, reader, [trial_run], reference)
                g = candidate_facts.gain(result.facts.vs_untrained)
                confirmed = _judge_half(context, trial_run, "confirm", gains=g is not None and g.low > 0)
                gain_names = {score.task for score in result.facts.more_targets if _shows_gain(score)}
                confirmed = replace(
                    confirmed,
                    lost_on=tuple(o.name for o in targets if o.gains and o.name not in gain_names),
                    labels_missing=count_missing(study, trial_run, reference),
                )
                session.progress.finish(result.name, f"{result.name}: {confirmed.sentence}")
                result = replace(result, confirm=confirmed)
            results.append(result)
            if passes:
                break
    rest = [f"{t.says}: an earlier one passed on the search half" for t in schedule.trials[len(results) :]]
    return Rescue(
        experiment=session.experiment.name,
        base_model=session.experiment.base_model,
        candidate=case.facts.name,
        seed=case.run.seed,
        metric=session.target.primary.name,
        reference=case.reference.name,
        original=original,
        tried=tuple(results),
        left_out=(*schedule.left_out, *rest),
        macro_margin=scale_share(session.experiment.gate.macro),
        notes=tuple(_notes(context, case.run)),
    )


def _notes(context: _Context, run: Run) -> Iterator[str]:
    everything = read_both_arms(context.study, run)
    for half in HALVES:
        judged_names = {m.task.name for m in read_both_arms(context.study, run, half)}
        if absent_names := [m.task.name for m in everything if m.task.name not in judged_names]:
            yield f"too few clusters on the {half} half to judge {', '.join(absent_names)} there"
    gain_names = [target.name for target in context.others if target.gains]
    no_gain_names = [target.name for target in context.others if not target.gains]
    no_row_names = [t.name for t in context.others if t.gains and not t.measured.size("validation")]
    alone = "no validation rows, so the gain is judged on test alone, of the confirmed trial"
    for names, note in (
        (gain_names, "the gain on {} must be kept as well"),
        (no_gain_names, "no gain is shown on {}, so none is required of a trial there"),
        (no_row_names, f"{{}}: {alone}"),
    ):
        yield from [note.format(", ".join(names))] if names else []


def _run_trial(context: _Context, trial: RescueTrial, seed: int) -> tuple[TrialResult, Run]:
    session, recipes = context.session, {n: r.model_dump(mode="json") for n, r in trial.recipes.items()}
    run, facts = attempt(session, context.reader, session.candidates[trial.name], seed)
    session.progress.finish(trial.name, live_line(facts, session.target.task.primary_metric))
    if run.state == "failed":
        return TrialResult(trial.name, trial.step, trial.says, recipes, facts), run
    study = context.study
    more = tuple(
        TargetScore(
            target.name,
            target.measured.primary.name,
            score_on(study, run, target.measured.task),
            target.untrained.candidate if target.untrained else None,
            compare_on(study, run, target.untrained, target.measured.task),
            compare_on(study, run, target.prompt, target.measured.task),
        )
        for target in context.others
        if is_answered(study, run, target.measured.task)
    )
    gain = compare_on(study, run, context.reference)
    facts = replace(facts, vs_untrained=gain, more_targets=more)
    verdict = _judge_search(context, run)
    session.progress.finish(trial.name, f"{trial.name}: {verdict.sentence}")
    return TrialResult(trial.name, trial.step, trial.says, recipes, facts, verdict), run


def _judge_search(context: _Context, run: Run) -> HalfVerdict:
    """Judge capability on the search half and gains on validation: test rows choose nothing."""
    study = context.study
    gains = is_better_on_validation(study, run, context.reference, study.target)
    verdict = _judge_half(context, run, "search", gains=gains)
    lost_on = tuple(
        target.name
        for target in context.others
        if target.gains
        and (reference := target.untrained or target.prompt)
        and target.measured.size("validation")
        and not is_better_on_validation(study, run, reference, target.measured.task)
    )
    return replace(verdict, lost_on=lost_on)


def _judge_half(context: _Context, run: Run, half: Half, *, gains: bool) -> HalfVerdict:
    verdict = judge_stored_run(context.study, run, items=half).verdict
    n_items, n_all = (
        sum(len(m.new) for m in read_both_arms(context.study, run, items)) for items in (half, None)
    )
    return HalfVerdict(half, n_items, n_all, verdict, gains)
