"""Scores and ranks of runs on the target, made of their stored rows; a row set is read once for each metric.

Invariant: the numbers are `comparison`'s, and no more row sets are read than were requested.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import streamlit as st

from harness import comparison, store
from harness.comparison import Estimate
from harness.store import MetricColumns
from parts import project

AT_ONCE = 20  # row sets that are read as a page opens: as many as its picture shows, and soon read


class _Key(NamedTuple):
    """A row set as it was at some time, and a metric of a task."""

    digest: str
    modified_ns: int
    task: str
    metric: str


def estimates(digests: Sequence[str], task: str, metric: str) -> dict[str, Estimate | None]:
    """Estimate the scores of row sets: of the first `AT_ONCE`, and of others that were read before.

    None stands for a set that is not there, or that nothing in it was scored.
    """
    kept, keys = _keep_estimates(str(project.project().store.folder)), _keys(digests, task, metric)
    if new := [key for key in keys[:AT_ONCE] if key not in kept]:
        of, found = project.metric(task, metric), _columns(new)
        kept.update({k: comparison.estimate_columns(of, found[k]) if k in found else None for k in new})
    return {key.digest: kept[key] for key in keys if key in kept}


def read(digests: Sequence[str], task: str, metric: str) -> Iterator[int]:
    """Estimate the scores of all row sets, which are then known; yields how many more are done."""
    for at in range(0, len(digests), AT_ONCE):
        yield len(estimates(digests[at : at + AT_ONCE], task, metric))


def read_parts(digests: Sequence[str], task: str, metric: str) -> list[MetricColumns]:
    """Read a metric's parts of row sets, in their order; those that it did not score are left out."""
    keys = _keys(digests, task, metric)
    found = _columns(keys)
    return [found[key] for key in keys if key in found]


def ranks(digests: Mapping[str, str], task: str, metric: str) -> dict[str, int]:
    """Rank runs, given by id with their row sets, on the items that most of them answered."""
    return _rank_row_sets(tuple(sorted(digests.items())), tuple(_keys(list(digests.values()), task, metric)))


@st.cache_data(show_spinner=False, max_entries=32)
def _rank_row_sets(digests: tuple[tuple[str, str], ...], keys: tuple[_Key, ...]) -> dict[str, int]:
    found = {key.digest: columns for key, columns in _columns(keys).items()}
    by_run = {run_id: found[digest] for run_id, digest in digests if digest in found}
    return comparison.rank_with_ties(project.metric(keys[0].task, keys[0].metric), by_run)


def _keys(digests: Sequence[str], task: str, metric: str) -> list[_Key]:
    distinct = list(dict.fromkeys(digests))
    times = project.row_set_times(*distinct)
    return [_Key(digest, at, task, metric) for digest, at in zip(distinct, times, strict=True)]


def _columns(keys: Sequence[_Key]) -> dict[_Key, MetricColumns]:
    """Read row sets of one metric; the last ones stay at hand, because what is scored is then ranked."""
    held = _hold_columns(str(project.project().store.folder))
    found = {key: columns for key in keys if (columns := held.get(key)) is not None}
    if new := {key.digest: key for key in keys if key not in found}:
        rows = store.read_columns(project.project().store, new, keys[0].metric)
        found |= {new[digest]: columns for digest, columns in rows.items()}
    held.update(found)
    for key in list(held)[: max(0, len(held) - AT_ONCE)]:
        held.pop(key, None)
    return found


@st.cache_resource(show_spinner=False, max_entries=4)
def _keep_estimates(folder: str) -> dict[_Key, Estimate | None]:
    """Keep what was estimated of each row set."""
    return {}


@st.cache_resource(show_spinner=False, max_entries=4)
def _hold_columns(folder: str) -> dict[_Key, MetricColumns]:
    """Hold the row sets that were read last; each may have 10,000 items."""
    return {}
