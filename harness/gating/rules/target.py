"""Rules on the target's level, gain or win rate, as the policy declares, and on judges' grades in suites.

Invariant: a goal passes if the whole 95 % interval reaches it, and fails if none of it does; values are
oriented so that more is better. A judge's grades count only if people have labelled enough of the answers.
"""

from collections.abc import Sequence

from harness import comparison, formatting
from harness.comparison import Comparison, Estimate, Wins, is_judge
from harness.gating.significance import target_p
from harness.gating.verdict import Number, Outcome, Rule, TargetFacts, TaskComparison, worst_outcome
from harness.spec import PEOPLE, GatePolicy

_UNCALIBRATED = (
    "target: it is graded by a judge, and its grades of these answers need {labels} of people before anything"
    " rests on them (harness rate export), unless gate.uncalibrated_judge says allow"
)

_UNCALIBRATED_WINS = (
    "target: pairs are judged by {by}, and its preferences need {ratings} of people of the same pairs before"
    " anything rests on them (harness dashboard, Rate), unless gate.uncalibrated_judge says allow"
)

_SUITES = (
    "{rule}: {tasks} graded by a judge that no labels of people calibrate (they are for the target alone);"
    " another primary metric, or gate.uncalibrated_judge: allow"
)


def require_calibration(
    rule: Rule, tasks: Sequence[TaskComparison], policy: GatePolicy, *, identical: bool
) -> Rule:
    """Leave a rule open if it rests on a judge's grades of these tasks, unless the policy allows that."""
    named = [t.task.name for t in tasks if is_judge(t.comparison.metric)]
    if identical or not named or policy.uncalibrated_judge == "allow":
        return rule
    said = _SUITES.format(rule=rule.name, tasks=", ".join(named))
    return Rule(rule.name, "inconclusive", said, {"judged": named})


def target_rule(target: TargetFacts | None, policy: GatePolicy) -> Rule:
    """Judge the goals declared for the target by the 95 % intervals on the test split."""
    wanted = policy.target
    by_score = wanted.min is not None or wanted.gain is not None
    if not by_score and wanted.win_rate is None:
        return Rule("target", "skipped", "target: nothing was declared for it", {})
    if target is None:
        return Rule("target", "inconclusive", "target: it was not measured", {})
    if by_score and target.labels_missing:
        said = _UNCALIBRATED.format(labels=formatting.pluralize(target.labels_missing, "more label"))
        return Rule("target", "inconclusive", said, {"labels_missing": target.labels_missing})
    if wanted.win_rate is not None and (said := _describe_unrated(target.wins, wanted.win_rate)):
        return Rule("target", "inconclusive", said, {"win_rate": wanted.win_rate})
    judged: list[tuple[Outcome, str]] = []
    facts: dict[str, Number] = {"score": target.score.score, "n_items": target.score.n}
    if wanted.min is not None:
        judged.append(_level(target.score, wanted.min))
        facts["min"] = wanted.min
    if wanted.gain is not None:
        judged.append(_gain(target.gain, wanted.gain))
        facts["gain"] = wanted.gain
    if wanted.win_rate is not None and target.wins and target.wins.rate:
        judged.append(_win_rate(target.wins, target.wins.rate, wanted.win_rate))
        facts |= {"win_rate": wanted.win_rate, "n_ratings": target.wins.n_ratings}
    words = {"pass": "shown", "fail": "shown not to be reached", "inconclusive": "not shown"}
    said = "target: " + "; ".join(f"{text}: {words[outcome]}" for outcome, text in judged)
    outcome = worst_outcome([outcome for outcome, _ in judged])
    facts |= {"p": target_p(target, wanted)} if outcome == "pass" else {}
    return Rule("target", outcome, said, facts)


def _describe_unrated(wins: Wins | None, wanted: float) -> str:
    """Say why a required win rate cannot decide; empty if it can."""
    required = f"a win rate of {formatting.percent(wanted)} %"
    if wins is None:
        return f"target: {required} has no untrained candidate to be measured against"
    if wins.missing:
        return _UNCALIBRATED_WINS.format(
            by=wins.by, ratings=formatting.pluralize(wins.missing, "more rating")
        )
    if wins.rate is None and wins.by == PEOPLE:
        beside = f"the answers against those of {wins.over}"
        return f"target: {required}, and there are no ratings of {beside} (harness dashboard, Rate)"
    if wins.by == PEOPLE and wins.lacking:
        rated = formatting.pluralize(wins.n_ratings, "rating")
        more = formatting.pluralize(wins.lacking, "more rating")
        return f"target: {required} rests on {rated} of people; it takes {more} (harness dashboard, Rate)"
    return "" if wins.rate else f"target: {required}, and {wins.by} graded no pairs yet (harness compare)"


def _win_rate(wins: Wins, measured: Estimate, wanted: float) -> tuple[Outcome, str]:
    own = "" if wins.uncorrected is None else f" ({formatting.percent(wins.uncorrected)} % before correction)"
    own = own if wins.corrected else " (not corrected)"
    rate = formatting.score(measured.unit, *measured[:3])
    sentence = f"preferred to {wins.over} by {wins.by} on {rate} % of items{own}"
    outcome = _target_outcome(measured.low, measured.high, wanted)
    return outcome, f"{sentence} against at least {formatting.percent(wanted)} %"


def _level(score: Estimate, wanted: float) -> tuple[Outcome, str]:
    """Judge the score against a level: a minimum, or a maximum if lower is better."""
    unit, percent = score.unit, " %" if score.unit.is_rate else ""
    low, high = sorted((unit.sign * score.low, unit.sign * score.high))
    limit = f"at {'least' if unit.higher_is_better else 'most'} {formatting.score(unit, wanted)}{percent}"
    sentence = f"{formatting.score(unit, *score[:3])}{percent} against {limit}"
    return _target_outcome(low, high, unit.sign * wanted), sentence


def _gain(gain: Comparison | None, wanted: float) -> tuple[Outcome, str]:
    if gain is None:
        least = f"a gain of {formatting.percent(wanted)} pp"
        return "inconclusive", f"{least} has no untrained candidate to be measured against"
    c = comparison.orient(gain)
    name = "pp" if c.unit.is_rate else c.unit.name
    found, least = formatting.change(c.unit, c.delta, c.low, c.high), formatting.change(c.unit, wanted)
    why = f" ({c.refused})" if c.refused else ""
    sentence = f"{found} {name} over the best untrained candidate{why} against at least {least} {name}"
    return _target_outcome(c.low, c.high, wanted), sentence


def _target_outcome(low: float, high: float, wanted: float) -> Outcome:
    return "pass" if low >= wanted else "fail" if high < wanted else "inconclusive"
