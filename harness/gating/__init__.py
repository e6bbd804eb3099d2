"""Comparisons and a policy → one verdict: pass, fail or inconclusive, with its rules and numbers.

Invariant: pass needs non-inferiority shown and fail needs a regression shown; whatever lies
between is inconclusive, and so is a run of which no admitted capability task was measured.
Admission looks at the base only.
"""

from collections.abc import Sequence

from harness import comparison, numbers
from harness.comparison import Comparison
from harness.gating import rules as rule
from harness.gating.power import macro_of, missed, warn_before
from harness.gating.verdict import (
    MissRate,
    Outcome,
    Rule,
    TargetFacts,
    TaskComparison,
    Verdict,
    in_macro,
    is_reported_only,
    worst,
)
from harness.metrics import Metric
from harness.records import SampleResult
from harness.spec import GatePolicy, Task

__all__ = [
    "MissRate",
    "Rule",
    "TargetFacts",
    "TaskComparison",
    "Verdict",
    "admit",
    "exit_code",
    "judge",
    "warn_before",
]


def admit(task: Task, metric: Metric, base_rows: Sequence[SampleResult]) -> tuple[bool, str]:
    """Decide from the base's rows whether the task can show forgetting, and say why.

    Admitted where the 95 % interval of the base's score lies above the task's chance level.
    Bits per byte, and any other metric where lower is better, never count.

    Raises:
        IncompatibleRuns: no row could be scored.
    """
    if is_reported_only(task) or not metric.higher_is_better:
        return False, f"{task.name}: {metric.name} is reported, never part of the macro"
    score = comparison.estimate(metric, base_rows)
    found = f"the base scores {numbers.interval(score.score, score.low, score.high)} %"
    chance = f"chance ({numbers.percent(task.chance)} %), n = {numbers.count(score.n)}"
    if score.low > task.chance:
        return True, f"{task.name}: {found}, above {chance}"
    return False, f"{task.name} cannot show forgetting: {found}, not above {chance}"


def judge(
    tasks: Sequence[TaskComparison],
    policy: GatePolicy,
    *,
    validity: Comparison | None,
    target: TargetFacts | None,
    identical: bool,
) -> Verdict:
    """Judge a run by every rule of the policy; comparisons must be made at `policy.alpha`.

    `identical` says that the weights digest is the base's own: what the weights decide then
    passes by identity, not by test, and only the target is judged.

    Raises:
        ValueError: a comparison was made at another alpha.
    """
    _check_alpha([*(t.comparison for t in tasks), *([validity] if validity else [])], policy.alpha)
    tasks = [t._replace(comparison=comparison.oriented(t.comparison)) for t in tasks]
    admitted = [t for t in tasks if in_macro(t)]
    macro = macro_of(admitted, policy.alpha) if admitted else None
    rules = (
        rule.macro_rule(tasks, admitted, macro, policy, identical),
        rule.each_rule(admitted, policy, identical),
        rule.critical_rule(tasks, policy, identical),
        rule.validity_rule(validity, policy, identical),
        rule.target_rule(target, policy),
    )
    outcome = worst([r.outcome for r in rules])
    needed = [int(n) for r in rules if isinstance(n := r.numbers.get("items_needed"), int)]
    return Verdict(
        outcome=outcome,
        rules=rules,
        macro=rule.macro_estimate(admitted, identical) if admitted else None,
        lost=sum(len(t.comparison.lost) for t in admitted),
        gained=sum(len(t.comparison.gained) for t in admitted),
        missed=missed(admitted, macro, validity, policy) if macro and not identical else (),
        items_needed=max(needed) if needed and outcome == "inconclusive" else None,
        sentence=_verdict_sentence(outcome, rules),
    )


def exit_code(verdict: Verdict, policy: GatePolicy) -> int:
    """Return 0 for pass, 3 for fail, 4 for inconclusive unless the policy lets that through."""
    if verdict.outcome == "inconclusive":
        return 4 if policy.on_inconclusive == "fail" else 0
    return 0 if verdict.outcome == "pass" else 3


def _verdict_sentence(outcome: Outcome, rules: Sequence[Rule]) -> str:
    deciding = [r for r in rules if r.outcome == outcome]
    said = [r.sentence for r in deciding]
    return f"{outcome.upper()}: " + "; ".join(said)


def _check_alpha(comparisons: Sequence[Comparison], alpha: float) -> None:
    others = {c.alpha for c in comparisons} - {alpha}
    if others:
        raise ValueError(
            f"comparisons made at alpha {sorted(others)}, the policy's is {alpha}: pass it to compare_rows"
        )
