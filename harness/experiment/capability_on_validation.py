"""Scores of weights on validation: of the target, by which trials are ranked, and of what they forgot.

    runs/weights/<key>/forgetting.json      by digest of the answers it was computed of: what weights forgot

Invariant: what was forgotten is the mean loss against the base on general items for validation. No item,
question or cluster of a test of a suite is among them, so the gate judges on items that nothing was chosen
by; which ones are evaluated depends on the files, the limits and the experiment's seed alone.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from harness import comparison, gating
from harness.data import load_task, task_version
from harness.data.contamination import key as question_of
from harness.errors import CandidateFailed, Problem, SharedFailure
from harness.evaluation.candidates import ResolvedCandidate, base_weights
from harness.evaluation.judging_stage import answer_and_score
from harness.evaluation.row_sets import is_there, suite_set, target_sets
from harness.evaluation.session import MeasuredTask, Session
from harness.gating import Measurement
from harness.metrics import Metric, extremes
from harness.records import Example, SampleResult, digest
from harness.spec import Recipe, SubjectTo
from harness.store import write_whole
from harness.training import Weights


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
    if not is_there(session, rows):
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
    """Digest the prompts of a recipe as they were sent, of which weights, and how they were answered.

    Recipes that write the same prompt in different ways are alike. Empty where a prompt is not known.
    """
    prompts = [row.prompt_digest for row in answered]
    drawn = recipe.sampling.model_dump(mode="json") if recipe.sampling else {}
    return digest([weights_digest, recipe.answer, drawn, prompts]) if prompts and all(prompts) else ""


def mean_score(metric: Metric, rows: Iterable[SampleResult]) -> float | None:
    """Return the score of rows, a failed answer as the metric's worst value, if it has one; None without any.

    So no trial is favoured for the answers that it owes.
    """
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


def constraint_problems(session: Session, candidate: ResolvedCandidate) -> Iterator[Problem]:
    """Yield that there are no items to measure forgetting on."""
    bound = candidate.recipe.subject_to
    if bound and not general_items(session, bound.items):
        found = "subject_to: {forgetting: …}, and no general item outside the tests"
        expected = "items of the capability suites for validation"
        step = "data: {validation: FILE} at a task of a capability suite, or a limit below its items"
        yield Problem(f"candidate {candidate.name}", found, expected, step)


def score_forgetting(session: Session, trial: ResolvedCandidate, weights: Weights, bound: SubjectTo) -> float:
    """Return by how much weights are worse than their base.

    Raises:
        NotStored: answers are missing, and the session only reads.
        SharedFailure: no task counts on these items.
    """
    assert weights.folder
    tasks, kept = general_items(session, bound.items), weights.folder / _KEPT
    arms = [[suite_set(session, of, m) for m in tasks] for of in (base_weights(trial.base), weights)]
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
        counting = gating.name_admitted_tasks(alike, session.first_seed)
        changes = [
            capability_change(m.primary, base, new)
            for m, (base, new) in zip(tasks, pairs, strict=True)
            if m.task.name in counting
        ]
        if not changes:
            n = sum(m.size("test") for m in tasks)
            found = f"subject_to: of {n} general items for validation no task shows what the base can lose"
            raise SharedFailure(found, "more items for validation, or tasks that the base is better at")
        known[key] = -comparison.mean_change(changes).score
        write_whole(session.store, kept, json.dumps(known))
    return known[key]


def capability_change(
    metric: Metric, base: Sequence[SampleResult], new: Sequence[SampleResult]
) -> comparison.Comparison:
    """Compare weights with their base on items of a task, as a share of the metric's range."""
    found = comparison.compare_rows(metric, base, new, base_errors="bounds")
    return comparison.rescale(found, metric.range.span)


def general_items(session: Session, n_items: int) -> list[MeasuredTask]:
    """Return the capability tasks with as many items for validation, evenly over those that have some.

    A task of fewer than ten counts only where all have fewer: in the mean over tasks it would weigh as much.
    """
    whole = [m for m in session.suites if not m.task.lm_eval]
    seed = session.first_seed
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
