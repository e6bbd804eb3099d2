"""Gate rules on answers: missing tasks, failed and invalid answers, lost pinned items, drift, mode collapse.

Invariant: comparisons are oriented so that a negative delta is a loss; bounds are one-sided at
`policy.alpha`; the base's own weights pass without a test. Too many failed answers make a verdict
inconclusive whatever the other rules say. Source: Berger & Parker 1970 for the share; Berger 1982 for what
all tasks, or both arms, have to show.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Literal

from harness import formatting
from harness.analysis.estimators import Comparison, at_level, orient
from harness.analysis.margins import (
    DeltaPart,
    comparison_facing_se,
    describe_more_items,
    find_planning_se,
    lower_se,
    margin_outcome,
    margin_text,
    margin_verdict,
    ruled_out,
)
from harness.analysis.significance import noninferiority_p
from harness.analysis.verdict import (
    NAMED,
    Number,
    Outcome,
    Rule,
    TargetFacts,
    TaskComparison,
    add_items_needed,
    is_in_macro,
    is_named_critical,
    is_perplexity,
    is_reported_only,
    is_safety,
    list_ids,
    may_decide,
    worst_outcome,
)
from harness.spec import GatePolicy

_SHOWN = 3  # tasks named in a rule's sentence


def judge_missing_tasks(missing: Sequence[str]) -> Rule:
    """Leave the verdict open if tasks are missing: an unmeasured task may be the one that was lost."""
    found = f"{formatting.pluralize(len(missing), 'task')} not answered by both ({list_ids(missing)})"
    text = f"tasks: {found}; expected all, or those to judge by name (gate.tasks)"
    return Rule("tasks", "inconclusive", text, {"missing": list(missing[:NAMED])})


def errors_rule(
    tasks: Sequence[TaskComparison], target: TargetFacts | None, policy: GatePolicy
) -> Rule | None:
    """Judge how many answers failed on each task; None if none did.

    The verdict is invalid beyond `gate.max_errors` of a task's items, and at the first error if the metric
    has no worst value to count it by.
    """
    failed = [t.comparison for t in tasks if t.comparison.errors.total and _decides(t, policy)]
    unscored = [c for c in failed if not c.errors.is_scored]
    has_goal = policy.target.gain is not None or policy.target.min is not None
    if target and target.gain and not target.gain.errors.is_scored and has_goal:
        unscored.append(target.gain)
    too_many = [c for c in failed if c.errors.is_scored and c.errors.share > policy.max_errors]
    if not failed and not unscored:
        return None
    facts: dict[str, Number] = {
        "largest_share": max(c.errors.share for c in (*failed, *unscored)),
        "tasks": [c.task for c in (*unscored, *too_many)][:NAMED],
    }
    most = formatting.percent(policy.max_errors)
    if unscored or too_many:
        causes = []
        if too_many:
            causes.append(f"{_list_tasks(too_many)}, more than the {most} % that gate.max_errors allows")
        if unscored:
            named = ", ".join(dict.fromkeys(c.metric for c in unscored))
            why = f"{named} has no worst value to count them by, which bounds: of the task declares"
            causes.append(f"{_list_tasks(unscored)}, and {why}")
        return Rule("errors", "inconclusive", f"invalid: {'; '.join(causes)}", facts)
    text = f"errors: {_list_tasks(failed)}; at most {most} % of a task may fail"
    for c in failed:
        if c.errors.delta_lost is not None and c.errors.delta_kept is not None:
            lost = formatting.change(c.unit, c.errors.delta_lost)
            kept = formatting.change(c.unit, c.errors.delta_kept)
            name = "pp" if c.unit.is_rate else c.unit.name
            passed = "if the baseline would have passed what it did not answer"
            text += f"; {c.task} {lost} {name} {passed}, {kept} if not"
    return Rule("errors", "pass", text, facts)


def _decides(t: TaskComparison, policy: GatePolicy) -> bool:
    """Tell whether a rule judges the task, or might if the base had answered all of it.

    Admission uses only the base, so the candidate's failures on a task that is not admitted decide nothing.
    """
    may_be_judged = may_decide(t.task, t.role, t.suite, policy)
    if is_in_macro(t) or is_reported_only(t.task) or is_named_critical(t.task, t.suite, policy):
        return may_be_judged
    errors = t.comparison.errors
    is_open = t.may_be_admitted and errors.base + errors.both > policy.max_errors * errors.n
    return may_be_judged and (t.role == "regression" or is_safety(t, policy) or is_open)


def _list_tasks(failed: Sequence[Comparison]) -> str:
    """Count the failed answers of the worst tasks by model, each with the first cause."""
    most, texts = sorted(failed, key=lambda c: -c.errors.share), []
    for c in most[:_SHOWN]:
        e = c.errors
        by = ((e.new, "the candidate"), (e.base, "the baseline"), (e.both, "both"))
        who = ", ".join(f"{formatting.count(n)} by {name}" for n, name in by if n)
        texts.append(
            f"{formatting.count(e.total)} of {formatting.count(e.n)} answers on {c.task}"
            f" ({formatting.percent(e.share)} %) failed: {who} ({e.cause})"
        )
    rest = f" and on {formatting.pluralize(len(most) - _SHOWN, 'task')} more" if len(most) > _SHOWN else ""
    return "; ".join(texts) + rest


def validity_rule(validity: Comparison | None, policy: GatePolicy, identical: bool) -> Rule:
    """Judge the rise of unparsable, truncated and refused answers: a format regression, not forgetting."""
    if identical:
        text = "validity: the answers are the base's own, by identity of the weights"
        return Rule("validity", "pass", text, {})
    if validity is None:
        return Rule("validity", "skipped", "validity: no generated answers were compared", {})
    c = orient(validity)
    outcome = margin_outcome(c.lower, c.upper, policy.validity)
    part = DeltaPart("validity", find_planning_se(c, lower_se(c)), c.n)
    advice = describe_more_items(
        c.delta, [part], policy.validity, policy.alpha, comparison_facing_se(c, policy.validity)
    )
    facts: dict[str, Number] = {"base": c.base, "new": c.new, "delta": validity.delta}
    facts |= {"margin": policy.validity, "low": validity.low, "high": validity.high, "n_items": c.n}
    facts |= {"p": noninferiority_p(c, -policy.validity, policy.alpha)} if outcome == "pass" else {}
    rise = formatting.points(validity.delta, validity.low, validity.high)
    failed = f" or {formatting.count(c.errors.new)} failed" if c.errors.new else ""
    text = (
        f"validity: unparsable, truncated or refused{failed} answers {formatting.percent(c.base)} → "
        f"{formatting.percent(c.new)} %, {rise} pp, "
        + margin_verdict(
            outcome,
            margin_text(policy.validity),
            ruled_out(c.low, c.lower, policy.validity, policy),
            advice,
            "a format regression beyond it is shown",
        )
    )
    return Rule("validity", outcome, text, add_items_needed(facts, outcome, advice.items))


def regressions_rule(
    tasks: Sequence[TaskComparison], identical: bool, confirmed: Mapping[str, Collection[str]] | None
) -> Rule:
    """Fail if a pinned item is lost; in another precision than fp32 only after fp32 confirms it.

    `confirmed` maps tasks to the items that are lost in fp32 too; None if nothing was re-scored, and then a
    lost item leaves the verdict open, as does one that the base did not answer and the candidate gets wrong.
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
    if named := [f"{task}/{i}" for task, i in (lost if confirmed is None else sure)]:
        facts["lost_items"] = named[:NAMED]
        text = f"{formatting.count(len(named))} of {n} pinned items are lost: {list_ids(named)}"
        if confirmed is not None:
            return Rule("regressions", "fail", f"regressions: {text}", facts)
        text = f"of {n} pinned items {list_ids(named)} are lost, which fp32 has not confirmed yet"
        return Rule("regressions", "inconclusive", f"regressions: {text}", facts)
    unknown = [f"{t.task.name}/{i}" for t in pinned for i in t.comparison.errors.open]
    if unknown:
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
        t = min(texts, key=lambda t: t.comparison.delta)  # oriented: a rise is a loss
        text, facts = _rise(t)
        return Rule("drift", "skipped", f"{text}, an early warning that gate.drift would judge", facts)
    # All texts must be shown to rise less than the limit to pass; one that rises more fails.
    outcomes: dict[str, Outcome] = {}
    for t in texts:
        rises_more = at_level(t.comparison, policy.alpha / len(texts)).upper < -limit
        passes = t.comparison.lower > -limit
        outcomes[t.task.name] = "fail" if rises_more else "pass" if passes else "inconclusive"
    outcome = worst_outcome([*outcomes.values()])
    t = min((t for t in texts if outcomes[t.task.name] == outcome), key=lambda t: t.comparison.lower)
    text, facts = _rise(t)
    return Rule("drift", outcome, f"{text}, limit {formatting.plain(limit)}: {_WORDS[outcome]}", facts)


def _rise(t: TaskComparison) -> tuple[str, dict[str, Number]]:
    c = t.comparison
    rise = formatting.plain(-c.delta, -c.high, -c.low, sign=True)
    return f"drift: {t.task.name} {rise} bits per byte", {"rise": -c.delta, "low": -c.high, "high": -c.low}


_WORDS = {"pass": "less is shown", "fail": "more is shown", "inconclusive": "neither less nor more is shown"}
_NAME: Literal["mode collapse"] = "mode collapse"
Compared = Mapping[str, Sequence[Comparison]]


def mode_collapse_rule(compared: Compared, policy: GatePolicy, identical: bool) -> Rule | None:
    """Judge the largest rise of the commonest answer's share; None if the policy sets no limit.

    `compared` maps tasks to comparisons by arm. A task passes if the share is shown not to exceed that of one
    arm by the limit; it fails, at alpha over the tasks and over the 1/limit texts that can have such a share,
    if it exceeds both.
    """
    limit = policy.mode_collapse
    if limit is None:
        return None
    if identical:
        return Rule(_NAME, "pass", "mode collapse: none, by identity of the weights", {})
    tasks = {task: [*map(orient, arms)] for task, arms in compared.items() if arms}
    if not tasks:
        return Rule(_NAME, "skipped", "mode collapse: no generated answers were compared", {})
    level = policy.alpha / (len(tasks) * int(1 / limit))
    outcomes = {task: _outcome(arms, limit, policy.alpha, level) for task, arms in tasks.items()}
    outcome = worst_outcome([*outcomes.values()])
    deciding = [task for task, task_outcome in outcomes.items() if task_outcome == outcome]
    excess = [(task, max(tasks[task], key=lambda c: c.delta)) for task in deciding]
    task, c = min(excess, key=lambda named: named[1].delta)
    facts: dict[str, Number] = {"base": c.base, "new": c.new, "rise": -c.delta, "limit": limit}
    facts |= {"n_items": c.n, "low": -c.high, "high": -c.low, "task": task}
    if outcome == "pass":
        facts["p"] = max(
            min(1.0, len(arms) * min(noninferiority_p(c, -limit, policy.alpha / len(arms)) for c in arms))
            for arms in tasks.values()
        )
    rise = formatting.points(-c.delta, -c.high, -c.low)
    sentence = (
        f"mode collapse: the commonest answer to {task} {formatting.percent(c.base)} → "
        f"{formatting.percent(c.new)} %, {rise} pp, limit {margin_text(limit)}: {_WORDS[outcome]}"
    )
    return Rule(_NAME, outcome, sentence, facts)


def _outcome(arms: Sequence[Comparison], limit: float, alpha: float, level: float) -> Outcome:
    if any(at_level(c, alpha / len(arms)).lower > -limit for c in arms):
        return "pass"
    return "fail" if all(at_level(c, level).upper < -limit for c in arms) else "inconclusive"
