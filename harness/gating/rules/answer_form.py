"""Rules on the form of answers and on text: unusable answers, pinned items, bits per byte.

Invariant: comparisons are oriented so that a negative delta is a loss, and bounds are one-sided at
`policy.alpha`. The base's own weights pass without a test.
"""

from collections.abc import Collection, Mapping, Sequence

from harness import comparison, formatting
from harness.comparison import Comparison
from harness.gating.items_needed import DeltaPart, describe_more_items, find_planning_se, lower_se
from harness.gating.rules.sentences import (
    NAMED,
    add_items_needed,
    comparison_facing_se,
    list_ids,
    margin_outcome,
    margin_verdict,
)
from harness.gating.significance import noninferiority_p
from harness.gating.verdict import (
    Number,
    Outcome,
    Rule,
    TaskComparison,
    is_perplexity,
    is_reported_only,
    margin_text,
    worst_outcome,
)
from harness.spec import GatePolicy


def validity_rule(validity: Comparison | None, policy: GatePolicy, identical: bool) -> Rule:
    """Judge the rise of unparsable, truncated and refused answers: a format regression, not forgetting."""
    if identical:
        return Rule(
            "validity", "pass", "validity: the answers are the base's own, by identity of the weights", {}
        )
    if validity is None:
        return Rule("validity", "skipped", "validity: no generated answers were compared", {})
    c = comparison.orient(validity)
    outcome = margin_outcome(c.lower, c.upper, policy.validity)
    part = DeltaPart("validity", find_planning_se(c, lower_se(c)), c.n)
    advice = describe_more_items(
        c.delta, [part], policy.validity, policy.alpha, comparison_facing_se(c, policy.validity)
    )
    facts: dict[str, Number] = {
        "base": c.base,
        "new": c.new,
        "delta": validity.delta,
        "margin": policy.validity,
    }
    facts |= {"low": validity.low, "high": validity.high, "n_items": c.n}
    facts |= {"p": noninferiority_p(c, -policy.validity, policy.alpha)} if outcome == "pass" else {}
    rise = formatting.points(validity.delta, validity.low, validity.high)
    failed = f" or {formatting.count(c.errors.new)} failed" if c.errors.new else ""
    text = (
        f"validity: unparsable, truncated or refused{failed} answers {formatting.percent(c.base)} → "
        f"{formatting.percent(c.new)} %, {rise} pp, "
        + margin_verdict(
            outcome, margin_text(policy.validity), advice, "a format regression beyond it is shown"
        )
    )
    return Rule("validity", outcome, text, add_items_needed(facts, outcome, advice.items))


def regressions_rule(
    tasks: Sequence[TaskComparison], identical: bool, confirmed: Mapping[str, Collection[str]] | None
) -> Rule:
    """Fail if a pinned item is lost; in another precision than fp32 only after fp32 confirms it.

    `confirmed` maps tasks to the items that are lost in fp32 too; None if nothing was re-scored, and then a
    lost item leaves the verdict open. So does an item that the base did not answer and the candidate gets
    wrong.
    """
    pinned = [t for t in tasks if t.role == "regression"]
    if not pinned:
        return Rule("regressions", "skipped", "regressions: no item is pinned", {})
    n = formatting.count(sum(t.comparison.n for t in pinned))
    if identical:
        text = f"regressions: all {n} pinned items are kept, by identity of the weights"
        return Rule("regressions", "pass", text, {})
    lost = [(t.task.name, i) for t in pinned for i in t.comparison.lost]
    sure = [(task, i) for task, i in lost if confirmed and i in confirmed.get(task, ())]
    facts: dict[str, Number] = {"n_items": sum(t.comparison.n for t in pinned), "n_lost": len(lost)}
    if sure:
        named = [f"{task}/{i}" for task, i in sure]
        facts["lost_items"] = named[:NAMED]
        text = f"regressions: {formatting.count(len(sure))} of {n} pinned items are lost: {list_ids(named)}"
        return Rule("regressions", "fail", text, facts)
    if lost and confirmed is None:
        named = [f"{task}/{i}" for task, i in lost]
        facts["lost_items"] = named[:NAMED]
        text = (
            f"regressions: of {n} pinned items {list_ids(named)} are lost, which fp32 has not confirmed yet"
        )
        return Rule("regressions", "inconclusive", text, facts)
    unknown = [f"{t.task.name}/{i}" for t in pinned for i in t.comparison.errors.open]
    if unknown:
        facts["open_items"] = unknown[:NAMED]
        text = (
            f"regressions: {list_ids(unknown)} may be lost: the base did not answer, the candidate is wrong"
        )
        return Rule("regressions", "inconclusive", text, facts)
    rounding = f", {formatting.count(len(lost))} lost by rounding alone" if lost else ""
    text = f"regressions: all {n} pinned items are kept{rounding}"
    return Rule("regressions", "pass", text, facts)


def drift_rule(reported: Sequence[TaskComparison], policy: GatePolicy, identical: bool) -> Rule:
    """Report the largest rise in bits per byte on held-out text; judge all if the policy sets a limit."""
    texts = [t for t in reported if is_reported_only(t.task) and not is_perplexity(t)]
    if not texts:
        return Rule("drift", "skipped", "drift: no text was measured in bits per byte", {})
    if identical:
        return Rule("drift", "pass", "drift: none, by identity of the weights", {})
    limit = policy.drift
    if limit is None:
        t = min(texts, key=lambda t: t.comparison.delta)  # turned: a rise is a loss
        text, facts = _rise(t)
        return Rule("drift", "skipped", f"{text}, an early warning that gate.drift would judge", facts)
    outcomes = {t.task.name: _drift_outcome(t, limit, policy.alpha / len(texts)) for t in texts}
    outcome = worst_outcome([*outcomes.values()])
    t = min((t for t in texts if outcomes[t.task.name] == outcome), key=lambda t: t.comparison.lower)
    words = {
        "pass": "less is shown",
        "fail": "more is shown",
        "inconclusive": "neither less nor more is shown",
    }
    text, facts = _rise(t)
    return Rule("drift", outcome, f"{text}, limit {formatting.plain(limit)}: {words[outcome]}", facts)


def _drift_outcome(t: TaskComparison, limit: float, alpha: float) -> Outcome:
    """Judge one of several texts: all must be shown below the limit to pass, one above it fails."""
    if comparison.at_level(t.comparison, alpha).upper < -limit:
        return "fail"
    return "pass" if t.comparison.lower > -limit else "inconclusive"


def _rise(t: TaskComparison) -> tuple[str, dict[str, Number]]:
    """Say how much a text's bits per byte rose, with the numbers."""
    c = t.comparison
    rise = formatting.plain(-c.delta, -c.high, -c.low, sign=True)
    return f"drift: {t.task.name} {rise} bits per byte", {"rise": -c.delta, "low": -c.high, "high": -c.low}
