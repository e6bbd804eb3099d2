"""Diversity of answers, pass@k, and the signal-to-noise ratio of a task.

Invariant: the diversity of no answers is unknown, not 0.
"""

from collections import Counter
from collections.abc import Sequence
from math import comb

from numpy.typing import ArrayLike

from harness.stats.intervals import finite


def commonest(outputs: Sequence[str]) -> tuple[str, float] | None:
    """Return the most frequent answer and its share in (0, 1]; None without answers.

    A collapsed model has a share of 1. Of equally frequent answers the first counts. Blanks around an answer
    are ignored. Not for comparing different numbers of answers below some 30: the share is at least 1/n.

    Source: Berger & Parker 1970, the dominance of the most abundant kind.
    """
    if not outputs:
        return None
    text, n = Counter(output.strip() for output in outputs).most_common(1)[0]
    return text, n / len(outputs)


def unique_share(outputs: Sequence[str]) -> float | None:
    """Return the share of different answers among k samples of one prompt, in (0, 1]; None without answers.

    Blanks around an answer are ignored. 1/k means a collapsed model or greedy decoding. Not for comparing
    different k: the share falls with k.

    Source: the simplest case of type-token ratios, Templin 1957.
    """
    return len({output.strip() for output in outputs}) / len(outputs) if outputs else None


def signal_to_noise(scores: ArrayLike, repeats: ArrayLike) -> float | None:
    """Return a task's spread over models that should differ, relative to the spread of repeated measurements.

    (max − min of `scores`)/(standard deviation of `repeats`): scores of checkpoints or candidates, and of A/A
    measurements of one model. Below some 3 a task ranks by noise. None if the repeats do not vary. Not for
    repeats on the same items with greedy decoding, unless the layout or the items were sampled again.

    Raises:
        ValueError: fewer than two scores or repeats, or a value is NaN.

    Source: Heineman et al. 2025, arXiv:2508.13144.
    """
    x, noise = finite(scores, "scores", 2), float(finite(repeats, "repeats", 2).std(ddof=1))
    return float(x.max() - x.min()) / noise if noise > 0 else None


def pass_at_k(n: int, n_right: int, k: int) -> float:
    """Return the chance that one of k answers is right, from n drawn answers of which `n_right` are right.

    1 − C(n − c, k)/C(n, k), unbiased. Not for k greedy answers, which are all the same.

    Raises:
        ValueError: not 0 ≤ c ≤ n, or not 1 ≤ k ≤ n.

    Source: Chen et al. 2021, Evaluating large language models trained on code, equation 1.
    """
    if not (0 <= n_right <= n and 1 <= k <= n):
        raise ValueError(f"expected 0 <= right <= n and 1 <= k <= n, found {n_right}, {n} and {k}")
    return 1 - comb(n - n_right, k) / comb(n, k)
