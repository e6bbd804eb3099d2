"""Whether the training data suffice, and whether more would pay by the fine-tune's learning curve.

Invariant: nothing is advised whose gain over the best untrained candidate would not be shown,
or whose worth does not exceed what the labels and the training cost.
"""

from math import sqrt
from typing import NamedTuple

from harness import formatting, stats
from harness.comparison import Comparison, Estimate
from harness.decision import economics
from harness.decision.case import FEW, Case
from harness.decision.results import CandidateFacts
from harness.decision.seeds import n_seeds

MORE_THAN_FEW = f"collect {FEW} examples, or show it over {stats.MIN_SEEDS} seeds with --seeds 0,1,2"


def too_few(case: Case, run: CandidateFacts) -> str:
    """Say why a gain from so few examples does not count yet; empty where it does.

    With three seeds and more what is measured counts: the gain is then that over the seeds.
    """
    n = n_seeds(case.facts, run)
    if not 0 < run.n_train < FEW or n >= stats.MIN_SEEDS:
        return ""
    seeds = formatting.counted(n, "seed")
    return f"{run.n_train} training examples and {seeds} are too few to rely on that"


class Wanted(NamedTuple):
    """An amount of training rows that would pay: the gain it would bring, its worth and its cost in USD."""

    n_train: int
    gain: Estimate
    worth: float
    cost: float


def worth_collecting(case: Case, run: CandidateFacts, now: Comparison) -> Wanted | None:
    """Find the smallest larger amount of data that would pay for a fine-tune whose gain is not shown yet."""
    curve, point = case.curve, economics.point_worth_usd(case.policy, case.unit)
    if curve is None or curve.candidate != run.name or point is None:
        return None
    scale = now.unit.scale
    n_now = curve.points[-1].n_train
    for ahead in curve.ahead:
        gain = _together(now, ahead.gain)
        training = run.training_cost_usd * ahead.n_train / n_now
        cost = case.policy.label_cost_usd * (ahead.n_train - n_now) + training
        worth = scale * gain.score * point
        if gain.low > 0 and ahead.gain.low > 0 and worth > cost:
            return Wanted(ahead.n_train, gain, worth, cost)
    return None


def _together(now: Comparison, ahead: Estimate) -> Estimate:
    """Add what is gained now and what more data would add; both ends as of independent estimates."""
    total = now.delta + ahead.score
    low = total - sqrt((now.delta - now.low) ** 2 + (ahead.score - ahead.low) ** 2)
    high = total + sqrt((now.high - now.delta) ** 2 + (ahead.high - ahead.score) ** 2)
    return Estimate(total, low, high, now.n, now.unit)
