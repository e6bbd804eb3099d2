"""Rule on mode collapse: the rise of the commonest answer's share above the base's and the references'.

Invariant: only the rise above both counts, so that a task with few right answers is not a collapse. A task
passes if the share is shown not to exceed one of them by the limit, each at its share of alpha. It fails if
the share is shown to exceed both, at alpha over the number of tasks and of the texts that can have such a
share.
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
    """Judge the largest rise of the commonest answer's share; `compared` maps tasks to comparisons by arm.

    None if the policy sets no limit. The comparisons may have any level; what has to be shown is judged at
    `policy.alpha`.
    """
    limit = policy.mode_collapse
    if limit is None:
        return None
    if identical:
        return Rule(_NAME, "pass", "mode collapse: none, by identity of the weights", {})
    tasks = {task: [*map(comparison.orient, arms)] for task, arms in compared.items() if arms}
    if not tasks:
        return Rule(_NAME, "skipped", "mode collapse: no generated answers were compared", {})
    level = policy.alpha / (len(tasks) * int(1 / limit))
    outcomes = {task: _outcome(arms, limit, policy.alpha, level) for task, arms in tasks.items()}
    outcome = worst_outcome([*outcomes.values()])
    excess = {task: _least_rise(tasks[task]) for task, sentence in outcomes.items() if sentence == outcome}
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
        facts["p"] = max(_p(arms, limit, policy.alpha) for arms in tasks.values())
    rise = formatting.points(-c.delta, -c.high, -c.low)
    sentence = (
        f"mode collapse: the commonest answer to {task} {formatting.percent(c.base)} → "
        f"{formatting.percent(c.new)} %, {rise} pp, limit {margin_text(limit)}: {_WORDS[outcome]}"
    )
    return Rule(_NAME, outcome, sentence, facts)


def _outcome(arms: Sequence[Comparison], limit: float, alpha: float, level: float) -> Outcome:
    """Judge one task by its arms: it passes if the share does not exceed one of them by the limit."""
    if any(comparison.at_level(c, alpha / len(arms)).lower > -limit for c in arms):
        return "pass"
    return "fail" if all(comparison.at_level(c, level).upper < -limit for c in arms) else "inconclusive"


def _least_rise(arms: Sequence[Comparison]) -> Comparison:
    """Return the comparison with the smallest rise; a rise has the sign of a loss."""
    return max(arms, key=lambda c: c.delta)


def _p(arms: Sequence[Comparison], limit: float, alpha: float) -> float:
    """Return the p of H0 "the share exceeds that of every arm by the limit", Bonferroni over the arms."""
    return min(1.0, len(arms) * min(noninferiority_p(c, -limit, alpha / len(arms)) for c in arms))
