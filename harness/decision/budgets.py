"""Who is too slow to be chosen: the budgets of the policy against what was measured.

Invariant: a recipe is left out by measured figures alone, the median over its finished seeds; what
was not measured leaves nobody out, and is said.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from statistics import median

from harness import formatting
from harness.decision.results import CandidateFacts
from harness.spec import DecidePolicy


def budgeted(facts: Iterable[CandidateFacts], policy: DecidePolicy) -> list[CandidateFacts]:
    """Return the runs, each with `over_budget`: the budgets that its recipe breaks, or nothing."""
    runs = list(facts)
    by_name: dict[str, list[CandidateFacts]] = {}
    for f in runs:
        by_name.setdefault(f.name, []).extend([f] if f.state == "done" else [])
    return [replace(f, over_budget=_excess(by_name[f.name], policy)) for f in runs]


def _excess(seeds: Sequence[CandidateFacts], policy: DecidePolicy) -> str:
    p50s = [f.latency_p50_s for f in seeds if f.latency_p50_s is not None]
    rates = [f.requests_per_s for f in seeds if f.requests_per_s is not None]
    most, least = policy.max_latency_s, policy.min_requests_per_s
    over = []
    if most is not None and p50s and median(p50s) > most:
        took, budget = _told_apart(median(p50s), most)
        over.append(f"its median request takes {took}, and the budget is {budget}")
    if least is not None and rates and median(rates) < least:
        over.append(f"it answers {median(rates):,.3g} requests a second, and the budget is {least:,g}")
    return "; ".join(over)


def _told_apart(took: float, budget: float) -> tuple[str, str]:
    """Print two times so that they differ."""
    a, b = formatting.seconds(took), formatting.seconds(budget)
    return (a, b) if a != b else (f"{1000 * took:,.4g} ms", f"{1000 * budget:,.4g} ms")


def sentences(facts: Sequence[CandidateFacts], policy: DecidePolicy) -> list[str]:
    """Name who was left out by which budget, and what the measurements cannot say."""
    if policy.max_latency_s is None and policy.min_requests_per_s is None:
        return []
    done = [f for f in facts if f.state == "done"]
    out = dict.fromkeys(f"{f.name} ({f.over_budget})" for f in done if f.over_budget)
    said = [f"Left out before the choice, as too slow: {', '.join(out)}." if out else "All keep the budgets."]
    unknown = dict.fromkeys(f.name for f in done if _unmeasured(f, policy))
    if unknown:
        said.append(f"Not measured against the budgets, and left in: {', '.join(unknown)}.")
    machines = dict.fromkeys(f.measured_on for f in done if f.measured_on)
    if len(machines) > 1:
        of = (
            f"{machine} ({', '.join(dict.fromkeys(f.name for f in done if f.measured_on == machine))})"
            for machine in machines
        )
        said.append(f"Times were measured on different machines and cannot be compared: {', '.join(of)}.")
    return said


def _unmeasured(f: CandidateFacts, policy: DecidePolicy) -> bool:
    return (policy.max_latency_s is not None and f.latency_p50_s is None) or (
        policy.min_requests_per_s is not None and f.requests_per_s is None
    )
