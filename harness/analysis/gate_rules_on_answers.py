"""Rules of the gate on answers, pinned items, texts, the target's goals and exports.

The others are in `gate_rules_on_capabilities`; `gate_verdict.apply_rules` joins all.

Invariant: comparisons are oriented so that a negative delta is a loss; bounds are one-sided at
`policy.alpha`; the base's own weights pass without a test. Too many failed answers make a verdict
inconclusive whatever the other rules say. A goal passes if the whole 95 % interval reaches it, and fails if
none of it does. Source: Berger & Parker 1970 for the share; Berger 1982 for what all tasks, or both arms,
have to show.
"""

from collections.abc import Collection, Mapping, Sequence
from math import isfinite

from harness import formatting
from harness.analysis import margins
from harness.analysis.estimators import Comparison, at_level, orient, rescale
from harness.analysis.human_preferences import OpenRating, find_open_rating
from harness.analysis.significance import noninferiority_p, target_p
from harness.analysis.verdict import (
    NAMED,
    Number,
    Outcome,
    Rule,
    RuleOutcome,
    TargetFacts,
    TaskComparison,
    Verdict,
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
from harness.records import MetricRange
from harness.spec import GatePolicy, Task

_SHOWN = 3  # tasks named in a rule's sentence
_WORDS = {"pass": "less is shown", "fail": "more is shown", "inconclusive": "neither less nor more is shown"}
Compared = Mapping[str, Sequence[Comparison]]
_NO_UNTRAINED = OpenRating("there is no untrained candidate to compare with", "add one and compare again")
_PROMOTE = "; harness promote asks for a reason"
_KEPT_OF_MACRO = ("delta", "low", "high", "lower", "n_items", "items_needed", "items_needed_by_task")
_MOST_MARGIN = 0.99  # cap of a default margin: a loss of everything could not exceed a larger one


def errors_rule(
    tasks: Sequence[TaskComparison], target: TargetFacts | None, policy: GatePolicy
) -> Rule | None:
    """Judge how many answers failed on each task; None if none did.

    The verdict is invalid beyond `gate.max_errors` of a task's items, and at the first error if the metric
    has no worst value to count it by.
    """
    failed = []  # of tasks that a rule judges, or might if the base had answered all of it
    for t in tasks:
        errors = t.comparison.errors
        is_open = t.may_be_admitted and errors.base + errors.both > policy.max_errors * errors.n
        counts = is_in_macro(t) or is_reported_only(t.task) or is_named_critical(t.task, t.suite, policy)
        counts = counts or t.role == "regression" or is_safety(t, policy) or is_open
        if errors.total and counts and may_decide(t.task, t.role, t.suite, policy):
            failed.append(t.comparison)
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
    limit = formatting.percent(policy.max_errors)
    if unscored or too_many:
        causes = []
        if too_many:
            causes.append(f"{_list_tasks(too_many)}, more than the {limit} % that gate.max_errors allows")
        if unscored:
            metric_names = ", ".join(dict.fromkeys(c.metric for c in unscored))
            why = f"{metric_names} has no worst value to count them by, which bounds: of the task declares"
            causes.append(f"{_list_tasks(unscored)}, and {why}")
        return Rule("errors", "inconclusive", f"invalid: {'; '.join(causes)}", facts)
    text = f"errors: {_list_tasks(failed)}; at most {limit} % of a task may fail"
    for c in failed:
        if c.errors.delta_lost is not None and c.errors.delta_kept is not None:
            lost_text = formatting.change(c.unit, c.errors.delta_lost)
            kept_text = formatting.change(c.unit, c.errors.delta_kept)
            name = "pp" if c.unit.is_rate else c.unit.name
            condition = "if the baseline would have passed what it did not answer"
            text += f"; {c.task} {lost_text} {name} {condition}, {kept_text} if not"
    return Rule("errors", "pass", text, facts)


def _list_tasks(failed: Sequence[Comparison]) -> str:
    """Count the failed answers of the worst tasks by model, each with the first cause."""
    worst, texts = sorted(failed, key=lambda c: -c.errors.share), []
    for c in worst[:_SHOWN]:
        e = c.errors
        by = ((e.new, "the candidate"), (e.base, "the baseline"), (e.both, "both"))
        by_arm = ", ".join(f"{formatting.count(n)} by {name}" for n, name in by if n)
        texts.append(
            f"{formatting.count(e.total)} of {formatting.count(e.n)} answers on {c.task}"
            f" ({formatting.percent(e.share)} %) failed: {by_arm} ({e.cause})"
        )
    rest = f" and on {formatting.pluralize(len(worst) - _SHOWN, 'task')} more" if len(worst) > _SHOWN else ""
    return "; ".join(texts) + rest


def validity_rule(validity: Comparison | None, policy: GatePolicy, identical: bool) -> Rule:
    """Judge the rise of unparsable, truncated and refused answers: a format regression, not forgetting."""
    if identical:
        text = "validity: the answers are the base's own, by identity of the weights"
        return Rule("validity", "pass", text, {})
    if validity is None:
        return Rule("validity", "skipped", "validity: no generated answers were compared", {})
    c = orient(validity)
    outcome = margins.margin_outcome(c.lower, c.upper, policy.validity)
    part = margins.DeltaPart("validity", margins.find_planning_se(c, margins.lower_se(c)), c.n)
    advice = margins.describe_more_items(
        c.delta,
        [part],
        policy.validity,
        policy.alpha,
        margins.find_facing_se(c.delta, c.lower, c.upper, policy.validity, c.alpha),
    )
    facts: dict[str, Number] = {"base": c.base, "new": c.new, "delta": validity.delta}
    facts |= {"margin": policy.validity, "low": validity.low, "high": validity.high, "n_items": c.n}
    facts |= {"p": noninferiority_p(c, -policy.validity, policy.alpha)} if outcome == "pass" else {}
    rise = formatting.points(validity.delta, validity.low, validity.high)
    failed = f" or {formatting.count(c.errors.new)} failed" if c.errors.new else ""
    text = (
        f"validity: unparsable, truncated or refused{failed} answers {formatting.percent(c.base)} → "
        f"{formatting.percent(c.new)} %, {rise} pp, "
        + margins.margin_verdict(
            outcome,
            margins.margin_text(policy.validity),
            margins.ruled_out(c.low, c.lower, policy.validity, policy),
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
    confirmed_lost = [(task, i) for task, i in lost if confirmed and i in confirmed.get(task, ())]
    facts: dict[str, Number] = {"n_items": sum(t.comparison.n for t in pinned), "n_lost": len(lost)}
    if lost_ids := [f"{task}/{i}" for task, i in (lost if confirmed is None else confirmed_lost)]:
        facts["lost_items"] = lost_ids[:NAMED]
        text = f"{formatting.count(len(lost_ids))} of {n} pinned items are lost: {list_ids(lost_ids)}"
        if confirmed is not None:
            return Rule("regressions", "fail", f"regressions: {text}", facts)
        text = f"of {n} pinned items {list_ids(lost_ids)} are lost, which fp32 has not confirmed yet"
        return Rule("regressions", "inconclusive", f"regressions: {text}", facts)
    open_ids = [f"{t.task.name}/{i}" for t in pinned for i in t.comparison.errors.open]
    if open_ids:
        text = (
            f"regressions: {list_ids(open_ids)} may be lost: the base did not answer, the candidate is wrong"
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
        return Rule("mode collapse", "pass", "mode collapse: none, by identity of the weights", {})
    tasks = {task: [*map(orient, arms)] for task, arms in compared.items() if arms}
    if not tasks:
        return Rule("mode collapse", "skipped", "mode collapse: no generated answers were compared", {})
    level = policy.alpha / (len(tasks) * int(1 / limit))
    outcomes: dict[str, Outcome] = {}
    for task, arms in tasks.items():
        passes = any(at_level(c, policy.alpha / len(arms)).lower > -limit for c in arms)
        fails = all(at_level(c, level).upper < -limit for c in arms)
        outcomes[task] = "pass" if passes else "fail" if fails else "inconclusive"
    outcome = worst_outcome([*outcomes.values()])
    deciding = [task for task, task_outcome in outcomes.items() if task_outcome == outcome]
    excess = [(task, max(tasks[task], key=lambda c: c.delta)) for task in deciding]
    task, c = min(excess, key=lambda entry: entry[1].delta)
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
        f"{formatting.percent(c.new)} %, {rise} pp, limit {margins.margin_text(limit)}: {_WORDS[outcome]}"
    )
    return Rule("mode collapse", outcome, sentence, facts)


def target_rule(target: TargetFacts | None, policy: GatePolicy) -> Rule:
    """Judge the goals declared for the target by the 95 % intervals on the test split."""
    goals = policy.target
    by_score = goals.min is not None or goals.gain is not None
    if not by_score and goals.win_rate is None:
        return Rule("target", "skipped", "target: nothing was declared for it", {})
    if target is None:
        return Rule("target", "inconclusive", "target: it was not measured", {})
    if by_score and target.labels_missing:
        labels = formatting.pluralize(target.labels_missing, "more label")
        sentence = (
            f"target: it is graded by a judge, and its grades of these answers need {labels} of people before"
            " anything rests on them (harness rate export), unless gate.uncalibrated_judge says allow"
        )
        return Rule("target", "inconclusive", sentence, {"labels_missing": target.labels_missing})
    if goals.win_rate is not None:
        rating = find_open_rating(target.wins, "these answers") if target.wins else _NO_UNTRAINED
        if rating:
            goal = f"a win rate of {formatting.percent(goals.win_rate)} %"
            sentence = f"target: {goal} is open: {rating.why}; {rating.then}"
            return Rule("target", "inconclusive", sentence, {"win_rate": goals.win_rate})
    results: list[tuple[Outcome, str]] = []
    facts: dict[str, Number] = {"score": target.score.score, "n_items": target.score.n}
    if goals.min is not None:  # a maximum if lower is better
        score, unit, percent = target.score, target.score.unit, " %" if target.score.unit.is_rate else ""
        least = unit.value_at(goals.min)
        low, high = sorted((unit.sign * score.low, unit.sign * score.high))
        direction = "least" if unit.higher_is_better else "most"
        limit = f"at {direction} {formatting.score(unit, least)}{percent}"
        reached = f"{formatting.score(unit, *score[:3])}{percent} against {limit}"
        results.append((_target_outcome(low, high, unit.sign * least), reached))
        facts["min"] = goals.min
    if goals.gain is not None:
        facts["gain"] = goals.gain
        if target.gain is None:
            required = f"a gain of {formatting.percent(goals.gain)} pp"
            results.append(("inconclusive", f"{required} has no untrained candidate to be measured against"))
        else:
            c = orient(target.gain)
            name = "pp" if c.unit.is_rate else c.unit.name
            why = f" ({c.refused})" if c.refused else ""
            least = c.unit.change_at(goals.gain)
            required = f"at least {formatting.change(c.unit, least)} {name}"
            reached = f"{formatting.change(c.unit, c.delta, c.low, c.high)} {name}"
            text = f"{reached} over the best untrained candidate{why} against {required}"
            results.append((_target_outcome(c.low, c.high, least), text))
    if goals.win_rate is not None and (wins := target.wins) and (rate := wins.rate):
        note = "" if wins.corrected else " (not corrected)"
        if wins.corrected and wins.uncorrected is not None:
            note = f" ({formatting.percent(wins.uncorrected)} % before correction)"
        won = f"{formatting.score(rate.unit, *rate[:3])} % of items{note}"
        required = f"against at least {formatting.percent(goals.win_rate)} %"
        reached = f"preferred to {wins.over} by {wins.by} on {won} {required}"
        results.append((_target_outcome(rate.low, rate.high, goals.win_rate), reached))
    words = {"pass": "shown", "fail": "shown not to be reached", "inconclusive": "not shown"}
    sentence = "target: " + "; ".join(f"{text}: {words[outcome]}" for outcome, text in results)
    outcome = worst_outcome([outcome for outcome, _ in results])
    facts |= {"p": target_p(target, goals)} if outcome == "pass" else {}
    return Rule("target", outcome, sentence, facts)


def _target_outcome(low: float, high: float, goal: float) -> Outcome:
    return "pass" if low >= goal else "fail" if high < goal else "inconclusive"


def export_rule(
    against_own: Comparison | None, own_run: str, task: Task, policy: GatePolicy, bounds: MetricRange
) -> Rule:
    """Judge an artefact's loss on the target against its own run; inconclusive without that run's rows.

    The margin is a share of the primary metric's range, or of how far the own run is above its worst score.
    """
    if against_own is None:
        text = (
            f"export: its run {own_run} has no rows here to compare with; answer them again: harness compare"
        )
        return Rule("export", "inconclusive", text, {})
    span = bounds.span
    if not isfinite(span):
        text = f"export: {against_own.metric} has no bounds to allow a share of; declare bounds: of the task"
        return Rule("export", "inconclusive", text, {})
    c = at_level(rescale(orient(against_own), span), policy.alpha)
    margin = policy.export or margins.task_margin(task, "target", policy)
    is_rising = bounds.higher_is_better
    skill = c.base - bounds.floor(task.chance) if is_rising else (bounds.worst or 0.0) - c.base
    share = margins.allowed_loss(margin, skill / span)
    outcome = margins.margin_outcome(c.lower, c.upper, share)
    words = {"pass": margins.ruled_out(c.low, c.lower, share, policy), "fail": "a loss beyond it is shown"}
    judgement = words.get(outcome, "a larger loss is neither shown nor ruled out; more items would settle it")
    change = (c.delta, c.low, c.high) if c.delta > 0 else (-c.delta, -c.high, -c.low)
    unit = " points [" if span == 1 else " points of its range ["
    moved = f"{'rose' if c.delta > 0 else 'fell'} {formatting.interval(*change).replace(' [', unit)}"
    text = f"export: {task.name} {moved} against {own_run} (lost {len(c.lost)}, won {len(c.gained)}), "
    facts: dict[str, Number] = {"delta": c.delta, "lower": c.lower, "margin": share, "own_run": own_run}
    return Rule("export", outcome, f"{text}margin {margins.margin_text(margin)}: {judgement}", facts)


def cumulative_policy(policy: GatePolicy) -> GatePolicy:
    """Return the policy by which the macro against the first base is judged: twice the margin by default."""
    margin = policy.cumulative
    if margin is None:
        share = margins.margin_share(policy.macro)
        twice = max(share, min(2 * share, _MOST_MARGIN))
        margin = margins.write_margin(twice, relative=margins.is_relative(policy.macro))
    return policy.model_copy(update={"macro": margin, "mode_collapse": None})


def cumulative_rule(against_first: Verdict | str, first_base: str) -> Rule:
    """Judge the macro of a verdict against the first base, or say why there is none (a text)."""
    if isinstance(against_first, str):
        text = f"cumulative: nothing to compare with the first base ({against_first}){_PROMOTE}"
        return Rule("cumulative", "skipped", text, {"first_base": first_base})
    macro = next(rule for rule in against_first.rules if rule.name == "macro")
    outcome: RuleOutcome = macro.outcome if macro.outcome in ("pass", "fail") else "skipped"
    text = f"cumulative: against the first base, {macro.sentence}{_PROMOTE if outcome == 'skipped' else ''}"
    facts = {name: macro.numbers[name] for name in ("margin", *_KEPT_OF_MACRO) if name in macro.numbers}
    return Rule("cumulative", outcome, text, {"first_base": first_base, **facts})


def cumulative_of(verdict: Verdict) -> Rule | None:
    """Find the rule against the first base; None if the baseline is that base."""
    return next((rule for rule in verdict.rules if rule.name == "cumulative"), None)
