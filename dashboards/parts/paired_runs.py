"""Two runs on one task: the paired difference as reports make it, and items that can be looked at.

Invariant: numbers come from `comparison`, made of stored rows; rows that must not be compared are not.
"""

from pathlib import Path
from typing import NamedTuple

import streamlit as st

from harness import comparison, store
from harness.comparison import BaseErrors, Comparison
from harness.errors import HarnessError
from harness.experiment import judge_labels
from harness.formatting import change
from harness.records import Run, Sample, SampleResult
from harness.report import ExperimentReport
from harness.spec import GatePolicy
from harness.store import Store
from parts import project

ALPHA = 0.05


class Pair(NamedTuple):
    """Two row sets of one task, the metric that decides there, and what the base's errors count as."""

    task: str
    metric: str
    base: str
    new: str
    alpha: float = ALPHA
    base_errors: BaseErrors = "worst"


def primary_metric(task: str, digest: str, report: ExperimentReport | None) -> str:
    """Name the metric that a task is decided by: as reported, as written, or the first that was scored."""
    if report is not None and task == report.task:
        return report.metric
    for comparisons in report.comparisons.values() if report is not None else ():
        if names := [c.metric for c in comparisons if c.task == task]:
            return names[0]
    if (written := project.task(task)) is not None and not written.lm_eval:
        return written.primary_metric
    first = store.read_rows(project.project().store, digest, 1)
    return next((name for row in first for name in row.parts), "")


def compare(pair: Pair) -> Comparison | str:
    """Compare two row sets, or say why they must not be."""
    try:
        changed = (*project.row_set_times(pair.base, pair.new), *project.label_times())
        return _compare_pair(pair, changed)
    except (HarnessError, KeyError) as error:
        return f"{pair.task}: {error}"


def compare_on_every_task(
    base: Run, new: Run, report: ExperimentReport | None
) -> dict[str, tuple[Pair, Comparison | str]]:
    """Compare two runs on every task that both answered, the target first."""
    loaded = project.experiment()
    alpha = loaded.experiment.gate.alpha if loaded else ALPHA
    target = report.task if report else loaded.experiment.target.name if loaded else ""
    out = {}
    for key in sorted((k for k in new.rows if k.endswith("/test")), key=lambda k: k != f"{target}/test"):
        if key in base.rows:
            task = key.removesuffix("/test")
            metric = primary_metric(task, new.rows[key], report)
            # As the report compares: on the target errors score worst in both, else as the gate takes them.
            how: tuple[float, BaseErrors] = (ALPHA, "worst") if task == target else (alpha, "bounds")
            pair = Pair(task, metric, base.rows[key], new.rows[key], *how)
            out[task] = (pair, find_drawn_comparison(task, base, new, report) or compare(pair))
    return out


def find_drawn_comparison(
    task: str, base: Run, new: Run, report: ExperimentReport | None
) -> Comparison | str | None:
    """Find the report's own comparison of a task whose items were drawn, or say why there is none.

    None where every item was evaluated, so that the stored rows say all.
    """
    if not (base.may_be_drawn(task) or new.may_be_drawn(task)):
        return None
    reported = {f.run_id: f.label for f in report.facts} if report is not None else {}
    found = report.comparisons.get(reported.get(new.run_id, ""), ()) if report is not None else ()
    kept = next((c for c in found if c.task == task and not c.slice), None)
    if kept is not None and base.weights_digest == new.base_digest:
        return kept
    said = "sampled items count by weights that the report keeps for candidate against base alone"
    return f"{task}: {said}. Next: harness compare --all-items"


@st.cache_resource(show_spinner=False, max_entries=2_000)
def _compare_pair(pair: Pair, changed: tuple[int, ...]) -> Comparison:
    at = project.project().store
    one, other = (store.read_identity(at, digest) for digest in (pair.base, pair.new))
    comparison.check_comparable(one, other)
    if pair.base_errors == "worst" and pair.base != pair.new and (found := _compare_on_target(pair)):
        return found
    return comparison.compare_rows(
        project.metric(pair.task, pair.metric),
        project.read_scored_rows(pair.base, pair.metric),
        project.read_scored_rows(pair.new, pair.metric),
        alpha=pair.alpha,
        identical=pair.base == pair.new,
        base_errors=pair.base_errors,
    )


def _compare_on_target(pair: Pair) -> Comparison | None:
    """Compare two row sets of the target as verdicts do, by people's labels."""
    loaded, task = project.experiment(), project.task(pair.task)
    policy = loaded.experiment.gate if loaded else GatePolicy()
    metric, at = project.metric(pair.task, pair.metric), project.project().store
    labels = judge_labels(at, task, metric.name) if task else {}
    if labels:
        whole = store.read_many(at, (pair.base, pair.new))
        arms = [comparison.add_samples(whole[d], store.read_drawn(at, d)) for d in (pair.base, pair.new)]
    else:
        arms = [project.read_scored_rows(digest, metric.name) for digest in (pair.base, pair.new)]
    return comparison.compare_on_target(metric, arms[0], arms[1], labels, policy.max_errors)


def print_difference(c: Comparison) -> str:
    """Print a difference as reports do."""
    return change(c.unit, c.delta, c.low, c.high)


def judges_said(row: SampleResult) -> list[tuple[str, str]]:
    """List the judges that graded an answer, each with what it said of it."""
    found = store.find_grades(project.project().store, row.task, row.example_id, row.output_digest)
    return [(str(who["judge"]["model"]), grade.said or grade.error or "nothing") for who, grade in found]


def two_texts(pair: Pair, item: str) -> tuple[SampleResult, SampleResult] | None:
    """Read one item's two rows with their texts."""
    at = project.project().store
    rows = [store.read_samples(at, digest, [item]).get(item) for digest in (pair.base, pair.new)]
    return (rows[0], rows[1]) if rows[0] and rows[1] else None


def read_all_answers(digest: str, item: str) -> tuple[Sample, ...]:
    """Read all answers that were drawn to an item; none where it was answered greedily."""
    return _read_drawn(str(project.project().store.folder), digest, project.row_set_times(digest)).get(
        item, ()
    )


@st.cache_resource(show_spinner=False, max_entries=8)
def _read_drawn(folder: str, digest: str, changed: tuple[int, ...]) -> dict[str, tuple[Sample, ...]]:
    return store.read_drawn(Store(Path(folder)), digest)
