"""Rules of the gate on losses of other abilities: over all tasks, of each task, of critical tasks.

The others are in `gate_rules_on_answers`; `gate_verdict.apply_rules` joins all.

Invariant: comparisons are oriented so that a negative delta is a loss; bounds are one-sided at
`policy.alpha`. `identical` weights pass the rules about weights without a test. Source: Berger 1982 for a
veto next to a pass; Clopper & Pearson 1934 for exact one-sided bounds.
"""

from collections.abc import Sequence
from math import ceil
from statistics import fmean
from typing import Literal

from harness import formatting, stats
from harness.analysis import estimators, margins
from harness.analysis.macro import Macro, SharedItems, plan_parts
from harness.analysis.significance import loss_rate_p, macro_p
from harness.analysis.verdict import (
    NAMED,
    Number,
    Outcome,
    Rule,
    TaskComparison,
    add_items_needed,
    is_in_macro,
    is_named_critical,
    is_perplexity,
    is_reported_only,
    is_safety,
    list_ids,
    worst_outcome,
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
    left_out = []
    for t in tasks:
        is_judged = is_named_critical(t.task, t.suite, policy) or is_safety(t, policy) or is_in_macro(t)
        if is_judged or t.role in ("target", "regression"):
            continue
        why = t.why_not
        if t.role != "capability":
            why = f"a {t.role} task is reported, not judged: gate.safety is null, or its metric has no bounds"
        elif is_reported_only(t.task):
            why = f"{'perplexity' if is_perplexity(t) else 'bits per byte'} is reported, not judged"
        left_out += [f"{t.task.name}: {why}"] if why else []
    margin = margins.margin_share(policy.macro)
    facts: dict[str, Number] = {"margin": margin, "n_tasks": len(admitted), "left_out": left_out}
    halves = [f"{t.task.name}: {t.half.why}" for t in admitted if t.half]
    facts |= {"one_half": halves} if halves else {}
    facts |= {"shared_items": list(shared.descriptions)} if shared.descriptions else {}
    if identical:
        return Rule(
            "macro", "pass", "macro: the weights are the base's own, nothing is lost by identity", facts
        )
    unadmitted: dict[bool, list[str]] = {True: [], False: []}
    for t in tasks:
        if t.role == "capability" and not t.base_rows_admitted and not is_reported_only(t.task):
            unadmitted[t.may_be_admitted].append(t.task.name)
    of_halves = ", ".join(t.task.name for t in admitted if t.half)
    whys = {True: "cannot show forgetting", False: "lower is better or bounds: are not declared"}
    tails = [f"left out, {whys[may]}: {', '.join(names)}" for may, names in unadmitted.items() if names]
    tails += [f"only half of the items of {of_halves} count, with half the weight"] if of_halves else []
    tails += [f"{t.task.name}: {t.counted.refused}" for t in admitted if t.counted.refused]
    tail = "".join(f"; {text}" for text in (*tails, *shared.descriptions))
    if macro is None:
        sentence = "macro: no admitted capability task was measured, so nothing can be said about forgetting"
        return Rule("macro", "inconclusive", sentence + tail, facts)
    estimate = macro_estimate(admitted, macro, identical, shared)
    outcome = margins.margin_outcome(macro.lower, macro.upper, margin)
    facing = margins.find_facing_se(macro.delta, macro.lower, macro.upper, margin, policy.alpha)
    parts, correlations = plan_parts(admitted, macro, shared)
    advice = margins.describe_more_items(macro.delta, parts, margin, policy.alpha, facing, correlations)
    facts |= {"delta": estimate.score, "low": estimate.low, "high": estimate.high, "n_items": estimate.n}
    facts |= {"lower": macro.lower, "upper": macro.upper}
    facts |= {"p": macro_p(admitted, policy, shared)} if outcome == "pass" else {}
    facts |= {"n_clusters": sum(t.counted.n_clusters for t in admitted) - shared.n_repeated_clusters}
    facts |= {"disagreement": fmean(t.counted.disagreement for t in admitted)}
    of_skill = (
        f", {formatting.points(macro.delta)} % of the base's skill"
        if margins.is_relative(policy.macro)
        else ""
    )
    # The printed interval is in points, with which a share of the base's skill cannot be compared.
    low = macro.lower if margins.is_relative(policy.macro) else estimate.low
    sentence = (
        f"macro over {formatting.pluralize(len(admitted), 'task')}: {formatting.points(*estimate[:3])} pp"
        f"{of_skill}, "
        + margins.margin_verdict(
            outcome,
            margins.margin_text(policy.macro),
            margins.ruled_out(low, macro.lower, margin, policy),
            advice,
        )
    )
    if outcome == "inconclusive" and advice.by_task:
        facts["items_needed_by_task"] = list(advice.by_task)
    return Rule("macro", outcome, sentence + tail, add_items_needed(facts, outcome, advice.items))


def macro_estimate(
    admitted: Sequence[TaskComparison], macro: Macro, identical: bool, shared: SharedItems
) -> estimators.Estimate:
    """Return the macro delta with its 95 % interval, each item of the admitted tasks counted once."""
    comparisons = [t.counted for t in admitted]
    if identical:
        return estimators.Estimate(0.0, 0.0, 0.0, sum(c.n for c in comparisons) - shared.n_repeated)
    return estimators.mean_change(comparisons, macro.weights, macro.correlations, shared.n_repeated)


def judge_each(
    admitted: Sequence[TaskComparison],
    policy: GatePolicy,
    identical: bool,
    name: Literal["each", "safety"] = "each",
) -> Rule:
    """Fail if a task is shown, by Holm over the tasks, to have lost more than its own margin.

    Inconclusive if the observed loss is beyond the margin and a loss is shown, but not one beyond the margin,
    or if the task has too few items to show the loss of all of them. `significance.stops` computes the
    chances of this rule: change both.
    """
    if identical:
        return Rule(name, "pass", f"{name}: no task can have lost anything, by identity of the weights", {})
    if not admitted:
        kind = "admitted capability" if name == "each" else "safety"
        return Rule(name, "skipped", f"{name}: no {kind} task was measured", {})
    allowed, alpha = [margins.margin_of(t, policy) for t in admitted], policy.alpha / len(admitted)
    loss_ps = stats.holm([estimators.regression_p(t.counted, 0.0) for t in admitted])
    beyond_ps = stats.holm(
        [estimators.regression_p(t.counted, m) for t, m in zip(admitted, allowed, strict=True)]
    )
    vetoed = [t for t, p in zip(admitted, beyond_ps, strict=True) if p < policy.alpha]
    beyond_margin = [
        (t, p)
        for t, p, margin in zip(admitted, loss_ps, allowed, strict=True)
        if t.counted.delta < -margin and t not in vetoed
    ]
    doubtful = [t for t, p in beyond_margin if p < policy.alpha]
    too_small = []  # not even the loss of every item would be shown; clusters count as single items
    for t, p in beyond_margin:
        n = t.counted.n_clusters
        if p >= policy.alpha and stats.tango_regression_p(0, n, n, 0.0) >= alpha:
            too_small.append(t)
    facts: dict[str, Number] = {
        "vetoed": [t.task.name for t in vetoed],
        "doubtful": [t.task.name for t in doubtful + too_small],
        "lost_items": [
            f"{t.task.name}/{i}" for t in vetoed + doubtful + too_small for i in t.counted.lost[:NAMED]
        ],
        "n_tasks": len(admitted),
        "p_smallest": min(beyond_ps),
    }
    if vetoed:
        loss_texts = "; ".join(margins.loss_margin_text(t, policy) for t in vetoed)
        return Rule(name, "fail", f"{name}: more than the margin was lost: {loss_texts}", facts)
    if doubtful:
        task_texts, more = [], dict[str, int | None]()
        for t in doubtful:
            c, margin = t.counted, margins.margin_of(t, policy)
            part = margins.DeltaPart(
                t.task.name, margins.find_planning_se(c, margins.upper_se(c)), c.n, t.room
            )
            advice = margins.describe_more_items(
                c.delta,
                [part],
                margin,
                alpha,
                margins.find_facing_se(c.delta, c.lower, c.upper, margin, c.alpha),
            )
            task_texts.append(f"{margins.loss_margin_text(t, policy)} ({advice.sentence})")
            more[t.task.name] = advice.items
        sentence = f"{name}: whether more than the margin was lost is open: {'; '.join(task_texts)}"
        return Rule(name, "inconclusive", sentence, add_items_needed(facts, "inconclusive", more))
    if too_small:
        loss_texts = "; ".join(margins.loss_margin_text(t, policy) for t in too_small)
        return Rule(name, "inconclusive", f"{name}: too few items to tell: {loss_texts}", facts)
    lowest = min(admitted, key=lambda t: t.counted.delta)
    n_tasks = formatting.pluralize(len(admitted), "task")
    sentence = f"{name}: none of {n_tasks} is shown to have lost more than its margin"
    c, of_range = lowest.counted, "" if lowest.span == 1 else " of its range"
    change = f"{lowest.task.name} {formatting.points(c.delta, c.low, c.high)} pp{of_range}"
    return Rule(name, "pass", f"{sentence} (lowest: {change})", facts)


def critical_rule(tasks: Sequence[TaskComparison], policy: GatePolicy, identical: bool) -> Rule:
    """Judge the loss rate of every task that the policy names critical."""
    if not policy.critical:
        return Rule("critical", "skipped", "critical: no task is named critical", {})
    if identical:
        return Rule("critical", "pass", "critical: nothing is lost, by identity of the weights", {})
    critical = [t for t in tasks if is_named_critical(t.task, t.suite, policy)]
    missing = set(policy.critical) - {name for t in tasks for name in (t.task.name, t.suite)}
    judged = [_critical_task(t, policy) for t in critical]
    judged += [Rule("critical", "inconclusive", f"{name} was not measured", {}) for name in sorted(missing)]
    outcome = worst_outcome([rule.outcome for rule in judged])
    facts: dict[str, Number] = {k: v for rule in judged for k, v in rule.numbers.items()}
    facts["margin"] = policy.critical_margin
    ps = [p for rule in judged if isinstance(p := rule.numbers.get("p"), float)]
    facts |= {"p": max(ps)} if ps else {}
    text = "critical: " + "; ".join(rule.sentence for rule in judged)
    open_tasks = [t for t, rule in zip(critical, judged, strict=False) if rule.outcome == "inconclusive"]
    more = {t.task.name: _count_critical_items(t.comparison, policy) for t in open_tasks}
    return Rule("critical", outcome, text, add_items_needed(facts, outcome, more | dict.fromkeys(missing)))


def _critical_task(t: TaskComparison, policy: GatePolicy) -> Rule:
    """Judge the loss rate among the items that the base passed by its exact one-sided bounds."""
    c, name = t.comparison, t.task.name
    allowed, passing = margins.critical_rates(policy)
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
    outcome: Outcome = "fail" if low > allowed else "pass" if high < passing else "inconclusive"
    text = (
        f"{name}: {lost} of {passed} items that the base passed are lost, "
        f"{formatting.interval(lost / passed, low, high)} %, margin {formatting.percent(allowed)} %: "
    )
    text += {
        "fail": f"more than the margin is shown ({list_ids(c.lost)})",
        "pass": "less than twice the margin is shown",
        "inconclusive": "neither a loss above the margin nor one below twice the margin is shown",
    }[outcome]
    facts: dict[str, Number] = {f"{name}_lost": lost, f"{name}_passed": passed}
    facts |= {f"{name}_low": low, f"{name}_high": high, f"{name}_lost_items": list(c.lost[:NAMED])}
    facts["p"] = loss_rate_p(most_lost / c.design_effect, most_passed / c.design_effect, passing)
    return Rule("critical", outcome, text, facts)


def _loss_bounds(lost: float, passed: float, effect: float, alpha: float) -> Interval:
    return stats.clopper_pearson(lost / effect, passed / effect, 2 * alpha)


def _count_critical_items(c: estimators.Comparison, policy: GatePolicy) -> int | None:
    """Grow the sample at the observed loss rate until one of the bounds decides; None if none does."""
    factor, (allowed, passing) = 1.0, margins.critical_rates(policy)
    while c.base_passed and factor < margins.MOST_ITEMS:
        factor *= 1.1
        low, high = _loss_bounds(len(c.lost) * factor, c.base_passed * factor, c.design_effect, policy.alpha)
        if low > allowed or high < passing:
            return ceil(c.n * (factor - 1))
    return None
