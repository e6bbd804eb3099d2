"""The macro: the mean delta over the tasks that count, with its bounds and what it is made of.

Invariant: each half-task has half the weight of a task, copies of one task have together that of one, and
items that tasks share widen the interval.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from harness import comparison, stats
from harness.comparison import Comparison, Estimate
from harness.gating.admission import Measurement, compare_half, cut_tasks
from harness.gating.items_needed import DeltaPart, find_planning_se, lower_se
from harness.gating.shared_items import NOTHING_SHARED, SharedItems, find_shared_items
from harness.gating.verdict import TaskComparison, macro_scales
from harness.spec import GatePolicy
from harness.stats import Array, Interval


class Macro(NamedTuple):
    """The macro delta, its one-sided bounds, and the standard error that its lower bound amounts to.

    In the unit of the policy's margin: points, or shares of the base's skill, each task's delta
    then multiplied by its own of the `scales`. `weights` say what each task counts, and `correlations`,
    where tasks share items, how far their deltas move together.
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

    def se_of(self, standard_errors: Sequence[float]) -> float:
        """Combine the tasks' standard errors, each in points, to the macro's."""
        widths = [factor * se for factor, se in zip(self.factors, standard_errors, strict=True)]
        return stats.quadrature(widths, self.correlations)


def average_macro(
    admitted: Sequence[TaskComparison], policy: GatePolicy, shared: SharedItems = NOTHING_SHARED
) -> Macro:
    """Average the admitted tasks' deltas, with their one-sided bounds combined by MOVER.

    Raises:
        ValueError: no task is admitted.
    """
    if not admitted:
        raise ValueError("found no admitted task to average")
    scales = macro_scales(admitted, policy)
    scaled = [(s, t.counted) for s, t in zip(scales, admitted, strict=True)]
    bounds = [Interval(s * c.lower, s * c.upper) for s, c in scaled]
    weights, correlations = shared.weights(admitted), shared.matrix(admitted)
    deltas = [s * c.delta for s, c in scaled]
    delta, (lower, upper) = stats.mover_mean(deltas, bounds, weights, correlations)
    se = (delta - lower) / stats.z_quantile(1 - policy.alpha)
    return Macro(delta, lower, upper, se, scales, weights, correlations)


class MacroParts(NamedTuple):
    """Parts of the macro's standard error, one a task, and the correlations of what they add."""

    parts: list[DeltaPart]
    correlations: Array | None


def plan_parts(admitted: Sequence[TaskComparison], macro: Macro, shared: SharedItems) -> MacroParts:
    """Describe what each task adds to the macro's standard error, and how many items it could still ask.

    Of a task of which one half counts, every second item that is added counts. Copies of one task are one
    part: a document that is added is an item of each.
    """
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
        return MacroParts(parts, macro.correlations if len(groups) == len(admitted) else None)
    # Correlate the sums of groups of what tasks add, from the correlations of the tasks.
    member = np.array([[float(i in places) for i in range(len(widths))] for _, places in groups])  # (g, k)
    covariance = member @ (rho * np.outer(widths, widths)) @ member.T  # (g, g)
    scale = np.sqrt(np.outer(covariance.diagonal(), covariance.diagonal()))
    return MacroParts(parts, np.divide(covariance, scale, out=np.eye(len(groups)), where=scale > 0))


def macro_between(
    measured: Sequence[Measurement],
    compared: Mapping[str, Comparison],
    admitted: Sequence[TaskComparison],
    seed: int,
) -> Estimate | None:
    """Average the change between two other arms over the items that count in a verdict, weighted as there.

    `compared` are the two arms' comparisons of whole tasks, by name. `admitted` are the verdict's tasks;
    those on which the arms cannot be compared are left out, None where no other is there. `seed` is the one
    that the verdict cut its tasks by.

    Raises:
        IncompatibleRuns: the arms hold different items.
    """
    by_task, cut = {m.task.name: m for m in measured}, cut_tasks(measured, seed)
    found = []
    for t in admitted:
        if t.task.name not in by_task:
            continue
        whole, half = compared[t.task.name], t.half
        if half is not None:
            own = compare_half(by_task[t.task.name], cut, half.name, whole.alpha)
            if own is None:
                continue
            half = half._replace(comparison=own)
        found.append(t._replace(comparison=whole, half=half))
    if not found:
        return None
    shared = find_shared_items(measured, found, cut)
    deltas, weights = [t.counted for t in found], shared.weights(found)
    return comparison.mean_change(deltas, weights, shared.matrix(found), shared.repeated.items)
