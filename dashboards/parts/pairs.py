"""Two runs on one task: the paired difference as reports make it, and items that can be looked at.

Invariant: numbers come from `comparison`, made of stored rows; rows that must not be compared are not.
"""

from collections.abc import Sequence
from typing import NamedTuple

import streamlit as st

from harness import comparison, store
from harness.comparison import Comparison
from harness.errors import HarnessError
from harness.numbers import OWN_UNITS, change
from harness.records import SampleResult
from harness.report import ExperimentReport
from parts import project

ALPHA = 0.05


class Pair(NamedTuple):
    """Two row sets of one task, and the metric that decides there."""

    task: str
    metric: str
    base: str
    new: str
    alpha: float = ALPHA


def primary_metric(task: str, digest: str, report: ExperimentReport | None) -> str:
    """Name the metric that a task is decided by: as reported, as written, or the first that was scored."""
    if report is not None and task == report.task:
        return report.metric
    for comparisons in report.comparisons.values() if report is not None else ():
        if names := [c.metric for c in comparisons if c.task == task]:
            return names[0]
    if (written := project.task(task)) is not None and not written.lm_eval:
        return written.primary_metric
    return next((name for row in project.scored(digest)[:1] for name in row.parts), "")


def compare(pair: Pair) -> Comparison | str:
    """Compare two row sets, or say why they must not be."""
    try:
        return _compared(pair)
    except (HarnessError, KeyError) as error:
        return f"{pair.task}: {error}"


@st.cache_resource(show_spinner=False, max_entries=2_000)
def _compared(pair: Pair) -> Comparison:
    at = project.project().store
    one, other = (store.read_identity(at, digest) for digest in (pair.base, pair.new))
    comparison.check_comparable(one, other)
    return comparison.compare_rows(
        project.metric(pair.task, pair.metric),
        project.scored(pair.base),
        project.scored(pair.new),
        alpha=pair.alpha,
        identical=pair.base == pair.new,
    )


def said(c: Comparison) -> str:
    """Print a difference as reports do."""
    return change(c.metric, c.delta, c.low, c.high)


def scale(c: Comparison) -> float:
    """Return what turns a difference into what is shown: points, or the metric's own unit."""
    return 1.0 if c.metric in OWN_UNITS else 100.0


def two_texts(pair: Pair, item: str) -> tuple[SampleResult, SampleResult] | None:
    """Read one item's two rows with their texts."""
    at = project.project().store
    rows = [store.read_samples(at, digest, [item]).get(item) for digest in (pair.base, pair.new)]
    return (rows[0], rows[1]) if rows[0] and rows[1] else None


def holding(pair: Pair, text: str) -> set[str] | None:
    """Find the items in which a text occurs; None where no text is looked for."""
    return store.find_items(project.project().store, [pair.base, pair.new], text) if text.strip() else None


def kinds(pair: Pair, ids: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Map items to their slice and cluster."""
    wanted = set(ids)
    return {r.example_id: (r.slice, r.cluster) for r in project.scored(pair.new) if r.example_id in wanted}
