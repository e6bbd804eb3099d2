"""Measured reasons why a candidate was not chosen, compared with the chosen one.

Invariant: each is a figure from the two candidates' own results; the one that rules the candidate out comes
first.
"""

from collections.abc import Iterator

from harness import formatting
from harness.decision.results import (
    FEW,
    CandidateFacts,
    Case,
    gain,
    gain_text,
    is_fine_tuned,
    passes,
)


def explain_why_not(case: Case, other: CandidateFacts, chosen: CandidateFacts) -> Iterator[str]:
    """List the measurements of a candidate that speak for the chosen one."""
    if other.over_budget:
        yield f"{other.name} is left out, because {other.over_budget}"
    yield from _gate(other)
    yield from _difference(case, other, chosen)
    yield from _retrieval(other)
    if is_fine_tuned(other) and 0 < other.n_train < FEW:
        yield f"it was trained on {formatting.pluralize(other.n_train, 'example')}"
    yield from _dearer(other, chosen)


def _gate(run: CandidateFacts) -> Iterator[str]:
    """Say what forbids to ship a fine-tune, whatever its score."""
    if not is_fine_tuned(run) or passes(run):
        return
    if run.verdict is None:
        yield f"what {run.name} forgot was not measured"
        return
    macro = run.verdict.macro
    is_macro = any(rule.name == "macro" and rule.outcome != "pass" for rule in run.verdict.rules)
    forgot = ""
    if macro and is_macro:
        forgot = f", its other abilities having changed by {formatting.points(*macro[:3])} points"
    outcome = "fails" if run.verdict.outcome == "fail" else "is not shown to pass"
    yield f"the gate of {run.name} {outcome}{forgot}"


def _difference(case: Case, other: CandidateFacts, chosen: CandidateFacts) -> Iterator[str]:
    """Say how much the two differ on the same items, else which one validation prefers."""
    best = case.alternative
    if best is not None and chosen.name == best.name and (g := gain(other.vs_untrained)):
        if g.low > 0:
            yield f"its gain of {gain_text(g)} over {chosen.name} is shown, and does not decide alone"
        else:
            shown = "which is a loss" if g.high < 0 else "which is not shown to be a gain"
            yield f"it gains {gain_text(g)} over {chosen.name}, {shown}"
    elif best is not None and other.name == best.name and (g := gain(chosen.vs_untrained)):
        yield f"{chosen.name} gains {gain_text(g)} over it"
    elif other.validation is not None and chosen.validation is not None:
        unit = other.target.unit if other.target else case.unit
        a, b = (formatting.score(unit, f.validation) for f in (chosen, other))
        if unit.sign * chosen.validation > unit.sign * other.validation:
            yield f"on validation {chosen.name} reaches {a} and {other.name} {b}"


def _retrieval(run: CandidateFacts) -> Iterator[str]:
    """Say what retrieval did not find, and how often its finds were not used."""
    if run.recall is not None and run.recall < 1:
        yield f"its retrieval found {formatting.percent(run.recall)} % of the documents needed"
    if (use := run.retrieval) is not None and use.found and use.unused:
        wrong = f"{formatting.count(use.unused)} were answered wrongly"
        yield f"of {formatting.count(use.found)} items whose passages held the answer {wrong}"


def _dearer(other: CandidateFacts, chosen: CandidateFacts) -> Iterator[str]:
    """Say whether requests to the other candidate are more expensive or slower."""
    if None not in (other.cost_per_1k_usd, chosen.cost_per_1k_usd):
        costs = [formatting.usd(f.cost_per_1k_usd) for f in (other, chosen)]
        if (other.cost_per_1k_usd or 0) > (chosen.cost_per_1k_usd or 0) and costs[0] != costs[1]:
            yield f"1,000 requests cost {costs[0]} USD with it and {costs[1]} with {chosen.name}"
    if None not in (other.latency_p50_s, chosen.latency_p50_s):
        times = [formatting.seconds(f.latency_p50_s) for f in (other, chosen)]
        if (other.latency_p50_s or 0) > (chosen.latency_p50_s or 0) and times[0] != times[1]:
            yield f"its median request takes {times[0]}, that of {chosen.name} {times[1]}"
