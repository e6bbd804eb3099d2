"""Scores of weights on validation: the target's, by which trials are ranked, what was forgotten, and points.

    runs/weights/<key>/forgetting.json      by digest of the answers it was computed of: what weights forgot

Invariant: forgetting is the mean loss against the base on general items for validation. No item, question or
cluster of a test of a suite is among them. Points along a training answer the target's validation rows and
general items of the half that the search of a rescue sees.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from harness import store
from harness.analysis import comparison
from harness.analysis.admission import Measurement, cluster_name, cut_to_half, name_admitted_tasks, split
from harness.analysis.estimators import Comparison, mean_change, rescale
from harness.data import load_task, task_version
from harness.data.contamination import key as question_of
from harness.errors import CandidateFailed, Problem, SharedFailure
from harness.evaluation.candidates import ResolvedCandidate, base_weights, read_weights
from harness.evaluation.costs import Work, times
from harness.evaluation.judging_stage import answer_and_score
from harness.evaluation.row_sets import suite_sets, target_sets, total_work, work_of
from harness.evaluation.session import MeasuredTask, Session
from harness.metrics import Metric, extremes
from harness.plugins import methods
from harness.records import Example, SampleResult, TrackedPoint, digest
from harness.spec import Recipe, SubjectTo
from harness.store import write_whole
from harness.training import TRACKED, Weights, map_tracked_folders


class ValidationResult(NamedTuple):
    """A trial's score on the validation rows of the target, and the digest of the prompts that it sent."""

    score: float
    prompts_digest: str


def validate(session: Session, trial: ResolvedCandidate, weights: Weights) -> ValidationResult:
    """Score a trial on the validation rows of the target.

    Raises:
        CandidateFailed: none of the answers can be scored.
        NotStored: answers or their scores are missing, and the session only reads.
    """
    rows = target_sets(session, trial.source, weights, session.first_seed)[0]
    if not rows.is_there(session.store):
        session.refuse_if_reading(f"answers of {trial.name} to validation rows")
        answer_and_score(session, weights, [rows], "sweep", trial.base)
    answered = rows.read(session.store)
    score = mean_score(session.target.primary, answered)
    if score is None:
        session.refuse_if_reading(f"scored answer of {trial.name} to validation rows")
        knob = f"other {'values' if trial.method.trains else 'prompts'} to try"
        raise CandidateFailed("no answer to the validation rows could be scored", knob)
    return ValidationResult(score, digest_prompts(weights.digest, trial.source, answered))


def digest_prompts(weights_digest: str, recipe: Recipe, answered: Sequence[SampleResult]) -> str:
    """Digest the prompts of a recipe as they were sent and answered; empty if a prompt is not known."""
    prompts = [row.prompt_digest for row in answered]
    drawn = recipe.sampling.model_dump(mode="json") if recipe.sampling else {}
    return digest([weights_digest, recipe.answer, drawn, prompts]) if prompts and all(prompts) else ""


def mean_score(metric: Metric, rows: Iterable[SampleResult]) -> float | None:
    """Return the score of rows (None without any); a failed answer has the metric's worst value, if any."""
    parts = [p for row in rows if (p := _parts(metric, row)) is not None]
    return float(metric.aggregate(np.array(parts), np.ones(len(parts)))) if parts else None


def _parts(metric: Metric, row: SampleResult) -> tuple[float, ...] | None:
    parts = row.parts.get(metric.name)
    if parts is None and (row.status == "error" or row.error):
        known = extremes(metric, row.references)
        return known.worst if known else None
    return parts


_KEPT = "forgetting.json"
_FEW = 10  # items of a task


def scoring_problems(
    suites: Sequence[MeasuredTask], seed: int, candidate: ResolvedCandidate
) -> Iterator[Problem]:
    """Yield that there are no items to measure forgetting on, or no checkpoints to measure."""
    where, bound = f"candidate {candidate.name}", candidate.recipe.subject_to
    if candidate.recipe.track and not (candidate.method.trains and candidate.method.makes_language_model):
        found = f"track with the method {candidate.recipe.method}, which keeps no weights along its training"
        expected = f"one of the methods {', '.join(methods(trains=True, makes_language_model=True))}"
        yield Problem(where, found, expected, "remove track")
    if bound and not general_items(suites, seed, bound.items):
        found = "subject_to: {forgetting: …}, and no general item outside the tests"
        expected = "items of the capability suites for validation"
        step = "data: {validation: FILE} at a task of a capability suite, or a limit below its items"
        yield Problem(where, found, expected, step)


def score_forgetting(session: Session, trial: ResolvedCandidate, weights: Weights, bound: SubjectTo) -> float:
    """Return by how much weights are worse than their base.

    Raises:
        NotStored: answers are missing, and the session only reads.
        SharedFailure: no task counts on these items.
    """
    assert weights.folder
    tasks, kept = general_items(session.suites, session.first_seed, bound.items), weights.folder / _KEPT
    arms = [suite_sets(session, of, tasks) for of in (base_weights(trial.base), weights)]
    key = digest([rows.identity.digest for arm in arms for rows in arm])
    known: dict[str, float] = json.loads(kept.read_text("utf-8")) if kept.exists() else {}
    if key not in known:
        session.refuse_if_reading("answers to general items for validation")
        for of, sets in zip((base_weights(trial.base), weights), arms, strict=True):
            base = None if of.digest == trial.base.weights_digest else trial.base
            answer_and_score(session, of, sets, "general items for validation", base)
        pairs = [[rows.read(session.store) for rows in pair] for pair in zip(*arms, strict=True)]
        alike = [
            Measurement(m.task, m.role, m.suite, m.metrics, base, base)
            for m, (base, _) in zip(tasks, pairs, strict=True)
        ]
        counting = name_admitted_tasks(alike, session.first_seed)
        changes = [
            capability_change(m.primary, base, new)
            for m, (base, new) in zip(tasks, pairs, strict=True)
            if m.task.name in counting
        ]
        if not changes:
            n = sum(m.size("test") for m in tasks)
            found = f"subject_to: of {n} general items for validation no task shows what the base can lose"
            raise SharedFailure(found, "more items for validation, or tasks that the base is better at")
        known[key] = -mean_change(changes).score
        write_whole(session.store, kept, json.dumps(known))
    return known[key]


def capability_change(
    metric: Metric, base: Sequence[SampleResult], new: Sequence[SampleResult]
) -> Comparison:
    """Compare weights with their base on items of a task, as a share of the metric's range."""
    found = comparison.compare_rows(metric, base, new, base_errors="bounds")
    return rescale(found, metric.range.span)


def general_items(suites: Sequence[MeasuredTask], seed: int, n_items: int) -> list[MeasuredTask]:
    """Return the capability tasks with as many items for validation, evenly over those that have some.

    A task of fewer than ten counts only if all have fewer, because each task weighs the same.
    """
    whole = [m for m in suites if not m.task.lm_eval]
    tests = {m.task.name: load_task(m.task, seed).test for m in whole}
    clusters = {e.cluster for of in tests.values() for e in of if e.cluster != e.id}
    questions = {question_of(e) for of in tests.values() for e in of}
    ids = {name: {e.id for e in of} for name, of in tests.items()}
    spare: Mapping[str, list[Example]] = {
        m.task.name: [
            row.example
            for split in ("validation", "test")
            for row in m.items.evaluated.get(split, ())
            if row.example.id not in ids[m.task.name]
            and row.example.cluster not in clusters
            and question_of(row.example) not in questions
        ]
        for m in whole
        if m.role == "capability"
    }
    least = min(_FEW, max(map(len, spare.values()), default=0)) or 1
    having = [m for m in whole if len(spare.get(m.task.name, ())) >= least]
    each = -(-n_items // max(1, len(having)))
    limited = []
    for m in having:
        of_task = spare[m.task.name]
        validation = {row.example.id for row in m.items.evaluated.get("validation", ())}
        own = [e for e in of_task if e.id in validation] or of_task
        drawn = sorted(own, key=lambda e: (digest([seed, e.cluster]), e.id))[:each]
        items = replace(m.items, test=tuple(sorted(drawn, key=lambda e: e.id)))
        versions = {**m.versions, "test": task_version(m.task, items, "test")}  # which names the items
        limited.append(m._replace(items=items, versions=versions, weights=None))
    return limited


def read_tracked_weights(candidate: ResolvedCandidate, weights: Weights) -> dict[int, Weights]:
    """Read the weights that were kept along a candidate's training, by step, as they are served."""
    if not candidate.source.track or not weights.folder:
        return {}
    return read_kept_points(candidate, weights.folder)


def read_kept_points(candidate: ResolvedCandidate, folder: Path) -> dict[int, Weights]:
    """Read the weights at the points of a training, by step; `folder` is that of its weights or its job."""
    found = {
        step: read_weights(candidate, point) for step, point in map_tracked_folders(folder / TRACKED).items()
    }
    return {step: weights for step, weights in found.items() if weights}


def measure_points(
    session: Session, candidate: ResolvedCandidate, weights: Weights, seed: int, base_rows: Mapping[str, str]
) -> tuple[TrackedPoint, ...]:
    """Measure the points along a training; `base_rows` are the base's row sets of each task of the suites."""
    source, kept = candidate.source, read_tracked_weights(candidate, weights)
    if not source.track or not kept:
        return ()
    rows = {
        m.task.name: store.read_rows(session.store, base_rows[m.task.name], m.size("test"))
        for m in session.suites
        if m.task.name in base_rows
    }
    sampled = _sample(session.suites, session.first_seed, rows, source.track.items)
    return tuple(measure_point(session, candidate, step, made, seed, sampled) for step, made in kept.items())


def estimate_tracking(session: Session, source: Recipe) -> Work:
    """Estimate what the points along a training answer."""
    if not source.track:
        return Work()
    base = base_weights(session.source)
    once = work_of(target_sets(session, source, base, 0)[0].job())
    tasks = [m for m in session.suites if m.role == "capability"]
    n_items = sum(m.size("test") for m in tasks)
    suites = total_work(suite_sets(session, base, tasks))
    share = min(source.track.items, n_items / 2) / n_items if n_items else 0.0
    general = Work(*(round(share * amount) for amount in suites))
    return times(once + general + Work(opened=1), source.track.points)


def _sample(
    suites: Iterable[MeasuredTask], seed: int, rows: Mapping[str, list[SampleResult]], n_items: int
) -> list[tuple[MeasuredTask, list[SampleResult]]]:
    measured = [m for m in suites if m.task.name in rows]
    alike = [
        Measurement(m.task, m.role, m.suite, m.metrics, rows[m.task.name], rows[m.task.name])
        for m in measured
    ]
    part = cut_to_half(alike, split(rows, seed), "search")
    counting = name_admitted_tasks(part)
    there = {m.task.name: m.base for m in part if m.task.name in counting}
    each = -(-n_items // max(1, len(there)))
    sampled = []
    for m in (m for m in measured if m.task.name in there):
        ordered = sorted(
            there[m.task.name], key=lambda row: (digest([seed, cluster_name(row)]), row.example_id)
        )
        base = ordered[:each]
        ids = sorted(row.example_id for row in base)
        items = replace(m.items, test=tuple(e for e in m.items.test if e.id in set(ids)))
        versions = {**m.versions, "test": digest([m.versions["test"], ids])}  # which names the items
        sampled.append((m._replace(items=items, versions=versions, weights=None), base))
    return sampled


def measure_point(
    session: Session,
    candidate: ResolvedCandidate,
    step: int,
    made: Weights,
    seed: int,
    sampled: Sequence[tuple[MeasuredTask, list[SampleResult]]] = (),
) -> TrackedPoint:
    """Measure weights at a step on the target's validation rows, and on sampled general items."""
    validation = target_sets(session, candidate.source, made, seed)[0]
    general = suite_sets(session, made, [measured for measured, _ in sampled])
    name = f"{candidate.source_name} at step {step}"
    answer_and_score(session, made, [validation, *general], name, candidate.base)
    target = mean_score(session.target.primary, validation.read(session.store))
    if not sampled:
        return TrackedPoint(step=step, target=target)
    changes = [
        capability_change(measured.primary, base, rows.read(session.store))
        for (measured, base), rows in zip(sampled, general, strict=True)
    ]
    mean = mean_change(changes)
    return TrackedPoint(
        step=step, target=target, capability=mean.score, low=mean.low, high=mean.high, n_general=mean.n
    )
