"""Alignment of two arms' rows by item, as arrays.

Invariant: an item counts only where both arms hold and scored it; an arm that holds other
items, or one of them twice, is refused.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness.errors import IncompatibleRuns
from harness.metrics import Metric
from harness.records import SampleResult, many_rows
from harness.stats import Array

_INVALID = ("unparsable", "truncated", "refused")


class Arms(NamedTuple):
    """Both arms' parts on the items that both scored, in the order of their ids.

    `base_folds` and `new_folds` number the folds whose models answered, 0 where one model answered all.
    """

    ids: tuple[str, ...]
    clusters: NDArray[np.intp]
    weights: Array
    base: Array  # (n, k)
    new: Array  # (n, k)
    valid: NDArray[np.bool_]
    base_folds: NDArray[np.intp]
    new_folds: NDArray[np.intp]

    def only(self, mask: NDArray[np.bool_]) -> "Arms":
        """Keep the items of a mask (n,)."""
        codes = np.unique(self.clusters[mask], return_inverse=True)[1]
        return Arms(
            select_ids(self.ids, mask),
            codes,
            self.weights[mask],
            self.base[mask],
            self.new[mask],
            self.valid[mask],
            self.base_folds[mask],
            self.new_folds[mask],
        )


def align(metric: Metric, base: Sequence[SampleResult], new: Sequence[SampleResult], only_slice: str) -> Arms:
    """Match the rows of two runs by item; with `only_slice`, those of that slice.

    Raises:
        IncompatibleRuns: the arms hold different items or an item twice, or none was scored in both.
    """
    old, now = _map_by_id(base), _map_by_id(new)
    if old.keys() != now.keys():
        raise IncompatibleRuns(_different_items(old.keys() - now.keys(), now.keys() - old.keys()))
    ids = [
        i
        for i in sorted(old)
        if (not only_slice or old[i].slice == only_slice)
        and old[i].parts[metric.name] is not None
        and now[i].parts[metric.name] is not None
    ]
    if not ids:
        where = f"slice {only_slice!r} of " if only_slice else ""
        found = f"{where}metric {metric.name!r}: found no item that both runs scored"
        raise IncompatibleRuns(f"{found}. Next: evaluate both on the same split and limit")
    codes = np.unique([old[i].cluster or i for i in ids], return_inverse=True)[1]
    return Arms(
        ids=tuple(ids),
        clusters=codes,
        weights=np.array([old[i].weight for i in ids], float),
        base=np.array([old[i].parts[metric.name] for i in ids], float),
        new=np.array([now[i].parts[metric.name] for i in ids], float),
        valid=np.array([old[i].status == now[i].status == "ok" for i in ids]),
        base_folds=np.array([old[i].fold for i in ids]),
        new_folds=np.array([now[i].fold for i in ids]),
    )


def _map_by_id(rows: Sequence[SampleResult]) -> dict[str, SampleResult]:
    found = {row.example_id: row for row in rows}
    if len(found) != len(rows):
        n = len(rows) - len(found)
        raise IncompatibleRuns(f"found {n} items twice in one run's rows. Next: evaluate that run again")
    return found


def _different_items(only_base: set[str], only_new: set[str]) -> str:
    shown = ", ".join(sorted(only_base | only_new)[:5])
    return (
        f"the runs hold different items: {len(only_base)} only in the base, {len(only_new)} only in the new "
        f"run ({shown}). Next: evaluate both on the same split and limit"
    )


def name_pooled_cluster(row: SampleResult) -> str:
    """Name a row's cluster among the rows of several tasks: by its own name, which is the same in all."""
    return row.cluster or f"{row.task}/{row.example_id}"


def validity_rows(rows: Sequence[SampleResult], joined: Mapping[str, str]) -> list[SampleResult]:
    """Make rows with the one part `invalid`, no texts, and names that stay apart when tasks are pooled.

    `joined` names, by `name_pooled_cluster`, those of several tasks that are one.
    """
    with many_rows():
        return [
            SampleResult(
                task=row.task,
                split=row.split,
                example_id=f"{row.task}/{row.example_id}",
                position=row.position,
                status=row.status,
                text="",
                prompt="",
                references=(),
                parts={"invalid": None if row.status == "error" else (float(row.status in _INVALID),)},
                cluster=joined.get(name := name_pooled_cluster(row), name),
                weight=row.weight,
                error=row.error,
            )
            for row in rows
        ]


def is_mean(metric: Metric, arms: Arms) -> bool:
    """Tell whether the aggregate is the mean of one part, with weights that are all the same."""
    return bool(np.ptp(arms.weights) == 0) and _is_weighted_mean(metric, arms)


def is_stratified_sample(metric: Metric, arms: Arms) -> bool:
    """Tell whether the delta is one of 0/1 scores, of single items that were sampled with unequal chances."""
    single = int(arms.clusters.max()) + 1 == len(arms.ids)
    uneven = bool(np.ptp(arms.weights) > 0)
    return uneven and single and is_binary(metric, arms) and _is_weighted_mean(metric, arms)


def _is_weighted_mean(metric: Metric, arms: Arms) -> bool:
    """Tell whether the aggregate of one part an item is its weighted mean."""
    if arms.base.shape[1] != 1:
        return False
    uneven = np.arange(1.0, len(arms.ids) + 1)
    return bool(np.isclose(metric.aggregate(arms.base, uneven), np.average(arms.base[:, 0], weights=uneven)))


def is_binary(metric: Metric, arms: Arms) -> bool:
    """Tell whether all scores of both arms are 0 or 1, and the metric's bounds too: others may score more."""
    if metric.bounds != (0.0, 1.0):
        return False
    return arms.base.shape[1] == 1 and bool(np.isin([arms.base, arms.new], (0.0, 1.0)).all())


def select_ids(ids: Sequence[str], mask: NDArray[np.bool_]) -> tuple[str, ...]:
    """Return the ids that a mask (n,) chooses."""
    return tuple(id_ for id_, chosen in zip(ids, mask, strict=True) if chosen)
