"""Two halves of the suites' items: the base on one admits the other, and a rescue searches on one alone.

Invariant: no cluster has items in both halves, also not one that several tasks share, and no document; the
split depends on the items and the seed alone, never on an answer.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from harness.gating.shared_documents import join_rows
from harness.records import SampleResult

Half = Literal["search", "confirm"]
HALVES: tuple[Half, Half] = ("search", "confirm")


class HalfSplit(NamedTuple):
    """Assignment of clusters to halves."""

    half_of: Mapping[str, Half]
    seed: int

    def rows(self, rows: Sequence[SampleResult], half: Half) -> list[SampleResult]:
        """Keep the rows of one half."""
        return [row for row in rows if self.half_of[cluster_name(row)] == half]


def find_other_half(half: Half) -> Half:
    """Return the half that is not this one."""
    return "confirm" if half == "search" else "search"


def cluster_name(row: SampleResult) -> str:
    """Return the cluster of an item: its own id where it has none."""
    return row.cluster or row.example_id


def split(
    tasks: Mapping[str, Sequence[SampleResult]],
    seed: int,
    documents: Mapping[str, Mapping[str, str]] = {},
) -> HalfSplit:
    """Split the clusters of all tasks, large ones first, so that each task is halved evenly.

    `documents` maps tasks and items to the digests of documents where the rows do not name them.
    """
    named = ((rows, documents.get(task, {})) for task, rows in tasks.items())
    joined = join_rows(named, cluster_name)
    total = {task: len(rows) for task, rows in tasks.items()}
    sizes: dict[str, dict[str, int]] = {}  # of a cluster in each task
    for task, rows in tasks.items():
        names = (joined.get(name, name) for name in map(cluster_name, rows))
        for cluster, n in Counter(names).items():
            sizes.setdefault(cluster, {})[task] = n
    filled: dict[Half, dict[str, int]] = {half: dict.fromkeys(tasks, 0) for half in HALVES}
    half_of: dict[str, Half] = {}
    order = {cluster: _hash(cluster, seed) for cluster in sizes}
    large_first = {cluster: (-sum(of.values()), order[cluster]) for cluster, of in sizes.items()}
    for cluster in sorted(sizes, key=large_first.__getitem__):
        of = sizes[cluster].items()
        first, second = HALVES if order[cluster] % 2 else HALVES[::-1]
        loads = [sum([n * filled[half][task] / total[task] for task, n in of]) for half in (first, second)]
        half_of[cluster] = half = first if loads[0] <= loads[1] else second
        for task, n in of:
            filled[half][task] += n
    return HalfSplit(half_of | {name: half_of[of] for name, of in joined.items()}, seed)


def _hash(cluster: str, seed: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/rescue/{cluster}".encode()).digest()[:8], "big")
