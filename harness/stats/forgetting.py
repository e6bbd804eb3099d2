"""Retention over one fine-tune, and backward transfer over a series of releases.

Invariant: forgetting is never hidden by a task that was not yet trained; what was at chance has
nothing to retain, and says so.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from harness.stats.intervals import finite


class Continual(NamedTuple):
    """Measures over T stages: final accuracy, backward and forward transfer, average forgetting."""

    acc: float
    bwt: float
    fwt: float
    forgetting: float


def continual(scores: ArrayLike, baseline: ArrayLike) -> Continual:
    """Summarise scores (T, T): row i after stage i, column j on task j; `baseline` (T,) before any stage.

    ACC = mean_j R_Tj, BWT = mean_{j<T} (R_Tj − R_jj), FWT = mean_{j>1} (R_{j−1,j} − b_j), forgetting
    = mean_{j<T} (max_{i<T} R_ij − R_Tj), all in the scores' unit. Not for tasks without an order,
    nor for stages that leave a score out.

    Raises:
        ValueError: the matrix is not square with at least two stages, or a score is NaN.

    Source: Lopez-Paz & Ranzato 2017; forgetting: Chaudhry et al. 2018.
    """
    r, b = finite(scores, "scores", 2), finite(baseline, "baseline", 2)
    if r.ndim != 2 or r.shape[0] != r.shape[1] or b.shape != (len(r),):
        raise ValueError(f"expected scores (T, T) and a baseline (T,), found {r.shape} and {b.shape}")
    last, own = r[-1], np.diag(r)
    ahead = np.diag(r, 1)  # R_{j−1, j}
    return Continual(
        acc=float(last.mean()),
        bwt=float((last - own)[:-1].mean()),
        fwt=float((ahead - b[1:]).mean()),
        forgetting=float((r[:-1, :-1].max(axis=0) - last[:-1]).mean()),
    )


def retention(base: float, new: float, chance: float) -> float | None:
    """Return the share of the base's skill above chance that is left: (new − chance)/(base − chance).

    1 is all of it, above 1 more; None where the base is not above chance. Not for a base whose
    interval holds chance: the ratio is then mostly noise.

    Raises:
        ValueError: a score is NaN.

    Source: Luo et al. 2023, arXiv:2308.08747, for scores normalised by the base.
    """
    base, new, chance = finite([base, new, chance], "scores")
    return float((new - chance) / (base - chance)) if base > chance else None
