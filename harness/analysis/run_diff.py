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
    one, other = store.get_run(at, a), store.get_run(at, b)
    keys = sorted({*one.rows, *other.rows})
    changed = [key for key in keys if one.rows.get(key) != other.rows.get(key)]
    return Differences(
        recipe=_diff(one.recipe, other.recipe),
        run=_diff(*({name: getattr(run, name) for name in _OF_RUN} for run in (one, other))),
        environment=_diff(one.provenance, other.provenance),
        rows={key: _identities(at, one, other, key) for key in changed},
        scores={key: _scores(at, one, other, key) for key in changed},
    )


def to_json(found: Differences) -> dict[str, Any]:
    """Turn differences into what JSON holds."""

    def plain(scores: Scores) -> dict[str, Any]:
        compared = asdict(scores.difference) if scores.difference else None
        return {"a": scores.a, "b": scores.b, "difference": compared, "why_not": scores.why_not}

    scores = {key: {name: plain(s) for name, s in of.items()} for key, of in found.scores.items()}
    return found._asdict() | {"scores": scores}


def _diff(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Pair]:
    """Compare two nested mappings by dotted names."""
    one, other = _flatten(a), _flatten(b)
    known = dict.fromkeys([*one, *other])
    filled = {name.rpartition(".")[0] for name in known}
    names = [name for name in known if name not in filled]
    return {name: Pair(one.get(name), other.get(name)) for name in names if one.get(name) != other.get(name)}


def _flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, inner in value.items():
        if isinstance(inner, Mapping) and inner:
            out |= _flatten(inner, f"{prefix}{key}.")
        else:
            out[f"{prefix}{key}"] = inner
    return out


def _identities(at: Store, one: Run, other: Run, key: str) -> dict[str, Pair]:
    """Return the differences of the identities of one row set; only the digests if one run lacks the rows."""
    if key not in one.rows or key not in other.rows:
        return {"rows": Pair(one.rows.get(key), other.rows.get(key))}
    try:
        identities = [store.read_identity(at, run.rows[key]) for run in (one, other)]
    except HarnessError:
        return {"rows": Pair(one.rows[key], other.rows[key])}
    return _diff(*map(asdict, identities))


def _scores(at: Store, one: Run, other: Run, key: str) -> dict[str, Scores]:
    """Compare the metrics of one row set whose score is the mean of one number per item."""
    a, b = (
        store.read_rows(at, run.rows[key]) if key in run.rows and at.parquet(run.rows[key]).exists() else []
        for run in (one, other)
    )
    task = key.rpartition("/")[0]
    known = {**other.metrics.get(task, {}), **one.metrics.get(task, {})}
    drawn = next((run for run in (one, other) if run.may_be_drawn(task)), None)

    def compare(name: str) -> Scores:
        metric = metric_of_rows(name, known.get(name))
        if metric is None:
            return Scores(None, None, None, "the runs do not say the unit of this metric")
        scored = [[p[0] for row in rows if (p := row.parts.get(name)) is not None] for rows in (a, b)]
        parts = [p for row in (*a, *b) if (p := row.parts.get(name)) is not None]
        if any(len(p) != 1 or not metric.bounds[0] <= p[0] <= metric.bounds[1] for p in parts):
            return Scores(None, None, None, "no mean of items: harness report adds it up")
        if drawn is not None:
            text = f"sampled items count by weights of the report: reports/{drawn.experiment}.md has them"
            return Scores(None, None, None, text)
        one_mean, other_mean = (sum(scores) / len(scores) if scores else None for scores in scored)
        refused = partial(Scores, one_mean, other_mean, None, unit=metric.unit)
        if one_mean is None or other_mean is None:
            return refused(why_not="only one run has it")
        if is_judge(name) and any(of.metric == name for of in store.list_labels(at, task)):
            return refused(why_not=_LABELLED)
        try:
            comparison.check_comparable(*(store.read_identity(at, run.rows[key]) for run in (one, other)))
            return Scores(one_mean, other_mean, comparison.compare_rows(metric, a, b), unit=metric.unit)
        except IncompatibleRuns as error:
            return refused(why_not=str(error).partition(". Next")[0])

    names = dict.fromkeys(name for rows in (a, b) for row in rows[:1] for name in row.parts)
    return {name: compare(name) for name in names}
