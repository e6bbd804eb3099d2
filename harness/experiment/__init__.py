"""The main job: train, evaluate, compare, gate and decide on every candidate of an experiment.

Invariant: a second call computes nothing, and a candidate that fails stops no other.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from harness import config, metrics, store
from harness.analysis.candidate_facts import best_untrained, strongest_run
from harness.analysis.economics import apply_budgets
from harness.analysis.seeds import family_of
from harness.analysis.significance import chance_of_an_equal_model, list_spare_items, power_warnings
from harness.config import CommandLine, LoadedExperiment
from harness.errors import CandidateFailed, IncompatibleRuns, Problem, UserError, refuse
from harness.evaluation import costs, judges
from harness.evaluation.candidates import ResolvedCandidate, refuse_silent
from harness.evaluation.costs import Work
from harness.evaluation.grade_costs import short_contexts
from harness.evaluation.grading import grade_answers
from harness.evaluation.judging_stage import list_ungraded_pairs
from harness.evaluation.row_sets import RunRequest, list_answered_sets, list_open
from harness.evaluation.session import MeasuredTask, Session
from harness.experiment import fewer_items as fewer
from harness.experiment.candidate_problems import find_adapter_config, key_problems, sensitive_endpoints
from harness.experiment.candidate_result import (
    attempt,
    describe_items,
    facts_of,
    make_curve,
    outcome,
    plan_curve,
    settle_sweep,
    show_first_result,
)
from harness.experiment.candidate_weights import (
    choose_prompts,
    ensure_weights,
    find_stored_weights,
    stands_on,
)
from harness.experiment.executors import make_on_workers, make_plan
from harness.experiment.fewer_items import answer_all_items
from harness.experiment.gate_run import judge_stored_run, measure, record_report
from harness.experiment.judged_runs import judge_and_decide, judge_and_report
from harness.experiment.one_answer import SentPrompt, add_prompts, ask, find_sent_prompts
from harness.experiment.preflight import Estimates, recipe_warnings
from harness.experiment.preparation import Scope, find_lm_eval_tasks, prepare_session, train_judges
from harness.experiment.run_candidate import find_stored_runs, time_again
from harness.experiment.run_remarks import describe_rewards, describe_rows_and_prompts
from harness.experiment.stored_rows import (
    FoundRuns,
    Reader,
    Runs,
    StoredRows,
    arm_label,
    base_arm,
    list_measured_bases,
    refuse_folds,
    suite_arm,
)
from harness.experiment.study import (
    Study,
    compare_on,
    count_missing,
    describe_reached,
    find_prompt,
    is_answered,
    is_better_on_validation,
    pair_with_best,
    score_on,
    study_session,
)
from harness.experiment.training_fit import fit_work
from harness.experiment.trials import estimate_tracking
from harness.formatting import count, pluralize, seconds
from harness.models.hardware import Machine, describe_speed, load, probe_notes
from harness.models.hub import ModelSource
from harness.progress import Progress, SilentProgress, spins_briefly
from harness.records import Run
from harness.report import ExperimentReport, advise_on_power, live_line
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
    found: FoundRuns | None = None,
) -> ExperimentReport:
    """Make all selected runs on a prepared session, and report them; `found` are the stored ones."""
    smoke, fewer_items = (scope.smoke, scope.fewer) if scope else (False, False)
    if learning_curve:
        plan_curve(session, loaded.selected)  # refuses one that no candidate could have
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
        said, reader = list[str](), Reader(session.store, session.tasks)
        if fewer_items:  # large tasks are evaluated until the verdicts are settled
            base_rows = _measure_base(session, session.source)
            make_all = partial(_make_all, session, ordered, None, smoke=False)
            said, runs = fewer.run_interim_analyses(session, base_rows, make_all)
            reader = Reader(session.store, session.tasks)
        else:
            runs = _make_all(session, ordered, reader, found, smoke=smoke)
        if not smoke and (session.experiment.concurrency or not are_all_done(found)):
            runs = _time_the_best(session, reader, ordered, runs)
        said += judge_pairs(session, reader, runs)
        if learning_curve:
            so_far = judge_and_decide(session, reader, runs, {}, [], smoke=smoke)
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
    session: Session, loaded: LoadedExperiment, ordered: Sequence[RunRequest], found: FoundRuns
) -> None:
    open_ = _place_open(loaded, ordered, found)
    judged, forbidden = [*filter(None, [session.open_judge_of_pairs()])], list[Problem]()
    if open_:
        judged += [one for m in session.tasks for one in m.judged.values()]
        forbidden += [problem for m in session.tasks for problem in metrics.problems(m.task)]
        forbidden += [one.problem for one in short_contexts(session, loaded.selected) if one.problem]
    refuse([*key_problems(session.experiment, open_), *judges.key_problems(judged), *forbidden])


def refuse_sensitive(
    session: Session, loaded: LoadedExperiment, ordered: Sequence[RunRequest], found: FoundRuns
) -> None:
    """Refuse plans that would send sensitive rows to other people's servers."""
    refuse(sensitive_endpoints(session.experiment, _place_open(loaded, ordered, found)))


def _place_open(
    loaded: LoadedExperiment, ordered: Sequence[RunRequest], found: FoundRuns
) -> list[tuple[str, ResolvedCandidate]]:
    open_ = {one.candidate.name: one.candidate for one in list_open(ordered, found)}
    return [(loaded.places[name], open_[name]) for name in loaded.selected if name in open_]


def _make_all(
    session: Session, ordered: list[RunRequest], reader: Reader | None, found: FoundRuns, *, smoke: bool
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
        items = []
        if stored is None and run.state == "done":
            items = describe_items(session.target, session.shown, reader.read(run, session.target))
        show = session.progress.finish if seed == candidate.seeds[-1] else session.progress.show
        show(candidate.name, line, *items)
    evaluated = [one.candidate for one, run in zip(ordered, runs, strict=True) if run.state == "done"]
    for source in list_measured_bases(evaluated):
        if source not in published:
            _measure_base(session, source)
    return runs


def _time_the_best(session: Session, reader: Reader, ordered: Sequence[RunRequest], runs: Runs) -> list[Run]:
    # The best untrained candidate and the best fine-tune, one of which is shipped. Requests to an endpoint
    # cost money, so it is timed only if the number of concurrent requests is set.
    policy = session.experiment.decide
    facts = apply_budgets([facts_of(session, reader, run) for run in runs if run.state == "done"], policy)
    fine_tune = strongest_run(facts)
    best = {best_untrained(facts), fine_tune.name if fine_tune else None}
    asked = (one.candidate for one in ordered if one.candidate.name in best)
    named = {one.name: one for one in asked if session.experiment.concurrency or not one.is_remote}
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
    pairs = [(run, base) for run in runs if base]
    if base is None:
        pairs = pair_with_best(runs, describe_reached(session, reader, runs))
    task, examples = session.target.task, session.target.items.test
    rows = ((reader.cut(other, task), reader.cut(run, task)) for run, other in pairs)
    try:
        grade_answers(session, [one for pair in rows for one in list_ungraded_pairs(judged, examples, *pair)])
    except CandidateFailed as error:
        return [f"win rates by {judged.metric}: not all pairs could be judged ({error})"]
    return []


def report_stored(session: Session, selected: Iterable[str], needed: str = "") -> ExperimentReport:
    """Report the stored runs of the selected candidates as they are written now; computes nothing.

    With `needed`, which has to have a run, candidates without one are left out. Raises IncompatibleRuns if a
    candidate has no stored run, or only runs of another recipe or other items.
    """
    wanted = in_order(session.candidates, selected)
    found = find_stored_runs(session, wanted)
    pairs = [(one.candidate.name, run) for one, run in zip(wanted, found, strict=True)]
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
        kept = dict.fromkeys(name for name, _ in pairs if name not in names and not needed)
        step = f"harness compare, or --candidates {','.join(kept)}" if kept else "harness compare"
        raise IncompatibleRuns(
            f"{session.store.folder}: found no run of {', '.join(names)} as written now; "
            f"expected one of each candidate; next: {step}"
        )
    reader = Reader(session.store, session.tasks)
    return judge_and_report(
        session, reader, [outcome(session.target, reader, run) for _, run in pairs if run]
    )


def refuse_many(loaded: LoadedExperiment, *, yes: bool) -> None:
    """Refuse more than 64 candidates without a yes."""
    n = len(loaded.selected)
    if n > 64 and not yes:
        step = "--yes to go on, --dry-run to see what that takes, or --candidates to select"
        raise UserError("candidates", f"{n} candidates", "at most 64, or a yes to more", step)


def describe_stored(unknown_bases: Sequence[str], found: FoundRuns, missing_s: float) -> str:
    """Describe how much of a dry run's plan is stored, and the time of the rest, or why it is unknown."""
    if unknown_bases:
        never = f"{', '.join(unknown_bases)} was never loaded on this machine, and a dry run loads no model"
        return f"unknown whether any of it is stored: {never}"
    n_done = sum(run is not None and run.state == "done" for run in found)
    stored = f"{count(n_done)} of {count(len(found))} runs are stored already"
    return f"{stored}; the others take about {seconds(missing_s)}" if 0 < n_done < len(found) else stored


def workers_sentence(session: Session, selected: Iterable[str], found: FoundRuns, scope: Scope) -> str:
    """Describe the steps that workers would get; empty without workers."""
    policy = session.experiment.execution
    if policy.executor == "in_process":
        return ""
    open_ = list_open(in_order(session.candidates, selected), found)
    plan = make_plan(session, open_, policy.workers or 1, answers=not scope.fewer)
    most = f", at most {count(policy.workers)} at once" if policy.workers else ""
    return f"workers ({policy.executor}{most}) would get {plan}"


def are_all_done(found: Iterable[Run | None]) -> bool:
    """Tell whether all runs are finished, so that nothing will be computed."""
    return all(run and run.state == "done" for run in found)


def first_line(
    experiment: Experiment, machine: Machine, n_candidates: int, whole_s: float | None, missing_s: float
) -> str:
    """Describe what runs where, and the time of the missing part and of the whole (None: all is stored)."""
    beside = whole_s is not None and machine.device == "cpu" and spins_briefly()
    notes = [probe_notes(machine), "other work runs too, so threads spin briefly" if beside else ""]
    said = f" ({'; '.join(filter(None, notes))})" if any(notes) else ""
    n = pluralize(n_candidates, "candidate")
    took = "all of it stored"
    if whole_s is not None:
        rest = f"about {seconds(missing_s)} for what is missing, " if missing_s < whole_s else ""
        took = f"{rest}about {seconds(whole_s)} from nothing"
    return (
        f"{experiment.name}: {n} on {experiment.base_model}, {machine.name}, {machine.precision}{said}, "
        f"{describe_speed(machine.gflops)}; {took}"
    )


class Power(NamedTuple):
    """Margins that items probably cannot show, how to show them, and a note on power."""

    warnings: tuple[str, ...]
    advice: str
    note: str


def estimate_power(experiment: Experiment, suites: Sequence[MeasuredTask], typed: CommandLine) -> Power:
    """Estimate what the items can show, for one of all fine-tunes; commands repeat `typed` options.

    The note names a margin that cannot be shown, or how often an equal model passes a judged macro.
    """
    asked, held = {m.task.name: len(m.items.test) for m in suites}, {m.task.name: m.held for m in suites}
    members = family_of(experiment).size
    warn = partial(power_warnings, experiment.suites, policy=experiment.gate, n_members=members)
    spare = list_spare_items(experiment, (), lambda task: held[task.name])
    warnings, advice = warn(asked), advise_on_power(asked, spare, warn, typed).text
    chance = chance_of_an_equal_model(experiment.suites, asked, experiment.gate, members)
    note = warnings[0] if warnings else ""
    if len(warnings) > 1:
        note = f"power: {note} (and {len(warnings) - 1} more margins; --strict lists them all)"
    elif members and chance is not None and not warnings:
        among = f", as one of {members}," if members > 1 else ""
        chance_shown = f"{100 * chance:.0f} % of the time"
        note = f"power: a fine-tune that lost nothing{among} passes the macro {chance_shown}"
    return Power(warnings, advice, note)


def in_order(known: Mapping[str, ResolvedCandidate], selected: Iterable[str]) -> list[RunRequest]:
    """List recipes and seeds: the bases' first, then trainings, then candidates that borrow weights.

    A candidate comes after the one that it starts from, and one base after another, as one is in memory.
    """
    candidates = [known[name] for name in selected]
    for candidate in candidates:
        refuse_silent(candidate)
    places: dict[str, int] = {}

    def key(candidate: ResolvedCandidate) -> tuple[bool, bool, int, int]:
        place = places.setdefault(candidate.served_base.weights_digest, len(places))
        borrows = candidate.recipe.weights_of is not None
        return candidate.method.seeded, borrows, len(candidate.lineage), place

    return [RunRequest(one, seed) for one in sorted(candidates, key=key) for seed in one.seeds]
