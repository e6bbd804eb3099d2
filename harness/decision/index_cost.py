"""Index of documents in what a request costs: its share at the forecast, for tables and sentences.

Invariant: nothing is decided by that share. A month's price does not grow with the requests, so the decision
counts it as a sum over the horizon, and `cost_per_1k_usd` of a candidate is without it. Nothing is shared out
among requests that nobody forecast.
"""

from collections.abc import Iterable

from harness import formatting
from harness.decision.economics import is_forecast
from harness.decision.results import CandidateFacts
from harness.spec import DecidePolicy


def index_usd_per_1k(policy: DecidePolicy) -> float:
    """Share the month's price of an index among the requests forecast for a month; returns that of 1,000.

    0 where nobody forecast them.
    """
    return _share(policy) if is_forecast(policy) else 0.0


def index_sentences(facts: Iterable[CandidateFacts], policy: DecidePolicy) -> list[str]:
    """Say whose requests pay for an index, and how much of their cost that is."""
    paying = [f for f in facts if f.index_per_1k_usd or "rag" in f.prompting]
    if not paying or not policy.index_usd_per_month:
        return []
    names = ", ".join(dict.fromkeys(f.name for f in paying))
    month, each = (formatting.usd(of) for of in (policy.index_usd_per_month, _share(policy)))
    requests = formatting.count(policy.requests_per_month)
    counted = f"The index of documents costs {month} USD a month, counted over the horizon"
    if not is_forecast(policy):
        share = f"{each} USD of 1,000 requests to {names}, were they {requests} a month"
        return [f"{counted}, and no part of their $/1k until decide.requests_per_month is set: {share}."]
    is_known = any(f.cost_per_1k_usd is not None for f in paying)
    share = f"{each} USD of 1,000 requests to {names}, by the {requests} forecast a month"
    return [f"{counted}: {share}{', and part of their $/1k' if is_known else ''}."]


def _share(policy: DecidePolicy) -> float:
    return 1000 * policy.index_usd_per_month / policy.requests_per_month
