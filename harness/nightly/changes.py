"""Difference in differences by cluster: candidate against reference, less the control arm against its own.

Invariant: pure. An item counts only where question and references are those of the reference, and
only where all four answers could be scored; what cannot be compared is counted.
"""

from collections.abc import Iterable, Mapping
from statistics import fmean
from typing import NamedTuple

import numpy as np

from harness import gating, stats
from harness.metrics import Metric, flipped
from harness.nightly.reevaluate import Rows
from harness.nightly.rotation import Cluster, Item
from harness.nightly.state import BaseNight, SeriesNight
from harness.records import SampleResult

_MOVED_P = 0.01


class NightArms(NamedTuple):
    """Rows of the four arms by item: the candidate now and then, and the base now and then.

    The base's are None where nobody stands beside a candidate on these items.
    """

    now: Rows
    then: Rows
    base_now: Rows | None
    base_then: Rows | None


def compare_series(
    arms: NightArms, anchors: Iterable[Cluster], fresh: Iterable[Cluster], metrics: Mapping[str, Metric]
) -> SeriesNight:
    """Compare a series: Δ = (now − then) − (base now − base then), averaged over each cluster."""
    changes, lost, left_out = _cluster_changes(arms, fresh, metrics)
    fixed, also_lost, also_left = _cluster_changes(arms, anchors, metrics)
    adjusted = arms.base_now is not None and arms.base_then is not None
    return SeriesNight(changes, fixed, (*lost, *also_lost), left_out + also_left, adjusted)


def compare_base(
    now: Rows, then: Rows, fresh: Iterable[Cluster], last: Rows | None, metrics: Mapping[str, Metric]
) -> BaseNight:
    """Say what moved of the base since the reference, and on anchors since the last night."""
    rotating = {item for cluster in fresh for item in cluster}
    shared = [item for item in now if item in then and is_same_item(now[item], then[item])]
    flips = {
        name(item): flipped(then[item], now[item], metrics[item[0]]) for item in shared if item in rotating
    }
    differing = [name(i) for i, row in (last or {}).items() if i in now and _answer(now[i]) != _answer(row)]
    reworded = [name(i) for i in shared if now[i].prompt_digest != then[i].prompt_digest]
    return BaseNight(flips, tuple(reworded), tuple(differing))


def has_moved(now: Rows, then: Rows, metrics: Mapping[str, Metric]) -> bool:
    """Tell whether more answers score otherwise than the rounding of one model explains.

    Source: the exact binomial test, one-sided, at the A/A rate of bf16.
    """
    shared = [item for item in now if item in then and is_same_item(now[item], then[item])]
    moved = sum(flipped(then[item], now[item], metrics[item[0]]) for item in shared)
    return bool(shared) and stats.binomial_p(moved, len(shared), gating.aa_rate("bf16")) < _MOVED_P


def name(item: Item) -> str:
    """Name an item as elsewhere: task/item."""
    return f"{item[0]}/{item[1]}"


def is_same_item(now: SampleResult, then: SampleResult) -> bool:
    """Tell whether two rows answer the same question with the same references."""
    return (now.prompt, now.references) == (then.prompt, then.references)


def score(row: SampleResult, metric: Metric) -> float | None:
    """Return one answer's score, so that the larger is the better; None where it could not be scored."""
    parts = row.parts.get(metric.name)
    if parts is None:
        return None
    value = float(metric.aggregate(np.array([parts]), np.ones(1)))
    return metric.unit.sign * value if np.isfinite(value) else None


def _cluster_changes(
    arms: NightArms, clusters: Iterable[Cluster], metrics: Mapping[str, Metric]
) -> tuple[dict[str, float], list[str], int]:
    changes: dict[str, float] = {}
    lost: list[str] = []
    left_out = 0
    for cluster in clusters:
        found = {item: _change(arms, item, metrics[item[0]]) for item in cluster}
        known = {item: d for item, d in found.items() if d is not None}
        left_out += len(found) - len(known)
        lost += [name(item) for item, d in known.items() if d < -stats.TIE]
        if known:
            changes[name(cluster[0])] = round(fmean(known.values()), 9)
    return changes, lost, left_out


def _change(arms: NightArms, item: Item, metric: Metric) -> float | None:
    """Return an item's change, less the base's; None where an answer is missing or another item's."""
    own = _difference(arms.now.get(item), arms.then.get(item), metric)
    if own is None or arms.base_now is None or arms.base_then is None:
        return own
    base = _difference(arms.base_now.get(item), arms.base_then.get(item), metric)
    return None if base is None else own - base


def _difference(now: SampleResult | None, then: SampleResult | None, metric: Metric) -> float | None:
    if now is None or then is None or now.references != then.references:
        return None
    new, old = score(now, metric), score(then, metric)
    return None if new is None or old is None else new - old


def _answer(row: SampleResult) -> tuple[str, str, str]:
    return row.prompt_digest, row.text, row.status
