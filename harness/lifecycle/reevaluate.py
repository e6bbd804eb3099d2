"""Re-evaluation of weights on a night's items: a few anchors, and of the others the next ones by cluster.

Invariant: a cluster is evaluated whole; clusters of several tasks that ask the same document are one, and so
are those of one name. The order depends on the items and the seed alone, and goes through the tasks in turn.
Rows lie in the night's folder and nowhere else, where a killed night goes on; an answer is written before the
next task is evaluated, and before a judge sees it, whose grades lie in its book.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

import numpy as np

from harness import store
from harness.analysis.halves import document_of, join_clusters, number_documents
from harness.evaluation.judging_stage import grade_rows
from harness.evaluation.row_sets import RowSet
from harness.evaluation.runner import open_weights
from harness.evaluation.session import Session
from harness.formatting import pluralize
from harness.records import Example, SampleResult, digest
from harness.training import Weights

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
    joined = join_clusters(
        (document, cluster_of[task, item])
        for task, of in tasks.items()
        for item, document in number_documents(_digests(of)).items()
    )
    out: dict[str, Cluster] = {}
    for cluster in ordered:
        own = cluster_of[cluster[0]]
        key = joined.get(own, own)
        out[key] = (*out.get(key, ()), *cluster)
    return list(out.values())


def _digests(examples: Iterable[Example]) -> dict[str, str]:
    """Map items to the digests of their documents, where these are known."""
    prompts = {one.id: digest([one.messages, one.choices]) if one.messages else "" for one in examples}
    found = ((item, document_of(item, prompt)) for item, prompt in prompts.items())
    return {item: document for item, document in found if document}


def _shuffle(task: str, examples: Sequence[Example], seed: int) -> list[Cluster]:
    clusters: dict[str, list[Item]] = {}
    for example in examples:
        clusters.setdefault(example.cluster or example.id, []).append((task, example.id))
    rng = np.random.default_rng(int(digest([task, seed]), 16))
    names = sorted(clusters)
    return [tuple(sorted(clusters[names[i]])) for i in rng.permutation(len(names))]


Rows = dict[tuple[str, str], SampleResult]  # by task and example id


class ItemBatch(NamedTuple):
    """Some items of one task: the anchors or the fresh ones, in their prompts."""

    rows: RowSet
    kind: str
    ids: tuple[str, ...]


def split_items(
    sets: Sequence[RowSet], anchors: Sequence[Cluster], fresh: Sequence[Cluster]
) -> list[ItemBatch]:
    """Cut a night's items by task and kind; tasks without items tonight are left out."""
    chosen = {"anchors": ids_by_task(anchors), "fresh": ids_by_task(fresh)}
    return [
        ItemBatch(rows, kind, tuple(ids))
        for rows in sets
        for kind, by_task in chosen.items()
        if (ids := by_task.get(rows.measured.task.name))
    ]


def reevaluate(
    session: Session, folder: Path, who: str, weights: Weights, batches: Sequence[ItemBatch]
) -> Rows:
    """Return the rows of the batches, evaluated now or earlier in the same night; judges grade new answers.

    Raises:
        HarnessError: the weights cannot be opened, a judge cannot be asked, or the disk is full.
    """
    files = [batch_file(folder, who, batch) for batch in batches]
    known = [store.read_measured(file) for file in files]
    missing = [
        at
        for at, (rows, batch) in enumerate(zip(known, batches, strict=True))
        if rows is None or [row.example_id for row in rows] != list(batch.ids)
    ]
    if missing:
        with (
            open_weights(session, weights) as candidate,
            session.progress.stage(f"{who}: {pluralize(len(missing), 'task')}") as advance,
        ):
            for done, at in enumerate(missing):
                whole, evaluate = batches[at].rows.answers.job(), batches[at].rows.measured.evaluate
                by_id = {e.id: e for e in whole.examples}
                job = replace(whole, examples=tuple(by_id[i] for i in batches[at].ids if i in by_id))
                # What judges score is only answered here.
                rows = [row for n in range(job.n_blocks) for row in evaluate(candidate, job, n)]
                store.write_records(session.store, files[at], rows)
                known[at] = rows
                advance(done + 1, len(missing))
    graded = grade_rows(session, [(b.rows, rows or ()) for b, rows in zip(batches, known, strict=True)])
    return index_by_item(row for rows in graded for row in rows)


def index_by_item(rows: Iterable[SampleResult]) -> Rows:
    """Index rows by task and example id."""
    return {(row.task, row.example_id): row for row in rows}


def batch_file(folder: Path, who: str, batch: ItemBatch) -> Path:
    """Name the file of a part, by everything that decides what it holds."""
    key = digest([who, batch.rows.identity.digest, batch.kind, list(batch.ids)])
    return folder / "rows" / f"{key}.jsonl"
