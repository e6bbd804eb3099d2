"""Alignment of two arms' rows by item, as arrays, with failed answers and items answered in folds.

Invariant: an item counts only if both arms have it and scored it; arms with other items, or with an item
twice, are refused. Whether one arm answered never changes the items that the other is judged on. Intervals
are only widened about their estimate. Source: Horowitz & Manski 2000, JASA 95, 77-84, for the bounds of a
mean with missing values.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf, sqrt
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness import stats
from harness.errors import IncompatibleRuns
from harness.metrics import Metric, extremes
from harness.records import SampleResult, many_rows
from harness.stats import Array, Interval, Variance

_INVALID = ("unparsable", "truncated", "refused")
# An error of the base scores worst, like one of the new run, or leaves its item between both extremes.
BaseErrors = Literal["worst", "bounds"]
_ALPHA = 0.05
Folds = NDArray[np.intp]
Ends = Callable[[float], Interval]  # two-sided alpha → interval
ValueOf = Callable[[NDArray[np.bool_]], float]  # mask of items (n,) → score or difference


class Arms(NamedTuple):
    """Parts of both arms on the items that both scored, by id; a fold is 0 if one model answered all."""

    ids: tuple[str, ...]
    clusters: NDArray[np.intp]
    weights: Array
    base: Array  # (n, k)
    new: Array  # (n, k)
    base_folds: NDArray[np.intp]
    new_folds: NDArray[np.intp]

    def only(self, mask: NDArray[np.bool_]) -> "Arms":
        """Select the items of a mask (n,)."""
        codes = np.unique(self.clusters[mask], return_inverse=True)[1]
        columns = {name: getattr(self, name)[mask] for name in self._fields[2:]}
        return Arms(select_ids(self.ids, mask), codes, **columns)


def align(metric: Metric, base: Sequence[SampleResult], new: Sequence[SampleResult]) -> Arms:
    """Match the rows of two runs by item.

    Raises:
        IncompatibleRuns: the arms hold different items or an item twice, or none was scored in both.
    """
    old, now = _map_by_id(base), _map_by_id(new)
    if old.keys() != now.keys():
        only_base, only_new = old.keys() - now.keys(), now.keys() - old.keys()
        differing_ids = ", ".join(sorted(only_base | only_new)[:5])
        raise IncompatibleRuns(
            f"the runs hold different items: {len(only_base)} only in the base, {len(only_new)} only in the"
            f" new run ({differing_ids}). Next: evaluate both on the same split and limit"
        )
    name = metric.name
    ids = [i for i in sorted(old) if old[i].parts[name] is not None and now[i].parts[name] is not None]
    if not ids:
        problem = f"metric {name!r}: found no item that both runs scored"
        raise IncompatibleRuns(f"{problem}. Next: evaluate both on the same split and limit")
    codes = np.unique([old[i].cluster or i for i in ids], return_inverse=True)[1]
    return Arms(
        ids=tuple(ids),
        clusters=codes,
        weights=np.array([old[i].weight for i in ids], float),
        base=np.array([old[i].parts[name] for i in ids], float),
        new=np.array([now[i].parts[name] for i in ids], float),
        base_folds=np.array([old[i].fold for i in ids]),
        new_folds=np.array([now[i].fold for i in ids]),
    )


def _map_by_id(rows: Sequence[SampleResult]) -> dict[str, SampleResult]:
    by_id = {row.example_id: row for row in rows}
    if len(by_id) != len(rows):
        n = len(rows) - len(by_id)
        raise IncompatibleRuns(f"found {n} items twice in one run's rows. Next: evaluate that run again")
    return by_id


def name_pooled_cluster(row: SampleResult) -> str:
    """Return a row's cluster name for rows of several tasks; a named cluster is the same in all tasks."""
    return row.cluster or f"{row.task}/{row.example_id}"


def validity_rows(rows: Sequence[SampleResult], joined: Mapping[str, str]) -> list[SampleResult]:
    """Return rows with the single part `invalid`, named across tasks; `joined` maps pooled cluster names."""
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
    """Tell whether the aggregate is the mean of one part with equal weights."""
    return bool(np.ptp(arms.weights) == 0) and is_weighted_mean(metric, arms)


def is_weighted_mean(metric: Metric, arms: Arms) -> bool:
    """Tell whether the aggregate is the weighted mean of one part per item."""
    if arms.base.shape[1] != 1:
        return False
    uneven = np.arange(1.0, len(arms.ids) + 1)
    return bool(np.isclose(metric.aggregate(arms.base, uneven), np.average(arms.base[:, 0], weights=uneven)))


def is_binary(metric: Metric, arms: Arms) -> bool:
    """Tell whether all scores of both arms are 0 or 1, and the metric's bounds are too."""
    if metric.bounds != (0.0, 1.0):
        return False
    return arms.base.shape[1] == 1 and bool(np.isin([arms.base, arms.new], (0.0, 1.0)).all())


def select_ids(ids: Sequence[str], mask: NDArray[np.bool_]) -> tuple[str, ...]:
    """Return the ids selected by a mask (n,)."""
    return tuple(id_ for id_, chosen in zip(ids, mask, strict=True) if chosen)


@dataclass(frozen=True, slots=True)
class Errors:
    """Counts of failed items among `n` evaluated ones: failed by the base, by the new run, or by both.

    Items with only some failed answers are included. `cause` is the first failure's reason.
    Without a worst value (`is_scored` is False) failures are left out. `delta_lost` and `delta_kept` are the
    delta if items that the base failed count as passed by it, or as not passed; None if not applicable.
    `open` names the failed items of the base on which the new run's answer is not perfect.
    """

    n: int = 0
    base: int = 0
    new: int = 0
    both: int = 0
    cause: str = ""
    is_scored: bool = True
    delta_lost: float | None = None
    delta_kept: float | None = None
    open: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        """Number of items that at least one arm failed to answer."""
        return self.base + self.new + self.both

    @property
    def share(self) -> float:
        """Share of the evaluated items; 0 if none was evaluated."""
        return self.total / self.n if self.n else 0.0


NO_ERRORS = Errors()


class FilledArms(NamedTuple):
    """Rows of both arms with parts for failed answers; extremes are the base's scored best, and worst."""

    base: Sequence[SampleResult]
    new: Sequence[SampleResult]
    errors: Errors
    base_extremes: tuple[Sequence[SampleResult], ...] = ()


def fill_errors(
    metric: Metric,
    base: Sequence[SampleResult],
    new: Sequence[SampleResult],
    base_errors: BaseErrors = "worst",
) -> FilledArms:
    """Give failed answers the metric's worst value; with `bounds` only those of the new run.

    With `bounds`, items that neither arm answered keep no parts, and `base_extremes` bounds the base's
    failures. Without a worst value no failed answer gets parts.
    """
    old, now = ({row.example_id: row for row in rows} for rows in (base, new))
    name, shared = metric.name, old.keys() & now.keys()
    # Items that neither arm could score, without an error, do not belong to the metric.
    none_old, none_new = ({i for i in shared if arm[i].parts[name] is None} for arm in (old, now))
    in_both = {i for i in none_old & none_new if "error" in (old[i].status, now[i].status)}
    base_failed, new_failed = sorted(none_old - none_new), sorted(none_new - none_old)
    scored = {i for i in shared if old[i].parts[name] and now[i].parts[name]}
    few_old, few_new = ({i for i in scored if arm[i].status == "incomplete"} for arm in (old, now))
    incomplete = (sorted(few_old - few_new), sorted(few_new - few_old), sorted(few_old & few_new))
    failed = (base_failed, new_failed, sorted(in_both))
    ids = [i for group in (*failed, *incomplete) for i in group]
    if not ids:
        return FilledArms(base, new, Errors(len(old)))
    extremes_by_id = {i: extremes(metric, old[i].references or now[i].references) for i in ids}
    cause = next((row.error for i in ids for row in (old[i], now[i]) if row.error), "no score")
    n_base, n_new, n_both = (
        len(failures) + len(partials) for failures, partials in zip(failed, incomplete, strict=True)
    )
    counted_ids = [i for i in ids if base_errors == "worst" or i not in in_both]
    is_scored = all(extremes_by_id[i] is not None for i in counted_ids)
    best = {i: item_extremes.best for i, item_extremes in extremes_by_id.items() if item_extremes}
    may_be_lost = tuple(i for i in base_failed if i not in best or now[i].parts[metric.name] != best[i])
    errors = Errors(len(old), n_base, n_new, n_both, cause, is_scored=is_scored, open=may_be_lost)
    if not is_scored:
        return FilledArms(base, new, errors)
    worst = {i: item_extremes.worst for i, item_extremes in extremes_by_id.items() if item_extremes}
    if base_errors == "bounds":
        both_ends = tuple(_set_parts(metric, base, base_failed, ends) for ends in (best, worst))
        return FilledArms(base, _set_parts(metric, new, new_failed, worst), errors, both_ends)
    return FilledArms(
        _set_parts(metric, base, base_failed + failed[2], worst),
        _set_parts(metric, new, new_failed + failed[2], worst),
        errors,
    )


def align_all(metric: Metric, runs: Sequence[Sequence[SampleResult]]) -> list[Arms]:
    """Match the rows of several runs on the items that all scored; errors score worst.

    Raises:
        IncompatibleRuns: the runs hold different items, or none was scored in all of them.
    """
    filled = [fill_errors(metric, rows, rows).base for rows in runs]
    aligned = [align(metric, filled[0], rows) for rows in filled]
    shared = set.intersection(*(set(arms.ids) for arms in aligned))
    if not shared:
        problem = f"metric {metric.name!r}: found no item that all {len(aligned)} runs scored"
        raise IncompatibleRuns(f"{problem}. Next: evaluate all on the same split and limit")
    return [arms.only(np.array([i in shared for i in arms.ids])) for arms in aligned]


def _set_parts(
    metric: Metric, rows: Sequence[SampleResult], ids: Sequence[str], parts: Mapping[str, tuple[float, ...]]
) -> Sequence[SampleResult]:
    chosen = {i: parts[i] for i in ids if i in parts}
    if not chosen:
        return rows
    filled = list(rows)
    for at, row in enumerate(rows):
        if row.example_id in chosen:
            filled[at] = replace(row, parts={**row.parts, metric.name: chosen[row.example_id]})
    return filled


def interval_in_folds(
    plain: Ends, df: float | None, estimate: float, folds: Folds, value_of: ValueOf
) -> tuple[Ends, float | None, str]:
    """Widen an interval by the differences between models of folds (n,); none with fewer than three folds.

    Returns the ends, the degrees of freedom of the t, and the reason if there is no interval.
    """
    masks = [folds == fold for fold in np.unique(folds)]
    if len(masks) < stats.MIN_FOLDS:
        why = f"items of {len(masks)} folds alone; expected at least {stats.MIN_FOLDS}"
        return lambda alpha: Interval(-inf, inf), None, why
    low, high = plain(_ALPHA)
    se = (high - low) / (2 * quantile(df, 1 - _ALPHA / 2))
    if not 0 < se < inf:
        return plain, df, ""
    means, sizes = [value_of(mask) for mask in masks], [int(mask.sum()) for mask in masks]
    total = stats.cross_validated_variance(Variance(se**2, df), means, sizes)

    def ends(alpha: float) -> Interval:
        p = 1 - alpha / 2
        wider = quantile(total.df, p) * sqrt(total.variance) / (quantile(df, p) * se)
        return Interval(*(estimate + max(wider, 1.0) * (end - estimate) for end in plain(alpha)))

    return ends, total.df, ""


def quantile(df: float | None, p: float) -> float:
    """Return the quantile of Student's t, or of the normal distribution if `df` is None."""
    return stats.z_quantile(p) if df is None else stats.t_quantile(p, df)
