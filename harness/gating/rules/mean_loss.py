"""Rule on the macro: the mean loss over the capability tasks that count.

Invariant: comparisons are oriented so that a negative delta is a loss, and bounds are one-sided at
`policy.alpha`. The base's own weights pass without a test.
"""

from collections.abc import Sequence
from statistics import fmean

from harness import comparison, formatting
from harness.comparison import Estimate
from harness.gating.items_needed import describe_more_items, find_facing_se
from harness.gating.macro import Macro, plan_parts
from harness.gating.rules.sentences import add_items_needed, margin_outcome, margin_verdict
from harness.gating.shared_items import SharedItems
from harness.gating.significance import macro_p
from harness.gating.verdict import (
    Number,
    Rule,
    TaskComparison,
    is_in_macro,
    is_named_critical,
    is_perplexity,
    is_relative,
    is_reported_only,
    is_safety,
    margin_share,
    margin_text,
)
from harness.spec import GatePolicy
from harness.stats import Interval


def macro_rule(
    tasks: Sequence[TaskComparison],
    admitted: Sequence[TaskComparison],
    macro: Macro | None,
    policy: GatePolicy,
    identical: bool,
    shared: SharedItems,
) -> Rule:
    """Pass if the macro-average of the deltas is non-inferior, fail if a loss is shown."""
    left_out = [f"{t.task.name}: {_explain_left_out(t)}" for t in tasks if _is_left_out(t, policy)]
    margin = margin_share(policy.macro)
    facts: dict[str, Number] = {"margin": margin, "n_tasks": len(admitted), "left_out": left_out}
    halves = [f"{t.task.name}: {t.half.why}" for t in admitted if t.half]
    facts |= {"one_half": halves} if halves else {}
    facts |= {"shared_items": list(shared.said)} if shared.said else {}
    if identical:
        return Rule(
            "macro", "pass", "macro: the weights are the base's own, nothing is lost by identity", facts
        )
    tail = _describe_who_counts(tasks, admitted, shared)
    if macro is None:
        sentence = "macro: no admitted capability task was measured, so nothing can be said about forgetting"
        return Rule("macro", "inconclusive", sentence + tail, facts)
    estimate = macro_estimate(admitted, macro, identical, shared)
    outcome = margin_outcome(macro.lower, macro.upper, margin)
    facing = find_facing_se(macro.delta, Interval(macro.lower, macro.upper), margin, policy.alpha)
    planned = plan_parts(admitted, macro, shared)
    advice = describe_more_items(
        macro.delta, planned.parts, margin, policy.alpha, facing, planned.correlations
    )
    facts |= {"delta": estimate.score, "low": estimate.low, "high": estimate.high, "n_items": estimate.n}
    facts |= {"lower": macro.lower, "upper": macro.upper}
    facts |= {"p": macro_p(admitted, policy, shared)} if outcome == "pass" else {}
    facts |= {"n_clusters": sum(t.counted.n_clusters for t in admitted) - shared.repeated.clusters}
    facts |= {"disagreement": fmean(t.counted.disagreement for t in admitted)}
    skill_text = (
        f", {formatting.points(macro.delta)} % of the base's skill" if is_relative(policy.macro) else ""
    )
    sentence = (
        f"macro over {formatting.pluralize(len(admitted), 'task')}: {formatting.points(*estimate[:3])} pp"
        f"{skill_text}, " + margin_verdict(outcome, margin_text(policy.macro), advice)
    )
    if outcome == "inconclusive" and advice.by_task:
        facts["items_needed_by_task"] = list(advice.by_task)
    return Rule("macro", outcome, sentence + tail, add_items_needed(facts, outcome, advice.items))


def _describe_who_counts(
    tasks: Sequence[TaskComparison], admitted: Sequence[TaskComparison], shared: SharedItems
) -> str:
    """Name the tasks that are left out, those that count by one half, and those that share items."""
    unadmitted = [t.task.name for t in tasks if _cannot_show(t)]
    halves = [t.task.name for t in admitted if t.half]
    tails = [f"left out, cannot show forgetting: {', '.join(unadmitted)}"] if unadmitted else []
    tails += [f"only half of the items of {', '.join(halves)} count, with half the weight"] if halves else []
    tails += [f"{t.task.name}: {t.counted.refused}" for t in admitted if t.counted.refused]
    return "".join(f"; {tail}" for tail in (*tails, *shared.said))


def macro_estimate(
    admitted: Sequence[TaskComparison], macro: Macro, identical: bool, shared: SharedItems
) -> Estimate:
    """Return the macro delta with its 95 % interval, over the items of all admitted tasks, each item once."""
    comparisons = [t.counted for t in admitted]
    if identical:
        return Estimate(0.0, 0.0, 0.0, sum(c.n for c in comparisons) - shared.repeated.items)
    return comparison.mean_change(comparisons, macro.weights, macro.correlations, shared.repeated.items)


def _is_left_out(t: TaskComparison, policy: GatePolicy) -> bool:
    is_judged = is_named_critical(t.task, t.suite, policy) or is_safety(t, policy)
    return t.role not in ("target", "regression") and not is_in_macro(t) and not is_judged


def _cannot_show(t: TaskComparison) -> bool:
    return t.role == "capability" and not t.base_rows_admitted and not is_reported_only(t.task)


def _explain_left_out(t: TaskComparison) -> str:
    if t.role != "capability":
        return f"a {t.role} task is reported, not judged: gate.safety is null, or its metric has no bounds"
    unit = "perplexity" if is_perplexity(t) else "bits per byte"
    return f"{unit} is reported, not judged" if is_reported_only(t.task) else t.why_not
