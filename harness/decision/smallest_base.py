"""Smallest base that meets the goal: whose candidate reaches the declared level with the fewest weights.

Invariant: of each base the candidate that is best on validation speaks, and the whole 95 % interval on test
has to reach the goal; what no gate lets through, a budget leaves out or nobody knows the size of is no
answer. It decides nothing: a smaller model is named beside what is chosen.
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
    """Say which of several bases is the smallest that meets the goal; nothing with one base or no goal."""
    bases = _sort_by_size(case)
    if goal is None or len(bases) < 2:
        return []
    unit = case.unit
    level = f"{formatting.score(unit, goal)}{' %' if unit.is_rate else ''}"
    meeting = [(base, run) for base, run in bases if _meets(run, goal)]
    if not meeting:
        base, run = max(bases, key=lambda of: unit.sign * of[1].target.score if of[1].target else 0.0)
        nearest = f"{run.name} on {base.name} is the nearest, {score_text(case, run)}"
        return [f"No base of known size is shown to meet the goal of {level}: {nearest}."]
    base, smallest = meeting[0]
    larger = [f"{b.name} ({_millions(b)})" for b, _ in bases if b != base]
    said = f"The smallest base that is shown to meet the goal of {level} is {_size(base)}"
    with_it = f"with {smallest.name}, {score_text(case, smallest)}"
    chosen = next((run.base for run in case.facts if run.name == shipped), None)
    is_larger = chosen is not None and chosen.n_parameters > base.n_parameters
    also = f" {shipped} on {chosen.name} is chosen, which is larger." if chosen and is_larger else ""
    return [f"{said}, {with_it}; compared with {', '.join(larger)}.{also}"]


def _sort_by_size(case: Case) -> list[tuple[BaseSize, CandidateFacts]]:
    """List the bases from small to large, each with its candidate that is best on validation."""
    passing = {run.run_id for run in list_passing_runs(case.facts)}
    groups: dict[BaseSize, list[CandidateFacts]] = {}
    for run in list_within_budgets(case.facts):
        allowed = run.run_id in passing or not is_fine_tuned(run)
        if run.base and run.state == "done" and run.target and allowed:
            groups.setdefault(run.base, []).append(run)
    found = [(base, one) for base, of in groups.items() if (one := best(of))]
    return sorted(found, key=lambda of: (of[0].n_parameters, of[0].weights_gb or 0.0))


def _meets(run: CandidateFacts, goal: float) -> bool:
    """Tell whether the whole interval reaches the goal, whichever way is better."""
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
