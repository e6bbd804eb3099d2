"""Forgetting at equal target score: a trial against the adapter scaled to reach the same score.

Invariant: between two scales both score and general ability are taken as lines; nothing is said of
scores that no pair of neighbouring scales encloses.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

from harness import comparison
from harness.comparison import Comparison, Estimate
from harness.gating import Measurement
from harness.records import SampleResult

Rows = Sequence[SampleResult]


class Scaled(NamedTuple):
    """One scale of the adapter: 0 is the base, 1 the fine-tune; its score on the target, its rows by task."""

    scale: float
    target: float
    rows: Mapping[str, Rows]


class _Between(NamedTuple):
    low: Scaled
    high: Scaled
    weight: float  # of the high one, so that the mixed target score is the wanted one


def at_equal_target(
    path: Sequence[Scaled], trial: Sequence[Measurement], target: float, counting: set[str], alpha: float
) -> Estimate | None:
    """Estimate by how much a trial keeps more than the scaled adapter that scores as much on the target.

    `trial` holds the trial's rows as `new`; `counting` names the tasks of the macro. Where several
    pairs of scales enclose the score, the pair that keeps most is taken. The interval holds the items
    of the tasks; the scores on the target are taken as they were found. None where no pair encloses
    the score.
    """
    found = []
    for between in _enclosing(sorted(path, key=lambda at: at.scale), target):
        mixed = [_against(m, between, alpha) for m in trial if m.task.name in counting]
        if mixed:
            found.append(comparison.mean_change(mixed))
    return min(found, key=lambda e: e.score, default=None)


def _enclosing(path: Sequence[Scaled], target: float) -> Iterator[_Between]:
    for low, high in pairwise(path):
        if min(low.target, high.target) <= target <= max(low.target, high.target):
            span = high.target - low.target
            yield _Between(low, high, (target - low.target) / span if span else 0.5)


def _against(m: Measurement, between: _Between, alpha: float) -> Comparison:
    name = m.task.name
    mixed = _mixed(between.low.rows[name], between.high.rows[name], between.weight)
    return comparison.compare_rows(m.metrics[m.task.primary_metric], mixed, m.new, alpha=alpha)


def _mixed(low: Rows, high: Rows, weight: float) -> list[SampleResult]:
    """Take each item's parts between those of two arms, which hold the same items."""
    other = {row.example_id: row for row in high}
    return [replace(row, parts=_parts(row, other[row.example_id], weight)) for row in low]


def _parts(a: SampleResult, b: SampleResult, weight: float) -> dict[str, tuple[float, ...] | None]:
    out: dict[str, tuple[float, ...] | None] = {}
    for name, old in a.parts.items():
        new = b.parts.get(name)
        known = old is not None and new is not None
        out[name] = (
            tuple((1 - weight) * x + weight * y for x, y in zip(old or (), new or (), strict=True))
            if known
            else None
        )
    return out
