"""Variation of a mean between seeds and between the models of folds, and of answers to one item.

Invariant: the variance between seeds is estimated on at least two degrees of freedom or is unknown; it is
never offset against that over items, and never dropped for being small. Source: Bengio & Grandvalet 2004, No
unbiased estimator of the variance of k-fold cross-validation, JMLR 5
"""

from collections import Counter
from collections.abc import Sequence
from math import comb, inf, isfinite, sqrt
from typing import NamedTuple

import numpy as np

from harness.stats.intervals import t_quantile, z_quantile

MIN_SEEDS = 3
_MOST_DF = 1e6  # beyond that t is the normal distribution
MIN_FOLDS = 3


class Variance(NamedTuple):
    """An estimated variance with its degrees of freedom; `df` is None if the variance counts as known."""

    variance: float
    df: float | None


class VarianceComponents(NamedTuple):
    """Variances of a mean over `n_seeds` seeds on the same items: over these items, and between seeds."""

    items: Variance
    seeds: Variance
    n_seeds: int

    @property
    def total(self) -> Variance:
        """The sum of both: the variance of the mean."""
        return satterthwaite([self.items, self.seeds])

    @property
    def is_pooled(self) -> bool:
        """Whether the variance between seeds was also estimated from other recipes."""
        return self.seeds.df != self.n_seeds - 1


def seed_variance(recipes: Sequence[Sequence[float]]) -> Variance | None:
    """Estimate the variance of one seed's result around its recipe's mean, pooled over recipes.

    Σ (R − 1) s² / Σ (R − 1) on Σ (R − 1) degrees of freedom, where each recipe is given by the results of its
    R seeds; None with fewer than two degrees of freedom, as for a single recipe with two seeds. A recipe with
    one seed adds nothing. Not where the variance differs between recipes: pass one recipe only.
    Source: the pooled variance of one-way analysis of variance; Miller 2024, arXiv:2411.00640.
    """
    groups = [np.asarray(results, float) for results in recipes]
    if not all(np.isfinite(x).all() for x in groups):
        raise ValueError(f"expected finite results of seeds: {[list(x) for x in groups]}")
    df = sum(len(x) - 1 for x in groups if len(x))
    if df < MIN_SEEDS - 1:
        return None
    return Variance(sum(float(((x - x.mean()) ** 2).sum()) for x in groups if len(x)) / df, df)


def satterthwaite(parts: Sequence[Variance]) -> Variance:
    """Add independent variances V_k on ν_k degrees of freedom: V = Σ V_k on V²/Σ(V_k²/ν_k).

    The sum counts as known where every part that matters does, and where one part is infinite. Not for
    variances that are subtracted.
    Source: Satterthwaite 1946.
    """
    if not all(part.variance >= 0 for part in parts):
        raise ValueError(f"expected variances >= 0, found {[part.variance for part in parts]}")
    total = sum(part.variance for part in parts)
    if not isfinite(total):
        return Variance(inf, None)
    share = sum((part.variance / total) ** 2 / part.df for part in parts if part.df and part.variance > 0)
    return Variance(total, 1 / share if share * _MOST_DF > 1 else None)


def detectable_mean(
    components: VarianceComponents, times: float, alpha: float = 0.05, power: float = 0.8
) -> float:
    """Return the smallest mean that `times` as many items and the same seeds could tell from 0, two-sided.

    (t_{1−α/2, ν} + t_{power, ν}) √V, V = V_I/times + V_S on Satterthwaite's ν, where the degrees of freedom
    of the items grow with the items; with `times` inf only the variance between seeds is left. Not for more
    seeds, which would lower V_S.
    Source: Satterthwaite 1946; the approximate power of the t test, Chow, Shao & Wang 2008.
    """
    if not times > 0:
        raise ValueError(f"expected times > 0, found {times}")
    df = None if components.items.df is None else components.items.df * times
    items = Variance(components.items.variance / times, df)
    total = components.seeds if times == inf else satterthwaite([items, components.seeds])
    reach = sum(
        z_quantile(p) if total.df is None else t_quantile(p, total.df) for p in (1 - alpha / 2, power)
    )
    return reach * sqrt(total.variance)


def cross_validated_variance(items: Variance, means: Sequence[float], sizes: Sequence[int]) -> Variance:
    """Add the variance over items to that between folds, each answered by its own model.

    Between folds: Σ w_j² (d_j − d̄)² · k/(k−1) with w_j the share of fold j in the items, on k − 1 degrees of
    freedom. It contains the items' variance once more, which makes up for the correlation of models that
    share most of their training rows, as far as `reports/k_fold.md` shows. The estimand is the average over
    training sets of this size. Not for the result of one of these models, nor of a model trained on all rows.
    Source: the cluster-robust variance of a mean, Miller 2024, arXiv:2411.00640; Satterthwaite 1946.
    """
    if len(means) < MIN_FOLDS or len(means) != len(sizes):
        raise ValueError(f"expected at least {MIN_FOLDS} folds with their sizes: {means}, {sizes}")
    x, weights = np.asarray(means, float), np.asarray(sizes, float) / sum(sizes)
    mean, k = float(weights @ x), len(x)
    between = float((weights**2 * (x - mean) ** 2).sum()) * k / (k - 1)
    return satterthwaite([items, Variance(between, k - 1)])


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


def pass_at_k(n: int, n_right: int, k: int) -> float:
    """Return the chance that one of k answers is right, from n drawn answers of which `n_right` are right.

    1 − C(n − c, k)/C(n, k), unbiased. Not for k greedy answers, which are all the same.
    Source: Chen et al. 2021, Evaluating large language models trained on code, equation 1.
    """
    if not (0 <= n_right <= n and 1 <= k <= n):
        raise ValueError(f"expected 0 <= right <= n and 1 <= k <= n, found {n_right}, {n} and {k}")
    return 1 - comb(n - n_right, k) / comb(n, k)
