"""Index of documents in what a request costs: its share at the forecast, counted there and nowhere else.

Invariant: `cost_per_1k_usd` of a candidate that retrieves holds its share already, so who decides by it takes
a policy of which the index is free.
"""

from collections.abc import Iterable

from harness import formatting
from harness.decision.results import CandidateFacts
from harness.spec import DecidePolicy


def index_usd_per_1k(policy: DecidePolicy) -> float:
    """Share the month's price of an index among the requests forecast for a month; returns that of 1,000."""
    return 1000 * policy.index_usd_per_month / policy.requests_per_month


def policy_without_index(policy: DecidePolicy) -> DecidePolicy:
    """Return the policy by which costs are weighed that hold the index already."""
    return policy.model_copy(update={"index_usd_per_month": 0.0})


def index_sentences(facts: Iterable[CandidateFacts], policy: DecidePolicy) -> list[str]:
    """Say whose requests pay for an index, and how much of their cost that is."""
    named = dict.fromkeys(f.name for f in facts if f.index_per_1k_usd)
    if not named:
        return []
    month, each = (formatting.usd(of) for of in (policy.index_usd_per_month, index_usd_per_1k(policy)))
    forecast = formatting.count(policy.requests_per_month)
    said = f"The index of documents costs {month} USD a month: {each} USD of what 1,000 requests"
    return [f"{said} to {', '.join(named)} cost, by the {forecast} forecast a month."]
