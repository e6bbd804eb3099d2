"""Costs and returns of a fine-tune: points per USD, break-even, budgets of time, an index of documents.

Invariant: pure; None if an input is unknown, inf if the fine-tune never pays back. Rates per USD are in
points of the target metric (or its own unit). A recipe breaks a budget only by measured figures, the median
over its finished seeds. The index's monthly price counts over the horizon; a candidate's `cost_per_1k_usd`
excludes it.
"""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import replace
from math import inf
from statistics import median
from typing import NamedTuple

from harness import formatting, stats
from harness.analysis.candidate_facts import CandidateFacts, gain, seeds_of
from harness.analysis.estimators import Comparison
from harness.formatting import Unit
from harness.spec import DecidePolicy
from harness.stats import Variance, VarianceComponents

# Assumed value of one more right answer in USD, as of November 2026, so that volume counts by default.
# `decide.right_answer_usd` overrides it.
RIGHT_ANSWER_USD = 1.0
_MOST_SEEDS = 20
_MOST_ITEMS = 100  # times the current items: advising more would be useless


class PerUsd(NamedTuple):
    """Points gained per USD of training, with the gain's 95 % interval."""

    delta: float
    low: float
    high: float


def divide_by_usd(g: Comparison | None, cost_usd: float) -> PerUsd | None:
    """Divide a gain by the training cost; None if the gain is unknown or nothing was paid."""
    if g is None or cost_usd <= 0:
        return None
    scale = g.unit.scale / cost_usd
    return PerUsd(scale * g.delta, scale * g.low, scale * g.high)


def add_one_time_costs_usd(run: CandidateFacts, alternative: CandidateFacts, policy: DecidePolicy) -> float:
    """Add up the extra costs of the fine-tune that do not depend on the number of requests."""
    hosting = policy.hosting_usd_per_month * policy.horizon_months
    cost = run.training_cost_usd + run.rows_cost_usd + policy.label_cost_usd * (run.n_train - run.n_taught)
    return cost + hosting + _index_usd(run, policy) - _index_usd(alternative, policy)


def _index_usd(run: CandidateFacts, policy: DecidePolicy) -> float:
    return policy.index_usd_per_month * policy.horizon_months if "rag" in run.prompting else 0.0


def gain_components(g: Comparison) -> VarianceComponents:
    """Return the variances of a gain; a single checkpoint has none between seeds."""
    return g.components or VarianceComponents(Variance(g.se**2, g.df), Variance(0.0, None), 1)


def break_even(run: CandidateFacts, alternative: CandidateFacts, policy: DecidePolicy) -> float | None:
    """Return after how many requests the fine-tune has paid for itself; inf if never, None if unknown."""
    dearer = _dearer_usd(run, alternative)
    if dearer is None:
        return None
    return max(0.0, add_one_time_costs_usd(run, alternative, policy)) / -dearer if dearer < 0 else inf


def _dearer_usd(run: CandidateFacts, alternative: CandidateFacts) -> float | None:
    """Return by how much a request to the fine-tune costs more; None if a cost is unknown."""
    if run.cost_per_1k_usd is None or alternative.cost_per_1k_usd is None:
        return None
    return (run.cost_per_1k_usd - alternative.cost_per_1k_usd) / 1000


def point_worth_usd(policy: DecidePolicy, unit: Unit) -> float | None:
    """Return the value of a point over the horizon: of a rate, a hundredth of all requests answered right."""
    if not counts_answers(policy, unit):
        return policy.point_usd
    return forecast_requests(policy) / 100 * answer_usd(policy)


def answer_usd(policy: DecidePolicy) -> float:
    """Return the value of one more right answer: as set, else an assumption."""
    return RIGHT_ANSWER_USD if policy.right_answer_usd is None else policy.right_answer_usd


def answer_text(by_wins: bool) -> str:
    """Name the answer that is priced: with a win rate as the goal, one that wins."""
    return "an answer that wins" if by_wins else "a right answer"


def counts_answers(policy: DecidePolicy, unit: Unit) -> bool:
    """Tell whether a point is valued by the answers that it makes right."""
    return policy.point_usd is None and unit.is_rate


def costs_more_usd(run: CandidateFacts, alternative: CandidateFacts, policy: DecidePolicy) -> float | None:
    """Return the extra cost of a fine-tune over the alternative for the horizon, None if unknown."""
    dearer = _dearer_usd(run, alternative)
    if dearer is None:
        return None
    return add_one_time_costs_usd(run, alternative, policy) + dearer * forecast_requests(policy)


def forecast_requests(policy: DecidePolicy) -> float:
    """Return the number of requests over the horizon."""
    return policy.requests_per_month * policy.horizon_months


def is_forecast(policy: DecidePolicy) -> bool:
    """Tell whether the monthly requests differ from the default assumption."""
    return policy.requests_per_month != DecidePolicy().requests_per_month


def forecast_text(policy: DecidePolicy) -> str:
    """Say how many requests the horizon has, and whether that is an assumption."""
    n = formatting.count(forecast_requests(policy))
    return f"{n} requests {'forecast' if is_forecast(policy) else 'assumed (decide.requests_per_month)'}"


def estimate_more_items(run: CandidateFacts) -> float | None:
    """Return how many more items would show the gain at 80 % power; inf if seeds hide it, None if unknown."""
    g = gain(run.vs_untrained)
    if g is None or not 0 < g.se < inf:
        return None
    components, size = gain_components(g), abs(g.delta)
    if stats.detectable_mean(components, inf) >= size:
        return inf if components.seeds.variance > 0 else None
    if stats.detectable_mean(components, _MOST_ITEMS) > size:
        return None
    n = bisect_left(
        range(g.n + 1, _MOST_ITEMS * g.n),
        True,
        key=lambda n: stats.detectable_mean(components, n / g.n) <= size,
    )
    return n + 1


def list_more_seeds(facts: Iterable[CandidateFacts], run: CandidateFacts) -> tuple[int, ...]:
    """List seeds, its own first, that would show a mean gain at 80 % power; empty if more than twenty."""
    g = gain(run.vs_untrained)
    parts = g.components if g else None
    if g is None or parts is None or g.low > 0 or parts.seeds.variance <= parts.items.variance:
        return ()
    per_seed, own_seeds = parts.seeds.variance * parts.n_seeds, [f.seed for f in seeds_of(facts, run)]
    all_seeds = [*own_seeds, *(seed for seed in range(_MOST_SEEDS) if seed not in own_seeds)]
    for n in range(parts.n_seeds + 1, _MOST_SEEDS + 1):
        seeds = Variance(per_seed / n, max(n - 1, parts.seeds.df or 0))
        if stats.detectable_mean(VarianceComponents(parts.items, seeds, n), 1.0) <= g.delta:
            return tuple(all_seeds[:n])
    return ()


def hour_usd(facts: Iterable[CandidateFacts]) -> float | None:
    """Return the price of a device hour used for the costs; None if nothing was trained."""
    for f in facts:
        if f.training.total_s > 0 and f.training_cost_usd > 0:
            return 3600 * f.training_cost_usd / f.training.total_s
    return None


def apply_budgets(facts: Iterable[CandidateFacts], policy: DecidePolicy) -> list[CandidateFacts]:
    """Return the runs, each with `over_budget`: the budgets that its recipe breaks, or nothing."""
    runs, max_s, floor = list(facts), policy.max_latency_s, policy.min_requests_per_s
    broken: dict[str, str] = {}
    for name in dict.fromkeys(f.name for f in runs):
        seeds = [f for f in runs if f.name == name and f.state == "done"]
        p50s = [f.speed.latency_p50_s for f in seeds if f.speed.latency_p50_s is not None]
        rates = [f.speed.requests_per_s for f in seeds if f.speed.requests_per_s is not None]
        breaches = []
        if "sensitive_data" in policy.needs and any(f.leaves_machine for f in seeds):
            breaches.append("sensitive data would go to an external server")
        if max_s is not None and p50s and median(p50s) > max_s:
            took, budget = formatting.seconds(median(p50s)), formatting.seconds(max_s)
            breaches.append(f"its median request takes {took}, and the budget is {budget}")
        if floor is not None and rates and median(rates) < floor:
            breaches.append(
                f"it answers {median(rates):,.3g} requests a second, and the budget is {floor:,g}"
            )
        broken[name] = "; ".join(breaches)
    return [replace(f, over_budget=broken[f.name]) for f in runs]


def budget_sentences(facts: Sequence[CandidateFacts], policy: DecidePolicy) -> list[str]:
    """Name the candidates that a budget excludes, and what the measurements cannot say."""
    finished = [f for f in facts if f.state == "done"]
    excluded = dict.fromkeys(f"{f.name} ({f.over_budget})" for f in finished if f.over_budget)
    left_out = [f"Left out before the choice: {', '.join(excluded)}."] if excluded else []
    if policy.max_latency_s is None and policy.min_requests_per_s is None:
        return left_out
    lines = left_out or ["All keep the budgets."]
    unknown = dict.fromkeys(
        f.name
        for f in finished
        if (policy.max_latency_s is not None and f.speed.latency_p50_s is None)
        or (policy.min_requests_per_s is not None and f.speed.requests_per_s is None)
    )
    if unknown:
        lines.append(f"Not measured against the budgets, and left in: {', '.join(unknown)}.")
    machines = dict.fromkeys(f.speed.measured_on for f in finished if f.speed.measured_on)
    if len(machines) > 1:
        lines.append(f"Times of different machines cannot be compared: {', '.join(machines)}.")
    return lines


def index_usd_per_1k(policy: DecidePolicy) -> float:
    """Return an index's monthly price per 1,000 of the month's forecast requests; 0 without a forecast."""
    return _share(policy) if is_forecast(policy) else 0.0


def index_sentences(facts: Iterable[CandidateFacts], policy: DecidePolicy) -> list[str]:
    """Name the candidates that pay for an index, and its share of their cost."""
    paying = [f for f in facts if f.index_per_1k_usd or "rag" in f.prompting]
    if not paying or not policy.index_usd_per_month:
        return []
    names = ", ".join(dict.fromkeys(f.name for f in paying))
    month, each = (formatting.usd(cost) for cost in (policy.index_usd_per_month, _share(policy)))
    requests = f"{formatting.count(policy.requests_per_month)} requests a month"
    relation = "part of" if is_forecast(policy) else "until decide.requests_per_month is set no part of"
    share = f"{each} USD of 1,000 requests to {names} at {requests}, {relation} their $/1k"
    return [f"The index of documents costs {month} USD a month, counted over the horizon: {share}."]


def _share(policy: DecidePolicy) -> float:
    return 1000 * policy.index_usd_per_month / policy.requests_per_month
