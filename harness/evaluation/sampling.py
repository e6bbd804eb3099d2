"""Stratified sampling of a suite's items: strata by the base's margin, interim analyses, weights.

Invariant: pure and seeded; only what the base answered decides, never a candidate. Every prefix that a
look stops at is a random sample within strata, so weights N_h/n_h make it stand for the whole task.
Source: Neyman 1934; Cochran 1977, chapters 5 and 12; Lan & DeMets 1983.
"""

from collections.abc import Mapping, Sequence
from math import ceil, sqrt
from typing import NamedTuple

import numpy as np
from scipy import special

from harness import stats
from harness.metrics import Metric
from harness.records import BLOCK, SampleResult

FEWEST_BLOCKS = 4  # a task with fewer is asked in full: it fills few batches as it is
N_LOOKS = 3
POWER = 0.9
# Share of items expected to differ: by quarters of the base's margin, the closest calls first, after what
# LoRA and DPO changed in the quickstart (0.37, 0.20, 0.09, 0.02); and where no margin is known. A wrong
# guess costs items and never validity.
_EXPECTED = (0.35, 0.20, 0.10, 0.03)
_EXPECTED_UNKNOWN = 0.15
_LEAST = 16  # items a stratum at each look
_SHARES = tuple(i / 40 for i in range(1, 41))


class Pool(NamedTuple):
    """A task's items by stratum, and the share of each stratum that is expected to differ."""

    ids: dict[str, tuple[str, ...]]
    expected: dict[str, float]

    @property
    def sizes(self) -> dict[str, int]:
        """Items of each stratum."""
        return {name: len(ids) for name, ids in self.ids.items()}

    @property
    def n(self) -> int:
        """Items of the task."""
        return sum(self.sizes.values())


class Plan(NamedTuple):
    """Sampling plan: items of each stratum by each interim analysis, and the one-sided alpha at each."""

    drawn: dict[str, tuple[dict[str, int], ...]]
    alphas: tuple[float, ...]

    def n(self, task: str, look: int) -> int:
        """Items of a task that are asked by a look."""
        return sum(self.drawn[task][look].values())


def pool_of(rows: Sequence[SampleResult], metric: Metric) -> Pool | None:
    """Stratify a task by what the base answered; None where it has to be asked in full.

    That is a task of few items, of items that share clusters, or of scores other than 0 and 1.
    """
    if len(rows) < FEWEST_BLOCKS * BLOCK or len(metric.parts) != 1:
        return None
    if len({row.cluster or row.example_id for row in rows}) < len(rows):
        return None
    if any(row.parts.get(metric.name) not in ((0.0,), (1.0,)) for row in rows):
        return None
    if any(row.margin is None for row in rows):
        return Pool({"all": tuple(sorted(row.example_id for row in rows))}, {"all": _EXPECTED_UNKNOWN})
    closest = sorted(rows, key=lambda row: (abs(row.margin or 0.0), row.example_id))
    parts = np.array_split(np.arange(len(rows)), len(_EXPECTED))
    ids = {f"quarter {k}": tuple(closest[i].example_id for i in part) for k, part in enumerate(parts, 1)}
    return Pool(ids, dict(zip(ids, _EXPECTED, strict=True)))


def planned_variance(pool: Pool, drawn: Mapping[str, int]) -> float:
    """Return the variance to be expected of a task's delta: of its items, and of drawing some of them."""
    parts = [
        (pool.sizes[name] / pool.n, pool.sizes[name], drawn[name], pool.expected[name]) for name in pool.ids
    ]
    whole = sum(weight * d for weight, _, _, d in parts) / pool.n
    return whole + sum(weight**2 * (1 - n / size) * d / n for weight, size, n, d in parts)


def plan(pools: Mapping[str, Pool], full: Sequence[int], margin: float, alpha: float) -> Plan:
    """Choose the looks: the last one large enough that an equal model passes the macro in 90 % of cases.

    `full` holds the items of the other tasks of the macro, which are asked in full. The last look asks
    everything where less would not do. `margin` is the macro's, `alpha` one-sided.
    """
    fixed = sum(_EXPECTED_UNKNOWN / n for n in full)
    n_tasks = len(pools) + len(full)

    def se(drawn: Mapping[str, dict[str, int]]) -> float:
        return sqrt(fixed + sum(planned_variance(pools[t], d) for t, d in drawn.items())) / n_tasks

    def alone(share: float) -> dict[str, dict[str, int]]:
        return {t: _allocate(pool, _blocks(pool.n, share), {}) for t, pool in pools.items()}

    enough = (s for s in _SHARES if stats.noninferiority_power(0.0, margin, se(alone(s)), alpha) >= POWER)
    last = next(enough, 1.0)
    drawn: dict[str, tuple[dict[str, int], ...]] = dict.fromkeys(pools, ())
    for look in range(1, N_LOOKS + 1):
        for task, pool in pools.items():
            before = drawn[task][-1] if drawn[task] else {}
            drawn[task] += (_allocate(pool, _blocks(pool.n, last * look / N_LOOKS), before),)
    kept = [k for k in range(N_LOOKS) if k == 0 or any(of[k] != of[k - 1] for of in drawn.values())]
    drawn = {task: tuple(of[k] for k in kept) for task, of in drawn.items()}
    information = [se({t: of[k] for t, of in drawn.items()}) ** -2 for k in range(len(kept))]
    bounds = stats.interim_bounds([i / information[-1] for i in information], alpha)
    # No look has more than alpha; the way there and back over z may round above it.
    return Plan(drawn, tuple(min(float(special.ndtr(-z)), alpha) for z in bounds))


def in_order(pool: Pool, drawn: Sequence[Mapping[str, int]], seed: int) -> tuple[str, ...]:
    """Return a task's items in the order they are asked in: each look's share, shuffled; then the rest."""
    rng = np.random.default_rng(seed)
    shuffled = {name: [ids[i] for i in rng.permutation(len(ids))] for name, ids in pool.ids.items()}
    out: list[str] = []
    before = dict.fromkeys(pool.ids, 0)
    for counts in (*drawn, pool.sizes):
        more = [i for name, ids in shuffled.items() for i in ids[before[name] : counts[name]]]
        out += [more[i] for i in rng.permutation(len(more))]
        before = dict(counts)
    return tuple(out)


def weights(pool: Pool, drawn: Mapping[str, int], order: Sequence[str]) -> dict[str, float]:
    """Return the weight N_h/n_h of each item that is asked by a look."""
    of = {i: name for name, ids in pool.ids.items() for i in ids}
    asked = order[: sum(drawn.values())]
    return dict(zip(asked, stats.inclusion_weights([of[i] for i in asked], pool.sizes), strict=True))


def _blocks(n: int, share: float) -> int:
    """Round a share of n items up to whole blocks."""
    return min(n, ceil(share * n / BLOCK - 1e-9) * BLOCK)


def _allocate(pool: Pool, n: int, before: Mapping[str, int]) -> dict[str, int]:
    """Share n items out over the strata as Neyman does, none of which may lose an item that it had before."""
    had = {name: before.get(name, 0) for name in pool.ids}
    spread = {name: sqrt(d) for name, d in pool.expected.items()}
    wanted = stats.neyman_allocation(pool.sizes, spread, n, least=_LEAST)
    room = {name: max(wanted[name] - had[name], 0) for name in pool.ids}
    left = n - sum(had.values())
    more = stats.neyman_allocation(room, dict.fromkeys(room, 1.0), left, least=0) if left else {}
    return {name: had[name] + more.get(name, 0) for name in pool.ids}
