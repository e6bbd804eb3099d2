"""Analysis of finished runs into a report: comparisons, verdicts, the decision, single items, and notes.

Invariant: reads rows from the store and computes nothing that needs a model.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

from harness import plugins
from harness.analysis import decision as decide
from harness.analysis.answers import AnswerDiversity, answer_diversity
from harness.analysis.candidate_facts import CandidateFacts, best_untrained, is_fine_tuned
from harness.analysis.economics import index_sentences
from harness.analysis.gating import GateResult
from harness.analysis.seeds import family_of, place_in_family, summarize_seeds
from harness.analysis.significance import list_spare_items
from harness.analysis.target_scores import LearningCurve, trivial_baseline
from harness.analysis.verdict import (
    TaskComparison,
    Verdict,
    is_in_macro,
    is_judged,
    is_relative,
    is_reported_only,
    is_safety,
    margin_of,
)
from harness.evaluation.candidate_rows import n_drawn_again
from harness.evaluation.session import Session
from harness.experiment import target_comparisons as against
from harness.experiment.gate_run import judge_stored_run, measure
from harness.experiment.run_remarks import count_rows
from harness.experiment.stored_rows import (
    Facts,
    Reader,
    Rows,
    Runs,
)
from harness.experiment.study import Study, calibrations, describe_reached, is_target_only, study_session
from harness.experiment.target_comparisons import add_more_targets
from harness.experiment.target_facts import add_wins, answers_on_target
from harness.records import Run, has_closed_labels
from harness.report import (
    AttributionStep,
    ExperimentReport,
    ShownItem,
    origin,
    show_items,
)
from harness.spec import GatePolicy


class InterimVerdict(NamedTuple):
    """Verdict on a run at the interim analysis that settled it; `corrected` is that among all fine-tunes.

    `alpha` is the one-sided level of that analysis, `n` the items of the suites that it asked.
    """

    result: GateResult
    corrected: Verdict | None
    alpha: float
    n: int


class RunVerdicts(NamedTuple):
    """Facts of runs with their verdicts, the results behind these by run, and the study."""

    facts: tuple[CandidateFacts, ...]
    results: dict[str, GateResult]
    study: Study

    @property
    def tasks(self) -> dict[str, Sequence[TaskComparison]]:
        """Comparisons of each run with its base, by task."""
        return {run_id: result.tasks for run_id, result in self.results.items()}


def judge_runs(session: Session, reader: Reader, runs: Runs) -> RunVerdicts:
    """Judge the finished runs of an experiment, alone and among all its fine-tunes.

    A run whose verdict an earlier interim analysis settled keeps that.
    """
    reader.prepare(digest for run in runs for digest in run.rows.values())
    reached, study = describe_reached(session, reader, runs), study_session(session, reader)
    compared = against.add_comparisons(study, runs, reached)
    compared = add_wins(study, runs, compared)
    facts = add_more_targets(study, runs, compared)
    # A baseline is what others are to beat: what it lacks of the base's abilities is not judged.
    results = {
        run.run_id: study.settled[run.run_id].result
        if run.run_id in study.settled
        else judge_stored_run(study, run)
        for run in runs
        if run.state == "done" and not is_target_only(run.method, run.recipe)
    }
    # What answers no capability suite (a classifier) has no verdict.
    judged = tuple(
        replace(f, verdict=results[f.run_id].verdict)
        if f.target and f.run_id in results and results[f.run_id].tasks
        else f
        for f in facts
    )
    placed = place_in_family(judged, family_of(session.experiment))

    def correct(f: CandidateFacts, run: Run) -> CandidateFacts:
        if run.run_id in study.settled:
            return replace(f, corrected=study.settled[run.run_id].corrected)
        if f.standing is None or f.verdict is None or f.standing.level == f.standing.alpha:
            return f
        return replace(f, corrected=judge_stored_run(study, run, level=f.standing.level).verdict)

    return RunVerdicts(tuple(correct(f, run) for f, run in zip(placed, runs, strict=True)), results, study)


_SHOWN, _SHOWN_OF_SUITE = 40, 8  # items whose answers the report holds


def judge_and_decide(
    session: Session,
    reader: Reader,
    runs: Runs,
    *,
    smoke: bool,
    header: dict[str, object],
    notes: Sequence[str],
    curve_of: Callable[[Facts], LearningCurve | None] = lambda facts: None,
) -> ExperimentReport:
    """Compare, judge and decide over the runs of one experiment; `curve_of` finds its learning curve."""
    of_runs = judge_runs(session, reader, runs)
    judged, tasks = of_runs.facts, of_runs.tasks
    steps = _steps(session, runs, of_runs)
    family = family_of(session.experiment)
    primary, policy = session.target.primary, session.experiment.gate
    recipes = session.experiment.candidates
    again = {f.name: n_drawn_again(session, recipes[f.name]) for f in judged if f.n_train}
    curve = curve_of(judged)
    closed_labels = has_closed_labels(session.target.items.test)
    has_documents = bool(session.target.items.documents)
    has_choices = any(e.choices for e in session.target.items.test)
    held = {m.task.name: m.held for m in session.suites}
    compared = (t for run in tasks.values() for t in run)
    spare = list_spare_items(session.experiment, compared, lambda task: held.get(task.name, 0))
    trivial = trivial_baseline(primary, session.target.items.test) if has_choices else None
    decision = decide.decide(
        judged,
        session.experiment.decide,
        closed_labels=closed_labels,
        has_documents=has_documents,
        metric_name=primary.name,
        curve=curve,
        family=family,
        goal=policy.target.min,
        win_rate=policy.target.win_rate,
        trivial=trivial,
        can_fold=session.experiment.can_fold,
        spare=spare,
        relative=is_relative(policy.macro),
    )
    about_index = index_sentences(judged, session.experiment.decide)
    decision = replace(decision, reasons=(*decision.reasons, *about_index))
    return ExperimentReport(
        experiment=session.experiment.name,
        base_model=session.experiment.base_model,
        metric=primary.name,
        facts=judged,
        comparisons={
            f.label: tuple(t.comparison for t in tasks[f.run_id])
            for f in judged
            if f.run_id in tasks and f.trained
        },
        decision=decision,
        header=header,
        smoke=smoke,
        notes=(*notes, *count_rows(of_runs.study, session, reader, runs)),
        not_admitted=_explain_not_admitted(tasks.values(), policy),
        one_half={t.task.name: t.half.why for run in tasks.values() for t in run if t.half},
        steps={f.label: steps[f.run_id] for f in judged if steps.get(f.run_id)},
        seeds=summarize_seeds(judged),
        ablations=against.compare_grids(of_runs.study, runs, judged),
        training_sets=against.compare_training_sets(of_runs.study, runs, judged, again),
        curve=curve,
        task=session.target.task.name,
        macro_margin=policy.macro if isinstance(policy.macro, float) else None,
        undecided_fails=policy.on_inconclusive == "fail",
        margins=_margins(tasks.values(), policy),
        answers=find_answers(session, reader, runs, of_runs),
        origins={f.label: origin(run) for f, run in zip(judged, runs, strict=True)},
        policy=session.experiment.decide,
        closed_labels=closed_labels,
        has_documents=has_documents,
        trivial=trivial,
        diversity=describe_diversity(runs, of_runs),
        family=family,
        spans={t.task.name: t.span for run in tasks.values() for t in run if t.span != 1},
        labels=calibrations(session, reader, runs, judged),
        declared=policy.target,
        sampled=any(m.weights is not None for m in session.suites),
        spare=spare,
        can_fold=session.experiment.can_fold,
    )


def _steps(session: Session, runs: Runs, judged: RunVerdicts) -> dict[str, tuple[AttributionStep, ...]]:
    study, tasks = judged.study, judged.tasks
    unsettled = (run for run in runs if run.run_id in tasks and run.run_id not in study.settled)
    done = [run for run in unsettled if f"{study.target.name}/test" in run.rows]
    served_as = {n: f"{c.served_base.quantization.upper()} base" for n, c in session.candidates.items()}
    return {
        run.run_id: against.steps_of(study, run, done, tasks[run.run_id], served_as[run.candidate])
        for run in done
        if plugins.method(run.method).tunes
    }


def _explain_not_admitted(runs: Collection[Sequence[TaskComparison]], policy: GatePolicy) -> dict[str, str]:
    """Say of each task that the gate leaves out why it does."""
    out = {t.task.name: t.why_not for tasks in runs for t in tasks if t.why_not and t.role != "regression"}
    unnamed = {t.task.name for tasks in runs for t in tasks if not is_judged(t.task.name, policy)}
    out |= {name: f"{name} is reported; gate.tasks does not name it" for name in unnamed}
    key = "gate.safety or gate.critical" if policy.safety is None else "gate.critical"
    unjudged = {
        t.task.name
        for tasks in runs
        for t in tasks
        if t.role == "safety"
        and not is_safety(t, policy)
        and not {t.task.name, t.suite} & set(policy.critical)
    }
    return out | {name: f"{name} is reported; {key} would judge it" for name in unjudged}


def _margins(runs: Iterable[Sequence[TaskComparison]], policy: GatePolicy) -> dict[str, float]:
    return {
        t.task.name: margin_of(t, policy)
        for tasks in runs
        for t in tasks
        if is_in_macro(t) or is_safety(t, policy)
    }


def find_answers(session: Session, reader: Reader, runs: Runs, judged: RunVerdicts) -> tuple[ShownItem, ...]:
    """Show some items of every task with what each candidate answered, the best untrained first."""
    best = best_untrained(judged.facts)
    named = [(f.label, run) for f, run in zip(judged.facts, runs, strict=True) if f.state != "failed"]
    named.sort(key=lambda one: one[1].candidate != best)
    shown: list[ShownItem] = []
    gated = [run for run in runs if run.run_id in judged.results]
    gated.sort(key=lambda run: run.run_id in judged.study.settled)
    # The first run that no interim analysis settled names the base's rows.
    bases: dict[str, Rows] = {
        one.task.name: list(one.base) for run in gated[::-1] for one in measure(judged.study, run)
    }
    for m in (session.target, *session.suites):
        labels, by_rows, key = dict[str, list[str]](), dict[str, Run](), f"{m.task.name}/test"
        for label, run in ((label, run) for label, run in named if key in run.rows):
            labels.setdefault(run.rows[key], []).append(label)
            by_rows[run.rows[key]] = run
        arms = {", ".join(of): reader.read(by_rows[rows], m) for rows, of in labels.items()}
        if m.task.name in bases and all(run.weights_digest != run.base_digest for run in by_rows.values()):
            arms = {"base": bases[m.task.name]} | arms
        if arms and not is_reported_only(m.task):
            shown += show_items(m.primary, arms, _SHOWN if m is session.target else _SHOWN_OF_SUITE)
    return tuple(shown)


def describe_diversity(runs: Runs, judged: RunVerdicts) -> dict[str, tuple[AnswerDiversity, ...]]:
    """Describe the generated answers of fine-tunes beside the base's: the target's, then the suites'."""
    out: dict[str, tuple[AnswerDiversity, ...]] = {}
    for f, run in zip(judged.facts, runs, strict=True):
        if f.state == "failed" or not is_fine_tuned(f):
            continue
        old, new = answers_on_target(judged.study, run)
        found = [answer_diversity(new, old)]
        for m in measure(judged.study, run):
            if m.role != "regression":
                # What should be refused is refused in the same words: that is not a collapse.
                of = answer_diversity(m.new, m.base)
                found.append(replace(of, collapsed=False) if of and m.role == "safety" else of)
        out[f.label] = tuple(filter(None, found))
    return {label: found for label, found in out.items() if found}
