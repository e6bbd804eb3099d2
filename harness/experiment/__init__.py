"""The main job: train, evaluate, compare, gate and decide on every candidate of an experiment.

Invariant: a second call computes nothing, and a candidate that fails stops no other.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from harness import config, metrics, store
from harness.analysis.candidate_facts import best_untrained, strongest_run
from harness.analysis.economics import apply_budgets
from harness.config import LoadedExperiment
from harness.errors import CandidateFailed, refuse
from harness.evaluation import judges
from harness.evaluation.candidate_rows import describe_training_rows
from harness.evaluation.candidates import ResolvedCandidate
from harness.evaluation.costs import Work
from harness.evaluation.grade_costs import short_contexts
from harness.evaluation.grading import grade_answers
from harness.evaluation.judging_stage import list_ungraded_pairs
from harness.evaluation.row_sets import RunRequest, list_answered_sets, list_open
from harness.evaluation.session import Session
from harness.experiment import fewer_items as fewer
from harness.experiment.bases import BaseFit, FitQuery, examine_base
from harness.experiment.candidate_costs import Estimates
from harness.experiment.candidate_problems import find_adapter_config, key_problems, sensitive_endpoints
from harness.experiment.candidate_result import attempt, describe_items, facts_of, show_first_result
from harness.experiment.candidate_weights import (
    choose_prompts,
    ensure_weights,
    find_stored_weights,
    stands_on,
)
from harness.experiment.catalog import map_purposes
from harness.experiment.executors import make_on_workers
from harness.experiment.fewer_items import answer_all_items
from harness.experiment.gate_run import judge_stored_run, measure
from harness.experiment.judged_runs import judge_and_decide, judge_and_report
from harness.experiment.learning_curve import estimate_curve_work, make_curve, refuse_curve, settle_sweep
from harness.experiment.one_answer import SentPrompt, add_prompts, ask, find_sent_prompts
from harness.experiment.plan import arm_label, list_measured_bases
from harness.experiment.preparation import Scope, find_lm_eval_tasks, prepare_session, train_judges
from harness.experiment.report_runs import (
    advise_before,
    are_all_done,
    describe_power,
    describe_stored,
    first_line,
    in_order,
    recipe_warnings,
    refuse_many,
    report_stored,
    warnings_before,
    workers_sentence,
)
from harness.experiment.run_candidate import find_stored_runs, time_again
from harness.experiment.run_remarks import describe_rewards, describe_rows_and_prompts
from harness.experiment.stored_rows import Reader, Runs, StoredRows, base_arm, refuse_folds, suite_arm
from harness.experiment.study import (
    Study,
    add_lm_eval,
    count_missing,
    describe_reached,
    is_of_recipe,
    is_target_only,
    judge_labels,
    load_study,
    read_labels,
    study_session,
)
from harness.experiment.target_facts import (
    compare_on,
    find_prompt,
    is_answered,
    is_better_on_validation,
    list_untrained,
    pair_with_best,
    reached_on_target,
    refuse_lost_folds,
    score_on,
)
from harness.experiment.training_fit import fit_work
from harness.experiment.validation_scores import estimate_tracking
from harness.experiment.verdict_records import record_in_study, record_report, renew_verdicts, verdict_change
from harness.formatting import pluralize
from harness.models.hardware import load
from harness.models.hub import ModelSource
from harness.progress import Progress, SilentProgress
from harness.records import Run
from harness.report import ExperimentReport, live_line
from harness.spec import Experiment


def compare(
    path: str | Path = "harness.yaml",
    overrides: Sequence[str] = (),
    candidates: Sequence[str] = (),
    *,
    limit: int | None = None,
    quick: bool = False,
    yes: bool = False,
    learning_curve: bool = False,
    fewer_items: bool = False,
    progress: Progress | None = None,
) -> ExperimentReport:
    """Run the missing parts of an experiment, and report it.

    `overrides` are written `a.b=value`; `candidates` selects by name. `limit` caps the test items of each
    task, and `quick` also the training: smoke runs, whose numbers are not evidence. `yes` allows more than 64
    candidates. `learning_curve` also trains the best fine-tune on parts of its data. `fewer_items` evaluates
    only as many items of large tasks as the verdicts need; it excludes `limit` and `quick`.

    Raises:
        UserError: with every problem of the files at once.
        HarnessError: another process is working in the same runs folder.
    """
    loaded = config.load(Path(path), overrides, candidates)
    refuse_many(loaded, yes=yes)
    scope = Scope(limit, quick, fewer_items)
    session = prepare_session(loaded, scope, progress or SilentProgress())
    return run_all(session, loaded, scope, learning_curve=learning_curve)


def run_all(
    session: Session,
    loaded: LoadedExperiment,
    scope: Scope | None = None,
    *,
    learning_curve: bool = False,
    found: Sequence[Run | None] | None = None,
) -> ExperimentReport:
    """Make all selected runs on a prepared session, and report them; `found` are the stored ones.

    Workers, if there are any, first make what they can. With fewer items, large tasks are evaluated in
    interim analyses until the verdicts are settled.
    """
    smoke, fewer_items = (scope.smoke, scope.fewer) if scope else (False, False)
    if learning_curve:
        refuse_curve(session, loaded.selected)
    start, before = load(), sum(session.timed.values())
    ordered = in_order(session.candidates, loaded.selected)
    found = find_stored_runs(session, ordered) if found is None else found
    from_nothing = not (any(found) or fewer_items or learning_curve)
    _refuse_forbidden(session, loaded, ordered, found)
    names = [one.candidate.name for one in ordered]
    noted = store.StoredProgress(session.progress, session.store, "A comparison", names)
    session = replace(session, progress=noted)
    begun = session.experiment.name
    with store.hold(session.store), noted:
        store.begin(session.store, begun)
        store.remove_merged_blocks(session.store)
        if (judged := train_judges(session)) is not session:
            session, found = judged, find_stored_runs(judged, ordered)
        if chosen := choose_prompts(session, loaded.selected):
            session.candidates = {**session.candidates, **chosen}
            ordered = in_order(session.candidates, loaded.selected)
            found = find_stored_runs(session, ordered)
        if scope:
            make_on_workers(session, loaded, scope, ordered, found)
        show_first_result(session, ordered, smoke=smoke)
        if fewer_items and not fewer.plan_interim_analyses(session, _measure_base(session, session.source)):
            session.experiment = session.experiment.model_copy(update={"name": loaded.experiment.name})
            found = find_stored_runs(session, ordered)
        if fewer_items:
            make_all = partial(_make_all, session, ordered, None, smoke=False)
            base_rows = _measure_base(session, session.source)
            said, runs = fewer.run_interim_analyses(session, base_rows, make_all)
            reader = Reader(session.store, session.tasks)
        else:
            said, reader = [], Reader(session.store, session.tasks)
            runs = _make_all(session, ordered, reader, found, smoke=smoke)
        if not smoke and (session.experiment.concurrency or not are_all_done(found)):
            runs = _time_the_best(session, reader, ordered, runs)
        said = [*said, *judge_pairs(session, reader, runs)]
        if learning_curve:
            so_far = judge_and_decide(session, reader, runs, smoke=smoke, header={}, notes=())
            make_curve(session, runs, so_far.facts)
        store.end(session.store, begun)
    wall_s = None if are_all_done(found) else round(load().since(start).wall_s, 1)
    report = judge_and_report(session, reader, runs, smoke=smoke, said=said, wall_s=wall_s)
    record_report(report, runs, study_session(session, reader))
    if from_nothing and session.experiment.execution.executor == "in_process":
        passed = load().since(start)
        # What was not timed by itself: grading, statistics, writing.
        rest_s = max(0.0, passed.wall_s - sum(session.timed.values()) + before)
        alone = not passed.is_contended() and all(run.state == "done" for run in runs)
        session.learn_pace("runs", Work(runs=len(runs)), rest_s, session.source, teaches=alone)
    return report


def _refuse_forbidden(
    session: Session, loaded: LoadedExperiment, ordered: Sequence[RunRequest], found: Sequence[Run | None]
) -> None:
    open_ = _place_open(loaded, ordered, found)
    judged = [one for m in session.tasks for one in m.judged.values()] if open_ else []
    judged += filter(None, [session.open_judge_of_pairs()])
    tasks = [m.task for m in session.tasks] if open_ else []
    forbidden = [problem for task in tasks for problem in metrics.problems(task)]
    short = short_contexts(session, loaded.selected) if open_ else []
    forbidden += [one.problem for one in short if one.problem]
    refuse([*key_problems(session.experiment, open_), *judges.key_problems(judged), *forbidden])


def refuse_sensitive(
    experiment: Experiment,
    loaded: LoadedExperiment,
    ordered: Sequence[RunRequest],
    found: Sequence[Run | None],
) -> None:
    """Refuse plans that would send sensitive rows to other people's servers."""
    refuse(sensitive_endpoints(experiment, _place_open(loaded, ordered, found)))


def _place_open(
    loaded: LoadedExperiment, ordered: Sequence[RunRequest], found: Sequence[Run | None]
) -> list[tuple[str, ResolvedCandidate]]:
    open_ = {one.candidate.name: one.candidate for one in list_open(ordered, found)}
    return [(loaded.places[name], open_[name]) for name in loaded.selected if name in open_]


def _make_all(
    session: Session,
    ordered: Sequence[RunRequest],
    reader: Reader | None,
    found: Sequence[Run | None],
    *,
    smoke: bool,
) -> list[Run]:
    reader = reader or Reader(session.store, session.tasks)
    done = [run if run and run.state == "done" else None for run in found or [None] * len(ordered)]
    reader.prepare(digest for run in done if run for digest in run.rows.values())
    published = list(dict.fromkeys(one.candidate.base for one in ordered))
    for source in published:
        try:
            _measure_base(session, source)
        except CandidateFailed as error:  # the runs on it fail, and the others go on
            for candidate, seed in ordered:
                is_model = candidate.method.makes_language_model and not candidate.is_remote
                if candidate.base == source and is_model:
                    session.failures.setdefault((candidate.name, seed), error)
    runs = []
    for (candidate, seed), stored in zip(ordered, done, strict=True):
        run, facts = attempt(session, reader, candidate, seed, stored)
        runs.append(run)
        line = live_line(facts, session.target.task.primary_metric, smoke=smoke)
        is_new = stored is None and run.state == "done"
        items = (
            describe_items(session.target, session.shown, reader.read(run, session.target)) if is_new else []
        )
        show = session.progress.finish if seed == candidate.seeds[-1] else session.progress.show
        show(candidate.name, line, *items)
    evaluated = [one.candidate for one, run in zip(ordered, runs, strict=True) if run.state == "done"]
    for source in list_measured_bases(evaluated):
        if source not in published:
            _measure_base(session, source)
    return runs


def _time_the_best(session: Session, reader: Reader, ordered: Sequence[RunRequest], runs: Runs) -> list[Run]:
    """Time more requests to the best untrained candidate and the best fine-tune, one of which is shipped."""
    # Requests to an endpoint cost money, so it is timed only if the number of concurrent requests is set.
    policy = session.experiment.decide
    facts = apply_budgets([facts_of(session, reader, run) for run in runs if run.state == "done"], policy)
    fine_tune = strongest_run(facts)
    best = {best_untrained(facts), fine_tune.name if fine_tune else None}
    candidates = [
        one.candidate for one in ordered if session.experiment.concurrency or not one.candidate.is_remote
    ]
    named = {candidate.name: candidate for candidate in candidates if candidate.name in best}
    timed = list(runs)
    for place, run in enumerate(runs):
        if run.candidate in named and run.state == "done":
            # A run whose server refuses them stays as it is, which is shown.
            try:
                timed[place] = time_again(session, named[run.candidate], run)
            except CandidateFailed as failed:
                line = f"{run.candidate}: requests at once were not timed: {failed}"
                session.progress.show(run.candidate, line)
    return timed


def _measure_base(session: Session, source: ModelSource) -> dict[str, str]:
    label, rows = arm_label(session.experiment.base_model, source), base_arm(session, source)
    if rows:
        session.progress.finish(label, f"{label}: measured on {pluralize(len(rows), 'task')}")
    return rows


def judge_pairs(session: Session, reader: Reader, runs: Runs, base: Run | None = None) -> list[str]:
    """Let the gate's judge compare fine-tunes' answers with the best untrained candidate's, or a base's.

    Returns the reason if it could not; grades given until then are kept.
    """
    judged = session.open_judge_of_pairs()
    if judged is None:
        return []
    pairs = (
        [(run, base) for run in runs]
        if base
        else pair_with_best(runs, describe_reached(session, reader, runs))
    )
    task, examples = session.target.task, session.target.items.test
    rows = ((reader.cut(other, task), reader.cut(run, task)) for run, other in pairs)
    try:
        grade_answers(session, [one for pair in rows for one in list_ungraded_pairs(judged, examples, *pair)])
    except CandidateFailed as error:
        return [f"win rates by {judged.metric}: not all pairs could be judged ({error})"]
    return []
