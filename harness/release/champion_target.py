"""Target beside a champion that answers no suites: what a run reaches over it.

Invariant: such a champion, a classifier or a baseline, has no capabilities to compare with; those of a run
are then judged against the base, and only the target is compared with the champion.
"""

from collections.abc import Mapping
from typing import Any

from harness import comparison, formatting, plugins, store
from harness.comparison.corrected_comparison import labels_missing
from harness.comparison.labelled_answers import latest_labels
from harness.config import Loaded
from harness.config.rubrics import current_labels
from harness.metrics import load_metrics
from harness.records import Run
from harness.release.champions import Champion
from harness.release.stored_target import gain_over, target_rows
from harness.store import Store


def answers_suites(recipe: Mapping[str, Any]) -> bool:
    """Tell whether a candidate of this recipe answers the suites: a language model that is no baseline."""
    method = plugins.stored_method(recipe["method"])
    return method.makes_language_model and not (method.tunes and recipe.get("role") == "baseline")


def champion_note(loaded: Loaded, at: Store, run: Run, champion: Champion) -> str:
    """Say that only the target is compared with a champion, and what the run reaches there over it."""
    task = loaded.experiment.target
    who = f"the champion {champion.candidate} ({champion.run_id})"
    only = f"{who} answers no task of the suites: those are judged against the base"
    return f"{only}, and {task.name} beside the champion: {_gain_text(loaded, at, run, champion)}"


def _gain_text(loaded: Loaded, at: Store, run: Run, champion: Champion) -> str:
    """Say what a run gains over the champion on the target, or why that is not known."""
    task, key = loaded.experiment.target, f"{loaded.experiment.target.name}/test"
    other = next((one for one in store.list_runs(at) if one.run_id == champion.run_id), None)
    if other is None:
        return f"unknown, for its run is no longer in {at.folder}"
    for one in (run, other):
        if key not in one.rows or not at.parquet(one.rows[key]).exists():
            return f"unknown, for the answers of {one.label} are not in {at.folder}"
    versions = {store.read_identity(at, one.rows[key]).task_version for one in (run, other)}
    if len(versions) > 1:
        return f"unknown, for {champion.candidate} answered other items or was scored by other code"
    metric, policy = load_metrics(task)[task.primary_metric], loaded.experiment.gate
    labels = latest_labels(current_labels(store.list_labels(at, task.name), task), metric.name)
    rows, base = target_rows(at, run, task), target_rows(at, other, task)
    missing = labels_missing(metric.name, labels, rows, base)
    if missing and policy.uncalibrated_judge == "refuse":
        return f"unknown, for its judge's grades need {formatting.pluralize(missing, 'more label')} of people"
    gain = gain_over(metric, base, rows, labels, policy)
    if gain is None:
        return "unknown, for they share no item with a score"
    c = comparison.orient(gain)
    refused = f" ({c.refused})" if c.refused else ""
    found = formatting.change(c.unit, c.delta, c.low, c.high)
    return f"{found} {'pp ' if c.unit.is_rate else ''}{metric.name}, n = {formatting.count(c.n)}{refused}"
