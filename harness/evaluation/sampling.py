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
    single = n_clusters == len(rows)
    if not single or any(score not in ((0.0,), (1.0,)) for score in scores):
        ids = tuple(sorted(clusters))
        return ItemStrata({"all": ids}, {"all": _EXPECTED_UNKNOWN}, clusters={} if single else clusters)
    right = fmean(row.parts[metric.name] == (1.0,) for row in rows)
    by_score = right - chance > _CLEAR * sqrt(0.25 / (_count_first_look(len(rows)) / 2))
    by_margin = len(rows) >= 4 * BLOCK and all(row.margin is not None for row in rows)
    closest = sorted(rows, key=lambda row: (abs(row.margin or 0.0) if by_margin else 0.0, row.example_id))
    expected = _EXPECTED if by_margin else (_EXPECTED_UNKNOWN,)
    stratum_ids: dict[str, tuple[str, ...]] = {}
    shares: dict[str, float] = {}
    for k, part in enumerate(np.array_split(np.arange(len(rows)), len(expected))):
        for scored in (0.0, 1.0) if by_score else (None,):
            name = (f"quarter {k + 1}" if by_margin else "all") + ("" if scored is None else f", {scored:g}")
            members = [closest[i] for i in part]
            stratum = [row for row in members if not by_score or row.parts[metric.name] == (scored,)]
            if stratum:
                stratum_ids[name], shares[name] = tuple(row.example_id for row in stratum), expected[k]
    return ItemStrata(stratum_ids, shares, by_score)


def plan_variance(pool: ItemStrata, drawn: Mapping[str, int]) -> float:
    """Return the expected variance of a task's delta: over its items, and from sampling some of them."""
    whole = sum(size * pool.expected[name] for name, size in pool.sizes.items()) / pool.n**2
    return whole + sum(
        (size / pool.n) ** 2 * (1 - drawn[name] / size) * pool.variance(name) / drawn[name]
        for name, size in pool.sizes.items()
    )


def plan(pools: Mapping[str, ItemStrata], full: Sequence[int], margin: float, alpha: float) -> SamplingPlan:
    """Choose the looks: the last one large enough that an equal model passes the macro in 90 % of cases.

    Every task is evaluated on equally many items, or on all of its own, as tasks have equal weight in the
    macro. `full` holds the sizes of tasks that are evaluated in full; `margin` is the macro's, `alpha`
    one-sided.
    """
    fixed = sum(_EXPECTED_UNKNOWN / n for n in full)
    n_tasks, largest = len(pools) + len(full), max(pool.n for pool in pools.values())

    def se(drawn: Mapping[str, dict[str, int]]) -> float:
        return sqrt(fixed + sum(plan_variance(pools[t], d) for t, d in drawn.items())) / n_tasks

    def alone(n: int) -> dict[str, dict[str, int]]:
        return {t: _allocate(pool, _round_to_blocks(pool.n, n), {}) for t, pool in pools.items()}

    quotas = range(BLOCK, largest, BLOCK)
    enough = (n for n in quotas if stats.noninferiority_power(0.0, margin, se(alone(n)), alpha) >= POWER)
    last = next(enough, largest)
    drawn: dict[str, tuple[dict[str, int], ...]] = dict.fromkeys(pools, ())
    for look in range(1, N_LOOKS + 1):
        for task, pool in pools.items():
            before = drawn[task][-1] if drawn[task] else {}
            n = _round_to_blocks(pool.n, last * look / N_LOOKS)
            n = _count_first_look(pool.n) if look == 1 and pool.n <= BLOCK else n
            drawn[task] += (_allocate(pool, n, before),)
    kept = [k for k in range(N_LOOKS) if k == 0 or any(d[k] != d[k - 1] for d in drawn.values())]
    drawn = {task: tuple(counts[k] for k in kept) for task, counts in drawn.items()}
    information = [se({t: counts[k] for t, counts in drawn.items()}) ** -2 for k in range(len(kept))]
    bounds = stats.interim_bounds([i / information[-1] for i in information], alpha)
    # No look may exceed alpha, which the conversion to z and back could by rounding.
    return SamplingPlan(drawn, tuple(min(float(special.ndtr(-z)), alpha) for z in bounds))


def order_items(pool: ItemStrata, drawn: Sequence[Mapping[str, int]], seed: int) -> tuple[str, ...]:
    """Return a task's items in the order of evaluation: each look's share, shuffled; then the rest."""
    rng, shuffled = np.random.default_rng(seed), dict[str, list[str]]()
    for stratum, ids in pool.ids.items():
        mixed = [ids[i] for i in rng.permutation(len(ids))]
        if pool.clusters:  # items of one stay together; a look may stop within the last cluster
            names = sorted({pool.clusters[i] for i in ids})
            place = dict(zip(names, rng.permutation(len(names)).tolist(), strict=True))
            mixed.sort(key=lambda i: place[pool.clusters[i]])
        shuffled[stratum] = mixed
    ordered: list[str] = []
    before = dict.fromkeys(pool.ids, 0)
    for counts in (*drawn, pool.sizes):
        more = [i for name, ids in shuffled.items() for i in ids[before[name] : counts[name]]]
        ordered += [more[i] for i in rng.permutation(len(more))]
        before = dict(counts)
    return tuple(ordered)


def weights(pool: ItemStrata, drawn: Mapping[str, int], order: Sequence[str]) -> dict[str, float]:
    """Return the weight N_h/n_h of each item evaluated up to a look."""
    stratum = {i: name for name, ids in pool.ids.items() for i in ids}
    sampled = order[: sum(drawn.values())]
    return dict(zip(sampled, stats.inclusion_weights([stratum[i] for i in sampled], pool.sizes), strict=True))


def _round_to_blocks(n: int, quota: float) -> int:
    return min(n, ceil(quota / BLOCK - 1e-9) * BLOCK)


def _count_first_look(n: int) -> int:
    """Return the minimum number of items of the first look: a block, or a third of a smaller task."""
    return BLOCK if n > BLOCK else max(n // N_LOOKS, _LEAST_ITEMS)


def _allocate(pool: ItemStrata, n: int, before: Mapping[str, int]) -> dict[str, int]:
    """Allocate n items to the strata by Neyman's rule; no stratum loses items that it already had."""
    had = {name: before.get(name, 0) for name in pool.ids}
    spread = {name: sqrt(d) for name, d in pool.expected.items()}
    wanted = stats.neyman_allocation(pool.sizes, spread, n, least=_LEAST)
    room = {name: max(wanted[name] - had[name], 0) for name in pool.ids}
    remaining = n - sum(had.values())
    more = stats.neyman_allocation(room, dict.fromkeys(room, 1.0), remaining, least=0) if remaining else {}
    return {name: had[name] + more.get(name, 0) for name in pool.ids}
