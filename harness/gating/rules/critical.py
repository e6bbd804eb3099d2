"""Rule on critical tasks: the share of the items passed by the base that the candidate loses.

Invariant: the base may have passed items that it failed to answer; both bounds allow for that.
Source: exact one-sided bounds, Clopper and Pearson 1934.
"""

from collections.abc import Sequence
from math import ceil

from harness import formatting, stats
from harness.comparison import Comparison
from harness.gating.items_needed import MOST_ITEMS
from harness.gating.rules.sentences import NAMED, add_items_of_tasks, list_ids
from harness.gating.significance import loss_rate_p
from harness.gating.verdict import Number, Outcome, Rule, TaskComparison, is_named_critical, worst_outcome
from harness.spec import GatePolicy
from harness.stats import Interval


def critical_rule(tasks: Sequence[TaskComparison], policy: GatePolicy, identical: bool) -> Rule:
    """Judge the loss rate of every task that the policy names critical, by name or by suite."""
    if not policy.critical:
        return Rule("critical", "skipped", "critical: no task is named critical", {})
    if identical:
        return Rule("critical", "pass", "critical: nothing is lost, by identity of the weights", {})
    named = [t for t in tasks if is_named_critical(t.task, t.suite, policy)]
    missing = set(policy.critical) - {name for t in tasks for name in (t.task.name, t.suite)}
    judged = [_critical_task(t, policy) for t in named]
    judged += [Rule("critical", "inconclusive", f"{name} was not measured", {}) for name in sorted(missing)]
    outcome = worst_outcome([rule.outcome for rule in judged])
    facts: dict[str, Number] = {k: v for rule in judged for k, v in rule.numbers.items()}
    facts["margin"] = policy.critical_margin
    ps = [p for rule in judged if isinstance(p := rule.numbers.get("p"), float)]
    facts |= {"p": max(ps)} if ps else {}
    text = "critical: " + "; ".join(rule.sentence for rule in judged)
    open_tasks = [t for t, rule in zip(named, judged, strict=False) if rule.outcome == "inconclusive"]
    more = {t.task.name: _count_critical_items(t.comparison, policy) for t in open_tasks}
    return Rule("critical", outcome, text, add_items_of_tasks(facts, outcome, more | dict.fromkeys(missing)))


def _critical_task(t: TaskComparison, policy: GatePolicy) -> Rule:
    """Judge the loss rate among the items that the base passed by its exact one-sided bounds."""
    c, name, margin = t.comparison, t.task.name, policy.critical_margin
    if not c.base_passed:
        why = "its scores are not 0 or 1" if c.base_passed is None else "the base passed no item"
        return Rule("critical", "inconclusive", f"{name}: losses cannot be counted, {why}", {})
    lost, passed = len(c.lost), c.base_passed
    # The base may have passed items it did not answer: lost if the candidate fails them, else kept.
    may_be_lost = len(c.errors.open)
    may_be_kept = c.errors.base - may_be_lost
    most_lost, most_passed = lost + may_be_lost, passed + may_be_lost
    low = _loss_bounds(lost, passed + may_be_kept, c.design_effect, policy.alpha).low
    high = _loss_bounds(most_lost, most_passed, c.design_effect, policy.alpha).high
    outcome: Outcome = "fail" if low > margin else "pass" if high < 2 * margin else "inconclusive"
    text = (
        f"{name}: {lost} of {passed} items that the base passed are lost, "
        f"{formatting.interval(lost / passed, low, high)} %, margin {formatting.percent(margin)} %: "
    )
    text += {
        "fail": f"more than the margin is shown ({list_ids(c.lost)})",
        "pass": "less than twice the margin is shown",
        "inconclusive": "neither a loss above the margin nor one below twice the margin is shown",
    }[outcome]
    facts: dict[str, Number] = {f"{name}_lost": lost, f"{name}_passed": passed}
    facts |= {f"{name}_low": low, f"{name}_high": high, f"{name}_lost_items": list(c.lost[:NAMED])}
    facts["p"] = loss_rate_p(most_lost / c.design_effect, most_passed / c.design_effect, 2 * margin)
    return Rule("critical", outcome, text, facts)


def _loss_bounds(lost: float, passed: float, effect: float, alpha: float) -> Interval:
    return stats.clopper_pearson(lost / effect, passed / effect, 2 * alpha)


def _count_critical_items(c: Comparison, policy: GatePolicy) -> int | None:
    """Grow the sample at the observed loss rate until one of the bounds decides; None if none does."""
    passed, factor = c.base_passed or 0, 1.0
    if not passed:
        return None
    while factor < MOST_ITEMS:
        factor *= 1.1
        low, high = _loss_bounds(len(c.lost) * factor, passed * factor, c.design_effect, policy.alpha)
        if low > policy.critical_margin or high < 2 * policy.critical_margin:
            return ceil(c.n * (factor - 1))
    return None
