"""The items of the suites in two halves, by cluster: one to search on, one to confirm on.

Invariant: no cluster has items in both halves, also not one that several tasks share; the split
depends on the items and the seed alone, never on an answer. Pinned items are in both, because none
of them may be lost.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from harness.gating import Measurement
from harness.records import SampleResult

Half = Literal["search", "confirm"]
HALVES: tuple[Half, Half] = ("search", "confirm")


class Split(NamedTuple):
    """Which half each cluster lies in."""

    half_of: Mapping[str, Half]
    seed: int

    def part(self, measured: Sequence[Measurement], half: Half) -> list[Measurement]:
        """Cut both arms of every task to one half.

        A task with fewer than two clusters there is left out: one cluster has no interval.
        """
        cut = [
            m
            if m.role == "regression"
            else m._replace(base=self.rows(m.base, half), new=self.rows(m.new, half))
            for m in measured
        ]
        return [m for m in cut if m.role == "regression" or len({cluster_of(row) for row in m.base}) > 1]

    def rows(self, rows: Sequence[SampleResult], half: Half) -> list[SampleResult]:
        """Keep the rows of one half."""
        return [row for row in rows if self.half_of[cluster_of(row)] == half]


def cluster_of(row: SampleResult) -> str:
    """Return the cluster of an item: its own id where it has none."""
    return row.cluster or row.example_id


def split(tasks: Mapping[str, Sequence[SampleResult]], seed: int) -> Split:
    """Split the clusters of all tasks, large ones first, so that each task is halved evenly."""
    total = {task: len(rows) for task, rows in tasks.items()}
    sizes: dict[str, Counter[str]] = {}
    for task, rows in tasks.items():
        for row in rows:
            sizes.setdefault(cluster_of(row), Counter())[task] += 1
    filled: dict[Half, Counter[str]] = {half: Counter() for half in HALVES}
    half_of: dict[str, Half] = {}
    for cluster in sorted(sizes, key=lambda c: (-sizes[c].total(), _drawn(c, seed))):
        halves = HALVES if _drawn(cluster, seed) % 2 else HALVES[::-1]
        half = min(halves, key=lambda h: sum(n * filled[h][t] / total[t] for t, n in sizes[cluster].items()))
        half_of[cluster] = half
        filled[half].update(sizes[cluster])
    return Split(half_of, seed)


def _drawn(cluster: str, seed: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/rescue/{cluster}".encode()).digest()[:8], "big")
