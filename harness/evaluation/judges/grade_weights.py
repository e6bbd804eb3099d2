"""Probabilities of the grades of a scale, and the mean grade that they give.

Invariant: a token counts for the one grade that it begins, so that ` 4` and `4` are one grade and what begins
none counts for none; the weights of the grades add up to one.
Source: G-Eval, Liu et al. 2023, arXiv 2303.16634, section 2.
"""

from collections.abc import Sequence

import numpy as np

from harness.config.rubrics import Rubric
from harness.evaluation.judges.judge_prompts import Order, grade_value
from harness.metrics import normalize
from harness.stats import Array

_LEAST = 0.5  # of the first token's probability on grades; beyond that it is no grade that was begun


def likelihood_weights(logprobs: Sequence[float]) -> Array:
    """Return the probabilities of grades by their log-probabilities (nats), (k,)."""
    shifted = np.exp(np.array(logprobs) - max(logprobs))
    return np.asarray(shifted / shifted.sum())


def token_weights(rubric: Rubric, tokens: Sequence[tuple[str, float]]) -> Array | None:
    """Return the probabilities of grades by those of the tokens that begin them.

    None where less than half of the probability is on such tokens: the answer begins with something else.
    """
    weights = np.zeros(len(rubric.grades))
    for token, logprob in tokens:
        begun = normalize(token)
        meant = [at for at, grade in enumerate(rubric.grades) if begun and grade.casefold().startswith(begun)]
        if len(meant) == 1:
            weights[meant[0]] += np.exp(logprob)
    return np.asarray(weights / weights.sum()) if weights.sum() >= _LEAST else None


def weights_text(rubric: Rubric, weights: Array) -> str:
    """Say the probability of each grade."""
    return ", ".join(f"{grade}: {p:.3f}" for grade, p in zip(rubric.grades, weights, strict=True))


def mean_grade(rubric: Rubric, weights: Array, order: Order) -> float:
    """Return the mean grade as a share of the scale."""
    values = np.array([grade_value(rubric, grade, order) for grade in rubric.grades])
    return float(weights @ values)
