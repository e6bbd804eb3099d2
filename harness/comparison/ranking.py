"""Ranks in which candidates that are not shown to differ share one.

Invariant: going down by score, a candidate opens a rank only where its paired difference to the one
that opened the last rank has a 95 % interval without 0; pairs are not corrected for their number. An answer
that failed scores worst.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from harness.comparison.alignment import Arms, select_ids
from harness.comparison.estimators import Estimate, estimate_difference, identical_difference
from harness.metrics import Metric, extremes

if TYPE_CHECKING:
    from harness.store import MetricColumns

_ALPHA = 0.05


def estimate_columns(metric: Metric, columns: "MetricColumns", seed: int = 0) -> Estimate | None:
    """Estimate a score with its 95 % interval, as `estimate` does of rows; None where nothing was scored."""
    arms = _arms(metric, columns, columns)
    if not arms.ids:
        return None
    return identical_difference(metric, arms, seed).base._replace(n_errors=sum(columns.failed))


def rank_with_ties(metric: Metric, columns: Mapping[str, "MetricColumns"], seed: int = 0) -> dict[str, int]:
    """Rank candidates by their scores on the same items, 1 the best; those that cannot be told apart share.

    A candidate that answered other items than most, or none that could be scored, gets no rank.
    """
    same_items = _largest_group(columns)
    scores = {name: estimate_columns(metric, own, seed) for name, own in same_items.items()}
    known = {name: e.unit.sign * e.score for name, e in scores.items() if e is not None}
    ranks: dict[str, int] = {}
    leader = ""
    for place, name in enumerate(sorted(known, key=lambda name: -known[name]), start=1):
        if not leader or _differ(metric, same_items[leader], same_items[name], seed):
            leader, ranks[name] = name, place
        else:
            ranks[name] = ranks[leader]
    return ranks


def _largest_group(columns: Mapping[str, "MetricColumns"]) -> dict[str, "MetricColumns"]:
    """Keep the candidates that answered the items that most of them answered."""
    groups: dict[tuple[str, ...], dict[str, MetricColumns]] = {}
    for name, own in columns.items():
        groups.setdefault(own.ids, {})[name] = own
    return max(groups.values(), key=len, default={})


def _differ(metric: Metric, one: "MetricColumns", other: "MetricColumns", seed: int) -> bool:
    arms = _arms(metric, one, other)
    if not arms.ids:
        return False
    low, high = estimate_difference(metric, arms, seed).ends(_ALPHA)
    return low > 0 or high < 0


def _arms(metric: Metric, base: "MetricColumns", new: "MetricColumns") -> Arms:
    """Put two candidates' parts on the same items beside each other, without the items one lacks."""
    old, now = _parts(metric, base), _parts(metric, new)
    both = np.array([a is not None and b is not None for a, b in zip(old, now, strict=True)], bool)
    ids = select_ids(base.ids, both)
    families = [cluster or item for item, cluster in zip(base.ids, base.clusters, strict=True)]
    kept = [family for family, chosen in zip(families, both, strict=True) if chosen]
    return Arms(
        ids,
        np.unique(kept, return_inverse=True)[1],
        np.array(base.weights, float)[both],
        np.array([p for p, chosen in zip(old, both, strict=True) if chosen], float),
        np.array([p for p, chosen in zip(now, both, strict=True) if chosen], float),
        np.ones(len(ids), bool),
        *(np.array(of.folds or [0] * len(of.ids))[both] for of in (base, new)),
    )


def _parts(metric: Metric, columns: "MetricColumns") -> list[Sequence[float] | None]:
    """Return every item's parts, the worst there are for an answer that failed."""
    out = list(columns.parts)
    for at, failed in enumerate(columns.failed):
        if failed and out[at] is None and (found := extremes(metric, columns.references[at])):
            out[at] = found.worst
    return out
