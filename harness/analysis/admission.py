"""Admission of tasks to the gate, and the comparisons of both arms' rows on the suites' tasks.

Invariant: admission looks only at the base, and never at the items that it admits: each task is split once
into two halves, and the base's answers to one half admit the other.
"""

from collections.abc import Mapping, Sequence
from math import inf, isfinite, sqrt
from typing import NamedTuple

from harness import formatting, stats
from harness.analysis import comparison
from harness.analysis.alignment import name_pooled_cluster
from harness.analysis.estimators import Comparison
from harness.analysis.halves import HALVES, Half, HalfSplit, cluster_name, find_other_half, join_rows, split
from harness.analysis.verdict import (
    AdmittedHalf,
    TaskComparison,
    is_judged,
    is_named_critical,
    is_reported_only,
    may_decide,
)
from harness.metrics import Metric
from harness.records import SampleResult
from harness.spec import GatePolicy, Role, Task

_SIGNAL_TO_NOISE = 3.0
_SAID: Mapping[Half, str] = {"search": "one half of its items", "confirm": "the other half"}


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


class Admission(NamedTuple):
    """Admitted halves of a task, and why the others are not."""

    halves: tuple[Half, ...]
    why_not: str


class AdmittedTasks(NamedTuple):
    """Halves of each task of one base, and which of them are admitted, by task name."""

    cut: HalfSplit
    of: Mapping[str, Admission]


def may_be_judged(m: Measurement, policy: GatePolicy) -> bool:
    """Tell whether any rule may judge a task, regardless of the base's score."""
    if not may_decide(m.task, m.role, m.suite, policy):
        return False
    reported = _explain_reported(m.task, m.metrics[m.task.primary_metric])
    is_vetoed = m.role in ("capability", "safety")
    return not is_vetoed or not reported or is_named_critical(m.task, m.suite, policy)


def cut_tasks(measured: Sequence[Measurement], seed: int) -> HalfSplit:
    """Split every task into two halves."""
    documents = {m.task.name: m.documents for m in measured}
    return split({m.task.name: m.base for m in measured}, seed, documents)


def cut_to_half(measured: Sequence[Measurement], cut: HalfSplit, half: Half) -> list[Measurement]:
    """Reduce both arms of every task to one half, admitted by the base on the other; both have pinned items.

    A task with fewer than two clusters in that half is left out.
    """
    parts = []
    for m in measured:
        if m.role != "regression":
            m = select_half(m, cut, half)._replace(admitting=cut.rows(m.base, find_other_half(half)))
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
    if reported := _explain_reported(task, metric):
        return False, reported
    if not _is_scored(metric, base_rows):
        return False, "it holds no item that could be scored"
    score = comparison.estimate(metric, base_rows)
    percent = " %" if score.unit.is_rate else ""
    found = f"the base scores {formatting.score(score.unit, *score[:3])}{percent}"
    chance = f"chance ({formatting.percent(task.chance)} %), n = {formatting.count(score.n)}"
    noise = sqrt((flip_rate or 0.0) / (2 * score.n))
    is_above = score.low > task.chance + stats.TIE
    if is_above and score.score - task.chance < _SIGNAL_TO_NOISE * noise:
        moved = f"less than three times what its layout alone moves it by ({formatting.percent(noise)} pp)"
        return False, f"{found}, above {chance} by {moved}"
    return is_above, f"{found}, {'' if is_above else 'not '}above {chance}"


def applicable_policy(policy: GatePolicy, *, trained: bool) -> GatePolicy:
    """Drop the required gain or win rate from the policy for the base's own weights."""
    if trained:
        return policy
    target = policy.target.model_copy(update={"gain": None, "win_rate": None})
    return policy.model_copy(update={"target": target})


def admit_tasks(
    measured: Sequence[Measurement], seed: int = 0, policy: GatePolicy | None = None
) -> AdmittedTasks:
    """Split every task into halves, and admit each half by the base's rows on the other.

    Tasks that the policy only reports do not influence how the judged ones are split.
    """
    judged = [m for m in measured if policy is None or is_judged(m.task.name, policy)]
    cut = cut_tasks(judged, seed)
    if len(judged) < len(measured):
        cut = cut._replace(half_of={**cut_tasks(measured, seed).half_of, **cut.half_of})
    return AdmittedTasks(cut, {m.task.name: _admission(m, cut) for m in measured})


def name_admitted_tasks(measured: Sequence[Measurement], seed: int = 0) -> set[str]:
    """List the capability tasks that count in the macro average, by the base's rows."""
    admitted = admit_tasks(measured, seed)
    return {m.task.name for m in measured if m.role == "capability" and admitted.of[m.task.name].halves}


def compare_metrics(
    m: Measurement, admitted: AdmittedTasks, alpha: float, *, identical: bool
) -> list[TaskComparison]:
    """Compare both arms on every metric of a task, the primary one first.

    Metrics that could score none of the base's items are left out.
    """
    primary = m.task.primary_metric
    metrics = (m.metrics[name] for name in sorted(m.metrics, key=lambda n: n != primary))
    differences = (_compare(metric, m, alpha, identical) for metric in metrics)
    out = [TaskComparison(m.task, m.role, c, False, "", m.suite) for c in differences if c]
    if not out or out[0].comparison.metric != primary:
        return out
    # Safety tasks count whole: no half selects the items that the base happened to refuse.
    halves, why_not = ((), "") if m.role == "safety" else admitted.of[m.task.name]
    only = halves[0] if len(halves) == 1 else None
    metric, half = m.metrics[primary], None
    if only and (c := compare_task(select_half(m, admitted.cut, only), alpha, identical=identical)):
        rest = admitted.cut.rows(m.base, find_other_half(only))
        half = AdmittedHalf(only, c, comparison.estimate(metric, rest).score, why_not)
    may_be_admitted = not _explain_reported(m.task, metric)
    left = round(sum(row.weight for row in m.base)) - len(m.base)
    out[0] = out[0]._replace(
        base_rows_admitted=bool(halves),
        why_not="" if halves else why_not,
        half=half,
        room=left if left > 0 else inf,
        span=metric.range.span if halves or (m.role == "safety" and may_be_admitted) else 1.0,
        may_be_admitted=may_be_admitted,
    )
    return out


def _admission(m: Measurement, cut: HalfSplit) -> Admission:
    """Admit each half of a task by the base's rows on the other; rows of a single half together."""
    name, metric = m.task.name, m.metrics[m.task.primary_metric]
    if reported := _explain_reported(m.task, metric):
        return Admission((), f"{name}: {reported}")
    nothing = f"{name} cannot show forgetting"
    if m.admitting is not None:
        admitted, why = admit(m.task, metric, m.admitting, m.flip_rate)
        return Admission(HALVES if admitted else (), f"{nothing}: on its other half {why}")
    parts = {half: cut.rows(m.base, half) for half in HALVES}
    if not all(parts.values()):
        return Admission((), f"{nothing}: its items form one cluster, which has no halves")
    found = {half: admit(m.task, metric, rows, m.flip_rate) for half, rows in parts.items()}
    halves = tuple(h for h in HALVES if found[find_other_half(h)][0] and _is_scored(metric, parts[h]))
    why = " and ".join(f"on {_SAID[h]} {found[h][1]}" for h in HALVES if not found[h][0])
    return Admission(halves, why if halves else f"{nothing}: {why}")


def _explain_reported(task: Task, metric: Metric) -> str:
    """Explain why a metric never counts in the macro average; empty if it may."""
    if is_reported_only(task) or not metric.higher_is_better:
        return f"{metric.name} is reported, never part of the macro"
    if isfinite(metric.range.span):
        return ""
    return f"{metric.name} has no bounds, so its changes are not points; declare bounds: of the task"


def _is_scored(metric: Metric, rows: Sequence[SampleResult]) -> bool:
    return any(row.parts[metric.name] is not None for row in rows)


def compare_task(m: Measurement, alpha: float, *, identical: bool = False) -> Comparison | None:
    """Compare both arms on the rows of a task by its primary metric; None if no item can be compared."""
    return _compare(m.metrics[m.task.primary_metric], m, alpha, identical)


def _compare(metric: Metric, m: Measurement, alpha: float, identical: bool) -> Comparison | None:
    """Compare two arms as verdicts do: answers that the base failed to give widen the interval."""
    if not comparison.is_comparable(metric, m.base, m.new):
        return None
    return comparison.compare_rows(
        metric, m.base, m.new, alpha=alpha, identical=identical, base_errors="bounds"
    )


def select_half(m: Measurement, cut: HalfSplit, half: Half) -> Measurement:
    """Reduce both arms of a task to one half of its items."""
    return m._replace(base=cut.rows(m.base, half), new=cut.rows(m.new, half))


def compare_invalid_rates(
    measured: Sequence[Measurement], alpha: float, identical: bool
) -> Comparison | None:
    """Compare the share of invalid answers over the generated rows of tasks that want valid ones."""
    generated = [m for m in measured if m.task.kind == "generate" and m.role != "safety"]
    if not generated:
        return None
    base, new = ([row for m in generated for row in getattr(m, arm)] for arm in ("base", "new"))
    if all(row.status == "error" for row in base):
        return None
    clusters = join_rows(((m.base, m.documents) for m in generated), name_pooled_cluster)
    return comparison.compare_validity(
        base, new, clusters=clusters, alpha=alpha, identical=identical, base_errors="bounds"
    )
