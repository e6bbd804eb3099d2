"""P-values of the rules that have to be shown, and the chance that one of many candidates passes.

Invariant: a p-value belongs to a bound, so it is below a level exactly where the bound at that level passes.
Source: a bound inverted over its level; Clopper & Pearson 1934 for the critical rule; Šidák 1967 for the
chance over candidates.
"""

from bisect import bisect_right
from collections.abc import Callable, Sequence

from scipy import special

from harness import comparison, stats
from harness.comparison import Comparison, Estimate
from harness.gating.macro import average_macro
from harness.gating.shared_items import SharedItems
from harness.gating.verdict import TargetFacts, TaskComparison, margin_share
from harness.spec import GatePolicy, TargetPolicy

_MOST_Z = 8.0  # smaller p-values than this leaves decide nothing
_STEP_Z = 1e-4  # p-values differ by less than a thousandth of themselves from one step to the next
_TARGET_CONFIDENCE = 0.975  # one-sided: the target is judged by 95 % intervals


def macro_p(admitted: Sequence[TaskComparison], policy: GatePolicy, shared: SharedItems) -> float:
    """Return the p of H0 "the macro lost the margin or more", where it passes at the policy's alpha."""

    def lower(alpha: float) -> float:
        return average_macro([t.at_level(alpha) for t in admitted], policy, shared).lower

    return _invert_bound(lower, -margin_share(policy.macro), policy.alpha)


def noninferiority_p(c: Comparison, least: float, alpha: float) -> float:
    """Return the p of H0 "the delta is at most `least`", where its bound at alpha is above that."""
    return _invert_bound(lambda level: comparison.at_level(c, level).lower, least, alpha)


def loss_rate_p(lost: float, passed: float, rate: float) -> float:
    """Return the p of H0 "the loss rate is `rate` or more": the level at which its exact bound is that."""
    return float(special.betaincc(lost + 1, passed - lost, rate)) if lost < passed else 1.0


def target_p(found: TargetFacts, wanted: TargetPolicy) -> float:
    """Return the largest p of the level, the gain and the win rate declared, where all are shown."""
    ps = [] if wanted.min is None else [_level_p(found.score, wanted.min)]
    if wanted.gain is not None and found.gain is not None:
        ps.append(noninferiority_p(comparison.orient(found.gain), wanted.gain, 1 - _TARGET_CONFIDENCE))
    if wanted.win_rate is not None and found.wins is not None and found.wins.rate is not None:
        ps.append(_level_p(found.wins.rate, wanted.win_rate))
    return max(ps)


def _level_p(found: Estimate, wanted: float) -> float:
    """Return the p of H0 "the score falls short of `wanted`", by the normal that its interval amounts to."""
    sign = found.unit.sign
    width = found.score - found.low if sign > 0 else found.high - found.score
    if width <= 0:
        return 0.0
    return float(special.ndtr(-sign * (found.score - wanted) * stats.z_quantile(_TARGET_CONFIDENCE) / width))


def bound_passing_chance(alpha: float, n: int) -> float:
    """Return the chance, at most, that of n candidates at the margin one passes.

    1 − (1 − α)^n holds for independent candidates, and bounds those that share items and a base.
    """
    return 1 - (1 - alpha) ** n


def _invert_bound(lower: Callable[[float], float], least: float, alpha: float) -> float:
    """Return the level at which a bound, which passes at alpha, is no longer above `least`."""

    def level(step: float) -> float:
        return float(special.ndtr(-(z + step * _STEP_Z)))

    if lower(alpha) <= least:
        return alpha
    z = stats.z_quantile(1 - alpha)
    steps = range(1, 1 + max(0, round((_MOST_Z - z) / _STEP_Z)))
    # Not by scipy.optimize, whose import takes as long as all the rest of a verdict.
    last = bisect_right(steps, 0.0, key=lambda step: least - lower(level(step)))
    return level(last + 0.5)  # in the middle between the last that is above and the first that is not
