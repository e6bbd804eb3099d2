"""Rules on the declared target, on the control arm, on an export, and on the loss since the first champion.

Invariant: a goal passes if the whole 95 % interval reaches it, and fails if none of it does. A judge's grades
count only if people have labelled enough of the answers. What drifted in the control arm is the harness.
"""

from collections.abc import Sequence
from typing import NamedTuple

from harness import formatting, stats
from harness.analysis.estimators import Comparison, at_level, is_judge, orient
from harness.analysis.human_preferences import OpenRating, find_open_rating
from harness.analysis.margins import (
    allowed_loss,
    is_relative,
    margin_outcome,
    margin_share,
    margin_text,
    ruled_out,
    task_margin,
)
from harness.analysis.significance import target_p
from harness.analysis.verdict import (
    Number,
    Outcome,
    Rule,
    RuleOutcome,
    TargetFacts,
    TaskComparison,
    Verdict,
    worst_outcome,
)
from harness.spec import GatePolicy, Task


def require_calibration(
    rule: Rule, tasks: Sequence[TaskComparison], policy: GatePolicy, *, identical: bool
) -> Rule:
    """Leave a rule open if it rests on a judge's grades of these tasks, unless the policy allows that."""
    named = [t.task.name for t in tasks if is_judge(t.comparison.metric)]
    if identical or not named or policy.uncalibrated_judge == "allow":
        return rule
    text = (
        f"{rule.name}: {', '.join(named)} graded by a judge that no labels of people calibrate (they are for"
        " the target alone); another primary metric, or gate.uncalibrated_judge: allow"
    )
    return Rule(rule.name, "inconclusive", text, {"judged": named})


_NO_UNTRAINED = OpenRating("there is no untrained candidate to compare with", "add one and compare again")


def target_rule(target: TargetFacts | None, policy: GatePolicy) -> Rule:
    """Judge the goals declared for the target by the 95 % intervals on the test split."""
    wanted = policy.target
    by_score = wanted.min is not None or wanted.gain is not None
    if not by_score and wanted.win_rate is None:
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
    if wanted.win_rate is not None:
        rating = find_open_rating(target.wins, "these answers") if target.wins else _NO_UNTRAINED
        if rating:
            goal = f"a win rate of {formatting.percent(wanted.win_rate)} %"
            sentence = f"target: {goal} is open: {rating.why}; {rating.then}"
            return Rule("target", "inconclusive", sentence, {"win_rate": wanted.win_rate})
    judged: list[tuple[Outcome, str]] = []
    facts: dict[str, Number] = {"score": target.score.score, "n_items": target.score.n}
    if wanted.min is not None:  # a maximum if lower is better
        score, unit, percent = target.score, target.score.unit, " %" if target.score.unit.is_rate else ""
        low, high = sorted((unit.sign * score.low, unit.sign * score.high))
        most = "least" if unit.higher_is_better else "most"
        limit = f"at {most} {formatting.score(unit, wanted.min)}{percent}"
        reached = f"{formatting.score(unit, *score[:3])}{percent} against {limit}"
        judged.append((_target_outcome(low, high, unit.sign * wanted.min), reached))
        facts["min"] = wanted.min
    if wanted.gain is not None:
        judged.append(_gain(target.gain, wanted.gain))
        facts["gain"] = wanted.gain
    if wanted.win_rate is not None and (wins := target.wins) and (rate := wins.rate):
        own = "" if wins.corrected else " (not corrected)"
        if wins.corrected and wins.uncorrected is not None:
            own = f" ({formatting.percent(wins.uncorrected)} % before correction)"
        shown = f"{formatting.score(rate.unit, *rate[:3])} % of items{own}"
        least = f"against at least {formatting.percent(wanted.win_rate)} %"
        reached = f"preferred to {wins.over} by {wins.by} on {shown} {least}"
        judged.append((_target_outcome(rate.low, rate.high, wanted.win_rate), reached))
    words = {"pass": "shown", "fail": "shown not to be reached", "inconclusive": "not shown"}
    sentence = "target: " + "; ".join(f"{text}: {words[outcome]}" for outcome, text in judged)
    outcome = worst_outcome([outcome for outcome, _ in judged])
    facts |= {"p": target_p(target, wanted)} if outcome == "pass" else {}
    return Rule("target", outcome, sentence, facts)


def _gain(gain: Comparison | None, wanted: float) -> tuple[Outcome, str]:
    if gain is None:
        least = f"a gain of {formatting.percent(wanted)} pp"
        return "inconclusive", f"{least} has no untrained candidate to be measured against"
    c = orient(gain)
    name = "pp" if c.unit.is_rate else c.unit.name
    found, least = formatting.change(c.unit, c.delta, c.low, c.high), formatting.change(c.unit, wanted)
    why = f" ({c.refused})" if c.refused else ""
    sentence = f"{found} {name} over the best untrained candidate{why} against at least {least} {name}"
    return _target_outcome(c.low, c.high, wanted), sentence


def _target_outcome(low: float, high: float, wanted: float) -> Outcome:
    return "pass" if low >= wanted else "fail" if high < wanted else "inconclusive"


ALPHA = 0.01
# A/A flips: of so many items of one model so many flipped between two correct layouts; none of 120 in
# fp32 is taken as a half, and fp16 has three more bits of mantissa than bf16.
AA_FLIPS = {"bf16": (22.0, 1000.0), "fp16": (3.0, 1000.0), "fp32": (0.5, 120.0)}
_NEXT = (
    "undo what changed, remove the runs that were made meanwhile (harness runs rm) and compare again; "
    "or, where the change is wanted, begin a new runs folder, so that all items are re-evaluated"
)


class ControlFacts(NamedTuple):
    """One measurement of the control arm on a base.

    `n_same` items were stored in the same environment, `n_other` in another or unknown one; `changed` says
    what changed there. `reworded` items have other tokens, `differing` ones of the same environment came back
    otherwise, `flipped` ones of another environment moved their score. `aa_flips` of `aa_n` items flip where
    nothing is wrong.
    """

    id: str
    n_blocks: int
    n_same: int
    n_other: int
    reworded: tuple[str, ...]
    differing: tuple[str, ...]
    flipped: tuple[str, ...]
    aa_flips: float
    aa_n: float
    changed: str = ""


def aa_rate(precision: str) -> float:
    """Return the share of items that flip where nothing is wrong; that of bf16 for another precision."""
    flips, n = AA_FLIPS.get(precision, AA_FLIPS["bf16"])
    return flips / n


def flips_p(facts: ControlFacts) -> float:
    """Return the chance of so many flips or more at the A/A rate."""
    if not facts.flipped:
        return 1.0
    return stats.binomial_p(len(facts.flipped), facts.n_other, facts.aa_flips / facts.aa_n)


def has_drifted(facts: ControlFacts) -> bool:
    """Tell whether the harness, and not a candidate, has moved."""
    return bool(facts.reworded or facts.differing) or flips_p(facts) < ALPHA


def control_rule(controls: Sequence[ControlFacts]) -> Rule:
    """Call a harness that has moved by its name."""
    if not controls:
        text = "control: no block of the base was re-evaluated with these rows"
        return Rule("control", "skipped", text, {})
    n = sum(facts.n_same + facts.n_other for facts in controls)
    flipped = [facts for facts in controls if facts.flipped]
    counted: dict[str, Number] = {
        "n_items": n,
        "n_reworded": sum(len(facts.reworded) for facts in controls),
        "n_differing": sum(len(facts.differing) for facts in controls),
        "n_flipped": (n_flipped := sum(len(facts.flipped) for facts in flipped)),
    }
    moved = list(dict.fromkeys(_describe_drift(facts) for facts in controls if has_drifted(facts)))
    if moved:
        why = "so the harness moved, and this says nothing of the candidate"
        return Rule("control", "harness-drift", f"control: {'; '.join(moved)}; {why}; next: {_NEXT}", counted)
    text = f"control: {formatting.count(n)} items of the base were re-evaluated"
    if not flipped:
        return Rule("control", "pass", f"{text} and came back as stored", counted)
    allowed = formatting.percent(max(facts.aa_flips / facts.aa_n for facts in flipped))
    changed = "; ".join(dict.fromkeys(facts.changed for facts in flipped))
    flips = f"{formatting.count(n_flipped)} of them with another score"
    text += f" in another environment ({changed}), {flips}, which the A/A rate of {allowed} % allows"
    return Rule("control", "pass", text, counted)


def _describe_drift(facts: ControlFacts) -> str:
    def share(items: Sequence[str], n: int) -> str:
        return f"{formatting.count(len(items))} of {formatting.count(n)}"

    parts = []
    if facts.reworded:
        prompts = share(facts.reworded, facts.n_same + facts.n_other)
        parts.append(f"{prompts} prompts of the base are other tokens now than when stored")
    if facts.differing:
        answers = share(facts.differing, facts.n_same)
        parts.append(f"{answers} items of the base came back otherwise in the same environment")
    if flips_p(facts) < ALPHA:
        rate, p = formatting.percent(facts.aa_flips / facts.aa_n), formatting.p_value(flips_p(facts))
        found = f"{share(facts.flipped, facts.n_other)} items of the base have another score"
        environment = f"in another environment ({facts.changed})"
        allowed = f"more than the A/A rate of {rate} % allows (exact binomial p {p})"
        parts.append(f"{found} {environment}, {allowed}")
    items = (facts.reworded or facts.differing or facts.flipped)[:3]
    return f"{', '.join(parts)} ({', '.join(items)} …)"


_STEP = "; harness promote asks for a reason"


def export_rule(against_own: Comparison | None, own_run: str, task: Task, policy: GatePolicy) -> Rule:
    """Judge the loss of an artefact on the target against the run that it was exported from.

    `against_own` is the paired difference to that run, None if its rows are not stored.
    """
    if against_own is None:
        text = (
            f"export: its run {own_run} has no rows here to compare with; answer them again: harness compare"
        )
        return Rule("export", "inconclusive", text, {})
    c = at_level(orient(against_own), policy.alpha)
    margin = policy.export or task_margin(task, "target", policy)
    share = allowed_loss(margin, c.base - task.chance)
    outcome = margin_outcome(c.lower, c.upper, share)
    words = {"pass": ruled_out(c.low, c.lower, share, policy), "fail": "a loss beyond it is shown"}
    judged = words.get(outcome, "a larger loss is neither shown nor ruled out; more items would settle it")
    change = (c.delta, c.low, c.high) if c.delta > 0 else (-c.delta, -c.high, -c.low)
    moved = f"{'rose' if c.delta > 0 else 'fell'} {formatting.interval(*change).replace(' [', ' points [')}"
    text = f"export: {task.name} {moved} against {own_run} (lost {len(c.lost)}, won {len(c.gained)}), "
    facts: dict[str, Number] = {"delta": c.delta, "lower": c.lower, "margin": share, "own_run": own_run}
    return Rule("export", outcome, f"{text}margin {margin_text(margin)}: {judged}", facts)


_KEPT = ("delta", "low", "high", "lower", "n_items", "items_needed", "items_needed_by_task")
_LARGEST = 0.99  # of a margin that is not written: beyond a loss of everything none could be shown


def cumulative_policy(policy: GatePolicy) -> GatePolicy:
    """Return the policy by which the macro against the first base is judged: twice the margin by default."""
    margin = policy.cumulative
    if margin is None:
        own = margin_share(policy.macro)
        twice = max(own, min(2 * own, _LARGEST))
        margin = f"{100 * twice:g}%" if is_relative(policy.macro) else twice
    return policy.model_copy(update={"macro": margin, "mode_collapse": None})


def cumulative_rule(against_first: Verdict, first_base: str) -> Rule:
    """Judge the macro of a verdict against the first base, made by `cumulative_policy`."""
    macro = next(rule for rule in against_first.rules if rule.name == "macro")
    outcome: RuleOutcome = macro.outcome if macro.outcome in ("pass", "fail") else "skipped"
    text = f"cumulative: against the first base, {macro.sentence}{_STEP if outcome == 'skipped' else ''}"
    kept: dict[str, Number] = {name: macro.numbers[name] for name in _KEPT if name in macro.numbers}
    return Rule(
        "cumulative", outcome, text, {"first_base": first_base, "margin": macro.numbers["margin"], **kept}
    )


def make_unmeasured_rule(why: str, first_base: str) -> Rule:
    """Say that nothing is known of the loss against the first base."""
    text = f"cumulative: nothing to compare with the first base ({why}){_STEP}"
    return Rule("cumulative", "skipped", text, {"first_base": first_base})


def cumulative_of(verdict: Verdict) -> Rule | None:
    """Find the rule against the first base; None where the baseline is the base itself."""
    return next((rule for rule in verdict.rules if rule.name == "cumulative"), None)
