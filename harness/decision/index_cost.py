"""Index of documents in what a request costs: its share at the forecast, for tables and sentences.

Invariant: nothing is decided by that share. A month's price does not grow with the requests, so the decision
counts it as a sum over the horizon, and `cost_per_1k_usd` of a candidate is without it.
"""

from collections.abc import Iterable

from harness import formatting
from harness.decision.results import CandidateFacts
from harness.spec import DecidePolicy


def index_usd_per_1k(policy: DecidePolicy) -> float:
    """Share the month's price of an index among the requests forecast for a month; returns that of 1,000."""
    return 1000 * policy.index_usd_per_month / policy.requests_per_month


def index_sentences(facts: Iterable[CandidateFacts], policy: DecidePolicy) -> list[str]:
    """Say whose requests pay for an index, and how much of their cost that is."""
    paying = [f for f in facts if f.index_per_1k_usd]
    if not paying:
        return []
    names = ", ".join(dict.fromkeys(f.name for f in paying))
    month, each = (formatting.usd(of) for of in (policy.index_usd_per_month, index_usd_per_1k(policy)))
    is_known = any(f.cost_per_1k_usd is not None for f in paying)
    counted = f"The index of documents costs {month} USD a month, counted over the horizon"
    share = f"{each} USD of 1,000 requests to {names}, by the {_forecast(policy)}"
    return [f"{counted}: {share}{', and part of their $/1k' if is_known else ''}."]


def _forecast(policy: DecidePolicy) -> str:
    forecast = formatting.count(policy.requests_per_month)
    if policy.requests_per_month == DecidePolicy().requests_per_month:
        return f"{forecast} a month of decide.requests_per_month, its default"
    return f"{forecast} forecast a month"
