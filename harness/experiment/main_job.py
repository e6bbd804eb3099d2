"""The main job: train, evaluate, compare, gate and decide on every candidate of an experiment.

Invariant: a second call computes only what failed or is missing. An error in one run is recorded as its
failure; others go on. `run_all` makes the runs, `analyse` judges them, and docs/internals.md names the files.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np

from harness import config, metrics, store
from harness.analysis.candidate_facts import CandidateFacts, best_untrained, strongest_run
from harness.analysis.comparison import estimate
from harness.analysis.economics import apply_budgets
from harness.config import LoadedExperiment
from harness.errors import CandidateFailed, IncompatibleRuns, Problem, UserError, one_line, refuse
from harness.evaluation import judges
from harness.evaluation.candidates import ResolvedCandidate
from harness.evaluation.costs import Work
from harness.evaluation.row_sets import RunRequest, describe_run, list_open, make_failure_id, target_sets
from harness.evaluation.runner import answer
from harness.evaluation.session import MeasuredTask, Session
from harness.evaluation.stored_scores import (
    base_arm,
    grade_answers,
    is_measured,
    list_ungraded_pairs,
    score_answered,
)
from harness.experiment import interim_analyses
from harness.experiment.analyse import analyse
from harness.experiment.candidate_problems import key_problems
from harness.experiment.candidate_result import (
    facts_of,
    facts_of_runs,
    make_curve,
    plan_curve,
    study_of_session,
)
from harness.experiment.candidate_weights import choose_prompts, ensure_weights
from harness.experiment.executors import make_on_workers
from harness.experiment.kept_inputs import keep_inputs
from harness.experiment.plan import in_order
from harness.experiment.preparation import Scope, prepare_session, train_judges
from harness.experiment.run_candidate import find_stored_runs, make_run, time_again
from harness.experiment.run_remarks import short_contexts
from harness.experiment.run_verdicts import judge_runs, pair_with_best
from harness.experiment.stored_rows import (
    FoundRuns,
    Reader,
    Runs,
    arm_label,
    is_cross_validated,
    list_measured_bases,
)
from harness.experiment.study import refuse_unanswered
from harness.experiment.verdict_records import record_report
from harness.formatting import UNKNOWN, pluralize, quote, score
from harness.metrics import extremes, item_scores
from harness.models.hardware import load
from harness.models.hub import ModelSource
from harness.progress import Progress, SilentProgress
from harness.records import Run, SampleResult
from harness.report import ExperimentReport, first_result_line, live_line
from harness.report.escape import clean

_WHOLE = Scope()


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
    """Run the missing parts of an experiment and report it, like the command `compare`.

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
    scope: Scope = _WHOLE,
    *,
    learning_curve: bool = False,
    stored_runs: FoundRuns | None = None,
) -> ExperimentReport:
    """Make and report all selected runs on a prepared session; `stored_runs` are those in the store."""
    if learning_curve:
        plan_curve(session, loaded.selected)  # refused if no candidate can have one
    start, before = load(), sum(session.timed.values())
    requests = in_order(session.candidates, loaded.selected)
    stored_runs = find_stored_runs(session, requests) if stored_runs is None else stored_runs
    from_nothing = not (any(stored_runs) or scope.fewer or learning_curve)
    placed = place_open(loaded, requests, stored_runs)
    judged, forbidden = [*filter(None, [session.open_judge_of_pairs()])], list[Problem]()
    if placed:
        judged += [judged_metric for m in session.tasks for judged_metric in m.judged.values()]
        forbidden += [problem for m in session.tasks for problem in metrics.problems(m.task)]
        forbidden += [c.problem for c in short_contexts(session, loaded.selected) if c.problem]
    refuse([*key_problems(session.experiment, placed), *judges.key_problems(judged), *forbidden])
    names, experiment_name = [request.candidate.name for request in requests], session.experiment.name
    noted = store.StoredProgress(session.progress, session.store, "A comparison", names)
    session = replace(session, progress=noted)
    with store.hold(session.store), noted:
        store.begin(session.store, experiment_name)
        store.remove_merged_blocks(session.store)
        if not scope.smoke:
            keep_inputs(session.store, loaded, session.sources.values())
        session, reader, runs, all_stored, notes = _execute(session, loaded, scope, requests, stored_runs)
        if learning_curve:
            study, reached = study_of_session(session, reader), facts_of_runs(session, reader, runs)
            make_curve(session, runs, judge_runs(study, runs, reached).facts)
        store.end(session.store, experiment_name)
    wall_s = None if all_stored else round(load().since(start).wall_s, 1)
    report = analyse(session, reader, runs, smoke=scope.smoke, notes=notes, wall_s=wall_s)
    record_report(report, runs, study_of_session(session, reader))
    if from_nothing and session.experiment.execution.executor == "in_process":
        passed = load().since(start)
        # Time that is not measured separately: grading, statistics, writing.
        rest_s = max(0.0, passed.wall_s - sum(session.timed.values()) + before)
        alone = not passed.is_contended() and all(run.state == "done" for run in runs)
        session.learn_pace("runs", Work(runs=len(runs)), rest_s, session.source, teaches=alone)
    return report


def _execute(
    session: Session, loaded: LoadedExperiment, scope: Scope, requests: list[RunRequest], stored: FoundRuns
) -> tuple[Session, Reader, list[Run], bool, list[str]]:
    # Returns the session that made the runs, the reader, the runs, whether all were stored, and notes.
    if (judged := train_judges(session)) is not session:
        session, stored = judged, find_stored_runs(judged, requests)
    if chosen := choose_prompts(session, loaded.selected):
        session.candidates = {**session.candidates, **chosen}
        requests = in_order(session.candidates, loaded.selected)
        stored = find_stored_runs(session, requests)
    if session.experiment.execution.executor != "in_process" and list_open(requests, stored):
        make_on_workers(session, loaded, scope, requests, stored)
    _show_first_result(session, requests, smoke=scope.smoke)
    notes = list[str]()
    if scope.fewer:  # large tasks are evaluated until the verdicts are settled
        base_rows = _measure_base(session, session.source)
        if not interim_analyses.plan_interim_analyses(session, base_rows):
            session.experiment = session.experiment.model_copy(update={"name": loaded.experiment.name})
            stored = find_stored_runs(session, requests)

        def make_all(stored: FoundRuns) -> list[Run]:  # on the session's current items
            return _make_all(session, requests, Reader(session.store, session.tasks), stored, smoke=False)

        notes, runs = interim_analyses.run_interim_analyses(session, base_rows, make_all)
        reader = Reader(session.store, session.tasks)
    else:
        reader = Reader(session.store, session.tasks)
        runs = _make_all(session, requests, reader, stored, smoke=scope.smoke)
    all_stored = are_all_done(stored)
    concurrency = session.experiment.concurrency
    if not scope.smoke and (concurrency or not all_stored):
        # Times the best untrained candidate and the best fine-tune, as one of them is shipped. Requests to an
        # endpoint cost money, so it is timed only if the number of concurrent requests is set.
        measured = [facts_of(session, reader, run) for run in runs if run.state == "done"]
        facts = apply_budgets(measured, session.experiment.decide)
        fine_tune = strongest_run(facts)
        best = {best_untrained(facts), fine_tune.name if fine_tune else None}
        for index, run in ((i, run) for i, run in enumerate(runs) if run.state == "done"):
            candidate = session.candidates[run.candidate]
            if run.candidate in best and (concurrency or not candidate.is_remote):
                try:
                    runs[index] = time_again(session, candidate, run)
                except CandidateFailed as failed:  # if the server refuses them, the run stays unchanged
                    line = f"{run.candidate}: requests at once were not timed: {failed}"
                    session.progress.show(run.candidate, line)
    notes += judge_pairs(session, reader, runs)
    return session, reader, runs, all_stored, notes


def place_open(
    loaded: LoadedExperiment, requests: Sequence[RunRequest], stored_runs: FoundRuns
) -> list[tuple[str, ResolvedCandidate]]:
    """List the candidates with an unfinished run, each with its location in the file."""
    unfinished = {request.candidate.name: request.candidate for request in list_open(requests, stored_runs)}
    return [(loaded.places[name], unfinished[name]) for name in loaded.selected if name in unfinished]


def _show_first_result(session: Session, requests: Sequence[RunRequest], *, smoke: bool) -> None:
    """Evaluate the first untrained candidate on the target's test rows before the suites of its base."""
    for request in requests:
        # Only the base as published, without judge, folds or sampling.
        candidate, folds = request.candidate, session.folds
        is_plain_base = candidate.given == candidate.served_base == session.source and not candidate.is_remote
        waits = candidate.recipe.sampling or session.target.judged or is_cross_validated(folds, candidate)
        if is_plain_base and not waits:
            break
    else:
        return
    if (candidate.name, request.seed) in session.failures:
        return
    try:
        weights = ensure_weights(session, candidate, request.seed)
        rows = target_sets(session, candidate.recipe, weights, request.seed)[1]
        lacking = score_answered(session, [rows])
        if not lacking or is_measured(session, candidate.base):
            return
        session.begin(candidate.name, request.seed)
        answer(session, weights, lacking, candidate.name)
        answered = rows.read(session.store)
        if all(row.status == "error" for row in answered):
            return
        reached, metric = estimate(session.target.primary, answered), session.target.task.primary_metric
        score_line = first_result_line(candidate.name, reached, metric, smoke=smoke)
        items = _describe_items(session.target, session.shown, answered)
        session.progress.show(candidate.name, score_line, *items)
    except UserError:
        raise
    except Exception:  # noqa: BLE001 (the run records it, and the others go on)
        return


def _make_all(
    session: Session, requests: list[RunRequest], reader: Reader, stored_runs: FoundRuns, *, smoke: bool
) -> list[Run]:
    stored_runs = stored_runs or [None] * len(requests)
    finished_runs = [run if run and run.state == "done" else None for run in stored_runs]
    reader.prepare(digest for run in finished_runs if run for digest in run.rows.values())
    published = list(dict.fromkeys(request.candidate.base for request in requests))
    for source in published:
        try:
            _measure_base(session, source)
        except CandidateFailed as error:  # its runs fail, and the others go on
            for candidate, seed in requests:
                is_model = candidate.method.makes_language_model and not candidate.is_remote
                if candidate.base == source and is_model:
                    session.failures.setdefault((candidate.name, seed), error)
    runs = []
    for (candidate, seed), stored in zip(requests, finished_runs, strict=True):
        run, facts = attempt(session, reader, candidate, seed, stored)
        runs.append(run)
        lines = [live_line(facts, session.target.task.primary_metric, smoke=smoke)]
        if stored is None and run.state == "done":
            lines += _describe_items(session.target, session.shown, reader.read(run, session.target))
        show = session.progress.finish if seed == candidate.seeds[-1] else session.progress.show
        show(candidate.name, *lines)
    evaluated = [r.candidate for r, run in zip(requests, runs, strict=True) if run.state == "done"]
    for source in list_measured_bases(evaluated):
        if source not in published:
            _measure_base(session, source)
    return runs


def attempt(
    session: Session, reader: Reader, candidate: ResolvedCandidate, seed: int, finished_run: Run | None = None
) -> tuple[Run, CandidateFacts]:
    """Make the missing parts of a run; errors, here or on a worker, are recorded as its failure.

    Raises UserError if no run can be made at all, for example because the disk is full.
    """
    if seed == candidate.seeds[0]:
        session.checked_judges.clear()  # a judge may have changed
        session.refused_judges.clear()
    try:
        if finished_run is None and (error := session.failures.get((candidate.name, seed))):
            raise error
        run = make_run(session, candidate, seed, finished_run)
        # A run without scored rows has no facts: it failed too.
        return run, facts_of(session, reader, run)
    except UserError:
        raise
    except Exception as error:  # noqa: BLE001 (one run must not stop the others)
        run = describe_run(
            session.experiment.name,
            candidate,
            seed,
            run_id=make_failure_id(session.name_begun(candidate.name, seed)),
            weights_digest="",
            state="failed",
            rows={},
            error=one_line(error),
        )
        store.save_run(session.store, run)
        return run, facts_of(session, reader, run)


def _measure_base(session: Session, source: ModelSource) -> dict[str, str]:
    label, rows = arm_label(session.experiment.base_model, source), base_arm(session, source)
    if rows:
        session.progress.finish(label, f"{label}: measured on {pluralize(len(rows), 'task')}")
    return rows


def judge_pairs(session: Session, reader: Reader, runs: Runs, base: Run | None = None) -> list[str]:
    """Let the gate's judge compare fine-tunes' answers with those of the best untrained candidate or `base`.

    Returns the reason if that fails; grades given until then are kept.
    """
    judged = session.open_judge_of_pairs()
    if judged is None:
        return []
    pairs = [(run, base) for run in runs if base]
    if base is None:
        pairs = pair_with_best(runs, facts_of_runs(session, reader, runs))
    task, examples = session.target.task, session.target.items.test
    rows = ((reader.cut(opponent, task), reader.cut(run, task)) for run, opponent in pairs)
    try:
        ungraded = (list_ungraded_pairs(judged, examples, *pair) for pair in rows)
        grade_answers(session, list(chain.from_iterable(ungraded)))
    except CandidateFailed as error:
        return [f"win rates by {judged.metric}: not all pairs could be judged ({error})"]
    return []


def report_stored(session: Session, selected: Iterable[str], needed: str = "") -> ExperimentReport:
    """Report the stored runs of the selected candidates as they are written now; computes nothing.

    If `needed` is given, only that candidate must have a run; others without one are left out. Raises
    IncompatibleRuns if a candidate has no stored run, or only runs of another recipe or other items.
    """
    requests = in_order(session.candidates, selected)
    runs = find_stored_runs(session, requests)
    pairs = [(request.candidate.name, run) for request, run in zip(requests, runs, strict=True)]
    if needed:
        stored = {needed, *(name for name, run in pairs if run)}
        pairs = [(name, run) for name, run in pairs if name in stored]
    names = [name for name, run in pairs if run is None]
    if names and (unknown := session.unknown_bases()):
        never = f"{', '.join(unknown)} was never loaded on this machine, and a dry run loads no model"
        raise IncompatibleRuns(
            f"{session.store.folder}: unknown whether {', '.join(names)} is stored as written now: {never}; "
            "expected a finished run; next: harness report, which loads it once"
        )
    if names:
        usable = dict.fromkeys(name for name, _ in pairs if name not in names and not needed)
        step = f"harness compare, or --candidates {','.join(usable)}" if usable else "harness compare"
        raise IncompatibleRuns(
            f"{session.store.folder}: found no run of {', '.join(names)} as written now; "
            f"expected one of each candidate; next: {step}"
        )
    reader = Reader(session.store, session.tasks)
    return analyse(session, reader, [_outcome(reader, session.target, run) for _, run in pairs if run])


def _outcome(reader: Reader, target: MeasuredTask, run: Run) -> Run:
    # Returns a stored run as `compare` would: failed if no test row could be scored.
    try:
        if run.state != "failed":
            refuse_unanswered(reader.read(run, target))
    except CandidateFailed as error:
        return replace(run, state="failed", rows={}, error=one_line(error))
    return run


def _describe_items(
    target: MeasuredTask, shown_tasks: list[str], test_rows: Sequence[SampleResult]
) -> list[str]:
    """Describe the first test items and their answers; empty if a task was shown already."""
    if shown_tasks or target.task.kind == "bits_per_byte":
        return []
    shown_tasks.append(target.task.name)
    prompts = {example.id: example.prompt for example in target.examples("test")}
    lines, metric = [], target.primary
    for row in [row for row in test_rows if row.status != "error"][:3]:
        reference = quote(clean(row.references[0])) if row.references else UNKNOWN
        ends, parts = extremes(metric, row.references), row.parts[metric.name]
        if parts is None:
            mark = "not scored"
        elif ends and parts in ends:  # the best or the worst possible score
            mark = "right" if parts == ends.best else "wrong"
        else:
            mark = f"{metric.name} {score(metric.unit, float(item_scores(metric, np.array([parts]))[0]))}"
        answer_line = f"  {mark}: {quote(clean(row.text))} (reference: {reference})"
        lines += [clean(prompts.get(row.example_id, row.prompt)), answer_line]
    return lines


def refuse_many(loaded: LoadedExperiment, *, yes: bool) -> None:
    """Refuse more than 64 candidates without `yes`."""
    n = len(loaded.selected)
    if n > 64 and not yes:
        step = "--yes to go on, --dry-run to see what that takes, or --candidates to select"
        raise UserError("candidates", f"{n} candidates", "at most 64, or a yes to more", step)


def are_all_done(runs: Iterable[Run | None]) -> bool:
    """Tell whether all runs are finished, so that nothing will be computed."""
    return all(run and run.state == "done" for run in runs)
