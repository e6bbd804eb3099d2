"""Scores, ranks and paired differences of runs from stored rows; a row set is read once for each metric."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import streamlit as st

from harness import store
from harness.analysis import comparison
from harness.analysis.alignment import BaseErrors
from harness.analysis.answers import add_samples
from harness.analysis.comparison import estimate_columns, rank_with_ties
from harness.analysis.estimators import Comparison, Estimate
from harness.errors import HarnessError
from harness.experiment.study import judge_labels
from harness.records import Run, Sample
from harness.report import ExperimentReport
from harness.spec import GatePolicy
from harness.store import MetricColumns, Store
from parts import project

ALPHA = 0.05
AT_ONCE = 20  # row sets read when a page opens, as many as its plot shows


class Pair(NamedTuple):
    """Two row sets of one task, its deciding metric, and the treatment of the base's errors."""

    task: str
    metric: str
    base: str
    new: str
    alpha: float = ALPHA
    base_errors: BaseErrors = "worst"


def primary_metric(task: str, digest: str, report: ExperimentReport | None) -> str:
    """Return a task's deciding metric: the report's, that in harness.yaml, or the first scored one."""
    if report is not None and task == report.task:
        return report.metric
    for comparisons in report.comparisons.values() if report is not None else ():
        if names := [c.metric for c in comparisons if c.task == task]:
            return names[0]
    if (written := project.task(task)) is not None and not written.lm_eval:
        return written.primary_metric
    first = store.read_rows(project.runs_store(), digest, 1)
    return next((name for row in first for name in row.parts), "")


def compare(pair: Pair) -> Comparison | str:
    """Compare two row sets, or return why they cannot be compared."""
    try:
        return _compare(pair, (*project.row_set_times(pair.base, pair.new), *project.label_times()))
    except (HarnessError, KeyError) as error:
        return f"{pair.task}: {error}"


@st.cache_resource(show_spinner=False, max_entries=2_000)
def _compare(pair: Pair, changed: tuple[int, ...]) -> Comparison:
    runs_store, metric = project.runs_store(), project.metric(pair.task, pair.metric)
    base, new = (store.read_identity(runs_store, digest) for digest in (pair.base, pair.new))
    comparison.check_comparable(base, new)
    arms = [project.read_scored_rows(digest) for digest in (pair.base, pair.new)]
    n, identical = min(map(len, arms)), pair.base == pair.new
    is_on_target = pair.base_errors == "worst" and not identical
    task = project.task(pair.task) if is_on_target else None
    labels = judge_labels(runs_store, task, metric.name) if task else {}
    if labels:
        rows = store.read_many(runs_store, (pair.base, pair.new))
        arms = [add_samples(rows[d], store.read_drawn(runs_store, d)) for d in (pair.base, pair.new)]
    base_rows, new_rows = (list(arm)[:n] for arm in arms)  # in the same order, as in the gate
    if is_on_target:  # verdicts on it use people's labels
        loaded = project.experiment()
        policy = loaded.experiment.gate if loaded else GatePolicy()
        if on_target := comparison.compare_on_target(metric, base_rows, new_rows, labels, policy.max_errors):
            return on_target
    return comparison.compare_rows(
        metric, base_rows, new_rows, alpha=pair.alpha, identical=identical, base_errors=pair.base_errors
    )


def compare_on_every_task(
    base: Run, new: Run, report: ExperimentReport | None
) -> dict[str, Comparison | str]:
    """Compare two runs on every task that both answered, the target first; by the gate, if it did."""
    loaded = project.experiment()
    alpha = loaded.experiment.gate.alpha if loaded else ALPHA
    target = report.task if report else loaded.experiment.target.name if loaded else ""
    labels, judged = {f.run_id: f.label for f in report.facts} if report else {}, dict[str, Comparison]()
    # The gate compares a run with the base's rows, which the reported runs on its weights share.
    if report and base.run_id in labels and base.weights_digest == new.base_digest:
        judged = report.task_comparisons(labels.get(new.run_id, ""))
    out: dict[str, Comparison | str] = {}
    keys = (key for key in new.rows if key.endswith("/test") and key in base.rows)
    for key in sorted(keys, key=lambda k: k != f"{target}/test"):
        task = key.removesuffix("/test")
        if task in judged:
            out[task] = judged[task]
        elif base.may_be_drawn(task) or new.may_be_drawn(task):
            reason = "sampled items count by weights, which the report keeps only for candidate against base"
            out[task] = f"{task}: {reason}. Next: harness compare --all-items"
        else:
            # As in the report: on the target errors score worst in both arms, elsewhere as in the gate.
            rules: tuple[float, BaseErrors] = (ALPHA, "worst") if task == target else (alpha, "bounds")
            metric = primary_metric(task, new.rows[key], report)
            out[task] = compare(Pair(task, metric, base.rows[key], new.rows[key], *rules))
    return out


def read_all_answers(digest: str, item: str) -> tuple[Sample, ...]:
    """Read all sampled answers to an item; empty if it was answered greedily."""
    drawn = _read_drawn(str(project.runs_store().folder), digest, project.row_set_times(digest))
    return drawn.get(item, ())


@st.cache_resource(show_spinner=False, max_entries=8)
def _read_drawn(folder: str, digest: str, changed: tuple[int, ...]) -> dict[str, tuple[Sample, ...]]:
    return store.read_drawn(Store(Path(folder)), digest)


class _Key(NamedTuple):
    """A version of a row set, and a metric of its task."""

    digest: str
    modified_ns: int
    task: str
    metric: str


def estimates(digests: Sequence[str], task: str, metric: str) -> dict[str, Estimate | None]:
    """Estimate the scores of the first `AT_ONCE` row sets; others only if they were read before.

    None stands for a missing set, or one without scores.
    """
    cache, keys = _caches(str(project.runs_store().folder))[0], _keys(digests, task, metric)
    if new := [key for key in keys[:AT_ONCE] if key not in cache]:
        definition, columns = project.metric(task, metric), _columns(new)
        cache.update({k: estimate_columns(definition, columns[k]) if k in columns else None for k in new})
    return {key.digest: cache[key] for key in keys if key in cache}


def read_parts(digests: Sequence[str], task: str, metric: str) -> list[MetricColumns]:
    """Read a metric's parts of row sets, in their order, without those that it did not score."""
    columns = _columns(keys := _keys(digests, task, metric))
    return [columns[key] for key in keys if key in columns]


def ranks(digests: Mapping[str, str], task: str, metric: str) -> dict[str, int]:
    """Rank runs (row set digests by run id) on the items that most of them answered."""
    return _rank_row_sets(tuple(sorted(digests.items())), tuple(_keys(list(digests.values()), task, metric)))


@st.cache_data(show_spinner=False, max_entries=32)
def _rank_row_sets(digests: tuple[tuple[str, str], ...], keys: tuple[_Key, ...]) -> dict[str, int]:
    by_digest = {key.digest: columns for key, columns in _columns(keys).items()}
    by_run = {run_id: by_digest[digest] for run_id, digest in digests if digest in by_digest}
    return rank_with_ties(project.metric(keys[0].task, keys[0].metric), by_run)


def _keys(digests: Sequence[str], task: str, metric: str) -> list[_Key]:
    distinct = list(dict.fromkeys(digests))
    times = project.row_set_times(*distinct)
    return [_Key(digest, time, task, metric) for digest, time in zip(distinct, times, strict=True)]


def _columns(keys: Sequence[_Key]) -> dict[_Key, MetricColumns]:
    """Read row sets of one metric; the last ones are cached, because scored sets are then ranked."""
    cache = _caches(str(project.runs_store().folder))[1]
    columns_by_key = {key: columns for key in keys if (columns := cache.get(key)) is not None}
    if new := {key.digest: key for key in keys if key not in columns_by_key}:
        read = store.read_columns(project.runs_store(), new, keys[0].metric)
        columns_by_key |= {new[digest]: columns for digest, columns in read.items()}
    cache.update(columns_by_key)
    for key in list(cache)[: max(0, len(cache) - AT_ONCE)]:
        cache.pop(key, None)
    return columns_by_key


@st.cache_resource(show_spinner=False, max_entries=4)
def _caches(folder: str) -> tuple[dict[_Key, Estimate | None], dict[_Key, MetricColumns]]:
    """Return the estimates, and the row sets read last; each of these may have 10,000 items."""
    return {}, {}
