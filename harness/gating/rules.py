"""Rules of the policy and the verdict they join to, each rule an outcome, a sentence and its numbers.

Invariant: comparisons come with the sign turned so that a negative delta is a loss, and
bounds are one-sided at `policy.alpha`. `identical` passes what the weights decide, unasked.
Source: statistics in `stats`; a veto beside a pass that needs no correction: Berger 1982.
"""

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from math import ceil
from statistics import fmean

from harness import comparison, formatting, stats
from harness.comparison import Comparison, Estimate
from harness.gating.drift import ControlFacts, control_rule
from harness.gating.items_needed import (
    MOST_ITEMS,
    Advice,
    Part,
    facing_se,
    lower_se,
    more_items,
    planning_se,
    upper_se,
)
from harness.gating.macro import Macro, average_macro, planned_parts
from harness.gating.operating_characteristic import miss_rates
from harness.gating.shared_items import NOTHING_SHARED, SharedItems
from harness.gating.significance import loss_rate_p, macro_p, noninferiority_p
from harness.gating.target import require_calibration, target_rule
from harness.gating.unanswered import errors_rule, missing_rule
from harness.gating.verdict import (
    Number,
    Outcome,
    Rule,
    TargetFacts,
    TaskComparison,
    Verdict,
    is_in_macro,
    is_invalid,
    is_named_critical,
    is_relative,
    is_reported_only,
    margin_of,
    margin_share,
    margin_text,
    worst_outcome,
)
from harness.spec import GatePolicy
from harness.stats import Interval

_NAMED = 20  # items named in a rule's numbers


def apply_rules(
    tasks: Sequence[TaskComparison],
    policy: GatePolicy,
    *,
    validity: Comparison | None,
    target: TargetFacts | None,
    identical: bool,
    confirmed: Mapping[str, Collection[str]] | None = None,
    controls: Sequence[ControlFacts] = (),
    missing: Sequence[str] = (),
    shared: SharedItems = NOTHING_SHARED,
    level: float | None = None,
    cumulative: Rule | None = None,
) -> Verdict:
    """Join every rule of the policy to a verdict; the comparisons must be made at `policy.alpha`.

    What has to be shown is judged at `level` where one is given: that of one among many candidates. A veto
    keeps the policy's alpha.

    `confirmed` names the pinned items that are lost in fp32 too. `identical` says that the
    weights digest is the base's own: what the weights decide then passes by identity, not by
    test, and only the target is judged. `controls` are the control arms beside which its rows were
    computed, `missing` tasks that one of the arms did not answer, `shared` the items that tasks share,
    `cumulative` the rule against the first base.

    Raises:
        ValueError: a comparison was made at another alpha.
    """
    _check_alpha([*(t.comparison for t in tasks), *([validity] if validity else [])], policy.alpha)
    errors = None if identical else errors_rule(tasks, target, policy)
    tasks = list(map(_orient, tasks))
    vetoing = [t for t in tasks if is_in_macro(t)]
    show = policy if level is None else policy.model_copy(update={"alpha": level})
    tasks = [t.at_level(show.alpha) for t in tasks]
    validity = comparison.at_level(validity, show.alpha) if validity else None
    admitted = [t for t in tasks if is_in_macro(t)]
    macro = average_macro(admitted, show, shared) if admitted else None
    calibrated = partial(require_calibration, policy=policy, identical=identical)
    critical = [t for t in tasks if is_named_critical(t.task, t.suite, policy)]
    rules = (
        *([errors] if errors else []),
        calibrated(macro_rule(tasks, admitted, macro, show, identical, shared), admitted),
        calibrated(each_rule(vetoing, policy, identical), vetoing),
        calibrated(critical_rule(tasks, show, identical), critical),
        regressions_rule(tasks, identical, confirmed),
        validity_rule(validity, show, identical),
        target_rule(target, policy),
        drift_rule(tasks, policy, identical),
        control_rule(controls),
        *([missing_rule(missing)] if missing and not identical else []),
        *([cumulative] if cumulative else []),
    )
    outcome = _join_outcomes(rules)
    needed = [int(n) for r in rules if isinstance(n := r.numbers.get("items_needed"), int)]
    return Verdict(
        outcome=outcome,
        rules=rules,
        macro=macro_estimate(admitted, macro, identical, shared) if macro else None,
        lost=sum(len(t.counted.lost) for t in admitted),
        gained=sum(len(t.counted.gained) for t in admitted),
        missed=miss_rates(admitted, macro, validity, show) if macro and not identical else (),
        items_needed=max(needed) if needed and outcome == "inconclusive" and not is_invalid(rules) else None,
        sentence=_verdict_sentence(outcome, rules),
    )


def _orient(t: TaskComparison) -> TaskComparison:
    half = t.half and t.half._replace(comparison=comparison.orient(t.half.comparison))
    return t._replace(comparison=comparison.orient(t.comparison), half=half)


def _join_outcomes(rules: Sequence[Rule]) -> Outcome:
    """Join the rules' outcomes; where too many answers failed only a drift of the harness is worse."""
    outcome = worst_outcome([r.outcome for r in rules])
    return "inconclusive" if outcome == "fail" and is_invalid(rules) else outcome


def _verdict_sentence(outcome: Outcome, rules: Sequence[Rule]) -> str:
    said = [r for r in rules if r.outcome == outcome]
    if outcome == "inconclusive" and is_invalid(rules):
        said = [r for r in said if r.name in ("errors", "tasks")]  # the others rest on what failed
    return f"{outcome.upper()}: " + "; ".join(r.sentence for r in said)


def _check_alpha(comparisons: Sequence[Comparison], alpha: float) -> None:
    others = {c.alpha for c in comparisons} - {alpha}
    if others:
        raise ValueError(
            f"comparisons made at alpha {sorted(others)}, the policy's is {alpha}: pass it to compare_rows"
        )


def macro_rule(
    tasks: Sequence[TaskComparison],
    admitted: Sequence[TaskComparison],
    macro: Macro | None,
    policy: GatePolicy,
    identical: bool,
    shared: SharedItems,
) -> Rule:
    """Pass when the macro-average of the deltas is non-inferior, fail when a loss is shown."""
    left_out = [f"{t.task.name}: {_why_left_out(t)}" for t in tasks if _is_left_out(t, policy)]
    margin = margin_share(policy.macro)
    facts: dict[str, Number] = {"margin": margin, "n_tasks": len(admitted), "left_out": left_out}
    halves = [f"{t.task.name}: {t.half.why}" for t in admitted if t.half]
    facts |= {"one_half": halves} if halves else {}
    facts |= {"shared_items": list(shared.said)} if shared.said else {}
    if identical:
        return Rule(
            "macro", "pass", "macro: the weights are the base's own, nothing is lost by identity", facts
        )
    tail = _who_counts(tasks, admitted, shared)
    if macro is None:
        said = "macro: no admitted capability task was measured, so nothing can be said about forgetting"
        return Rule("macro", "inconclusive", said + tail, facts)
    found = macro_estimate(admitted, macro, identical, shared)
    outcome = _outcome(macro.lower, macro.upper, margin)
    facing = facing_se(macro.delta, Interval(macro.lower, macro.upper), margin, policy.alpha)
    planned = planned_parts(admitted, macro, shared)
    advice = more_items(macro.delta, planned.parts, margin, policy.alpha, facing, planned.correlations)
    facts |= {"delta": found.score, "low": found.low, "high": found.high, "n_items": found.n}
    facts |= {"lower": macro.lower, "upper": macro.upper}
    facts |= {"p": macro_p(admitted, policy, shared)} if outcome == "pass" else {}
    facts |= {"n_clusters": sum(t.counted.n_clusters for t in admitted) - shared.repeated.clusters}
    facts |= {"disagreement": fmean(t.counted.disagreement for t in admitted)}
    of_skill = (
        f", {formatting.points(macro.delta)} % of the base's skill" if is_relative(policy.macro) else ""
    )
    said = (
        f"macro over {formatting.pluralize(len(admitted), 'task')}: {formatting.points(*found[:3])} pp"
        f"{of_skill}, " + _margin_verdict(outcome, margin_text(policy.macro), advice)
    )
    if outcome == "inconclusive" and advice.by_task:
        facts["items_needed_by_task"] = list(advice.by_task)
    return Rule("macro", outcome, said + tail, _add_items_needed(facts, outcome, advice.items))


def _who_counts(
    tasks: Sequence[TaskComparison], admitted: Sequence[TaskComparison], shared: SharedItems
) -> str:
    """Name the tasks that are left out, those of which one half counts, and those that share items."""
    unadmitted = [t.task.name for t in tasks if _cannot_show(t)]
    halves = [t.task.name for t in admitted if t.half]
    tails = [f"left out, cannot show forgetting: {', '.join(unadmitted)}"] if unadmitted else []
    tails += [f"of {', '.join(halves)} one half counts, by half"] if halves else []
    tails += [f"{t.task.name}: {t.counted.refused}" for t in admitted if t.counted.refused]
    return "".join(f"; {tail}" for tail in (*tails, *shared.said))


def each_rule(admitted: Sequence[TaskComparison], policy: GatePolicy, identical: bool) -> Rule:
    """Fail when a task is shown, by Holm over the tasks, to have lost more than its own margin.

    Inconclusive where a loss lies beyond the margin as found and is shown, but not to lie there: the task
    may not have lost that much, and nobody should be told that it passed. So it is where the task has too
    few items to show even the loss of all of them.
    """
    if identical:
        return Rule("each", "pass", "each: no task can have lost anything, by identity of the weights", {})
    if not admitted:
        return Rule("each", "skipped", "each: no admitted capability task was measured", {})
    margins, alpha = [margin_of(t, policy) for t in admitted], policy.alpha / len(admitted)
    some, beyond = _holm_p(admitted, [0.0] * len(admitted)), _holm_p(admitted, margins)
    vetoed = [t for t, p in zip(admitted, beyond, strict=True) if p < policy.alpha]
    beyond_margin = [
        (t, p)
        for t, p, margin in zip(admitted, some, margins, strict=True)
        if t.counted.delta < -margin and t not in vetoed
    ]
    doubtful = [t for t, p in beyond_margin if p < policy.alpha]
    too_small = [t for t, p in beyond_margin if p >= policy.alpha and _is_too_small(t, alpha)]
    facts: dict[str, Number] = {
        "vetoed": [t.task.name for t in vetoed],
        "doubtful": [t.task.name for t in doubtful + too_small],
        "lost_items": [
            f"{t.task.name}/{i}" for t in vetoed + doubtful + too_small for i in t.counted.lost[:_NAMED]
        ],
        "n_tasks": len(admitted),
        "p_smallest": min(beyond),
    }
    if vetoed:
        named = "; ".join(_delta_and_margin(t, policy) for t in vetoed)
        return Rule("each", "fail", f"each: a loss beyond the margin is shown on {named}", facts)
    if doubtful:
        return _doubtful_rule(doubtful, policy, alpha, facts)
    if too_small:
        named = "; ".join(_delta_and_margin(t, policy) for t in too_small)
        return Rule("each", "inconclusive", f"each: too few items to show any loss on {named}", facts)
    lowest = min(admitted, key=lambda t: t.counted.delta)
    n_tasks = formatting.pluralize(len(admitted), "task")
    said = f"each: none of {n_tasks} is shown to have lost more than its margin"
    return Rule("each", "pass", f"{said} (lowest: {_task_delta(lowest)})", facts)


def _holm_p(admitted: Sequence[TaskComparison], margins: Sequence[float]) -> list[float]:
    pairs = zip(admitted, margins, strict=True)
    return stats.holm([comparison.regression_p(t.counted, margin) for t, margin in pairs])


def _is_too_small(t: TaskComparison, alpha: float) -> bool:
    """Tell whether not even the loss of every item would be shown; clusters count as single items."""
    n = t.counted.n_clusters
    return stats.tango_regression_p(0, n, n, 0.0) >= alpha


def _doubtful_rule(
    doubtful: Sequence[TaskComparison], policy: GatePolicy, alpha: float, facts: dict[str, Number]
) -> Rule:
    said, most = [], 0
    for t in doubtful:
        c, margin = t.counted, margin_of(t, policy)
        part = Part(t.task.name, planning_se(c, upper_se(c)), c.n, t.room)
        advice = more_items(c.delta, [part], margin, alpha, _facing_se(c, margin))
        said.append(f"{_delta_and_margin(t, policy)}: {advice.sentence}")
        most = max(most, advice.items or 0)
    sentence = f"each: a loss is shown, but not that it lies beyond the margin, on {'; '.join(said)}"
    return Rule("each", "inconclusive", sentence, _add_items_needed(facts, "inconclusive", most or None))


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
    facts: dict[str, Number] = {k: v for rule in judged for k, v in rule.numbers.items()}
    more = [n for rule in judged if isinstance(n := rule.numbers.get("items_needed"), int)]
    facts |= {"margin": policy.critical_margin, **({"items_needed": max(more)} if more else {})}
    ps = [p for rule in judged if isinstance(p := rule.numbers.get("p"), float)]
    facts |= {"p": max(ps)} if ps else {}
    said = "critical: " + "; ".join(rule.sentence for rule in judged)
    return Rule("critical", worst_outcome([rule.outcome for rule in judged]), said, facts)


def _critical_task(t: TaskComparison, policy: GatePolicy) -> Rule:
    """Judge the loss rate among the items that the base passed by its exact one-sided bounds."""
    c, name, margin = t.comparison, t.task.name, policy.critical_margin
    if not c.base_passed:
        why = "its scores are not 0 or 1" if c.base_passed is None else "the base passed no item"
        return Rule("critical", "inconclusive", f"{name}: losses cannot be counted, {why}", {})
    lost, passed = len(c.lost), c.base_passed
    # What the base did not answer it may have passed: lost where the candidate fails it, and else kept.
    may_be_lost = len(c.errors.open)
    may_be_kept = c.errors.base - may_be_lost
    most_lost, most_passed = lost + may_be_lost, passed + may_be_lost
    low = _loss_bounds(lost, passed + may_be_kept, c.design_effect, policy.alpha).low
    high = _loss_bounds(most_lost, most_passed, c.design_effect, policy.alpha).high
    outcome: Outcome = "fail" if low > margin else "pass" if high < 2 * margin else "inconclusive"
    said = (
        f"{name}: {lost} of {passed} items that the base passed are lost, "
        f"{formatting.interval(lost / passed, low, high)} %, margin {formatting.percent(margin)} %: "
    )
    said += {
        "fail": f"more than the margin is shown ({_list_ids(c.lost)})",
        "pass": "less than twice the margin is shown",
        "inconclusive": "neither a loss above the margin nor one below twice the margin is shown",
    }[outcome]
    facts: dict[str, Number] = {f"{name}_lost": lost, f"{name}_passed": passed}
    facts |= {f"{name}_low": low, f"{name}_high": high, f"{name}_lost_items": list(c.lost[:_NAMED])}
    facts["p"] = loss_rate_p(most_lost / c.design_effect, most_passed / c.design_effect, 2 * margin)
    return Rule("critical", outcome, said, _add_items_needed(facts, outcome, _critical_items(c, policy)))


def _loss_bounds(lost: float, passed: float, effect: float, alpha: float) -> Interval:
    return stats.clopper_pearson(lost / effect, passed / effect, 2 * alpha)


def _critical_items(c: Comparison, policy: GatePolicy) -> int | None:
    """Grow the sample at the observed loss rate until one of the two bounds decides."""
    passed, factor = c.base_passed or 0, 1.0
    while factor < MOST_ITEMS:
        factor *= 1.1
        low, high = _loss_bounds(len(c.lost) * factor, passed * factor, c.design_effect, policy.alpha)
        if low > policy.critical_margin or high < 2 * policy.critical_margin:
            return ceil(c.n * (factor - 1))
    return None


def validity_rule(validity: Comparison | None, policy: GatePolicy, identical: bool) -> Rule:
    """Judge the rise of unparsable, truncated and refused answers: a format regression, not forgetting."""
    if identical:
        return Rule(
            "validity", "pass", "validity: the answers are the base's own, by identity of the weights", {}
        )
    if validity is None:
        return Rule("validity", "skipped", "validity: no generated answers were compared", {})
    c = comparison.orient(validity)
    outcome = _outcome(c.lower, c.upper, policy.validity)
    part = Part("validity", planning_se(c, lower_se(c)), c.n)
    advice = more_items(c.delta, [part], policy.validity, policy.alpha, _facing_se(c, policy.validity))
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
    said = (
        f"validity: unparsable, truncated or refused{failed} answers {formatting.percent(c.base)} → "
        f"{formatting.percent(c.new)} %, {rise} pp, "
        + _margin_verdict(
            outcome, margin_text(policy.validity), advice, "a format regression beyond it is shown"
        )
    )
    return Rule("validity", outcome, said, _add_items_needed(facts, outcome, advice.items))


def regressions_rule(
    tasks: Sequence[TaskComparison], identical: bool, confirmed: Mapping[str, Collection[str]] | None
) -> Rule:
    """Fail when one pinned item is lost; in another precision than fp32 only once fp32 confirms it.

    `confirmed` maps tasks to the items that are lost in fp32 too; None where nothing was re-scored,
    and then a lost item leaves the verdict open. So does one that the base did not answer and the
    candidate gets wrong.
    """
    pinned = [t for t in tasks if t.role == "regression"]
    if not pinned:
        return Rule("regressions", "skipped", "regressions: no item is pinned", {})
    n = formatting.count(sum(t.comparison.n for t in pinned))
    if identical:
        said = f"regressions: all {n} pinned items are kept, by identity of the weights"
        return Rule("regressions", "pass", said, {})
    lost = [(t.task.name, i) for t in pinned for i in t.comparison.lost]
    sure = [(task, i) for task, i in lost if confirmed and i in confirmed.get(task, ())]
    facts: dict[str, Number] = {"n_items": sum(t.comparison.n for t in pinned), "n_lost": len(lost)}
    if sure:
        named = [f"{task}/{i}" for task, i in sure]
        facts["lost_items"] = named[:_NAMED]
        said = f"regressions: {formatting.count(len(sure))} of {n} pinned items are lost: {_list_ids(named)}"
        return Rule("regressions", "fail", said, facts)
    if lost and confirmed is None:
        named = [f"{task}/{i}" for task, i in lost]
        facts["lost_items"] = named[:_NAMED]
        said = (
            f"regressions: of {n} pinned items {_list_ids(named)} are lost, which fp32 has not confirmed yet"
        )
        return Rule("regressions", "inconclusive", said, facts)
    unknown = [f"{t.task.name}/{i}" for t in pinned for i in t.comparison.errors.open]
    if unknown:
        facts["open_items"] = unknown[:_NAMED]
        said = (
            f"regressions: {_list_ids(unknown)} may be lost: the base did not answer, the candidate is wrong"
        )
        return Rule("regressions", "inconclusive", said, facts)
    rounding = f", {formatting.count(len(lost))} lost by rounding alone" if lost else ""
    said = f"regressions: all {n} pinned items are kept{rounding}"
    return Rule("regressions", "pass", said, facts)


def drift_rule(reported: Sequence[TaskComparison], policy: GatePolicy, identical: bool) -> Rule:
    """Report the largest rise in bits per byte on held-out text; judge it where the policy sets a limit."""
    texts = [t for t in reported if is_reported_only(t.task) and not _is_perplexity(t)]
    if not texts:
        return Rule("drift", "skipped", "drift: no text was measured in bits per byte", {})
    if identical:
        return Rule("drift", "pass", "drift: none, by identity of the weights", {})
    t = min(texts, key=lambda t: t.comparison.delta)  # turned: a rise is a loss
    c, limit = t.comparison, policy.drift
    facts: dict[str, Number] = {"rise": -c.delta, "low": -c.high, "high": -c.low}
    rise = formatting.plain(-c.delta, -c.high, -c.low, sign=True)
    said = f"drift: {t.task.name} {rise} bits per byte"
    if limit is None:
        return Rule("drift", "skipped", f"{said}, an early warning that gate.drift would judge", facts)
    outcome: Outcome = "fail" if c.upper < -limit else "pass" if c.lower > -limit else "inconclusive"
    words = {
        "pass": "less is shown",
        "fail": "more is shown",
        "inconclusive": "neither less nor more is shown",
    }
    return Rule("drift", outcome, f"{said}, limit {formatting.plain(limit)}: {words[outcome]}", facts)


def _outcome(lower: float, upper: float, margin: float) -> Outcome:
    return "pass" if lower > -margin else "fail" if upper < -margin else "inconclusive"


def macro_estimate(
    admitted: Sequence[TaskComparison], macro: Macro, identical: bool, shared: SharedItems
) -> Estimate:
    """Return the macro delta with its 95 % interval, over the items of all admitted tasks, each once."""
    comparisons = [t.counted for t in admitted]
    if identical:
        return Estimate(0.0, 0.0, 0.0, sum(c.n for c in comparisons) - shared.repeated.items)
    return comparison.mean_change(comparisons, macro.weights, macro.correlations, shared.repeated.items)


def _facing_se(c: Comparison, margin: float) -> float:
    return facing_se(c.delta, Interval(c.lower, c.upper), margin, c.alpha)


def _add_items_needed(facts: dict[str, Number], outcome: str, more: int | None) -> dict[str, Number]:
    return {**facts, "items_needed": more} if outcome == "inconclusive" and more is not None else facts


def _margin_verdict(
    outcome: Outcome, margin: str, advice: Advice, broken: str = "a loss beyond it is shown"
) -> str:
    words = {"pass": "non-inferiority shown", "fail": broken, "inconclusive": f"not shown; {advice.sentence}"}
    return f"margin {margin}: {words[outcome]}"


def _is_left_out(t: TaskComparison, policy: GatePolicy) -> bool:
    is_critical = is_named_critical(t.task, t.suite, policy)
    return t.role not in ("target", "regression") and not is_in_macro(t) and not is_critical


def _cannot_show(t: TaskComparison) -> bool:
    return t.role == "capability" and not t.base_rows_admitted and not is_reported_only(t.task)


def _why_left_out(t: TaskComparison) -> str:
    if t.role != "capability":
        return f"a {t.role} task that gate.critical does not name is reported, not judged"
    unit = "perplexity" if _is_perplexity(t) else "bits per byte"
    return f"{unit} is reported, not judged" if is_reported_only(t.task) else t.why_not


def _is_perplexity(t: TaskComparison) -> bool:
    """Tell whether a text's perplexity is its first metric, of which no limit in bits per byte judges."""
    return t.task.primary_metric == "perplexity"


def _task_delta(t: TaskComparison) -> str:
    c = t.counted
    of_range = "" if t.span == 1 else " of its range"
    return f"{t.task.name} {formatting.points(c.delta, c.low, c.high)} pp{of_range}"


def _delta_and_margin(t: TaskComparison, policy: GatePolicy) -> str:
    return f"{_task_delta(t)}, margin {formatting.percent(margin_of(t, policy))} pp"


def _list_ids(ids: Sequence[str]) -> str:
    rest = f" and {len(ids) - 5} more" if len(ids) > 5 else ""
    return ", ".join(ids[:5]) + rest
