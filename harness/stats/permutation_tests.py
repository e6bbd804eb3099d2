"""Two-sample tests by permutation: whether later rows have the same distribution as earlier ones.

Invariant: exact for independent rows, so the caller gives one row of each cluster. Every test reads the same
seeded splits of the pooled rows, the observed one first.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from harness.stats.intervals import Array, finite

N_SPLITS = 999
SHARES = (0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)
_TOPIC = 20  # a topic is a twentieth of the rows: a row and those nearest to it
_SIMULATED = 400
_ROUNDING = 1e-7  # of a distance

Weights = NDArray[np.float32]


def split_weights(n_before: int, n_after: int, n_splits: int = N_SPLITS, seed: int = 0) -> Weights:
    """Return weights (1 + splits, n): values weighted and summed give the mean after minus that before.

    The first split is the observed one: `n_before` rows, then `n_after`. The others are drawn at random. Not
    for rows that share a cluster, which move together.
    Source: Good 2005, Permutation, Parametric and Bootstrap Tests of Hypotheses, chapter 3.
    """
    if min(n_before, n_after) < 1:
        raise ValueError(f"expected rows of both samples, found {n_before} and {n_after}")
    observed = np.repeat(np.array([-1 / n_before, 1 / n_after], np.float32), [n_before, n_after])
    permuted = np.random.default_rng(seed).permuted(np.tile(observed, (n_splits, 1)), axis=1)
    return np.vstack([observed, permuted])


def permutation_p(distances: ArrayLike) -> float:
    """Return the share of splits (1 + splits,) that lie at least as far apart as the first, itself included.

    Not below 1 / (1 + splits).
    Source: Phipson & Smyth 2010, for counting the observed split.
    """
    d = finite(distances, "distances")
    return float(np.mean(d >= d[0] - _ROUNDING))


def gaussian_kernel(vectors: ArrayLike) -> Weights:
    """Return exp(−d²/m) of the distances d of vectors (n, k), m the median of d² over pairs that differ.

    Not for many thousand vectors: all pairs are held in memory.
    Source: the median heuristic of Gretton et al. 2012.
    """
    x = finite(vectors, "vectors").astype(np.float32)
    squares = (x * x).sum(1)
    d2 = np.maximum(squares[:, None] + squares - 2 * x @ x.T, 0)  # (n, n)
    np.fill_diagonal(d2, 0)
    differing = d2[d2 > 1e-6]
    kernel: Weights = np.exp(-d2 / (np.median(differing) if len(differing) else 1))
    return kernel


def kernel_distances(weights: Weights, kernel: Weights) -> Array:
    """Return MMD² of each split (splits,) by a kernel (n, n): its V-statistic w'Kw.

    Not for the size of a difference, which depends on the kernel.
    Source: Gretton et al. 2012, equation 5.
    """
    finite(kernel, "kernel")
    squares: Array = np.einsum("sn,sn->s", weights @ kernel, weights).astype(float)
    return squares


def rank_distances(weights: Weights, values: ArrayLike) -> Array:
    """Return the Kolmogorov-Smirnov distance of each split (splits,) of values (n,).

    Not for categories, which have no order.
    Source: Smirnov 1939.
    """
    x = finite(values)
    order = np.argsort(x, kind="stable")
    last = np.flatnonzero(np.diff(x[order], append=np.inf) > 0)  # of tied values
    distances: Array = np.abs(np.cumsum(weights[:, order], axis=1, dtype=float)[:, last]).max(axis=1)
    return distances


def category_distances(weights: Weights, categories: Sequence[str]) -> Array:
    """Return the total variation distance of each split (splits,) of categories (n,), in [0, 1].

    Of two categories it is the difference of their rates. Not for numbers, whose order it ignores.
    Source: Levin & Peres 2017, Markov Chains and Mixing Times, proposition 4.2.
    """
    if not len(categories):
        raise ValueError("categories: found 0, at least 1 is needed")
    _, codes = np.unique(np.asarray(categories), return_inverse=True)
    one_hot = np.eye(codes.max() + 1)[codes]  # (n, categories)
    distances: Array = np.abs(weights.astype(float) @ one_hot).sum(axis=1) / 2
    return distances


def topic_power(
    kernel: Weights, n_before: int, n_after: int, alpha: float, seed: int = 0
) -> dict[float, float]:
    """Simulate the power of the MMD test at each share of `SHARES` of later rows that turn to one topic.

    `kernel` (n, n) is of rows as they were before; both samples are drawn from them with replacement. A topic
    is a random row and the twentieth of rows nearest to it. Not for requests of a topic that the rows lack.
    Source: simulation of the test of Gretton et al. 2012 at its own level.
    """
    if min(n_before, n_after, len(kernel)) < 1:
        raise ValueError(f"expected rows of both samples, found {n_before} and {n_after}")
    rng, n = np.random.default_rng(seed), len(kernel)
    near = np.argsort(-kernel, axis=1, kind="stable")[:, : max(n // _TOPIC, 1)]  # (n, topic)

    def count(picked: NDArray[np.intp]) -> NDArray[np.intp]:
        """Count how often each row (n) is among those that are picked in each draw (draws, k)."""
        places = picked + n * np.arange(len(picked))[:, None]
        return np.bincount(places.ravel(), minlength=len(picked) * n).reshape(len(picked), n)

    def distances(share: float, n_draws: int = _SIMULATED) -> Array:
        n_moved = round(share * n_after)
        topics = near[rng.integers(n, size=n_draws)]  # (draws, topic)
        moved = np.take_along_axis(topics, rng.integers(topics.shape[1], size=(n_draws, n_moved)), 1)
        after = np.hstack([rng.integers(n, size=(n_draws, n_after - n_moved)), moved])
        before = rng.integers(n, size=(n_draws, n_before))
        return kernel_distances(
            (count(after) / n_after - count(before) / n_before).astype(np.float32), kernel
        )

    limit = np.quantile(distances(0.0, 5 * _SIMULATED), 1 - alpha)
    return {share: float(np.mean(distances(share) > limit)) for share in SHARES}
