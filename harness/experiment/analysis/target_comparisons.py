"""Paired differences between runs: to the best untrained candidate and the prompt, within grids, by steps.

Invariant: reads rows from the store; a recipe's seeds are compared together as well as each for itself,
and of these only the variances are kept. What is best on one of more targets was chosen on that target's
validation rows.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from harness import comparison, gating, plugins
from harness import decision as decide
from harness.comparison import Comparison, RecipeDifference
from harness.decision import CandidateFacts, ItemVariances, TargetScore
from harness.evaluation.candidate_rows import n_drawn_again
from harness.evaluation.session import Session
from harness.experiment.analysis.human_labels import correct_reached, judge_labels
from harness.experiment.analysis.study import Study
from harness.experiment.analysis.target_facts import compare_on, find_prompt, is_answered
from harness.experiment.runs.stored_rows import Facts, Rows, Runs, documents_of
from harness.gating import Measurement, TaskComparison, is_in_macro
from harness.records import Run, SampleResult
from harness.report import AttributionStep
from harness.spec import Task

RowsByTask = Mapping[str, Sequence[SampleResult]]


def add_comparisons(
    study: Study, runs: Runs, facts: Facts, target: Task | None = None
) -> list[CandidateFacts]:
    """Add the paired differences on a target to the best untrained candidate and to the plain prompt.

    Where a recipe has several seeds, every run of it gets the variances of their mean over the items too, but
    of a judge's grades that people's labels correct: those vary by more than the items.
    """
    task = target or study.target
    metric = study.primary(task)
    labels = judge_labels(study.store, task, metric.name)
    best = decide.best_untrained(facts)
    by_name = {run.candidate: run for run in runs if run.state == "done"}

    def against(run: Run, other: Run | None) -> Comparison | None:
        if other is None or run.state == "failed" or run.run_id == other.run_id:
            return None
        return compare_on(study, run, other, task)

    def over_items(seeds: Runs, *others: Run | None) -> ItemVariances | None:
        of = [study.rows.cut(run, task) for run in seeds]
        rows = [study.rows.cut(other, task) if other else None for other in others]
        return decide.item_variances(metric, of, *rows) if len(of) > 1 and not labels else None

    done = list(by_name.values())
    others = {r.run_id: (by_name.get(best or ""), find_prompt(study, done, r)) for r in runs}
    seeds = _runs_of(runs)
    found = {name: over_items(of, *others[of[0].run_id]) for name, of in seeds.items()}
    return [
        replace(
            f,
            vs_untrained=against(run, others[run.run_id][0]),
            vs_prompt=against(run, others[run.run_id][1]),
            over_items=found.get(run.candidate) if run.state == "done" else None,
        )
        for f, run in zip(facts, runs, strict=True)
    ]


def _runs_of(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """Map each candidate to its finished runs, one a seed."""
    out: dict[str, list[Run]] = {}
    for run in runs:
        if run.state == "done":
            out.setdefault(run.candidate, []).append(run)
    return out


def compare_grids(study: Study, runs: Runs, facts: Facts) -> tuple[decide.Ablation, ...]:
    """Compare the members of every grid with its first one, in the order of the file."""
    return decide.ablations(_sort_by_file(study, facts), *_comparers(study, runs))


def compare_training_sets(
    session: Session, study: Study, runs: Runs, facts: Facts
) -> tuple[decide.TrainingSets, ...]:
    """Compare the candidates that differ in what they were trained on alone."""
    experiment, ordered = session.experiment, _sort_by_file(study, facts)
    again = {f.name: n_drawn_again(session, experiment.candidates[f.name]) for f in ordered if f.n_train}
    by = _comparers(study, runs)
    return decide.training_sets(ordered, experiment.candidates, experiment.decide, again, *by)


def _sort_by_file(study: Study, facts: Facts) -> list[CandidateFacts]:
    """Sort facts by the order of the file."""
    in_file = {name: at for at, name in enumerate(study.experiment.candidates)}
    return sorted(facts, key=lambda f: in_file[f.name])


def _comparers(study: Study, runs: Runs) -> tuple[decide.Pair, decide.Means]:
    """Return how two runs, and two recipes over their seeds, are compared on the target."""
    target, by_id = study.target, {run.run_id: run for run in runs}
    metric = study.primary(target)
    labels = judge_labels(study.store, target, metric.name)

    def rows(of: Facts) -> list[Rows]:
        return [study.rows.cut(by_id[f.run_id], target) for f in of]

    def pair(old: CandidateFacts, new: CandidateFacts) -> Comparison | None:
        return compare_on(study, by_id[new.run_id], by_id[old.run_id])

    def means(old: Facts, new: Facts) -> RecipeDifference | None:
        pairs = [pair(a, b) for a in old for b in new]
        if labels or any(c is None or c.refused for c in pairs):  # a correction varies by more than the items
            return decide.average_pairs(pairs)
        return comparison.compare_recipes(metric, rows(old), rows(new))

    return pair, means


def steps_of(
    session: Session,
    study: Study,
    run: Run,
    runs: Iterable[Run],
    rows: Mapping[str, RowsByTask],
    tasks: Sequence[TaskComparison],
) -> tuple[AttributionStep, ...]:
    """List the steps from the base to a run: over its quantised base, and from the run it starts from.

    `rows` maps the digests of bases, and the ids of runs, to rows by task of the suites; `tasks` are the
    run's comparisons with the base, which say what counts.
    """
    step = partial(_step, session, run, [t for t in tasks if is_in_macro(t)])
    out = []
    if run.served_digest in rows and run.base_digest in rows:
        base, served, own = rows[run.base_digest], rows[run.served_digest], rows[run.run_id]
        served_as = f"{session.candidates[run.candidate].served_base.quantization.upper()} base"
        out += [
            step("quantisation", served_as, "base", served, base),
            step("training", run.candidate, served_as, own, served),
        ]
    if parent := parent_of(session, run, runs):
        own, old = rows[run.run_id], rows[parent.run_id]
        target = compare_on(study, run, parent)
        out.append(step(_change(run), run.candidate, parent.candidate, own, old, target))
    return tuple(out)


def _change(run: Run) -> str:
    """Name what a run did to the adapter that it started from."""
    method = plugins.method(run.method)
    if run.training.n_pairs is not None:
        return "training on pairs"
    return (
        "scaling" if method.interpolates else "more training" if method.trains else "a change of the adapter"
    )


def parent_of(session: Session, run: Run, runs: Iterable[Run]) -> Run | None:
    """Find the run whose adapter was trained further or scaled: of the same seed, where there is one."""
    init = session.candidates[run.candidate].source.init_from
    made = [r for r in runs if r.candidate == init and r.state == "done"]
    return next((r for r in made if r.seed == run.seed), made[0] if made else None)


def _step(
    session: Session,
    run: Run,
    counting: Sequence[TaskComparison],
    what: str,
    new: str,
    base: str,
    own: RowsByTask,
    old: RowsByTask,
    on_target: Comparison | None = None,
) -> AttributionStep:
    """Compare two arms on the tasks that both answered; `counting` are those of the run's own verdict."""
    measured = []
    for m in (m for m in session.suites if m.task.name in old and m.task.name in own):
        then, now, key = old[m.task.name], own[m.task.name], f"{m.task.name}/test"
        if comparison.is_comparable(m.primary, then, now):
            documents = documents_of(session.store, m.task, m.role, run.rows[key]) if key in run.rows else {}
            measured.append(Measurement(m.task, m.role, m.suite, m.metrics, then, now, documents=documents))
    alpha = session.experiment.gate.alpha
    compared = {
        m.task.name: comparison.compare_rows(m.metrics[m.task.primary_metric], m.base, m.new, alpha=alpha)
        for m in measured
    }
    macro = gating.macro_between(measured, compared, counting, session.first_seed)
    return AttributionStep(what, new, base, macro, tuple(compared.values()), on_target)


def add_more_targets(study: Study, runs: Runs, facts: Facts) -> list[CandidateFacts]:
    """Add what the runs reached on more targets; as they are where there are none."""
    found: dict[str, tuple[TargetScore, ...]] = {}
    for task in study.experiment.more_targets:
        for run_id, score in _scores(study, runs, facts, task).items():
            found[run_id] = (*found.get(run_id, ()), score)
    return [replace(f, more_targets=found.get(f.run_id, ())) for f in facts]


def _scores(study: Study, runs: Runs, facts: Facts, task: Task) -> dict[str, TargetScore]:
    """Map runs to their scores on one of them; a run of which no answer could be scored has none."""
    answered = [
        (run, _put_on_target(study, run, f, task))
        for run, f in zip(runs, facts, strict=True)
        if is_answered(study, run, task)
    ]
    there, own = [run for run, _ in answered], [f for _, f in answered]
    compared = add_comparisons(study, there, own, task)
    best, metric = decide.best_untrained(compared), study.primary(task).name
    return {
        f.run_id: TargetScore(task.name, metric, f.target, best, f.vs_untrained, f.vs_prompt)
        for f in compared
        if f.target is not None
    }


def _put_on_target(study: Study, run: Run, f: CandidateFacts, task: Task) -> CandidateFacts:
    """Return a run's facts with what it reached on another target in place of the one that decides."""
    metric, rows = study.primary(task), study.rows.with_drawn(run, task)
    has_validation = f"{task.name}/validation" in run.rows
    validation = (
        comparison.estimate(metric, study.rows.cut(run, task, "validation")).score if has_validation else None
    )
    found = replace(f, target=comparison.estimate(metric, rows), validation=validation)
    return correct_reached(metric, found, rows, judge_labels(study.store, task, metric.name))
