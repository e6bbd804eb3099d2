"""Smallest base that meets the goal: a candidate on it reaches the declared level with the fewest weights.

Invariant: each base is represented by its best candidate on validation, and the whole 95 % interval on test
has to reach the goal. Candidates that a gate or a budget stops, or whose size is unknown, do not count. This
decides nothing: the smaller model is mentioned next to the choice.
"""

from harness import formatting
from harness.decision.results import (
    BaseSize,
    CandidateFacts,
    Case,
    best,
    is_fine_tuned,
    list_passing_runs,
    list_within_budgets,
    score_text,
)


def size_sentences(case: Case, goal: float | None, shipped: str | None) -> list[str]:
    """Say which of several bases is the smallest that meets the goal; empty with one base or no goal."""
    bases = _sort_by_size(case)
    if goal is None or len(bases) < 2:
        return []
    unit = case.unit
    level = f"{formatting.score(unit, goal)}{' %' if unit.is_rate else ''}"
    meeting = [(base, run) for base, run in bases if _meets(run, goal)]
    if not meeting:
        base, run = max(bases, key=lambda pair: unit.sign * pair[1].target.score if pair[1].target else 0.0)
        nearest = f"{run.name} on {base.name} is the nearest, {score_text(case, run)}"
        return [f"No base of known size is shown to meet the goal of {level}: {nearest}."]
    base, smallest = meeting[0]
    larger = [f"{b.name} ({_millions(b)})" for b, _ in bases if b != base]
    text = f"The smallest base that is shown to meet the goal of {level} is {_size(base)}"
    with_it = f"with {smallest.name}, {score_text(case, smallest)}"
    chosen = next((run.base for run in case.facts if run.name == shipped), None)
    is_larger = chosen is not None and chosen.n_parameters > base.n_parameters
    also = f" {shipped} on {chosen.name} is chosen, which is larger." if chosen and is_larger else ""
    return [f"{text}, {with_it}; compared with {', '.join(larger)}.{also}"]


def _sort_by_size(case: Case) -> list[tuple[BaseSize, CandidateFacts]]:
    """List the bases from small to large, each with its best candidate on validation."""
    passing = {run.run_id for run in list_passing_runs(case.facts)}
    groups: dict[BaseSize, list[CandidateFacts]] = {}
    for run in list_within_budgets(case.facts):
        allowed = run.run_id in passing or not is_fine_tuned(run)
        if run.base and run.state == "done" and run.target and allowed:
            groups.setdefault(run.base, []).append(run)
    best_by_base = [(base, chosen) for base, runs in groups.items() if (chosen := best(runs))]
    return sorted(best_by_base, key=lambda pair: (pair[0].n_parameters, pair[0].weights_gb or 0.0))


def _meets(run: CandidateFacts, goal: float) -> bool:
    """Tell whether the whole interval reaches the goal, in the metric's direction."""
    if run.target is None:
        return False
    sign = run.target.unit.sign
    return min(sign * run.target.low, sign * run.target.high) >= sign * goal


def _size(base: BaseSize) -> str:
    held = "" if base.weights_gb is None else f", {formatting.figure(base.weights_gb)} GB of weights"
    return f"{base.name} ({_millions(base)} parameters{held})"


def _millions(base: BaseSize) -> str:
    n = base.n_parameters
    return f"{formatting.count(n / 1e6)} million" if n >= 1e6 else formatting.count(n)
