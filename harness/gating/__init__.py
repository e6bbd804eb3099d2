"""Comparisons and a policy → one verdict: pass, fail, inconclusive or harness-drift, with its rules.

Invariant: pass needs non-inferiority shown and fail needs a regression shown; whatever lies
between is inconclusive, and so is a run of which no admitted capability task was measured.
Where the control arm moved, nothing is said of the candidate.
Admission looks at the base only.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from harness import comparison
from harness.comparison import Comparison
from harness.gating import rules as rule
from harness.gating.admission import Measurement, admit, compare_measurements, policy_for, validity_of
from harness.gating.drift import AA_FLIPS, ControlFacts, aa_rate, control_rule, has_drifted
from harness.gating.operating_characteristic import macro_of, missed, warn_before
from harness.gating.verdict import (
    MissRate,
    Outcome,
    Rule,
    TargetFacts,
    TaskComparison,
    Verdict,
    in_macro,
    is_reported_only,
    margin_of,
    worst_outcome,
)
from harness.spec import GatePolicy

__all__ = [
    "AA_FLIPS",
    "ControlFacts",
    "GateResult",
    "Measurement",
    "MissRate",
    "Rule",
    "TargetFacts",
    "TaskComparison",
    "Verdict",
    "aa_rate",
    "admit",
    "combined_exit_code",
    "compare_measurements",
    "exit_code",
    "has_drifted",
    "in_macro",
    "is_reported_only",
    "judge",
    "judge_measurements",
    "margin_of",
    "policy_for",
    "warn_before",
    "worst_result",
]


def judge(
    tasks: Sequence[TaskComparison],
    policy: GatePolicy,
    *,
    validity: Comparison | None,
    target: TargetFacts | None,
    identical: bool,
    confirmed: Mapping[str, Collection[str]] | None = None,
    controls: Sequence[ControlFacts] = (),
) -> Verdict:
    """Judge a run by every rule of the policy; comparisons must be made at `policy.alpha`.

    `confirmed` names the pinned items that are lost in fp32 too. `identical` says that the
    weights digest is the base's own: what the weights decide then passes by identity, not by
    test, and only the target is judged. `controls` are the control arms beside which its rows were
    computed.

    Raises:
        ValueError: a comparison was made at another alpha.
    """
    _check_alpha([*(t.comparison for t in tasks), *([validity] if validity else [])], policy.alpha)
    tasks = [t._replace(comparison=comparison.oriented(t.comparison)) for t in tasks]
    admitted = [t for t in tasks if in_macro(t)]
    macro = macro_of(admitted, policy) if admitted else None
    rules = (
        rule.macro_rule(tasks, admitted, macro, policy, identical),
        rule.each_rule(admitted, policy, identical),
        rule.critical_rule(tasks, policy, identical),
        rule.regressions_rule(tasks, identical, confirmed),
        rule.validity_rule(validity, policy, identical),
        rule.target_rule(target, policy),
        rule.drift_rule(tasks, policy, identical),
        control_rule(controls),
    )
    outcome = worst_outcome([r.outcome for r in rules])
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


def judge_measurements(
    measured: Sequence[Measurement],
    tasks: Sequence[TaskComparison],
    policy: GatePolicy,
    *,
    target: TargetFacts | None,
    identical: bool,
    confirmed: Mapping[str, Collection[str]] | None = None,
    controls: Sequence[ControlFacts] = (),
) -> Verdict:
    """Judge what `compare_measurements` found, by each task's primary metric and the rows' validity.

    Raises:
        IncompatibleRuns: the arms hold different items.
    """
    primary = [t for t in tasks if t.comparison.metric == t.task.primary_metric]
    validity = validity_of(measured, policy.alpha, identical)
    return judge(
        primary,
        policy,
        validity=validity,
        target=target,
        identical=identical,
        confirmed=confirmed,
        controls=controls,
    )


def exit_code(verdict: Verdict, policy: GatePolicy) -> int:
    """Return 0 for pass, 3 for fail, 4 for inconclusive unless the policy lets that through.

    A harness that drifted is 4 whatever the policy says: nothing was judged.
    """
    if verdict.outcome == "harness-drift":
        return 4
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


@dataclass(frozen=True, slots=True)
class GateResult:
    """A candidate's verdict against a baseline, with the comparisons that it rests on.

    `tasks` holds every metric of every task; `notes` say what was left out and why.
    """

    candidate: str
    baseline: str
    tasks: tuple[TaskComparison, ...]
    verdict: Verdict
    policy: GatePolicy
    notes: tuple[str, ...] = ()


_FROM_BEST_TO_WORST = (0, 4, 3)  # exit codes: one that fails counts before one that is inconclusive


def combined_exit_code(judged: Sequence[GateResult]) -> int:
    """Return the code of the worst verdict; 0 of none."""
    codes = (exit_code(j.verdict, j.policy) for j in judged)
    return max(codes, key=_FROM_BEST_TO_WORST.index, default=0)


def worst_result(judged: Sequence[GateResult]) -> GateResult:
    """Return the first of those whose verdict alone gives the exit code of them all."""
    code = combined_exit_code(judged)
    return next(j for j in judged if combined_exit_code([j]) == code)
