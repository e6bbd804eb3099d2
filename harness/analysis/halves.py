"""Items of different tasks that share a document, and the split of all items into two halves.

Invariant: an item is identified by its document's digest, and by its position among the task's items with the
same digest. Clusters that share a document are joined; no cluster and no document has items in both halves.
The split depends on items and seed alone.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from harness.records import SampleResult

_LM_EVAL_DOCUMENT = re.compile(r"-([0-9a-f]{64})$")  # suffix of an lm-eval item's id


def document_of(example_id: str, prompt_digest: str) -> str:
    """Return the digest of an item's document: lm-eval's, from the item's id, or the prompt's."""
    named = _LM_EVAL_DOCUMENT.search(example_id)
    return named[1] if named else prompt_digest


def documents_of(rows: Iterable[SampleResult], known: Mapping[str, str]) -> dict[str, str]:
    """Map the items of one task to their documents, named as by `number_documents`.

    `known` maps items to document digests if the rows do not name them.
    """
    prompts = {row.example_id: row.prompt_digest for row in rows}
    named = {i: known.get(i) or document_of(i, prompts[i]) for i in sorted(prompts)}
    return number_documents({item: document for item, document in named.items() if document})


def number_documents(digests: Mapping[str, str]) -> dict[str, str]:
    """Map item ids of one task to document names; items with the same digest are numbered.

    If there are fewer than half as many digests as items, only digests of single items are kept: the others
    do not identify a question.
    """
    counts, seen = Counter(digests.values()), Counter[str]()
    out: dict[str, str] = {}
    for item, document in digests.items():
        if counts[document] == 1 or 2 * len(counts) >= len(digests):
            seen[document] += 1
            out[item] = f"{document} {seen[document]}"
    return out


def join_rows(
    tasks: Iterable[tuple[Sequence[SampleResult], Mapping[str, str]]], name: Callable[[SampleResult], str]
) -> dict[str, str]:
    """Map clusters of several tasks' rows to one representative per group that shares documents.

    `name` returns a row's cluster.
    """
    known = ((rows, documents_of(rows, documents)) for rows, documents in tasks)
    return join_clusters(
        (documents[row.example_id], name(row))
        for rows, documents in known
        for row in rows
        if row.example_id in documents
    )


def join_clusters(held: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Map clusters to one representative per group that shares documents; `held` are (document, cluster)."""
    holders: dict[str, set[str]] = {}
    for document, cluster in held:
        holders.setdefault(document, set()).add(cluster)
    shared = [sorted(names) for names in holders.values() if len(names) > 1]
    names = sorted({name for group in shared for name in group})
    if not names:
        return {}
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    place = {name: i for i, name in enumerate(names)}
    edges = np.array([(place[group[0]], place[other]) for group in shared for other in group[1:]])
    graph = coo_array((np.ones(len(edges)), edges.T), shape=(len(names), len(names)))
    joined = connected_components(graph, directed=False)[1]
    first = {of: names[i] for i, of in reversed([*enumerate(joined.tolist())])}
    return {name: first[joined[i]] for name, i in place.items()}


Half = Literal["search", "confirm"]
HALVES: tuple[Half, Half] = ("search", "confirm")


class HalfSplit(NamedTuple):
    """Assignment of clusters to halves."""

    half_of: Mapping[str, Half]
    seed: int

    def rows(self, rows: Sequence[SampleResult], half: Half) -> list[SampleResult]:
        """Select the rows of one half."""
        return [row for row in rows if self.half_of[cluster_name(row)] == half]


def find_other_half(half: Half) -> Half:
    """Return the other half."""
    return "confirm" if half == "search" else "search"


def cluster_name(row: SampleResult) -> str:
    """Return the cluster of an item: its own id if it has none."""
    return row.cluster or row.example_id


def split(
    tasks: Mapping[str, Sequence[SampleResult]], seed: int, documents: Mapping[str, Mapping[str, str]] = {}
) -> HalfSplit:
    """Split the clusters of all tasks, large ones first, so that each task is halved evenly.

    `documents` maps tasks and items to document digests if the rows do not name them.
    """
    named = ((rows, documents.get(task, {})) for task, rows in tasks.items())
    joined = join_rows(named, cluster_name)
    total = {task: len(rows) for task, rows in tasks.items()}
    sizes: dict[str, dict[str, int]] = {}  # items of a cluster in each task
    for task, rows in tasks.items():
        names = (joined.get(name, name) for name in map(cluster_name, rows))
        for cluster, n in Counter(names).items():
            sizes.setdefault(cluster, {})[task] = n
    filled: dict[Half, dict[str, int]] = {half: dict.fromkeys(tasks, 0) for half in HALVES}
    half_of: dict[str, Half] = {}
    order = {
        cluster: int.from_bytes(hashlib.sha256(f"{seed}/rescue/{cluster}".encode()).digest()[:8], "big")
        for cluster in sizes
    }
    large_first = {cluster: (-sum(of.values()), order[cluster]) for cluster, of in sizes.items()}
    for cluster in sorted(sizes, key=large_first.__getitem__):
        of = sizes[cluster].items()
        first, second = HALVES if order[cluster] % 2 else HALVES[::-1]
        loads = [sum([n * filled[half][task] / total[task] for task, n in of]) for half in (first, second)]
        half_of[cluster] = half = first if loads[0] <= loads[1] else second
        for task, n in of:
            filled[half][task] += n
    return HalfSplit(half_of | {name: half_of[of] for name, of in joined.items()}, seed)
