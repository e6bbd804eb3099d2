"""Stored facts on the target: what a run reached, with its gain and win rate over the best untrained one.

Invariant: read from the store, without the model or the data; the best untrained candidate is the one that
the decision takes, by validation. Rows that other judges or rubrics graded are refused and never judged by.
"""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import chain

from harness import comparison, decision, plugins, store
from harness.comparison import (
    Comparison,
    Estimate,
    Labels,
    correct_comparison,
    correct_estimate,
    is_judge,
    labels_missing,
    latest_labels,
    list_each_answer,
)
from harness.config import current_labels
from harness.decision import CandidateFacts
from harness.errors import CandidateFailed, IncompatibleRuns
from harness.evaluation.judges import list_stored_digests
from harness.evaluation.rows.row_sets import scoring_digest
from harness.experiment import base_on_target, correct_reached, facts_on_target, wins_of
from harness.gating import TargetFacts
from harness.metrics import Metric, load_metrics
from harness.records import Run, SampleResult
from harness.release.stored_experiment import StoredExperiment
from harness.spec import JUDGE, Experiment, GatePolicy, Role, Task
from harness.store import Store, read_identity


def target_facts(stored: StoredExperiment, run: Run, policy: GatePolicy, task: Task) -> TargetFacts | None:
    """Read what was reached on the target; what is over the best untrained candidate if the policy asks."""
    goal = policy.target
    wanted = (goal.min, goal.gain, goal.win_rate, policy.mode_collapse)
    if not any(limit is not None for limit in wanted) or f"{task.name}/test" not in run.rows:
        return None
    at, metric = stored.store, load_metrics(task)[task.primary_metric]
    rows = target_rows(at, run, task)
    score: Estimate = comparison.estimate(metric, rows)
    labels = read_labels(stored, metric.name)
    best = _find_best_untrained(stored, metric) if (goal.gain, goal.win_rate) != (None, None) else None
    base = target_rows(at, best, task) if best else None
    gain = None
    if goal.gain is not None and base is not None:
        gain = gain_over(metric, base, rows, labels, policy)
    compared = (rows,) if base is None or goal.gain is None else (rows, base)
    missing = labels_missing(metric.name, labels, *compared)
    wins = None
    if best and base is not None and goal.win_rate is not None:
        wins = wins_of(at, policy, task.name, (best, run), (base, rows))
    return TargetFacts(
        correct_estimate(metric, score, rows, labels),
        gain,
        missing if policy.uncalibrated_judge == "refuse" else 0,
        wins,
        _commonest_answers(stored, run) if policy.mode_collapse is not None else (),
    )


def gain_over(
    metric: Metric,
    base: Sequence[SampleResult],
    rows: Sequence[SampleResult],
    labels: Labels,
    policy: GatePolicy,
) -> Comparison | None:
    """Compare two runs on the target, corrected by people's labels; None where no item has both scores."""
    if not comparison.is_comparable(metric, base, rows):
        return None
    found = correct_comparison(metric, comparison.compare_rows(metric, base, rows), base, rows, labels)
    return comparison.refuse_failed(found, metric.range.span, policy.max_errors)


def target_rows(at: Store, run: Run, task: Task, split: str = "test") -> list[SampleResult]:
    """Read a run's answers to the target, as many as its limit leaves, with all drawn to an item."""
    return _read_target(at, [run], task, [split])[0][0]


def _read_target(
    at: Store, runs: Sequence[Run], task: Task, splits: Sequence[str]
) -> list[list[list[SampleResult]]]:
    """Read runs' answers to the target, of each run those of each split, at once."""
    named = [[run.rows[f"{task.name}/{split}"] for split in splits] for run in runs]
    whole = store.read_many(at, chain(*named))

    def cut(run: Run, rows_digest: str, split: str) -> list[SampleResult]:
        rows = whole[rows_digest][: getattr(task.data.limits, split)]
        return comparison.add_samples(rows, store.read_drawn(at, rows_digest) if run.decoding else {})

    return [
        [cut(run, rows_digest, split) for rows_digest, split in zip(digests, splits, strict=True)]
        for run, digests in zip(runs, named, strict=True)
    ]


def read_labels(stored: StoredExperiment, metric: str) -> Labels:
    """Read people's latest labels of answers to the target by a metric, as its rubric is now."""
    task = stored.experiment.target
    return latest_labels(current_labels(store.list_labels(stored.store, task.name), task), metric)


def _commonest_answers(stored: StoredExperiment, run: Run) -> tuple[Comparison, ...]:
    """Compare the share of a run's commonest answer on the target with its base's and the references'."""
    at, experiment, task = stored.store, stored.experiment, stored.experiment.target
    name = f"{task.name}/test"
    runs = [r for r in store.list_runs(at, experiment.name) if name in r.rows]
    plain = base_on_target(run, reversed(runs))
    are_drawn = bool(run.decoding) and (plain is None or plain.decoding == run.decoding)

    def answers(of: Run) -> list[SampleResult]:
        rows = target_rows(at, of, task)
        return (list_each_answer(rows, store.read_drawn(at, of.rows[name])) if are_drawn else []) or rows

    old = answers(plain) if plain else None
    return comparison.compare_commonest_answers(old, answers(run), alpha=experiment.gate.alpha)


def _find_best_untrained(stored: StoredExperiment, metric: Metric) -> Run | None:
    """Find the stored run of the candidate that the decision takes as the best untrained one."""
    experiment = stored.experiment
    runs = _keep_untrained(store.list_runs(stored.store, experiment.name), experiment)
    labels = read_labels(stored, metric.name) if is_judge(metric.name) else {}
    facts = _facts_on_target(stored, metric, runs, labels)
    best = decision.best_untrained(decision.apply_budgets(facts, experiment.decide))
    return {run.candidate: run for run in runs}.get(best or "")


def _keep_untrained(runs: Iterable[Run], experiment: Experiment) -> list[Run]:
    """Keep the newest finished runs of baselines and of what trains no language model, by seeds."""
    # Of what draws at random that is one run of each seed of the file, of all else one.
    place = {seed: at for at, seed in enumerate(experiment.seeds)}
    newest: dict[tuple[str, int], Run] = {}
    for run in runs:
        method = plugins.find_method(run.method)
        trained = run.weights_digest != run.base_digest and method.makes_language_model
        recipe = experiment.candidates.get(run.candidate)
        known = recipe is not None and (run.seed in place or not method.seeded)
        untrained = not trained or (recipe is not None and recipe.role == "baseline")
        if run.state == "done" and known and untrained:
            newest[run.candidate, place[run.seed] if method.seeded else 0] = run
    return [newest[key] for key in sorted(newest, key=lambda key: key[1])]


def refuse_lost_folds(stored: StoredExperiment, run: Run) -> None:
    """Refuse test rows that other weights answered than the run's, those of its folds, if no fold is kept.

    Raises:
        IncompatibleRuns: they are of several models, and nothing says which answered which item.
    """
    at, test = stored.store, run.rows[f"{stored.experiment.target.name}/test"]
    if store.read_identity(at, test).weights_digest != run.weights_digest and not store.read_folds(at, test):
        raise IncompatibleRuns(
            f"{run.run_id}: found test rows of several folds without {at.rows(test) / 'folds.json'}; "
            f"expected the fold of each item; next: {stored.typed.command('compare')}, which writes it again"
        )


def _facts_on_target(
    stored: StoredExperiment, metric: Metric, runs: Sequence[Run], labels: Labels
) -> list[CandidateFacts]:
    """Say what runs reached on the target, of those that could answer any test item."""
    task, facts = stored.experiment.target, []
    for run in runs:
        _refuse_other_grades(stored, task, "target", run)
        refuse_lost_folds(stored, run)
    answers = _read_target(stored.store, runs, task, ["test", "validation"])
    for run, (test, validation) in zip(runs, answers, strict=True):
        with suppress(CandidateFailed):
            facts.append(
                correct_reached(metric, facts_on_target(run, metric, test, validation), test, labels)
            )
    return facts


def refuse_regraded(stored: StoredExperiment, run: Run) -> None:
    """Compare what graded the rows of a run, on the target and in the suites, with what the files name now.

    Raises:
        UserError: a rubric cannot be used.
        IncompatibleRuns: another judge or rubric graded one of the tasks.
    """
    _refuse_other_grades(stored, stored.experiment.target, "target", run)
    for suite in stored.experiment.suites:
        for task in suite.tasks:
            _refuse_other_grades(stored, task, suite.role, run)


def _refuse_other_grades(stored: StoredExperiment, task: Task, role: Role, run: Run) -> None:
    """Refuse rows of one task that were graded by another judge, by another rubric, or in another way."""
    key = f"{task.name}/test"
    if key not in run.rows or not any(written.startswith(JUDGE) for written in task.metrics):
        return
    then = read_identity(stored.store, run.rows[key]).scoring_digest
    graded = list_stored_digests(task, stored.store)
    if then not in {scoring_digest(task, role, judged, of) for judged in graded for of in (False, True)}:
        raise IncompatibleRuns(
            f"{run.run_id}: found grades of {key} by another judge or rubric, or another scoring of it; "
            "expected those of the files as they are now; next: "
            f"{stored.typed.command('compare')}, which grades the same answers again"
        )
