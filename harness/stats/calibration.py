"""Calibration of confidences, and divergence and compression from log-probabilities in nats.

Invariant: sums come before ratios, so that a long text counts as much as its length.
"""

from math import expm1, log

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from harness.stats.intervals import finite


def kl_divergence(p: ArrayLike, q: ArrayLike) -> float:
    """Return KL(p‖q) = Σ p log(p/q) in nats of two distributions (v,); inf where q lacks what p has.

    Of base and fine-tune take p from the base, teacher-forced on identical token ids. Not
    symmetric, and not for distributions over different vocabularies.

    Raises:
        ValueError: they differ in length, hold negative values, or do not add up to 1.

    Source: Kullback & Leibler 1951.
    """
    a, b = finite(p, "p"), finite(q, "q")
    if a.shape != b.shape or min(a.min(), b.min()) < 0 or not np.allclose([a.sum(), b.sum()], 1):
        raise ValueError(f"expected two distributions of one length, found sums {a.sum()} and {b.sum()}")
    return float(special.rel_entr(a, b).sum())


def kl_sampled(log_p: float, log_q: float) -> float:
    """Estimate KL(p‖q) in nats from one outcome drawn from p: r − 1 − log r, r = q/p.

    Never negative, and of less variance than −log r. Average it over tokens. Not for outcomes
    drawn from q.

    Raises:
        ValueError: a log-probability is NaN or infinite.

    Source: Schulman 2020, "Approximating KL divergence" (the estimator k3).
    """
    ratio = float(np.subtract(*finite([log_q, log_p], "log-probabilities")))
    return expm1(ratio) - ratio


def bits_per_byte(logprobs: ArrayLike, n_bytes: ArrayLike) -> float:
    """Return −Σ log p/(ln 2 · Σ bytes) over texts (n,), log p in nats.

    A ratio of sums, which does not depend on the tokenizer. Not the mean of the texts' own ratios.

    Raises:
        ValueError: the lengths differ, a number is NaN, or there are no bytes.

    Source: Gao et al. 2020, arXiv:2101.00027 (The Pile), section 3.1.
    """
    nats, size = finite(logprobs, "log-probabilities"), finite(n_bytes, "bytes")
    if nats.shape != size.shape or size.sum() <= 0:
        raise ValueError(f"expected as many texts and some bytes: {nats.shape}, {size.sum():g} bytes")
    return float(-nats.sum() / (log(2) * size.sum()))


def expected_calibration_error(confidences: ArrayLike, correct: ArrayLike, n_bins: int = 10) -> float:
    """Return Σ_b (n_b/n) |share correct − mean confidence| over equal-width bins of (0, 1].

    In [0, 1]; depends on the bins, so name them, and compare models with the same. Not below
    some hundred items: empty noise then looks like miscalibration.

    Raises:
        ValueError: the lengths differ, or a value is NaN or outside [0, 1].

    Source: Guo et al. 2017, arXiv:1706.04599, equation 5.
    """
    p, hit = _rates(confidences, correct)
    bins = np.clip(np.ceil(p * n_bins) - 1, 0, n_bins - 1).astype(int)
    gaps = np.bincount(bins, hit - p, n_bins)
    return float(np.abs(gaps).sum() / len(p))


def brier_score(confidences: ArrayLike, correct: ArrayLike) -> float:
    """Return the mean squared distance of confidences (n,) from what came true (n,), in [0, 1].

    A proper score: honest confidences minimise it. Not comparable between sets of items of
    different difficulty.

    Raises:
        ValueError: the lengths differ, or a value is NaN or outside [0, 1].

    Source: Brier 1950.
    """
    p, hit = _rates(confidences, correct)
    return float(((p - hit) ** 2).mean())


def _rates(confidences: ArrayLike, correct: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    p, hit = finite(confidences, "confidences"), finite(correct, "outcomes")
    if p.shape != hit.shape or min(p.min(), hit.min()) < 0 or max(p.max(), hit.max()) > 1:
        raise ValueError(f"expected as many confidences and outcomes in [0, 1]: {p.shape}, {hit.shape}")
    return p, hit
