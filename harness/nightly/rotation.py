"""Item rotation: the same few anchors every night, and of the others the next ones by cluster.

Invariant: pure. A cluster is evaluated whole; clusters of several tasks that ask the same document are one,
and so are those of one name. The order depends on the items and the seed alone, and goes through the tasks in
turn.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from typing import NamedTuple

import numpy as np

from harness import gating
from harness.records import Example, digest

Item = tuple[str, str]  # task, example id
Cluster = tuple[Item, ...]


class ItemPool(NamedTuple):
    """All items of a series by cluster: those evaluated every night, and those that rotate."""

    anchors: tuple[Cluster, ...]
    rest: tuple[Cluster, ...]


class NightItems(NamedTuple):
    """Items of a series for one night; `taken` clusters of the pool were evaluated by its end.

    `left` clusters have not been evaluated yet; 0 where the pool is used up and goes round again.
    """

    anchors: tuple[Cluster, ...]
    fresh: tuple[Cluster, ...]
    taken: int
    left: int


def build_pool(tasks: Mapping[str, Sequence[Example]], n_anchors: int, seed: int = 0) -> ItemPool:
    """Order the clusters of some tasks and set the anchors aside, at least so many items of them."""
    by_task = [_shuffle(task, examples, seed) for task, examples in sorted(tasks.items())]
    ordered = _join([one for turn in zip_longest(*by_task) for one in turn if one], tasks)
    n = _count_clusters(ordered, n_anchors)
    return ItemPool(tuple(ordered[:n]), tuple(ordered[n:]))


def choose_next_items(pool: ItemPool, taken: int, n_items: int) -> NightItems:
    """Choose the next clusters, at least so many items of them, or all where there are fewer."""
    if not pool.rest:
        return NightItems(pool.anchors, (), taken, 0)
    start = taken % len(pool.rest)
    turned = [*pool.rest[start:], *pool.rest[:start]]
    fresh = turned[: _count_clusters(turned, n_items)]
    after = taken + len(fresh)
    return NightItems(pool.anchors, tuple(fresh), after, max(len(pool.rest) - after, 0))


def ids_by_task(clusters: Iterable[Cluster]) -> dict[str, list[str]]:
    """Map tasks to the ids of a choice of clusters, in its order."""
    out: dict[str, list[str]] = {}
    for cluster in clusters:
        for task, example_id in cluster:
            out.setdefault(task, []).append(example_id)
    return out


def _count_clusters(clusters: Sequence[Cluster], n_items: int) -> int:
    """Count the first clusters that together hold so many items."""
    n = 0
    for at, cluster in enumerate(clusters):
        if n >= n_items:
            return at
        n += len(cluster)
    return len(clusters)


def _join(ordered: Sequence[Cluster], tasks: Mapping[str, Sequence[Example]]) -> list[Cluster]:
    """Join the clusters that share a name or a document, in the place of the first."""
    cluster_of = {
        (task, one.id): one.cluster or f"{task}/{one.id}" for task, of in tasks.items() for one in of
    }
    joined = gating.join_clusters(
        (document, cluster_of[task, item])
        for task, of in tasks.items()
        for item, document in gating.number_documents(_digests(of)).items()
    )
    out: dict[str, Cluster] = {}
    for cluster in ordered:
        own = cluster_of[cluster[0]]
        key = joined.get(own, own)
        out[key] = (*out.get(key, ()), *cluster)
    return list(out.values())


def _digests(examples: Iterable[Example]) -> dict[str, str]:
    """Map items to the digests of their documents, where these are known."""
    asked = {one.id: digest([one.messages, one.choices]) if one.messages else "" for one in examples}
    found = ((item, gating.document_of(item, prompt)) for item, prompt in asked.items())
    return {item: document for item, document in found if document}


def _shuffle(task: str, examples: Sequence[Example], seed: int) -> list[Cluster]:
    clusters: dict[str, list[Item]] = {}
    for example in examples:
        clusters.setdefault(example.cluster or example.id, []).append((task, example.id))
    rng = np.random.default_rng(int(digest([task, seed]), 16))
    names = sorted(clusters)
    return [tuple(sorted(clusters[names[i]])) for i in rng.permutation(len(names))]
