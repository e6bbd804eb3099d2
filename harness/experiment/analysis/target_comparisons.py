"""Paired differences between runs: to the best untrained candidate and the prompt, within grids, by steps.

Invariant: reads rows from the store; a recipe's seeds are compared together as well as each for itself,
and of these only the variances are kept. What is best on one of more targets was chosen on that target's
validation rows.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from harness import comparison, gating, plugins
from harness import decision as decide
from harness.comparison import Comparison, Estimate, RecipeDifference, compare_on_target
from harness.decision import CandidateFacts, ItemVariances, TargetScore
from harness.evaluation.candidate_rows import n_drawn_again
from harness.evaluation.session import MeasuredTask, Session
from harness.experiment.analysis.human_labels import correct_reached, judge_labels
from harness.experiment.analysis.target_facts import is_prompt
from harness.experiment.runs.stored_rows import Facts, Reader, Rows, Runs, documents_of
from harness.gating import Measurement, TaskComparison, is_in_macro
from harness.records import Run, SampleResult
from harness.report import AttributionStep

RowsByTask = Mapping[str, Sequence[SampleResult]]


def add_comparisons(session: Session, reader: Reader, runs: Runs, facts: Facts) -> list[CandidateFacts]:
    """Add the paired differences to the best untrained candidate and to the plain prompt.

    Where a recipe has several seeds, every run of it gets the variances of their mean over the items too, but
    of a judge's grades that people's labels correct: those vary by more than the items.
    """
    metric = session.target.primary
    labels = judge_labels(session.store, session.target.task, metric.name)
    best = decide.best_untrained(facts)
    by_name = {run.candidate: run for run in runs if run.state == "done"}
    prompts = [
        r for r in by_name.values() if is_prompt(r) and not session.candidates[r.candidate].is_baseline
    ]
    prompt_of = {r.base_digest: r for r in reversed(prompts)}
    first = prompts[0] if prompts else None

    def against(run: Run, other: Run | None) -> Comparison | None:
        if other is None or run.state == "failed" or run.run_id == other.run_id:
            return None
        return compare_on(session, reader, run, other, session.target)

    def over_items(seeds: Runs, *others: Run | None) -> ItemVariances | None:
        of = [reader.read(run, session.target) for run in seeds]
        rows = [reader.read(other, session.target) if other else None for other in others]
        return decide.item_variances(metric, of, *rows) if len(of) > 1 and not labels else None

    others = {r.run_id: (by_name.get(best or ""), prompt_of.get(r.base_digest, first)) for r in runs}
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


def compare_on(
    session: Session, reader: Reader, run: Run, other: Run | None, target: MeasuredTask
) -> Comparison | None:
    """Compare a run with another on a target as verdicts do; None where there is nothing to compare."""
    if other is None:
        return None
    labels = judge_labels(session.store, target.task, target.primary.name)
    read = reader.read_with_drawn if labels else reader.read
    arms = read(other, target), read(run, target)
    return compare_on_target(target.primary, *arms, labels, session.experiment.gate.max_errors)


def score_on(session: Session, reader: Reader, run: Run, target: MeasuredTask) -> Estimate:
    """Estimate a run's score on a target, corrected by people's labels."""
    found = comparison.estimate(target.primary, reader.read(run, target))
    labels = judge_labels(session.store, target.task, target.primary.name)
    return comparison.correct_estimate(target.primary, found, reader.read_with_drawn(run, target), labels)


def _runs_of(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """Map each candidate to its finished runs, one a seed."""
    out: dict[str, list[Run]] = {}
    for run in runs:
        if run.state == "done":
            out.setdefault(run.candidate, []).append(run)
    return out


def compare_grids(session: Session, reader: Reader, runs: Runs, facts: Facts) -> tuple[decide.Ablation, ...]:
    """Compare the members of every grid with its first one, in the order of the file."""
    return decide.ablations(_sort_by_file(session, facts), *_comparers(session, reader, runs))


def compare_training_sets(
    session: Session, reader: Reader, runs: Runs, facts: Facts
) -> tuple[decide.TrainingSets, ...]:
    """Compare the candidates that differ in what they were trained on alone."""
    experiment, ordered = session.experiment, _sort_by_file(session, facts)
    again = {f.name: n_drawn_again(session, experiment.candidates[f.name]) for f in ordered if f.n_train}
    by = _comparers(session, reader, runs)
    return decide.training_sets(ordered, experiment.candidates, experiment.decide, again, *by)


def _sort_by_file(session: Session, facts: Facts) -> list[CandidateFacts]:
    """Sort facts by the order of the file."""
    in_file = {name: at for at, name in enumerate(session.experiment.candidates)}
    return sorted(facts, key=lambda f: in_file[f.name])


def _comparers(session: Session, reader: Reader, runs: Runs) -> tuple[decide.Pair, decide.Means]:
    """Return how two runs, and two recipes over their seeds, are compared on the target."""
    target, by_id = session.target, {run.run_id: run for run in runs}
    labels = judge_labels(session.store, target.task, target.primary.name)

    def rows(of: Facts) -> list[Rows]:
        return [reader.read(by_id[f.run_id], target) for f in of]

    def pair(old: CandidateFacts, new: CandidateFacts) -> Comparison | None:
        return compare_on(session, reader, by_id[new.run_id], by_id[old.run_id], target)

    def means(old: Facts, new: Facts) -> RecipeDifference | None:
        pairs = [pair(a, b) for a in old for b in new]
        if labels or any(c is None or c.refused for c in pairs):  # a correction varies by more than the items
            return decide.average_pairs(pairs)
        return comparison.compare_recipes(target.primary, rows(old), rows(new))

    return pair, means


def steps_of(
    session: Session,
    reader: Reader,
    run: Run,
    runs: Iterable[Run],
    rows: Mapping[str, RowsByTask],
    tasks: Sequence[TaskComparison],
) -> tuple[AttributionStep, ...]:
    """List the steps from the base to a run: over its quantised base, and from the run it starts from.

    `rows` maps the digests of bases, and the ids of runs, to rows by task of the suites; `tasks` are the
    run's comparisons with the base, which say what counts.
    """
    judged = _VerdictTasks(
        [t for t in tasks if is_in_macro(t)],
        {
            m.task.name: documents_of(session.store, m.task, m.role, run.rows[f"{m.task.name}/test"])
            for m in session.suites
            if f"{m.task.name}/test" in run.rows
        },
    )
    out = []
    if run.served_digest in rows and run.base_digest in rows:
        base, served, own = rows[run.base_digest], rows[run.served_digest], rows[run.run_id]
        served_as = f"{session.candidates[run.candidate].served_base.quantization.upper()} base"
        out += [
            _step(session, "quantisation", served_as, "base", served, base, judged, None),
            _step(session, "training", run.candidate, served_as, own, served, judged, None),
        ]
    parent = parent_of(session, run, runs)
    if parent is not None:
        own, old = rows[run.run_id], rows[parent.run_id]
        target = compare_on(session, reader, run, parent, session.target)
        out.append(_step(session, _change(run), run.candidate, parent.candidate, own, old, judged, target))
    return tuple(out)


class _VerdictTasks(NamedTuple):
    """Tasks that count in a run's verdict, and the digests of all tasks' documents by item."""

    counting: Sequence[TaskComparison]
    documents: Mapping[str, Mapping[str, str]]


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
    what: str,
    new: str,
    base: str,
    own: RowsByTask,
    old: RowsByTask,
    judged: _VerdictTasks,
    on_target: Comparison | None,
) -> AttributionStep:
    answered = [m for m in session.suites if _share_items(m, old, own)]
    measured = [
        Measurement(
            m.task,
            m.role,
            m.suite,
            m.metrics,
            old[m.task.name],
            own[m.task.name],
            documents=judged.documents.get(m.task.name, {}),
        )
        for m in answered
    ]
    compared = {m.task.name: _compare(session, m, old, own) for m in answered}
    return AttributionStep(
        what,
        new,
        base,
        gating.macro_between(measured, compared, judged.counting, session.first_seed),
        tuple(compared.values()),
        on_target,
    )


def _share_items(m: MeasuredTask, old: RowsByTask, new: RowsByTask) -> bool:
    """Tell whether two arms answered a task, at least one item of it both."""
    name = m.task.name
    return name in old and name in new and comparison.is_comparable(m.primary, old[name], new[name])


def _compare(session: Session, m: MeasuredTask, old: RowsByTask, new: RowsByTask) -> Comparison:
    name = m.task.name
    metric = m.primary
    return comparison.compare_rows(metric, old[name], new[name], alpha=session.experiment.gate.alpha)


def add_more_targets(session: Session, reader: Reader, runs: Runs, facts: Facts) -> list[CandidateFacts]:
    """Add what the runs reached on more targets; as they are where there are none."""
    found: dict[str, tuple[TargetScore, ...]] = {}
    for m in session.more_targets:
        for run_id, score in _scores(session, reader, runs, facts, m).items():
            found[run_id] = (*found.get(run_id, ()), score)
    return [replace(f, more_targets=found.get(f.run_id, ())) for f in facts]


def _scores(
    session: Session, reader: Reader, runs: Runs, facts: Facts, m: MeasuredTask
) -> dict[str, TargetScore]:
    """Map runs to their scores on one of them; a run of which no answer could be scored has none."""
    answered = [
        (run, _put_on_target(session, reader, run, f, m))
        for run, f in zip(runs, facts, strict=True)
        if f"{m.task.name}/test" in run.rows and any(r.status != "error" for r in reader.read(run, m))
    ]
    there, own = [run for run, _ in answered], [f for _, f in answered]
    compared = add_comparisons(replace(session, target=m), reader, there, own)
    best = decide.best_untrained(compared)
    return {
        f.run_id: TargetScore(m.task.name, m.primary.name, f.target, best, f.vs_untrained, f.vs_prompt)
        for f in compared
        if f.target is not None
    }


def _put_on_target(
    session: Session, reader: Reader, run: Run, f: CandidateFacts, m: MeasuredTask
) -> CandidateFacts:
    """Return a run's facts with what it reached on another target in place of the one that decides."""
    has_validation = f"{m.task.name}/validation" in run.rows
    validation = comparison.estimate(m.primary, reader.read(run, m, "validation")) if has_validation else None
    test = comparison.estimate(m.primary, reader.read(run, m))
    found = replace(f, target=test, validation=validation.score if validation else None)
    labels = judge_labels(session.store, m.task, m.primary.name)
    return correct_reached(m.primary, found, reader.read_with_drawn(run, m), labels)
