"""Differences between two stored runs: recipes, digests, environment and scores.

Invariant: scores have a difference only if both runs' rows may be compared, item by item; otherwise the
reason is given. What is equal in both runs is left out.
"""

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from typing import Any, NamedTuple

from harness import store
from harness.analysis import comparison
from harness.analysis.estimators import Comparison, is_judge
from harness.errors import HarnessError, IncompatibleRuns
from harness.formatting import RATE, Unit
from harness.metrics import metric_of_rows
from harness.records import Run
from harness.store import Store

_LABELLED = "by the judge alone; harness report has the difference as people's labels correct it"
_OF_RUN = (
    *("experiment", "candidate", "seed", "base_model", "base_digest", "served_digest", "weights_digest"),
    *("state", "error"),
)


class Pair(NamedTuple):
    """One value in the first and in the second run; None in a run that lacks it."""

    a: Any
    b: Any


class Scores(NamedTuple):
    """One metric of one row set: the items' mean in both runs, and the difference or why there is none."""

    a: float | None
    b: float | None
    difference: Comparison | None
    why_not: str = ""
    unit: Unit = RATE


class Differences(NamedTuple):
    """Differences by name; `rows` holds what each row set depends on, `scores` metrics by row set."""

    recipe: dict[str, Pair]
    run: dict[str, Pair]
    environment: dict[str, Pair]
    rows: dict[str, dict[str, Pair]]
    scores: dict[str, dict[str, Scores]]


def differences(at: Store, a: str, b: str) -> Differences:
    """Compare two runs by their ids.

    Raises:
        UserError: there is no such run.
    """
    run_a, run_b = store.get_run(at, a), store.get_run(at, b)
    keys = sorted({*run_a.rows, *run_b.rows})
    changed = [key for key in keys if run_a.rows.get(key) != run_b.rows.get(key)]
    return Differences(
        recipe=_diff(run_a.recipe, run_b.recipe),
        run=_diff(*({name: getattr(run, name) for name in _OF_RUN} for run in (run_a, run_b))),
        environment=_diff(run_a.provenance, run_b.provenance),
        rows={key: _identities(at, run_a, run_b, key) for key in changed},
        scores={key: _scores(at, run_a, run_b, key) for key in changed},
    )


def to_json(result: Differences) -> dict[str, Any]:
    """Convert differences to JSON values."""

    def plain(scores: Scores) -> dict[str, Any]:
        compared = asdict(scores.difference) if scores.difference else None
        return {"a": scores.a, "b": scores.b, "difference": compared, "why_not": scores.why_not}

    scores = {
        key: {name: plain(s) for name, s in by_metric.items()} for key, by_metric in result.scores.items()
    }
    return result._asdict() | {"scores": scores}


def _diff(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Pair]:
    """Compare two nested mappings by dotted names."""
    flat_a, flat_b = _flatten(a), _flatten(b)
    all_names = dict.fromkeys([*flat_a, *flat_b])
    parents = {name.rpartition(".")[0] for name in all_names}
    names = [name for name in all_names if name not in parents]
    return {
        name: Pair(flat_a.get(name), flat_b.get(name))
        for name in names
        if flat_a.get(name) != flat_b.get(name)
    }


def _flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        if isinstance(inner, Mapping) and inner:
            flat |= _flatten(inner, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = inner
    return flat


def _identities(at: Store, run_a: Run, run_b: Run, key: str) -> dict[str, Pair]:
    """Return the differences of the identities of one row set; only the digests if one run lacks the rows."""
    if key not in run_a.rows or key not in run_b.rows:
        return {"rows": Pair(run_a.rows.get(key), run_b.rows.get(key))}
    try:
        identities = [store.read_identity(at, run.rows[key]) for run in (run_a, run_b)]
    except HarnessError:
        return {"rows": Pair(run_a.rows[key], run_b.rows[key])}
    return _diff(*map(asdict, identities))


def _scores(at: Store, run_a: Run, run_b: Run, key: str) -> dict[str, Scores]:
    """Compare the metrics of one row set whose score is the mean of one number per item."""
    a, b = (
        store.read_rows(at, run.rows[key]) if key in run.rows and at.parquet(run.rows[key]).exists() else []
        for run in (run_a, run_b)
    )
    task = key.rpartition("/")[0]
    stored_metrics = {**run_b.metrics.get(task, {}), **run_a.metrics.get(task, {})}
    drawn_run = next((run for run in (run_a, run_b) if run.may_be_drawn(task)), None)

    def compare(name: str) -> Scores:
        metric = metric_of_rows(name, stored_metrics.get(name))
        if metric is None:
            return Scores(None, None, None, "the runs do not say the unit of this metric")
        scored = [[p[0] for row in rows if (p := row.parts.get(name)) is not None] for rows in (a, b)]
        parts = [p for row in (*a, *b) if (p := row.parts.get(name)) is not None]
        if any(len(p) != 1 or not metric.bounds[0] <= p[0] <= metric.bounds[1] for p in parts):
            return Scores(None, None, None, "no mean of items: harness report adds it up")
        if drawn_run is not None:
            text = f"sampled items count by weights of the report: reports/{drawn_run.experiment}.md has them"
            return Scores(None, None, None, text)
        mean_a, mean_b = (sum(scores) / len(scores) if scores else None for scores in scored)
        refused = partial(Scores, mean_a, mean_b, None, unit=metric.unit)
        if mean_a is None or mean_b is None:
            return refused(why_not="only one run has it")
        if is_judge(name) and any(labels.metric == name for labels in store.list_labels(at, task)):
            return refused(why_not=_LABELLED)
        try:
            comparison.check_comparable(*(store.read_identity(at, run.rows[key]) for run in (run_a, run_b)))
            return Scores(mean_a, mean_b, comparison.compare_rows(metric, a, b), unit=metric.unit)
        except IncompatibleRuns as error:
            return refused(why_not=str(error).partition(". Next")[0])

    names = dict.fromkeys(name for rows in (a, b) for row in rows[:1] for name in row.parts)
    return {name: compare(name) for name in names}
