"""Analysis of finished runs into a report: comparisons, verdicts, the decision, single items, and notes.

Invariant: reads rows from the store and never needs a model.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

from harness import plugins, store
from harness.analysis.ablation import ablations, training_sets
from harness.analysis.admission import Measurement, compare_task
from harness.analysis.answers import AnswerDiversity, answer_diversity
from harness.analysis.candidate_facts import (
    CandidateFacts,
    Case,
    best_untrained,
    is_fine_tuned,
    target_unit,
)
from harness.analysis.comparison import RecipeDifference, compare_recipes
from harness.analysis.decision import Decision, decide
from harness.analysis.economics import index_sentences
from harness.analysis.estimators import Comparison
from harness.analysis.macro import macro_between
from harness.analysis.margins import map_margins, scale_share
from harness.analysis.people_labels import MetricCalibration, calibrate
from harness.analysis.seeds import average_pairs, family_of, summarize_seeds
from harness.analysis.significance import list_spare_items
from harness.analysis.target_scores import trivial_baseline
from harness.analysis.verdict import (
    TaskComparison,
    is_in_macro,
    is_judged,
    is_named_critical,
    is_reported_only,
    is_safety,
)
from harness.config import current_labels
from harness.errors import CandidateFailed
from harness.evaluation.candidate_rows import n_rows
from harness.evaluation.candidates import ResolvedCandidate
from harness.evaluation.session import MeasuredTask, Session
from harness.evaluation.stored_scores import judge_remarks
from harness.experiment.bases import base_remarks
from harness.experiment.candidate_result import facts_of_runs, fit_stored_curve, study_of_session
from harness.experiment.run_remarks import (
    count_rows,
    describe_rows_and_prompts,
    describe_trainings,
    list_remarks,
)
from harness.experiment.run_verdicts import (
    RunVerdicts,
    compare_on,
    judge_runs,
    read_arms_over,
    read_both_arms,
)
from harness.experiment.stored_rows import Facts, Reader, Runs
from harness.experiment.study import Study, answers_on_target, best_untrained_run, judge_labels
from harness.experiment.verdict_records import list_verdict_records, verdict_change
from harness.records import Run, has_closed_labels
from harness.report import AttributionStep, ExperimentReport, ShownItem, origin, show_items
from harness.spec import DecidePolicy, GatePolicy

_SHOWN, _SHOWN_OF_SUITE = 40, 8  # items with answers in the report


def analyse(
    session: Session,
    reader: Reader,
    runs: Runs,
    *,
    smoke: bool = False,
    notes: Sequence[str] = (),
    wall_s: float | None = None,
) -> ExperimentReport:
    """Report finished runs: verdicts, the decision, notes on how they were made, and changed verdicts."""
    header: dict[str, object] = {"device": session.machine.name, "precision": session.machine.precision}
    with suppress(CandidateFailed):
        header["engine"] = session.engine(session.source)[0]
    if wall_s is not None:
        header["wall_s"] = wall_s
    study = study_of_session(session, reader)
    remarks = [*notes, *_list_notes(session, study, runs)]
    verdicts = judge_runs(study, runs, facts_of_runs(session, reader, runs))
    remarks += count_rows(study, session.tasks, reader, runs)
    report = _collect(session, reader, runs, verdicts)
    report = replace(report, header=header, smoke=smoke)
    decision = decide_by(report, report.facts, session.experiment.decide)
    about_index = index_sentences(report.facts, session.experiment.decide)
    report = replace(report, decision=replace(decision, reasons=(*decision.reasons, *about_index)))
    records = list_verdict_records(report, runs, study)
    remarks += filter(None, (verdict_change(study.store, record) for record in records))
    return replace(report, notes=tuple(remarks))


def _list_notes(session: Session, study: Study, runs: Runs) -> Iterator[str]:
    # Yields notes on what was run, on what, and how it went.
    names = dict.fromkeys(run.candidate for run in runs)
    if left_out := [n for n, c in session.candidates.items() if n not in names and c.method.answers]:
        yield f"not in this report, of the candidates that are written: {', '.join(left_out)}"
    yield from describe_rows_and_prompts(session, names)
    yield from base_remarks(session.sources)
    yield from dict.fromkeys(describe_trainings(study, [run for run in runs if run.state == "done"]))
    yield from list_remarks(session, runs)
    max_errors = session.experiment.gate.max_errors
    yield from judge_remarks(session.tasks, session.open_judge_of_pairs(), runs, max_errors)


def decide_by(report: ExperimentReport, facts: Sequence[CandidateFacts], policy: DecidePolicy) -> Decision:
    """Decide between the candidates of a report with the given facts and policy."""
    goal = report.declared.min if report.declared else None
    case = Case(
        facts,
        policy,
        report.metric,
        curve=report.curve,
        win_rate=report.declared.win_rate if report.declared else None,
        trivial=report.trivial,
        can_fold=report.can_fold,
        spare=report.spare,
        relative=report.macro_margin is None,
        base=Path(report.base_model).name,
    )
    return decide(
        case,
        closed_labels=report.closed_labels,
        has_documents=report.has_documents,
        family=report.family,
        goal=None if goal is None else target_unit(facts).value_at(goal),
    )


def _collect(session: Session, reader: Reader, runs: Runs, verdicts: RunVerdicts) -> ExperimentReport:
    # Fills in all of a report except its decision, its notes, and how it was made.
    (judged, results, study), by_id = verdicts, {run.run_id: run for run in runs}
    experiment = session.experiment
    all_comparisons = [t for result in results.values() for t in result.tasks]
    steps = list_steps(session.candidates, runs, verdicts)
    primary, policy, recipes = session.target.primary, experiment.gate, experiment.candidates
    n_drawn_again = {}  # training rows that a mixture repeated, by candidate
    for f in (f for f in judged if f.n_train):
        rows = session.training_data(recipes[f.name])
        n_drawn_again[f.name] = len(rows.items.train) - n_rows(rows, recipes[f.name])
    order = {name: at for at, name in enumerate(recipes)}
    ordered = sorted(judged, key=lambda f: order[f.name])
    is_corrected = bool(judge_labels(study.store, study.target, primary.name))

    def pair(old: CandidateFacts, new: CandidateFacts) -> Comparison | None:
        return compare_on(study, by_id[new.run_id], by_id[old.run_id])

    def means(old: Facts, new: Facts) -> RecipeDifference | None:
        pairs = [pair(a, b) for a in old for b in new]
        # Corrections add variance beyond the items.
        if is_corrected or any(c is None or c.refused for c in pairs):
            return average_pairs(pairs)
        arms = ([study.rows.cut(by_id[f.run_id], study.target) for f in facts] for facts in (old, new))
        return compare_recipes(primary, *arms)

    test, held = session.target.items.test, {m.task.name: m.held for m in session.suites}
    return ExperimentReport(
        experiment=experiment.name,
        base_model=experiment.base_model,
        metric=primary.name,
        facts=judged,
        comparisons={
            f.label: tuple(t.comparison for t in results[f.run_id].tasks)
            for f in judged
            if f.run_id in results and f.trained
        },
        not_admitted=_explain_not_admitted(all_comparisons, policy),
        one_half={t.task.name: t.half.why for t in all_comparisons if t.half},
        steps={f.label: steps[f.run_id] for f in judged if steps.get(f.run_id)},
        seeds=summarize_seeds(judged),
        ablations=ablations(ordered, pair, means),
        training_sets=training_sets(ordered, recipes, experiment.decide, n_drawn_again, pair, means),
        curve=fit_stored_curve(session, reader, runs, judged),
        task=session.target.task.name,
        macro_margin=scale_share(policy.macro),
        undecided_fails=policy.on_inconclusive == "fail",
        margins=map_margins(all_comparisons, policy),
        answers=find_answers((session.target, *session.suites), reader, runs, verdicts),
        origins={f.label: origin(run) for f, run in zip(judged, runs, strict=True)},
        policy=experiment.decide,
        closed_labels=has_closed_labels(test),
        has_documents=bool(session.target.items.documents),
        trivial=trivial_baseline(primary, test) if any(e.choices for e in test) else None,
        diversity=describe_diversity(runs, verdicts),
        family=family_of(experiment),
        spans={t.task.name: t.span for t in all_comparisons if t.span != 1},
        labels=_calibrate(session.target, reader, runs, judged),
        declared=policy.target,
        sampled=any(m.weights is not None for m in session.suites),
        spare=list_spare_items(experiment, all_comparisons, lambda task: held.get(task.name, 0)),
        can_fold=experiment.can_fold,
    )


def list_steps(
    candidates: Mapping[str, ResolvedCandidate], runs: Runs, judged: RunVerdicts
) -> dict[str, tuple[AttributionStep, ...]]:
    """List the steps from the base to each fine-tune: over its quantised base, and from its start."""
    study, recipes = judged.study, judged.study.experiment.candidates
    unsettled = (run for run in runs if run.run_id in judged.results and run.run_id not in study.settled)
    answered_runs = [run for run in unsettled if f"{study.target.name}/test" in run.rows]
    steps: dict[str, tuple[AttributionStep, ...]] = {}
    for run in answered_runs:
        method = plugins.method(run.method)
        if not method.tunes:
            continue
        served_as = f"{candidates[run.candidate].served_base.quantization.upper()} base"
        step = partial(_step, study, [t for t in judged.results[run.run_id].tasks if is_in_macro(t)])
        chain, measured = list[AttributionStep](), read_both_arms(study, run)
        if over := read_arms_over(study, run, run.served_digest) if run.served_digest else []:
            served = {m.task.name: m.base for m in over}
            before = [m._replace(new=served[m.task.name]) for m in measured if m.task.name in served]
            chain.append(step("quantisation", served_as, "base", before))
            chain.append(step("training", run.candidate, served_as, over))
        init = recipes[recipes[run.candidate].weights_of or run.candidate].init_from
        parents = [r for r in answered_runs if r.candidate == init and r.state == "done"]
        if parent := next((r for r in parents if r.seed == run.seed), parents[0] if parents else None):
            old = {m.task.name: m.new for m in read_both_arms(study, parent)}
            shared = [m._replace(base=old[m.task.name]) for m in measured if m.task.name in old]
            change = "more training" if method.trains else "a change of the adapter"
            if run.training.n_pairs is not None:
                change = "training on pairs"
            elif method.interpolates:
                change = "scaling"
            on_target = compare_on(study, run, parent)
            chain.append(step(change, run.candidate, parent.candidate, shared, on_target))
        steps[run.run_id] = tuple(chain)
    return steps


def _explain_not_admitted(every: Sequence[TaskComparison], policy: GatePolicy) -> dict[str, str]:
    not_admitted, unnamed, unjudged = dict[str, str](), dict[str, str](), dict[str, str]()
    key = "gate.safety or gate.critical" if policy.safety is None else "gate.critical"
    for t in every:
        name, is_critical = t.task.name, is_named_critical(t.task, t.suite, policy)
        if t.why_not and t.role != "regression":
            not_admitted[name] = t.why_not
        if not is_judged(name, policy):
            unnamed[name] = f"{name} is reported; gate.tasks does not name it"
        if t.role == "safety" and not is_safety(t, policy) and not is_critical:
            unjudged[name] = f"{name} is reported; {key} would judge it"
    return not_admitted | unnamed | unjudged


def find_answers(
    tasks: Sequence[MeasuredTask], reader: Reader, runs: Runs, judged: RunVerdicts
) -> tuple[ShownItem, ...]:
    """Show some items of every task with what each candidate answered, the best untrained first."""
    best, shown_items = best_untrained(judged.facts), list[ShownItem]()
    labelled_runs = [(f.label, run) for f, run in zip(judged.facts, runs, strict=True) if f.state != "failed"]
    labelled_runs.sort(key=lambda entry: entry[1].candidate != best)
    gated = [run for run in runs if run.run_id in judged.results]
    gated.sort(key=lambda run: run.run_id in judged.study.settled)
    # The base's rows come from the first run that no interim analysis settled.
    bases = {m.task.name: list(m.base) for run in gated[::-1] for m in read_both_arms(judged.study, run)}
    for m in tasks:
        labels, by_rows, key = dict[str, list[str]](), dict[str, Run](), f"{m.task.name}/test"
        for label, run in ((label, run) for label, run in labelled_runs if key in run.rows):
            labels.setdefault(run.rows[key], []).append(label)
            by_rows[run.rows[key]] = run
        arms = {", ".join(names): reader.read(by_rows[rows], m) for rows, names in labels.items()}
        if m.task.name in bases and all(run.weights_digest != run.base_digest for run in by_rows.values()):
            arms = {"base": bases[m.task.name]} | arms
        if arms and not is_reported_only(m.task):
            shown_items += show_items(m.primary, arms, _SHOWN if m is tasks[0] else _SHOWN_OF_SUITE)
    return tuple(shown_items)


def describe_diversity(runs: Runs, judged: RunVerdicts) -> dict[str, tuple[AnswerDiversity, ...]]:
    """Describe the generated answers of fine-tunes and the base: the target's, then the suites'."""
    by_label: dict[str, tuple[AnswerDiversity, ...]] = {}
    for f, run in zip(judged.facts, runs, strict=True):
        if f.state == "failed" or not is_fine_tuned(f):
            continue
        old, new = answers_on_target(judged.study, run)
        diversities = [answer_diversity(new, old)]
        for m in (m for m in read_both_arms(judged.study, run) if m.role != "regression"):
            diversity = answer_diversity(m.new, m.base)
            if diversity and m.role == "safety":  # refusals use the same words, which is not a collapse
                diversity = replace(diversity, collapsed=False)
            diversities.append(diversity)
        if shown := tuple(filter(None, diversities)):
            by_label[f.label] = shown
    return by_label


def _calibrate(
    target: MeasuredTask, reader: Reader, runs: Runs, facts: Facts
) -> tuple[MetricCalibration, ...]:
    # Compares the target's metrics with people's labels; each run is paired with the best untrained one.
    people_labels = current_labels(store.list_labels(reader.at, target.task.name), target.task)
    if not people_labels:
        return ()
    by_label = {f.label: run for f, run in zip(facts, runs, strict=True) if f.state == "done"}
    arms = {label: reader.with_drawn(run, target.task) for label, run in by_label.items()}
    best = best_untrained_run(runs, facts)
    base = next((label for label, run in by_label.items() if best and run.run_id == best.run_id), None)
    pairs = [(f.label, base) for f in facts if base and f.label in arms and f.label != base]
    # A judge may favour answers of its own base; an endpoint's base is unknown.
    local = {label: run for label, run in by_label.items() if not plugins.find_method(run.method).is_remote}
    base_digests = {label: run.base_digest for label, run in local.items()}
    calibrations = []
    for metric in target.metrics.values():
        if calibration := calibrate(metric, arms, pairs, people_labels):
            judged = target.judged.get(calibration.metric)
            sources = [judge.weights.source for judge in judged.judges if judge.weights] if judged else []
            bases = {source.weights_digest for source in sources if source}
            same_base = tuple(label for label, base_digest in base_digests.items() if base_digest in bases)
            calibrations.append(replace(calibration, own=same_base))
    return tuple(calibrations)


def _step(
    study: Study,
    counting: Sequence[TaskComparison],
    cause: str,
    new: str,
    base: str,
    measured: Sequence[Measurement],
    on_target: Comparison | None = None,
) -> AttributionStep:
    alpha = study.experiment.gate.alpha
    compared = {m.task.name: compared_task for m in measured if (compared_task := compare_task(m, alpha))}
    measured = [m for m in measured if m.task.name in compared]
    macro = macro_between(measured, compared, counting, study.seed)
    return AttributionStep(cause, new, base, macro, tuple(compared.values()), on_target)
