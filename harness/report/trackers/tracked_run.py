"""Run of a candidate as trackers take it: parameters, tags, figures and curves under plain names.

Invariant: scores and differences are in the metric's unit, a rate in [0, 1], as in the report's CSV.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from math import isfinite

from harness.comparison import Comparison, Estimate
from harness.decision import CandidateFacts, best_untrained
from harness.records import SERVING, Curve, TrainingRecord
from harness.report.experiment_report import ExperimentReport
from harness.report.wording import SMOKE, best_first, find_shown_figure, last_line, verdict_word

_CURVES = tuple(one.name for one in fields(TrainingRecord) if one.type is Curve)
_FIGURES = (*(figure.name for figure in SERVING), "training_cost_usd")
Point = tuple[int, float]


@dataclass(frozen=True, slots=True)
class TrackedRun:
    """One run of a candidate, without what is unknown.

    `params` say what it is, `tags` what was found in words, `metrics` the figures at the end. `curves` are
    (step, value) by name, in the order of the steps.
    """

    label: str
    run_id: str
    params: dict[str, str]
    tags: dict[str, str]
    metrics: dict[str, float]
    curves: dict[str, tuple[Point, ...]]


def list_tracked_runs(report: ExperimentReport) -> list[TrackedRun]:
    """List the runs of a report, best first."""
    best = best_untrained(report.facts)
    return [
        TrackedRun(
            f.label, f.run_id, _params(report, f), _tags(report, f), _metrics(report, f, best), _curves(f)
        )
        for f in best_first(report)
    ]


def _params(report: ExperimentReport, f: CandidateFacts) -> dict[str, str]:
    known = {
        "base_model": report.base_model,
        "method": f.method,
        "prompting": f.prompting,
        "answer": f.answer,
    }
    return known | {"seed": str(f.seed), "n_train": str(f.n_train)}


def _tags(report: ExperimentReport, f: CandidateFacts) -> dict[str, str]:
    """Say state, verdict and decision; a smoke run says that it is one."""
    tags = {"experiment": report.experiment, "run_id": f.run_id, "state": f.state, "verdict": verdict_word(f)}
    tags |= {"verdict_reason": f.verdict.sentence} if f.verdict else {}
    tags |= {"error": f.error} if f.error else {}
    return tags | {"decision": last_line(report), "evidence": SMOKE if report.smoke else "measured"}


def _metrics(report: ExperimentReport, f: CandidateFacts, best: str | None) -> dict[str, float]:
    found = {name: None if name in f.disturbed else find_shown_figure(f, name) for name in _FIGURES}
    found |= _interval(f"target/{report.metric}", f.target)
    if f.label != best:
        found |= _delta("target/vs_best_untrained", f.vs_untrained)
    if f.verdict:
        found |= _interval("forgetting/macro", f.verdict.macro)
        found |= {"forgetting/items_lost": f.verdict.lost, "forgetting/items_gained": f.verdict.gained}
    for c in report.comparisons.get(f.label, ()):
        found |= _delta(f"forgetting/{c.task}/{c.metric}{f'/{c.slice}' if c.slice else ''}", c)
    found |= dict(_training_figures(f))
    return {name: float(v) for name, v in found.items() if v is not None and isfinite(v)}


def _interval(name: str, e: Estimate | None) -> dict[str, float | None]:
    return {name: e.score, f"{name}/low": e.low, f"{name}/high": e.high} if e else {}


def _delta(name: str, c: Comparison | None) -> dict[str, float | None]:
    return {name: c.delta, f"{name}/low": c.low, f"{name}/high": c.high} if c else {}


def _training_figures(f: CandidateFacts) -> Iterator[tuple[str, float]]:
    for one in fields(f.training):
        value = getattr(f.training, one.name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield f"training/{one.name}", value


def _curves(f: CandidateFacts) -> dict[str, tuple[Point, ...]]:
    found = {f"training/{name}": getattr(f.training, name) for name in _CURVES}
    points = f.training.tracked
    found |= {
        "training/target": tuple((p.step, p.target) for p in points),
        "training/forgetting": tuple((p.step, p.capability) for p in points),
    }
    kept = {
        name: tuple((int(step), float(v)) for step, v in curve if v is not None and isfinite(v))
        for name, curve in found.items()
    }
    return {name: curve for name, curve in kept.items() if curve}
