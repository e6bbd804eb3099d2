"""Tasks that share items: copies of one task, and how far the deltas of two tasks move together.

Invariant: an item is known by the digest of its document, and by its place among the items of its task with
the same one; an item whose digest is missing is shared with nobody. Reads paired differences, and no text.
Source: Zou 2008 for the correlation in MOVER; its shrinkage as in `stats.design_effect`.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from math import sqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness import formatting, stats
from harness.comparison.alignment import align
from harness.gating.admission import Measurement
from harness.gating.halves import Split
from harness.gating.verdict import TaskComparison
from harness.metrics import flips
from harness.records import SampleResult
from harness.stats import Array

_COPY = 0.9  # of the items of the larger of two tasks: so many in common make them copies
_LM_EVAL_DOCUMENT = re.compile(r"-([0-9a-f]{64})$")  # ends the id of an item of lm-eval's


class Repeated(NamedTuple):
    """Items and clusters of several tasks that an earlier one of them holds."""

    items: int = 0
    clusters: int = 0


NOTHING_REPEATED = Repeated()


class SharedItems(NamedTuple):
    """Items in common: `copies` maps a task to those that hold its items, or nearly all, itself among them.

    `correlations` are those of the deltas of two tasks that share items, by their names; `said` names
    for a reader who shares what. `repeated` counts what stands in several.
    """

    copies: Mapping[str, tuple[str, ...]]
    correlations: Mapping[frozenset[str], float]
    said: tuple[str, ...]
    repeated: Repeated = NOTHING_REPEATED

    def copies_of(self, t: TaskComparison) -> tuple[str, ...]:
        """Name the tasks that hold a task's items: itself, where no other does."""
        return self.copies.get(t.task.name, (t.task.name,))

    def weights(self, tasks: Sequence[TaskComparison]) -> tuple[float, ...]:
        """Return what each task counts in the macro, (k,), adding up to 1: copies together as one task."""
        raw = [(0.5 if t.half else 1.0) / len(self.copies_of(t)) for t in tasks]
        return tuple(weight / sum(raw) for weight in raw)

    def matrix(self, tasks: Sequence[TaskComparison]) -> Array | None:
        """Return the correlations of the tasks' deltas, (k, k); None where no two share an item."""
        found = np.eye(len(tasks))
        for (i, a), (j, b) in combinations(enumerate(tasks), 2):
            found[i, j] = found[j, i] = self.correlations.get(frozenset((a.task.name, b.task.name)), 0.0)
        return found if self.correlations else None


NOTHING_SHARED = SharedItems({}, {}, ())


class _Moves(NamedTuple):
    """One task's delta by cluster: each one's share in it, whether it moved, and the documents' clusters."""

    share: Array  # (clusters,)
    moved: NDArray[np.bool_]  # (clusters,)
    cluster_of: Mapping[str, int]


def find_shared_items(
    measured: Sequence[Measurement], admitted: Sequence[TaskComparison], cut: Split
) -> SharedItems:
    """Find which of the admitted tasks hold the same documents, and correlate their deltas.

    Raises:
        IncompatibleRuns: the arms hold different items, or an item could be scored in neither.
    """
    tasks = {t.task.name: t for t in admitted}
    of = {m.task.name: m for m in measured if m.task.name in tasks}
    known = {name: _documents(m) for name, m in of.items()}
    holders: dict[str, list[str]] = {}
    for name, documents in known.items():
        for document in documents.values():
            holders.setdefault(document, []).append(name)
    n_shared = Counter(pair for names in holders.values() for pair in combinations(names, 2))
    together = {name for pair in n_shared for name in pair}
    moves = {name: _moves(of[name], tasks[name], known[name], cut) for name in together}
    sizes = {name: len(of[name].base) for name in sorted(together)}
    groups = _copies(n_shared, sizes)
    return SharedItems(
        {name: tuple(group) for group in groups for name in group},
        {frozenset((a, b)): _correlation(moves[a], moves[b]) for a, b in n_shared},
        tuple(_said(n_shared, groups, sizes)),
        _repeated(moves.values()),
    )


def _repeated(moves: Iterable[_Moves]) -> Repeated:
    """Count items, and clusters of nothing else, that stand in a task before."""
    seen: set[str] = set()
    items = clusters = 0
    for m in moves:
        old = m.cluster_of.keys() & seen
        new = {cluster for document, cluster in m.cluster_of.items() if document not in old}
        items, clusters = items + len(old), clusters + len({m.cluster_of[document] for document in old} - new)
        seen |= m.cluster_of.keys()
    return Repeated(items, clusters)


def _documents(m: Measurement) -> dict[str, str]:
    """Map items to their documents' digests, numbered among the items of the task that have the same one.

    Where there are fewer than half as many digests as items, only those of single items are kept: one of so
    many items is none of what was asked.
    """
    ids = sorted(row.example_id for row in m.base)
    rows = {row.example_id: row for row in m.base}
    digests = {i: found for i in ids if (found := m.documents.get(i) or _document(rows[i]))}
    counts, seen = Counter(digests.values()), Counter[str]()
    out: dict[str, str] = {}
    for item, document in digests.items():
        if counts[document] == 1 or 2 * len(counts) >= len(digests):
            seen[document] += 1
            out[item] = f"{document} {seen[document]}"
    return out


def _document(row: SampleResult) -> str:
    """Return the digest of a document: lm-eval's own, which its items' ids hold, or that of the prompt."""
    named = _LM_EVAL_DOCUMENT.search(row.example_id)
    return named[1] if named else row.prompt_digest


def _copies(n_shared: Mapping[tuple[str, str], int], sizes: Mapping[str, int]) -> list[list[str]]:
    """Group the tasks that share at least nine in ten of their items, by those of the larger."""
    group_of = {name: [name] for name in sizes}
    for (a, b), n in n_shared.items():
        if n >= _COPY * max(sizes[a], sizes[b]) and group_of[a] is not group_of[b]:
            joined = sorted(group_of[a] + group_of[b])
            group_of |= dict.fromkeys(joined, joined)
    groups = {tuple(group) for group in group_of.values() if len(group) > 1}
    return [list(group) for group in sorted(groups)]


def _said(
    n_shared: Mapping[tuple[str, str], int], groups: Sequence[Sequence[str]], sizes: Mapping[str, int]
) -> list[str]:
    differing = {name for (a, b), n in n_shared.items() if n < max(sizes[a], sizes[b]) for name in (a, b)}
    said = [
        f"{' and '.join(group)} hold {'nearly ' if differing & set(group) else ''}the same items and count "
        "as one task"
        for group in groups
    ]
    alike = {frozenset(pair) for group in groups for pair in combinations(group, 2)}
    partly = [(pair, n) for pair, n in n_shared.items() if frozenset(pair) not in alike]
    return said + [f"{a} and {b} share {formatting.pluralize(n, 'item')}" for (a, b), n in partly]


def _moves(m: Measurement, t: TaskComparison, documents: Mapping[str, str], cut: Split) -> _Moves:
    base, new = (cut.rows(rows, t.half.name) if t.half else rows for rows in (m.base, m.new))
    metric = m.metrics[m.task.primary_metric]
    arms = align(metric, base, new, "")
    changes = flips(metric, arms.base, arms.new)[0]  # (n,)
    weights = arms.weights / arms.weights.sum()
    share = np.bincount(arms.clusters, weights * (changes - weights @ changes)).astype(float)
    moved = np.bincount(arms.clusters, np.abs(changes)) > stats.TIE
    placed = zip(arms.ids, arms.clusters.tolist(), strict=True)
    return _Moves(share, moved, {documents[i]: cluster for i, cluster in placed if i in documents})


def _correlation(a: _Moves, b: _Moves) -> float:
    """Correlate two deltas by the clusters that hold documents of both, at least 0.

    That of the shared clusters, shrunk as if one more had been seen that moved both tasks alike, times the
    share of clusters that both hold.
    """
    both = {(a.cluster_of[d], b.cluster_of[d]) for d in a.cluster_of.keys() & b.cluster_of.keys()}
    if not both:
        return 0.0
    i, j = np.array(sorted(both)).T
    x, y = a.share[i], b.share[j]
    spread = sqrt(float((x @ x) * (y @ y)))
    n_moved = int((a.moved[i] | b.moved[j]).sum())
    found = (n_moved * (float(x @ y) / spread if spread else 0.0) + 1) / (n_moved + 1)
    overlap = len(both) / sqrt(len(a.share) * len(b.share))
    return min(max(found, 0.0) * overlap, 1.0)
