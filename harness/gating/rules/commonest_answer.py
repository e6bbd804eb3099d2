"""Rule on mode collapse: how far the share of the commonest answer rose, over the base's and the references'.

Invariant: a rise counts as far as it exceeds both, so that a task with few right answers is no collapse; a
task passes once one of them is shown not to be exceeded by the limit, each at its share of alpha, and fails
once both are shown to be, at alpha over the number of tasks and of the texts that can have such a share.
Source: Berger & Parker 1970 for the share; Berger 1982 for what all tasks, or both arms, have to show.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

from harness import comparison, formatting
from harness.comparison import Comparison
from harness.gating.significance import noninferiority_p
from harness.gating.verdict import Number, Outcome, Rule, margin_text, worst_outcome
from harness.spec import GatePolicy

_WORDS = {"pass": "less is shown", "fail": "more is shown", "inconclusive": "neither less nor more is shown"}
_NAME: Literal["mode collapse"] = "mode collapse"
Compared = Mapping[str, Sequence[Comparison]]


def mode_collapse_rule(compared: Compared, policy: GatePolicy, identical: bool) -> Rule | None:
    """Judge the largest rise of the commonest answer's share; `compared` maps tasks to the arms it is over.

    None where the policy sets no limit. The comparisons may be of any level; what has to be shown is judged
    at `policy.alpha`.
    """
    limit = policy.mode_collapse
    if limit is None:
        return None
    if identical:
        return Rule(_NAME, "pass", "mode collapse: none, by identity of the weights", {})
    tasks = {task: [*map(comparison.orient, found)] for task, found in compared.items() if found}
    if not tasks:
        return Rule(_NAME, "skipped", "mode collapse: no generated answers were compared", {})
    level = policy.alpha / (len(tasks) * int(1 / limit))
    outcomes = {task: _outcome(found, limit, policy.alpha, level) for task, found in tasks.items()}
    outcome = worst_outcome([*outcomes.values()])
    excess = {task: _least_rise(tasks[task]) for task, said in outcomes.items() if said == outcome}
    task, c = min(excess.items(), key=lambda of: of[1].delta)
    facts: dict[str, Number] = {
        "base": c.base,
        "new": c.new,
        "rise": -c.delta,
        "limit": limit,
        "n_items": c.n,
    }
    facts |= {"low": -c.high, "high": -c.low, "task": task}
    if outcome == "pass":
        facts["p"] = max(_p(found, limit, policy.alpha) for found in tasks.values())
    rise = formatting.points(-c.delta, -c.high, -c.low)
    said = (
        f"mode collapse: the commonest answer to {task} {formatting.percent(c.base)} → "
        f"{formatting.percent(c.new)} %, {rise} pp, limit {margin_text(limit)}: {_WORDS[outcome]}"
    )
    return Rule(_NAME, outcome, said, facts)


def _outcome(found: Sequence[Comparison], limit: float, alpha: float, level: float) -> Outcome:
    """Judge one task by its arms: one that is not exceeded by the limit is enough to pass."""
    if any(comparison.at_level(c, alpha / len(found)).lower > -limit for c in found):
        return "pass"
    return "fail" if all(comparison.at_level(c, level).upper < -limit for c in found) else "inconclusive"


def _least_rise(found: Sequence[Comparison]) -> Comparison:
    """Return the comparison with the arm whose share is exceeded by least; a rise has the sign of a loss."""
    return max(found, key=lambda c: c.delta)


def _p(found: Sequence[Comparison], limit: float, alpha: float) -> float:
    """Return the p of H0 "the share exceeds that of every arm by the limit", Bonferroni over the arms."""
    return min(1.0, len(found) * min(noninferiority_p(c, -limit, alpha / len(found)) for c in found))
