"""Paired differences between runs: to the best untrained candidate and the prompt, within grids, by steps.

Invariant: reads rows from the store; a recipe's seeds are compared together as well as each for itself,
and of these only the variances are kept. What is best on one of more targets was chosen on that target's
validation rows.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from harness import plugins
from harness.analysis import comparison
from harness.analysis.ablation import Ablation, Means, Pair, TrainingSets, ablations, training_sets
from harness.analysis.admission import Measurement, compare_task
from harness.analysis.candidate_facts import CandidateFacts, ItemVariances, best_untrained
from harness.analysis.estimators import Comparison
from harness.analysis.macro import macro_between
from harness.analysis.ranking import RecipeDifference, compare_recipes
from harness.analysis.seeds import average_pairs, item_variances
from harness.analysis.target_scores import TargetScore
from harness.analysis.verdict import TaskComparison, is_in_macro
from harness.experiment.gate_run import measure, measure_over
from harness.experiment.stored_rows import Facts, Rows, Runs
from harness.experiment.study import Study, correct_reached, judge_labels
from harness.experiment.target_facts import compare_on, find_prompt, is_answered
from harness.records import Run
from harness.report import AttributionStep
from harness.spec import Task


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
    best = best_untrained(facts)
    by_name = {run.candidate: run for run in runs if run.state == "done"}

    def against(run: Run, other: Run | None) -> Comparison | None:
        if other is None or run.state == "failed" or run.run_id == other.run_id:
            return None
        return compare_on(study, run, other, task)

    def over_items(seeds: Runs, *others: Run | None) -> ItemVariances | None:
        of = [study.rows.cut(run, task) for run in seeds]
        rows = [study.rows.cut(other, task) if other else None for other in others]
        return item_variances(metric, of, *rows) if len(of) > 1 and not labels else None

    done = list(by_name.values())
    others = {r.run_id: (by_name.get(best or ""), find_prompt(study, done, r)) for r in runs}
    seeds: dict[str, list[Run]] = {}
    for run in (run for run in runs if run.state == "done"):
        seeds.setdefault(run.candidate, []).append(run)
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


def compare_grids(study: Study, runs: Runs, facts: Facts) -> tuple[Ablation, ...]:
    """Compare the members of every grid with its first one, in the order of the file."""
    return ablations(_sort_by_file(study, facts), *_comparers(study, runs))


def compare_training_sets(
    study: Study, runs: Runs, facts: Facts, again: Mapping[str, int]
) -> tuple[TrainingSets, ...]:
    """Compare the candidates that differ in what they were trained on alone; `again` counts repeated rows."""
    experiment, ordered = study.experiment, _sort_by_file(study, facts)
    by = _comparers(study, runs)
    return training_sets(ordered, experiment.candidates, experiment.decide, again, *by)


def _sort_by_file(study: Study, facts: Facts) -> list[CandidateFacts]:
    in_file = {name: at for at, name in enumerate(study.experiment.candidates)}
    return sorted(facts, key=lambda f: in_file[f.name])


def _comparers(study: Study, runs: Runs) -> tuple[Pair, Means]:
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
            return average_pairs(pairs)
        return compare_recipes(metric, rows(old), rows(new))

    return pair, means


def steps_of(
    study: Study, run: Run, runs: Iterable[Run], tasks: Sequence[TaskComparison], served_as: str
) -> tuple[AttributionStep, ...]:
    """List the steps from the base to a run: over its quantised base, and from the run it starts from.

    `tasks` are the run's comparisons with the base, which say what counts; `served_as` names the served base.
    """
    step = partial(_step, study, [t for t in tasks if is_in_macro(t)])
    out, measured = [], measure(study, run)
    over = measure_over(study, run, run.served_digest) if run.served_digest else []
    if over:
        served = {m.task.name: m.base for m in over}
        before = [m._replace(new=served[m.task.name]) for m in measured if m.task.name in served]
        out += [
            step("quantisation", served_as, "base", before),
            step("training", run.candidate, served_as, over),
        ]
    recipes = study.experiment.candidates
    recipe = recipes[run.candidate]
    init = recipes[recipe.weights_of or run.candidate].init_from
    made = [r for r in runs if r.candidate == init and r.state == "done"]
    if parent := next((r for r in made if r.seed == run.seed), made[0] if made else None):
        old = {m.task.name: m.new for m in measure(study, parent)}
        both = [m._replace(base=old[m.task.name]) for m in measured if m.task.name in old]
        target = compare_on(study, run, parent)
        out.append(step(_change(run), run.candidate, parent.candidate, both, target))
    return tuple(out)


def _change(run: Run) -> str:
    method = plugins.method(run.method)
    if run.training.n_pairs is not None:
        return "training on pairs"
    return (
        "scaling" if method.interpolates else "more training" if method.trains else "a change of the adapter"
    )


def _step(
    study: Study,
    counting: Sequence[TaskComparison],
    what: str,
    new: str,
    base: str,
    measured: Sequence[Measurement],
    on_target: Comparison | None = None,
) -> AttributionStep:
    """Compare two arms as a verdict does; `counting` are the tasks of the run's own one."""
    alpha = study.experiment.gate.alpha
    compared = {m.task.name: found for m in measured if (found := compare_task(m, alpha))}
    measured = [m for m in measured if m.task.name in compared]
    macro = macro_between(measured, compared, counting, study.seed)
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
    best, metric = best_untrained(compared), study.primary(task).name
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
