"""Variance of a mean in k-fold cross-validation: over items, and between the models of the folds.

Invariant: nothing is subtracted, and the models' part is never dropped for being small. No unbiased estimator
of this variance exists, so the error of this one is known from simulation only.
Source: Bengio & Grandvalet 2004, No unbiased estimator of the variance of k-fold cross-validation, JMLR 5.
"""

from collections.abc import Sequence

import numpy as np

from harness.stats.random_effects import Variance, satterthwaite

MIN_FOLDS = 3


def fold_variance(means: Sequence[float], sizes: Sequence[int]) -> Variance:
    """Estimate the variance of a mean over folds, each answered by its own model, from how the folds differ.

    Σ w_j² (d_j − d̄)² · k/(k−1) with w_j the share of fold j in the items, on k − 1 degrees of freedom: the
    variance of a mean over k clusters. It contains the differences between the models and, once more, those
    between the items. Not where one model answered all items.

    Raises:
        ValueError: there are fewer than three folds, or not as many sizes.

    Source: the cluster-robust variance of a mean, Miller 2024, arXiv:2411.00640.
    """
    if len(means) < MIN_FOLDS or len(means) != len(sizes):
        raise ValueError(f"expected at least {MIN_FOLDS} folds with their sizes: {means}, {sizes}")
    x, weights = np.asarray(means, float), np.asarray(sizes, float) / sum(sizes)
    mean, k = float(weights @ x), len(x)
    return Variance(float((weights**2 * (x - mean) ** 2).sum()) * k / (k - 1), k - 1)


def cross_validated_variance(items: Variance, means: Sequence[float], sizes: Sequence[int]) -> Variance:
    """Add the variance over items to that between folds, on Satterthwaite's ν.

    The models of k folds share most of their training rows, so their results are correlated more than the
    spread between folds shows; counting the items twice makes up for it, as far as `reports/k_fold.md` shows.
    The estimand is the average over training sets of this size. Not for the result of one of these models,
    nor of a model trained on all rows.

    Raises:
        ValueError: as `fold_variance`.

    Source: Satterthwaite 1946; simulation, `reports/studies/k_fold.py`.
    """
    return satterthwaite([items, fold_variance(means, sizes)])
