"""Validation score of weights, by which trials of a sweep are ranked, and the digest of what was asked."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from harness import store
from harness.errors import CandidateFailed
from harness.evaluation.candidates import ResolvedCandidate
from harness.evaluation.judges.judging_stage import answer_and_score
from harness.evaluation.rows.row_sets import is_there, target_sets
from harness.evaluation.session import Session
from harness.metrics import Metric, extremes
from harness.records import SampleResult, digest
from harness.spec import Recipe
from harness.training import Weights


class ValidationResult(NamedTuple):
    """A trial's score on the validation rows of the target, and the digest of the prompts that it sent."""

    score: float
    asked: str


def validate(
    session: Session, trial: ResolvedCandidate, weights: Weights, *, make: bool
) -> ValidationResult | None:
    """Score a trial on validation; without `make`, None where answers are missing or have no score.

    Raises:
        CandidateFailed: none of the answers can be scored.
    """
    answered = _answer_validation(session, trial, weights, make=make)
    score = None if answered is None else mean_score(session.target.primary, answered)
    if answered is None or (score is None and not make):
        return None
    if score is None:
        knob = f"other {'values' if trial.method.trains else 'prompts'} to try"
        raise CandidateFailed("no answer to the validation rows could be scored", knob)
    return ValidationResult(score, digest_prompts(weights.digest, trial.source, answered))


def score_on_validation(
    session: Session, trial: ResolvedCandidate, weights: Weights, *, make: bool
) -> float | None:
    """Return a trial's score on the validation rows of the target; None where they are missing."""
    answered = _answer_validation(session, trial, weights, make=make)
    return None if answered is None else mean_score(session.target.primary, answered)


def _answer_validation(
    session: Session, trial: ResolvedCandidate, weights: Weights, *, make: bool
) -> list[SampleResult] | None:
    """Return a trial's answers to the validation rows of the target; None where they are missing."""
    rows = target_sets(session, trial.source, weights, session.first_seed)[0]
    if not is_there(session, rows):
        if not make:
            return None
        answer_and_score(session, weights, [rows], "sweep", trial.base)
    return store.read_rows(session.store, rows.identity.digest, len(rows.ids))


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
