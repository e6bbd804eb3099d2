"""Macro average: the mean delta over the admitted tasks, with correlations from shared items.

Invariant: a half-task has half the weight of a task, copies of a task together have the weight of one, and
items that tasks share widen the interval. Items are matched by document (`admission.document_of`), clusters
by name. Source: Zou 2008 for the correlation in MOVER; its shrinkage as in `stats.design_effect`.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from math import sqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness import formatting, stats
from harness.analysis import admission
from harness.analysis.alignment import align
from harness.analysis.estimators import Comparison, Estimate, mean_change
from harness.analysis.margins import DeltaPart, find_planning_se, is_relative, lower_se, skill
from harness.analysis.verdict import TaskComparison
from harness.metrics import flips
from harness.spec import GatePolicy
from harness.stats import Array, Interval

_COPY = 0.9  # two tasks are copies if they share at least this part of the larger one's items


class SharedItems(NamedTuple):
    """Items that tasks share: `copies` maps a task to all tasks with nearly all of its items and itself.

    `correlations` are those of the deltas of two tasks, `descriptions` describe the sharing for readers.
    `n_repeated` and `n_repeated_clusters` count items and clusters that an earlier task also has.
    """

    copies: Mapping[str, tuple[str, ...]]
    correlations: Mapping[frozenset[str], float]
    descriptions: tuple[str, ...]
    n_repeated: int = 0
    n_repeated_clusters: int = 0

    def copies_of(self, t: TaskComparison) -> tuple[str, ...]:
        """List the copies of a task, itself included."""
        return self.copies.get(t.task.name, (t.task.name,))

    def weights(self, tasks: Sequence[TaskComparison]) -> tuple[float, ...]:
        """Return the weights (k,) of the tasks, which add up to 1; copies together count as one task."""
        raw = [(0.5 if t.half else 1.0) / len(self.copies_of(t)) for t in tasks]
        return tuple(weight / sum(raw) for weight in raw)

    def matrix(self, tasks: Sequence[TaskComparison]) -> Array | None:
        """Return the correlations (k, k) of the tasks' deltas; None if no two tasks share an item."""
        matrix = np.eye(len(tasks))
        for (i, a), (j, b) in combinations(enumerate(tasks), 2):
            matrix[i, j] = matrix[j, i] = self.correlations.get(frozenset((a.task.name, b.task.name)), 0.0)
        return matrix if self.correlations else None


NOTHING_SHARED = SharedItems({}, {}, ())


class _Moves(NamedTuple):
    """One task's delta by cluster, whether each changed, and clusters by document and by name."""

    share: Array  # (clusters,)
    moved: NDArray[np.bool_]  # (clusters,)
    cluster_of: Mapping[str, int]
    named: Mapping[str, int]

    def part(self, clusters: NDArray[np.intp]) -> float:
        """Return the share of the delta's variance from some clusters, shrunk as if one more had changed."""
        subset, total = (float(share @ share) for share in (self.share[clusters], self.share))
        n_moved, by_number = int(self.moved.sum()), len(clusters) / len(self.share)
        return (n_moved * (subset / total if total else 0.0) + by_number) / (n_moved + 1)


def find_shared_items(
    measured: Sequence[admission.Measurement], admitted: Sequence[TaskComparison], cut: admission.HalfSplit
) -> SharedItems:
    """Find admitted tasks that share documents, and correlate their deltas."""
    tasks = {t.task.name: t for t in admitted}
    by_task = {m.task.name: m for m in measured if m.task.name in tasks}
    documents_by_task = {name: admission.documents_of(m.base, m.documents) for name, m in by_task.items()}
    holders: dict[str, list[str]] = {}
    for name, documents in documents_by_task.items():
        for document in documents.values():
            holders.setdefault(document, []).append(name)
    n_shared = Counter(pair for names in holders.values() for pair in combinations(names, 2))
    sizes = {name: len(by_task[name].base) for name in sorted({name for pair in n_shared for name in pair})}
    clusters = {name: {row.cluster for row in m.base if row.cluster} for name, m in by_task.items()}
    linked = sorted({*n_shared, *((a, b) for a, b in combinations(clusters, 2) if clusters[a] & clusters[b])})
    moves: dict[str, _Moves] = {}
    for name in dict.fromkeys(name for pair in linked for name in pair):
        m, half, documents = by_task[name], tasks[name].half, documents_by_task[name]
        base, new = (cut.rows(rows, half.name) if half else rows for rows in (m.base, m.new))
        metric = m.metrics[m.task.primary_metric]
        arms = align(metric, base, new)
        changes = flips(metric, arms.base, arms.new)[0]  # (n,)
        weights = arms.weights / arms.weights.sum()
        names = {row.example_id: row.cluster for row in base if row.cluster}
        id_clusters = [*zip(arms.ids, arms.clusters.tolist(), strict=True)]
        moves[name] = _Moves(
            share=np.bincount(arms.clusters, weights * (changes - weights @ changes)).astype(float),
            moved=np.bincount(arms.clusters, np.abs(changes)) > stats.TIE,
            cluster_of={documents[i]: cluster for i, cluster in id_clusters if i in documents},
            named={names[i]: cluster for i, cluster in id_clusters if i in names},
        )
    # Copies share at least nine in ten of the larger task's items.
    group_of: dict[str, tuple[str, ...]] = {name: (name,) for name in sizes}
    for (a, b), n in n_shared.items():
        if n >= _COPY * max(sizes[a], sizes[b]) and group_of[a] is not group_of[b]:
            joined = tuple(sorted(group_of[a] + group_of[b]))
            group_of |= dict.fromkeys(joined, joined)
    groups = sorted({group for group in group_of.values() if len(group) > 1})
    n_items = n_clusters = 0  # items, and clusters of only such items, that an earlier task also has
    seen_documents: set[str] = set()
    for cluster_of in (of_task.cluster_of for of_task in moves.values()):
        repeated = cluster_of.keys() & seen_documents
        new_clusters = {cluster for document, cluster in cluster_of.items() if document not in repeated}
        n_items += len(repeated)
        n_clusters += len({cluster_of[document] for document in repeated} - new_clusters)
        seen_documents |= cluster_of.keys()
    differing = {name for (a, b), n in n_shared.items() if n < max(sizes[a], sizes[b]) for name in (a, b)}
    texts = [
        f"{' and '.join(group)} hold {'nearly ' if differing & set(group) else ''}the same items and count "
        "as one task"
        for group in groups
    ]
    copied_pairs = {frozenset(pair) for group in groups for pair in combinations(group, 2)}
    partial = [(pair, n) for pair, n in n_shared.items() if frozenset(pair) not in copied_pairs]
    return SharedItems(
        {name: group for group in groups for name in group},
        {frozenset((a, b)): _correlation(moves[a], moves[b]) for a, b in linked},
        tuple(texts + [f"{a} and {b} share {formatting.pluralize(n, 'item')}" for (a, b), n in partial]),
        n_items,
        n_clusters,
    )


def _correlation(a: _Moves, b: _Moves) -> float:
    """Return the correlation ≥ 0 of two deltas due to shared clusters, shrunk as if one more had changed."""
    shared_clusters = sorted(
        {(a.cluster_of[d], b.cluster_of[d]) for d in a.cluster_of.keys() & b.cluster_of.keys()}
        | {(a.named[n], b.named[n]) for n in a.named.keys() & b.named.keys()}
    )
    if not shared_clusters:
        return 0.0
    i, j = np.array(shared_clusters).T
    x, y = a.share[i], b.share[j]
    spread = sqrt(float((x @ x) * (y @ y)))
    n_moved = int((a.moved[i] | b.moved[j]).sum())
    correlation = (n_moved * (float(x @ y) / spread if spread else 0.0) + 1) / (n_moved + 1)
    return min(max(correlation, 0.0) * sqrt(a.part(np.unique(i)) * b.part(np.unique(j))), 1.0)


class Macro(NamedTuple):
    """Macro delta with its one-sided bounds and the standard error implied by the lower one.

    In points, or shares of the base's skill, for which each task's delta is multiplied by its entry in
    `scales`.
    """

    delta: float
    lower: float
    upper: float
    se: float
    scales: tuple[float, ...]
    weights: tuple[float, ...]
    correlations: Array | None

    @property
    def factors(self) -> tuple[float, ...]:
        """Factor of each task's delta in points."""
        return tuple(weight * scale for weight, scale in zip(self.weights, self.scales, strict=True))


def average_macro(
    admitted: Sequence[TaskComparison], policy: GatePolicy, shared: SharedItems = NOTHING_SHARED
) -> Macro:
    """Average the deltas of the admitted tasks, with one-sided bounds combined by MOVER."""
    scales = tuple(1 / skill(t) if is_relative(policy.macro) else 1.0 for t in admitted)
    scaled = [(s, t.counted) for s, t in zip(scales, admitted, strict=True)]
    bounds = [Interval(s * c.lower, s * c.upper) for s, c in scaled]
    weights, correlations = shared.weights(admitted), shared.matrix(admitted)
    deltas = [s * c.delta for s, c in scaled]
    delta, (lower, upper) = stats.mover_mean(deltas, bounds, weights, correlations)
    se = (delta - lower) / stats.z_quantile(1 - policy.alpha)
    return Macro(delta, lower, upper, se, scales, weights, correlations)


def plan_parts(
    admitted: Sequence[TaskComparison], macro: Macro, shared: SharedItems
) -> tuple[list[DeltaPart], Array | None]:
    """Return each task's part in the macro's standard error, copies of a task as one, and correlations."""
    pairs = zip(admitted, macro.factors, strict=True)
    widths = [factor * find_planning_se(t.counted, lower_se(t.counted)) for t, factor in pairs]
    places_of: dict[tuple[str, ...], list[int]] = {}
    for i, t in enumerate(admitted):
        places_of.setdefault(shared.copies_of(t), []).append(i)
    groups = list(places_of.items())
    rho = macro.correlations if macro.correlations is not None else np.eye(len(admitted))
    parts = [
        DeltaPart(
            name=" and ".join(names),
            se=stats.quadrature([widths[i] for i in places], rho[np.ix_(places, places)]),
            n=max(admitted[i].comparison.n for i in places),
            room=min(admitted[i].room for i in places),
        )
        for names, places in groups
    ]
    if len(groups) == len(admitted) or not np.isfinite(widths).all():
        return parts, macro.correlations if len(groups) == len(admitted) else None
    # Correlations of the groups' sums, from the correlations of the tasks.
    member = np.array([[float(i in places) for i in range(len(widths))] for _, places in groups])  # (g, k)
    covariance = member @ (rho * np.outer(widths, widths)) @ member.T  # (g, g)
    scale = np.sqrt(np.outer(covariance.diagonal(), covariance.diagonal()))
    return parts, np.divide(covariance, scale, out=np.eye(len(groups)), where=scale > 0)


def macro_between(
    measured: Sequence[admission.Measurement],
    compared: Mapping[str, Comparison],
    admitted: Sequence[TaskComparison],
    seed: int,
) -> Estimate | None:
    """Average the change between two other arms over the items of a verdict, with the same weights.

    `compared` are the two arms' comparisons of whole tasks, by name. `admitted` are the verdict's tasks,
    which it split with `seed`; those on which the arms cannot be compared are left out.
    """
    by_task, cut = {m.task.name: m for m in measured}, admission.cut_tasks(measured, seed)
    between_tasks = []
    for t in admitted:
        if t.task.name not in by_task:
            continue
        whole, half = compared[t.task.name], t.half
        if half is not None:
            half_comparison = admission.compare_task(
                admission.select_half(by_task[t.task.name], cut, half.name), whole.alpha
            )
            if half_comparison is None:
                continue
            half = half._replace(comparison=half_comparison)
        between_tasks.append(t._replace(comparison=whole, half=half))
    if not between_tasks:
        return None
    shared = find_shared_items(measured, between_tasks, cut)
    deltas, weights = [t.counted for t in between_tasks], shared.weights(between_tasks)
    return mean_change(deltas, weights, shared.matrix(between_tasks), shared.n_repeated)
