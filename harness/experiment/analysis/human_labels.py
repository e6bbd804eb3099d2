"""People's labels of the target's answers, joined to what the runs measured.

Invariant: a judge's score and paired difference are replaced by the corrected ones before anything is
decided, and where labels are too few the run says how many are missing; every other metric is shown beside
its labels and decides as it is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from harness import decision as decide
from harness import store
from harness.comparison import (
    Labels,
    MetricCalibration,
    calibrate,
    correct_estimate,
    is_judge,
    labels_missing,
    latest_labels,
)
from harness.config import current_labels
from harness.decision import CandidateFacts
from harness.evaluation.session import Session
from harness.experiment.analysis.study import Study, study_session
from harness.experiment.runs.candidate_result import facts_of
from harness.experiment.runs.stored_rows import Facts, Reader, Runs
from harness.metrics import Metric
from harness.plugins import find_method
from harness.records import Run, SampleResult
from harness.spec import Task
from harness.store import Store


def describe_reached(session: Session, reader: Reader, runs: Runs) -> list[CandidateFacts]:
    """Say what runs reached by themselves: what the choice on validation rests on.

    Labels correct what was reached by a judge's metric; those that a decision lacks are counted.
    """
    measured = (facts_of(session, reader, run) for run in runs)
    facts = decide.apply_budgets(measured, session.experiment.decide)
    study, metric, task = study_session(session, reader), session.target.primary, session.target.task
    if not is_judge(metric.name):
        return list(facts)
    labels = judge_labels(study.store, task, metric.name)
    corrected = [
        correct_reached(metric, f, study.rows.with_drawn(run, task), labels) if f.target else f
        for f, run in zip(facts, runs, strict=True)
    ]
    by_name = {run.candidate: run for run in runs if run.state == "done"}
    best = by_name.get(decide.best_untrained(corrected) or "")
    missing: dict[str, int] = {}  # a recipe is as open as the seed that has the fewest labels
    for f, run in zip(corrected, runs, strict=True):
        if f.target:
            lacks = count_missing(study, *filter(None, (run, best)))
            missing[f.name] = max(missing.get(f.name, 0), lacks)
    return [replace(f, labels_missing=missing.get(f.name, 0)) for f in corrected]


def correct_reached(
    metric: Metric, f: CandidateFacts, rows: Sequence[SampleResult], labels: Labels
) -> CandidateFacts:
    """Correct a run's scores on test by labels, and by the judge's error there its score on validation.

    Otherwise a judge that people refute on test would still choose on validation.
    """
    if f.target is None:
        return f
    target, validation = correct_estimate(metric, f.target, rows, labels), f.validation
    if target is not f.target and validation is not None:
        validation = min(max(validation + target.score - f.target.score, 0.0), 1.0)
    slices = {
        name: correct_estimate(metric, found, [row for row in rows if row.slice == name], labels)
        for name, found in f.slices.items()
    }
    return replace(f, target=target, validation=validation, slices=slices)


def judge_labels(at: Store, task: Task, metric: str) -> Labels:
    """Return people's labels of answers to a target by a judge's metric; none for any other metric."""
    return read_labels(at, task, metric) if is_judge(metric) else {}


def read_labels(at: Store, task: Task, metric: str) -> Labels:
    """Read people's latest labels of answers to a target by a metric, as its rubric is now."""
    return latest_labels(current_labels(store.list_labels(at, task.name), task), metric)


def count_missing(study: Study, *runs: Run) -> int:
    """Count the items that lack labels of all runs' answers before a judge decides; 0 where it may."""
    if study.experiment.gate.uncalibrated_judge == "allow":
        return 0
    metric = study.primary(study.target).name
    labels = judge_labels(study.store, study.target, metric)
    return labels_missing(metric, labels, *(study.rows.cut(run, study.target) for run in runs))


def calibrations(session: Session, reader: Reader, runs: Runs, facts: Facts) -> tuple[MetricCalibration, ...]:
    """Put each labelled metric of the target beside its labels; runs are paired with the best untrained."""
    found = current_labels(store.list_labels(session.store, session.target.task.name), session.target.task)
    if not found:
        return ()
    done = {f.label: run for f, run in zip(facts, runs, strict=True) if f.state == "done"}
    arms = {label: reader.with_drawn(run, session.target.task) for label, run in done.items()}
    best = decide.best_untrained(facts)
    base = next((f.label for f in facts if f.name == best and f.label in arms), None)
    pairs = [(f.label, base) for f in facts if base and f.label in arms and f.label != base]
    of = (calibrate(metric, arms, pairs, found) for metric in session.target.metrics.values())
    return tuple(replace(c, own=_name_own_kind(session, c.metric, done)) for c in of if c)


def _name_own_kind(session: Session, metric: str, runs: Mapping[str, Run]) -> tuple[str, ...]:
    """Name the runs whose base is a model that judges by a metric, which may like its own kind."""
    # What answers behind an address is made from nobody knows what.
    judged = session.target.judged.get(metric)
    sources = [judge.weights.source for judge in judged.judges if judge.weights] if judged else []
    bases = {source.weights_digest for source in sources if source}
    here = (label for label, run in runs.items() if not find_method(run.method).is_remote)
    return tuple(label for label in here if runs[label].base_digest in bases)
