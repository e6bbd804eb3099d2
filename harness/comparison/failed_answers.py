"""Failed answers of two arms: items that one of them did not answer, and the parts that stand in their place.

Invariant: an item is left out of both arms only where neither answered it, or where the metric has no worst
value; it is counted always. Whether an arm answered never moves the items that the other is judged on.
Source: a mean with missing values lies between those of its extremes: Horowitz & Manski 2000, JASA 95, 77-84.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from harness.metrics import Extremes, Metric, extremes
from harness.records import SampleResult

# An error of the base scores worst as one of the new run does, or leaves its item between both extremes.
BaseErrors = Literal["worst", "bounds"]


@dataclass(frozen=True, slots=True)
class Errors:
    """Items, of `n` that were evaluated, which the base alone, the new run alone or neither answered.

    An item of which some of several answers failed is among them, though it has a score. `cause`
    is the reason of the first. `is_scored` says that the metric has a worst value for them; else they are
    left out. `delta_lost` and `delta_kept` are the delta where the items that the base did not
    answer count as passed by it, and as failed; None where they are counted in no such way. `open` names
    those to which the new run's answer is not the best there is: they may be lost.
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
        """Items that at least one arm did not answer."""
        return self.base + self.new + self.both

    @property
    def share(self) -> float:
        """Their share of the items that were evaluated; 0 where none was."""
        return self.total / self.n if self.n else 0.0


NO_ERRORS = Errors()


class FilledArms(NamedTuple):
    """Both arms' rows with parts in the place of failed answers, as far as there are any, and their count."""

    base: Sequence[SampleResult]
    new: Sequence[SampleResult]
    errors: Errors


class _FailedItems(NamedTuple):
    """Ids of the items that the base alone, the new run alone or neither answered."""

    base: list[str]
    new: list[str]
    both: list[str]


def fill_errors(
    metric: Metric,
    base: Sequence[SampleResult],
    new: Sequence[SampleResult],
    only_slice: str = "",
    base_errors: BaseErrors = "worst",
) -> FilledArms:
    """Let failed answers score the metric's worst value; with `bounds` those of the new run alone.

    What neither arm answered then stays without parts, as do the errors of the base, whose bounds
    `base_extremes` gives. Without a worst value all of them do.
    """
    old, now = _map_by_id(base, only_slice), _map_by_id(new, only_slice)
    failed, incomplete = _find_failed(metric, old, now), _incomplete(metric, old, now)
    ids = [i for group in (*failed, *incomplete) for i in group]
    if not ids:
        return FilledArms(base, new, Errors(len(old)))
    known = {i: extremes(metric, old[i].references or now[i].references) for i in ids}
    cause = next((row.error for i in ids for row in (old[i], now[i]) if row.error), "no score")
    counts = {f: len(getattr(failed, f)) + len(getattr(incomplete, f)) for f in _FailedItems._fields}
    sided = [i for i in ids if base_errors == "worst" or i not in failed.both]
    is_scored = all(known[i] is not None for i in sided)
    may_be_lost = tuple(i for i in failed.base if not _is_best(metric, now[i], known[i]))
    errors = Errors(len(old), **counts, cause=cause, is_scored=is_scored, open=may_be_lost)
    if not is_scored:
        return FilledArms(base, new, errors)
    shared = [] if base_errors == "bounds" else failed.both
    of_base = [] if base_errors == "bounds" else failed.base + shared
    return FilledArms(
        _set_parts(metric, base, of_base, known, lambda found: found.worst),
        _set_parts(metric, new, failed.new + shared, known, lambda found: found.worst),
        errors,
    )


def base_extremes(
    metric: Metric, base: Sequence[SampleResult], new: Sequence[SampleResult], only_slice: str
) -> tuple[Sequence[SampleResult], Sequence[SampleResult]]:
    """Return the base's rows with its failed answers as the best there is, and as the worst."""
    old, now = _map_by_id(base, only_slice), _map_by_id(new, only_slice)
    ids = _find_failed(metric, old, now).base
    known = {i: extremes(metric, old[i].references or now[i].references) for i in ids}
    return (
        _set_parts(metric, base, ids, known, lambda found: found.best),
        _set_parts(metric, base, ids, known, lambda found: found.worst),
    )


def _map_by_id(rows: Sequence[SampleResult], only_slice: str) -> dict[str, SampleResult]:
    return {row.example_id: row for row in rows if only_slice in ("", row.slice)}


def _find_failed(
    metric: Metric, old: Mapping[str, SampleResult], now: Mapping[str, SampleResult]
) -> _FailedItems:
    """Find the failed answers; what neither arm could score without an error is no part of the metric."""
    name, shared = metric.name, old.keys() & now.keys()
    without = [{i for i in shared if arm[i].parts[name] is None} for arm in (old, now)]
    both = {i for i in without[0] & without[1] if "error" in (old[i].status, now[i].status)}
    return _FailedItems(sorted(without[0] - without[1]), sorted(without[1] - without[0]), sorted(both))


def _incomplete(
    metric: Metric, old: Mapping[str, SampleResult], now: Mapping[str, SampleResult]
) -> _FailedItems:
    """Find the items that both arms scored, of which some answers failed."""
    scored = {i for i in old.keys() & now.keys() if old[i].parts[metric.name] and now[i].parts[metric.name]}
    base, new = ({i for i in scored if arm[i].status == "incomplete"} for arm in (old, now))
    return _FailedItems(sorted(base - new), sorted(new - base), sorted(base & new))


def _is_best(metric: Metric, row: SampleResult, found: Extremes | None) -> bool:
    return found is not None and row.parts[metric.name] == found.best


def _set_parts(
    metric: Metric,
    rows: Sequence[SampleResult],
    ids: Sequence[str],
    known: Mapping[str, Extremes | None],
    choose: Callable[[Extremes], tuple[float, ...]],
) -> Sequence[SampleResult]:
    """Return the rows with the chosen extreme as the parts of some items."""
    chosen = {i: choose(found) for i in ids if (found := known[i]) is not None}
    if not chosen:
        return rows
    return [
        replace(row, parts={**row.parts, metric.name: chosen[row.example_id]})
        if row.example_id in chosen
        else row
        for row in rows
    ]
