"""Admission of tasks to the gate by two halves of their items, and the comparison of both arms of a task.

Invariant: admission looks only at the base, and never at the items that it admits: each task is split once
into two halves, and the base's answers to one half admit the other. The split depends on items and seed
alone. An item is identified by its document's digest, and its position among the task's items with the same
digest. Clusters that share a document are joined; no cluster and no document has items in both halves.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import isfinite, sqrt
from typing import NamedTuple

import numpy as np

from harness import formatting, stats
from harness.analysis import comparison, verdict
from harness.analysis.estimators import Comparison
from harness.metrics import Metric
from harness.records import SampleResult
from harness.spec import GatePolicy, Role, Task

_LM_EVAL_DOCUMENT = re.compile(r"-([0-9a-f]{64})$")  # suffix of an lm-eval item's id
HALVES: tuple[verdict.Half, verdict.Half] = ("search", "confirm")
OTHER_HALF: Mapping[verdict.Half, verdict.Half] = {"search": "confirm", "confirm": "search"}
_SIGNAL_TO_NOISE = 3.0


def document_of(example_id: str, prompt_digest: str) -> str:
    """Return the digest of an item's document: lm-eval's, from the item's id, or the prompt's."""
    match = _LM_EVAL_DOCUMENT.search(example_id)
    return match[1] if match else prompt_digest


def documents_of(rows: Iterable[SampleResult], known_digests: Mapping[str, str]) -> dict[str, str]:
    """Map the items of a task to numbered documents; `known_digests` has those that the rows lack."""
    prompts = {row.example_id: row.prompt_digest for row in rows}
    digests = {i: known_digests.get(i) or document_of(i, prompts[i]) for i in sorted(prompts)}
    return number_documents({item: document for item, document in digests.items() if document})


def number_documents(digests: Mapping[str, str]) -> dict[str, str]:
    """Map item ids of one task to document names; items with the same digest are numbered.

    If there are fewer than half as many digests as items, only digests of single items are kept: the others
    do not identify a question.
    """
    counts, n_seen = Counter(digests.values()), Counter[str]()
    numbered: dict[str, str] = {}
    for item, document in digests.items():
        if counts[document] == 1 or 2 * len(counts) >= len(digests):
            n_seen[document] += 1
            numbered[item] = f"{document} {n_seen[document]}"
    return numbered


def join_rows(
    tasks: Iterable[tuple[Sequence[SampleResult], Mapping[str, str]]], name: Callable[[SampleResult], str]
) -> dict[str, str]:
    """Map clusters of tasks' rows, by `name`, to one representative per group that shares documents."""
    tasks_documents = ((rows, documents_of(rows, documents)) for rows, documents in tasks)
    return join_clusters(
        (documents[row.example_id], name(row))
        for rows, documents in tasks_documents
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

    index_of = {name: i for i, name in enumerate(names)}
    edges = np.array([(index_of[group[0]], index_of[member]) for group in shared for member in group[1:]])
    graph = coo_array((np.ones(len(edges)), edges.T), shape=(len(names), len(names)))
    joined = connected_components(graph, directed=False)[1]
    first = {component: names[i] for i, component in reversed([*enumerate(joined.tolist())])}
    return {name: first[joined[i]] for name, i in index_of.items()}


class HalfSplit(NamedTuple):
    """Assignment of clusters to halves."""

    half_of: Mapping[str, verdict.Half]

    def rows(self, rows: Sequence[SampleResult], half: verdict.Half) -> list[SampleResult]:
        """Select the rows of one half."""
        return [row for row in rows if self.half_of[cluster_name(row)] == half]


def cluster_name(row: SampleResult) -> str:
    """Return the cluster of an item: its own id if it has none."""
    return row.cluster or row.example_id


def split(
    tasks: Mapping[str, Sequence[SampleResult]], seed: int, documents: Mapping[str, Mapping[str, str]] = {}
) -> HalfSplit:
    """Split the clusters of all tasks, large ones first, so that each task is halved evenly."""
    rows_and_documents = ((rows, documents.get(task, {})) for task, rows in tasks.items())
    joined = join_rows(rows_and_documents, cluster_name)
    total = {task: len(rows) for task, rows in tasks.items()}
    sizes: dict[str, dict[str, int]] = {}  # items of a cluster in each task
    for task, rows in tasks.items():
        names = (joined.get(name, name) for name in map(cluster_name, rows))
        for cluster, n in Counter(names).items():
            sizes.setdefault(cluster, {})[task] = n
    filled: dict[verdict.Half, dict[str, int]] = {half: dict.fromkeys(tasks, 0) for half in HALVES}
    half_of: dict[str, verdict.Half] = {}
    order = {
        cluster: int.from_bytes(hashlib.sha256(f"{seed}/rescue/{cluster}".encode()).digest()[:8], "big")
        for cluster in sizes
    }
    large_first = {cluster: (-sum(counts.values()), order[cluster]) for cluster, counts in sizes.items()}
    for cluster in sorted(sizes, key=large_first.__getitem__):
        counts = sizes[cluster].items()
        first, second = HALVES if order[cluster] % 2 else HALVES[::-1]
        loads = [
            sum([n * filled[half][task] / total[task] for task, n in counts]) for half in (first, second)
        ]
        half_of[cluster] = half = first if loads[0] <= loads[1] else second
        for task, n in counts:
            filled[half][task] += n
    return HalfSplit(half_of | {name: half_of[group] for name, group in joined.items()})


class Measurement(NamedTuple):
    """Rows of both arms on one task of a suite; `flip_rate` is its measured A/A noise, if any.

    `documents` maps items to document digests if the rows do not name them. If the rows are only one half of
    the task, `admitting` holds the base's rows on the other half.
    """

    task: Task
    role: Role
    suite: str
    metrics: Mapping[str, Metric]
    base: Sequence[SampleResult]
    new: Sequence[SampleResult]
    flip_rate: float | None = None
    documents: Mapping[str, str] = {}
    admitting: Sequence[SampleResult] | None = None


class AdmittedTasks(NamedTuple):
    """Halves of each task of one base, which of them are admitted, and why the others are not, by name."""

    cut: HalfSplit
    of: Mapping[str, tuple[tuple[verdict.Half, ...], str]]


def may_be_judged(task: Task, role: str, suite: str, metric: Metric, policy: GatePolicy) -> bool:
    """Tell whether any rule may judge a task, regardless of the base's score."""
    if not verdict.may_decide(task, role, suite, policy):
        return False
    is_vetoed = role in ("capability", "safety")
    is_critical = verdict.is_named_critical(task, suite, policy)
    return not is_vetoed or is_critical or not explain_reported(task, metric)


def cut_tasks(measured: Sequence[Measurement], seed: int) -> HalfSplit:
    """Split every task into two halves."""
    documents = {m.task.name: m.documents for m in measured}
    return split({m.task.name: m.base for m in measured}, seed, documents)


def cut_to_half(measured: Sequence[Measurement], cut: HalfSplit, half: verdict.Half) -> list[Measurement]:
    """Reduce both arms to one half, admitted by the base on the other; pinned items are in both halves."""
    parts = []
    for m in measured:
        if m.role != "regression":
            m = select_half(m, cut, half)._replace(admitting=cut.rows(m.base, OTHER_HALF[half]))
        if m.role == "regression" or len({cluster_name(row) for row in m.base}) > 1:
            parts.append(m)
    return parts


def admit(
    task: Task, metric: Metric, base_rows: Sequence[SampleResult], flip_rate: float | None = None
) -> tuple[bool, str]:
    """Decide from the base's rows whether a task can show forgetting, with the reason.

    Admitted if the 95 % interval of the base's score is above chance, and the score exceeds it by at least
    three times its A/A noise, √(q/2n) if a share q of items flips between two layouts. Never if lower is
    better, nor without bounds or a scored item.
    """
    if reported := explain_reported(task, metric):
        return False, reported
    if not _is_scored(metric, base_rows):
        return False, "it holds no item that could be scored"
    score = comparison.estimate(metric, base_rows)
    percent = " %" if score.unit.is_rate else ""
    score_text = f"the base scores {formatting.score(score.unit, *score[:3])}{percent}"
    noise = sqrt((flip_rate or 0.0) / (2 * score.n)) * score.unit.span
    floor = metric.range.floor(task.chance)
    chance = f"chance ({formatting.score(score.unit, floor)}{percent}), n = {formatting.count(score.n)}"
    is_above = score.low > floor + stats.TIE
    if is_above and score.score - floor < _SIGNAL_TO_NOISE * noise:
        moved = f"{formatting.score(score.unit, noise)}{' pp' if score.unit.is_rate else ''}"
        shift = f"less than three times what its layout alone moves it by ({moved})"
        return False, f"{score_text}, above {chance} by {shift}"
    return is_above, f"{score_text}, {'' if is_above else 'not '}above {chance}"


def admit_tasks(
    measured: Sequence[Measurement], seed: int = 0, policy: GatePolicy | None = None
) -> AdmittedTasks:
    """Split every task into halves, the judged ones alone, and admit each half by the base on the other.

    Rows of a single half are admitted together.
    """
    judged = [m for m in measured if policy is None or verdict.is_judged(m.task.name, policy)]
    cut = cut_tasks(judged, seed)
    if len(judged) < len(measured):
        cut = cut._replace(half_of={**cut_tasks(measured, seed).half_of, **cut.half_of})
    admitted_tasks: dict[str, tuple[tuple[verdict.Half, ...], str]] = {}
    for m in measured:
        name, metric = m.task.name, m.metrics[m.task.primary_metric]
        prefix, parts = f"{name} cannot show forgetting", {half: cut.rows(m.base, half) for half in HALVES}
        if reported := explain_reported(m.task, metric):
            admitted_tasks[name] = (), f"{name}: {reported}"
        elif m.admitting is not None:
            admitted, why = admit(m.task, metric, m.admitting, m.flip_rate)
            admitted_tasks[name] = HALVES if admitted else (), f"{prefix}: on its other half {why}"
        elif not all(parts.values()):
            admitted_tasks[name] = (), f"{prefix}: its items form one cluster, which has no halves"
        else:
            by_half = {half: admit(m.task, metric, rows, m.flip_rate) for half, rows in parts.items()}
            halves = tuple(h for h in HALVES if by_half[OTHER_HALF[h]][0] and _is_scored(metric, parts[h]))
            texts = zip(HALVES, ("one half of its items", "the other half"), strict=True)
            why = " and ".join(f"on {text} {by_half[h][1]}" for h, text in texts if not by_half[h][0])
            admitted_tasks[name] = halves, why if halves else f"{prefix}: {why}"
    return AdmittedTasks(cut, admitted_tasks)


def name_admitted_tasks(measured: Sequence[Measurement], seed: int = 0) -> set[str]:
    """List the capability tasks that count in the macro average, by the base's rows."""
    admitted = admit_tasks(measured, seed)
    return {m.task.name for m in measured if m.role == "capability" and admitted.of[m.task.name][0]}


def explain_reported(task: Task, metric: Metric) -> str:
    """Explain why a metric never counts in the macro average; empty if it may."""
    if verdict.is_reported_only(task) or not metric.higher_is_better:
        return f"{metric.name} is reported, never part of the macro"
    if isfinite(metric.range.span):
        return ""
    return f"{metric.name} has no bounds, so its changes are not points; declare bounds: of the task"


def _is_scored(metric: Metric, rows: Sequence[SampleResult]) -> bool:
    return any(row.parts[metric.name] is not None for row in rows)


def compare_task(
    m: Measurement, alpha: float, *, identical: bool = False, metric: Metric | None = None
) -> Comparison | None:
    """Compare both arms of a task by its primary or another metric, failures of the base as bounds."""
    metric = metric or m.metrics[m.task.primary_metric]
    if not comparison.is_comparable(metric, m.base, m.new):
        return None
    return comparison.compare_rows(
        metric, m.base, m.new, alpha=alpha, identical=identical, base_errors="bounds"
    )


def select_half(m: Measurement, cut: HalfSplit, half: verdict.Half) -> Measurement:
    """Reduce both arms of a task to one half of its items."""
    return m._replace(base=cut.rows(m.base, half), new=cut.rows(m.new, half))
