"""Stratified sampling of a suite's items: strata by the base's answers, interim analyses, weights.

Invariant: pure and seeded; only the base's answers decide, never a candidate's. The prefix of items at each
look is a random sample within strata, so weights N_h/n_h make it represent the whole task: the delta is
post-stratified by the base's score, which removes that part of the variance.
Source: Neyman 1934; Cochran 1977, chapters 5, 9 and 12; Lan & DeMets 1983
"""

from collections.abc import Mapping, Sequence
from math import ceil, sqrt
from statistics import fmean
from typing import NamedTuple

import numpy as np
from scipy import special

from harness import stats
from harness.metrics import Metric
from harness.records import BLOCK, SampleResult

FEWEST_ITEMS, FEWEST_CLUSTERS = 150, 30  # a task with fewer of either is evaluated in full
N_LOOKS = 3
POWER = 0.9
# Expected share of items that differ: by quarters of the base's margin, smallest margins first, based on
# LoRA and DPO in the quickstart (0.37, 0.20, 0.09, 0.02); and without a margin. A wrong guess costs items,
# never validity.
_EXPECTED = (0.35, 0.20, 0.10, 0.03)
_EXPECTED_UNKNOWN = 0.15
_LEAST = 16  # items per stratum at each look
_LEAST_ITEMS = 48  # items of a task at the first look
# The base's score must be this many standard errors (on half of a first look) above chance, so that both
# halves are admitted at every look. If one half admits the other, the two must be independent, which they are
# not in samples with fixed numbers of right and wrong answers.
_CLEAR = 4.3


class ItemStrata(NamedTuple):
    """A task's items by stratum, and the expected share of differing items in each stratum.

    With `by_score` the base's score is constant within a stratum, so that a change there has one direction.
    Items of one of the `clusters` (empty if items share none) are drawn together.
    """

    ids: dict[str, tuple[str, ...]]
    expected: dict[str, float]
    by_score: bool = False
    clusters: Mapping[str, str] = {}

    @property
    def sizes(self) -> dict[str, int]:
        """The number of items of each stratum."""
        return {name: len(ids) for name, ids in self.ids.items()}

    @property
    def n(self) -> int:
        """The number of items of the task."""
        return sum(self.sizes.values())

    def variance(self, name: str) -> float:
        """Return the expected variance of an item's change in a stratum."""
        differ = self.expected[name]
        return differ * (1 - differ) if self.by_score else differ


class SamplingPlan(NamedTuple):
    """Sampling plan: items of each stratum by each interim analysis, and the one-sided alpha at each."""

    drawn: dict[str, tuple[dict[str, int], ...]]
    alphas: tuple[float, ...]

    def n(self, task: str, look: int) -> int:
        """Return the number of a task's items evaluated up to a look."""
        return sum(self.drawn[task][look].values())


def pool_of(rows: Sequence[SampleResult], metric: Metric, chance: float = 0.0) -> ItemStrata | None:
    """Stratify a task by the base's margin and score; None if it has to be evaluated in full."""
    scores = [row.parts.get(metric.name) for row in rows]
    if len(rows) < FEWEST_ITEMS or None in scores:
        return None
    clusters = {row.example_id: row.cluster or row.example_id for row in rows}
    if (n_clusters := len(set(clusters.values()))) < FEWEST_CLUSTERS:
        return None
    unclustered = n_clusters == len(rows)
    if not unclustered or any(score not in ((0.0,), (1.0,)) for score in scores):
        ids = tuple(sorted(clusters))
        return ItemStrata({"all": ids}, {"all": _EXPECTED_UNKNOWN}, clusters={} if unclustered else clusters)
    share_right = fmean(row.parts[metric.name] == (1.0,) for row in rows)
    by_score = share_right - chance > _CLEAR * sqrt(0.25 / (_count_first_look(len(rows)) / 2))
    by_margin = len(rows) >= 4 * BLOCK and all(row.margin is not None for row in rows)
    closest = sorted(rows, key=lambda row: (abs(row.margin or 0.0) if by_margin else 0.0, row.example_id))
    expected = _EXPECTED if by_margin else (_EXPECTED_UNKNOWN,)
    stratum_ids: dict[str, tuple[str, ...]] = {}
    shares: dict[str, float] = {}
    for k, indices in enumerate(np.array_split(np.arange(len(rows)), len(expected))):
        for value in (0.0, 1.0) if by_score else (None,):
            name = (f"quarter {k + 1}" if by_margin else "all") + ("" if value is None else f", {value:g}")
            members = [closest[i] for i in indices]
            stratum = [row for row in members if not by_score or row.parts[metric.name] == (value,)]
            if stratum:
                stratum_ids[name], shares[name] = tuple(row.example_id for row in stratum), expected[k]
    return ItemStrata(stratum_ids, shares, by_score)


def plan_variance(pool: ItemStrata, n_drawn: Mapping[str, int]) -> float:
    """Return the expected variance of a task's delta: over its items, and from sampling some of them."""
    full_variance = sum(size * pool.expected[name] for name, size in pool.sizes.items()) / pool.n**2
    return full_variance + sum(
        (size / pool.n) ** 2 * (1 - n_drawn[name] / size) * pool.variance(name) / n_drawn[name]
        for name, size in pool.sizes.items()
    )


def plan(pools: Mapping[str, ItemStrata], full: Sequence[int], margin: float, alpha: float) -> SamplingPlan:
    """Choose the looks: the last one large enough that an equal model passes the macro in 90 % of cases.

    Every task is evaluated on equally many items, or on all of its own, as tasks have equal weight in the
    macro. `full` holds the sizes of tasks that are evaluated in full; `margin` is the macro's, `alpha`
    one-sided.
    """
    fixed_variance = sum(_EXPECTED_UNKNOWN / n for n in full)
    n_tasks, largest = len(pools) + len(full), max(pool.n for pool in pools.values())

    def se(n_drawn: Mapping[str, dict[str, int]]) -> float:
        return sqrt(fixed_variance + sum(plan_variance(pools[t], d) for t, d in n_drawn.items())) / n_tasks

    for last_quota in (*range(BLOCK, largest, BLOCK), largest):
        drawn = {t: _allocate(pool, _round_to_blocks(pool.n, last_quota), {}) for t, pool in pools.items()}
        if stats.noninferiority_power(0.0, margin, se(drawn), alpha) >= POWER:
            break
    n_drawn: dict[str, tuple[dict[str, int], ...]] = dict.fromkeys(pools, ())
    for look in range(1, N_LOOKS + 1):
        for task, pool in pools.items():
            previous = n_drawn[task][-1] if n_drawn[task] else {}
            n = _round_to_blocks(pool.n, last_quota * look / N_LOOKS)
            n = _count_first_look(pool.n) if look == 1 and pool.n <= BLOCK else n
            n_drawn[task] += (_allocate(pool, n, previous),)
    looks = [k for k in range(N_LOOKS) if k == 0 or any(d[k] != d[k - 1] for d in n_drawn.values())]
    n_drawn = {task: tuple(counts[k] for k in looks) for task, counts in n_drawn.items()}
    information = [se({t: counts[k] for t, counts in n_drawn.items()}) ** -2 for k in range(len(looks))]
    bounds = stats.interim_bounds([i / information[-1] for i in information], alpha)
    # No look may exceed alpha, which the conversion to z and back could by rounding.
    return SamplingPlan(n_drawn, tuple(min(float(special.ndtr(-z)), alpha) for z in bounds))


def order_items(pool: ItemStrata, n_drawn: Sequence[Mapping[str, int]], seed: int) -> tuple[str, ...]:
    """Return a task's items in the order of evaluation: each look's share, shuffled; then the rest."""
    rng, ids_by_stratum = np.random.default_rng(seed), dict[str, list[str]]()
    for stratum, ids in pool.ids.items():
        shuffled_ids = [ids[i] for i in rng.permutation(len(ids))]
        if pool.clusters:  # items of a cluster stay together; a look may stop within the last cluster
            names = sorted({pool.clusters[i] for i in ids})
            rank_by_cluster = dict(zip(names, rng.permutation(len(names)).tolist(), strict=True))
            shuffled_ids.sort(key=lambda i: rank_by_cluster[pool.clusters[i]])
        ids_by_stratum[stratum] = shuffled_ids
    ordered_ids: list[str] = []
    n_before = dict.fromkeys(pool.ids, 0)
    for counts in (*n_drawn, pool.sizes):
        new_items = [i for name, ids in ids_by_stratum.items() for i in ids[n_before[name] : counts[name]]]
        ordered_ids += [new_items[i] for i in rng.permutation(len(new_items))]
        n_before = dict(counts)
    return tuple(ordered_ids)


def weights(pool: ItemStrata, n_drawn: Mapping[str, int], order: Sequence[str]) -> dict[str, float]:
    """Return the weight N_h/n_h of each item evaluated up to a look."""
    stratum = {i: name for name, ids in pool.ids.items() for i in ids}
    sampled = order[: sum(n_drawn.values())]
    return dict(zip(sampled, stats.inclusion_weights([stratum[i] for i in sampled], pool.sizes), strict=True))


def _round_to_blocks(n: int, quota: float) -> int:
    return min(n, ceil(quota / BLOCK - 1e-9) * BLOCK)


def _count_first_look(n: int) -> int:
    """Return the minimum number of items of the first look: a block, or a third of a smaller task."""
    return BLOCK if n > BLOCK else max(n // N_LOOKS, _LEAST_ITEMS)


def _allocate(pool: ItemStrata, n: int, n_before: Mapping[str, int]) -> dict[str, int]:
    """Allocate n items to the strata by Neyman's rule; no stratum loses items that it already had."""
    n_had = {name: n_before.get(name, 0) for name in pool.ids}
    spread = {name: sqrt(d) for name, d in pool.expected.items()}
    n_wanted = stats.neyman_allocation(pool.sizes, spread, n, least=_LEAST)
    room = {name: max(n_wanted[name] - n_had[name], 0) for name in pool.ids}
    remaining = n - sum(n_had.values())
    n_more = stats.neyman_allocation(room, dict.fromkeys(room, 1.0), remaining, least=0) if remaining else {}
    return {name: n_had[name] + n_more.get(name, 0) for name in pool.ids}
