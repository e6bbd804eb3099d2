"""Rules of the policy, each an outcome, a sentence and its numbers, and the verdict that joins them.

Invariant: comparisons are oriented so that a negative delta is a loss, and bounds are one-sided at
`policy.alpha`. With `identical`, rules about the weights pass without a test.
Source: statistics in `stats`; a veto next to a pass needs no correction: Berger 1982.
"""

from collections.abc import Collection, Mapping, Sequence
from functools import partial

from harness import comparison
from harness.comparison import Comparison
from harness.gating.drift import ControlFacts, control_rule
from harness.gating.macro import average_macro
from harness.gating.operating_characteristic import miss_rates
from harness.gating.rules.answer_form import drift_rule, regressions_rule, validity_rule
from harness.gating.rules.commonest_answer import Compared, mode_collapse_rule
from harness.gating.rules.critical import critical_rule
from harness.gating.rules.mean_loss import macro_estimate, macro_rule
from harness.gating.rules.single_tasks import judge_each
from harness.gating.rules.target import require_calibration, target_rule
from harness.gating.rules.unanswered import errors_rule, judge_missing_tasks
from harness.gating.shared_items import NOTHING_SHARED, SharedItems
from harness.gating.verdict import (
    WORDS,
    Outcome,
    Rule,
    TargetFacts,
    TaskComparison,
    Verdict,
    is_in_macro,
    is_invalid,
    is_named_critical,
    is_safety,
    list_items_needed,
    worst_outcome,
)
from harness.spec import GatePolicy


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
    commonest: Compared | None = None,
) -> Verdict:
    """Join every rule of the policy to a verdict; the comparisons must be made at `policy.alpha`.

    What has to be shown is judged at `level` if given: that of one among many candidates. A veto keeps the
    policy's alpha.

    `confirmed` names the pinned items that are lost in fp32 too. `identical` says that the weights digest is
    the base's own: rules about the weights then pass by identity, without a test, and only the target is
    judged. `controls` are the control arms measured when the rows were computed, `missing` the tasks that one
    of the arms did not answer, `shared` the items that tasks share, `cumulative` the rule against the first
    base, `commonest` the shares of each task's commonest answer.

    Raises:
        ValueError: a comparison was made at another alpha.
    """
    _check_alpha([*(t.comparison for t in tasks), *([validity] if validity else [])], policy.alpha)
    errors = None if identical else errors_rule(tasks, target, policy)
    tasks = list(map(_orient, tasks))
    vetoing = [t for t in tasks if is_in_macro(t)]
    safety = [t for t in tasks if is_safety(t, policy)]
    show = policy if level is None else policy.model_copy(update={"alpha": level})
    tasks = [t.at_level(show.alpha) for t in tasks]
    validity = comparison.at_level(validity, show.alpha) if validity else None
    admitted = [t for t in tasks if is_in_macro(t)]
    macro = average_macro(admitted, show, shared) if admitted else None
    calibrated = partial(require_calibration, policy=policy, identical=identical)
    critical = [t for t in tasks if is_named_critical(t.task, t.suite, policy)]
    collapse = mode_collapse_rule(commonest or {}, show, identical)
    rules = (
        *([errors] if errors else []),
        calibrated(macro_rule(tasks, admitted, macro, show, identical, shared), admitted),
        calibrated(judge_each(vetoing, policy, identical), vetoing),
        *([calibrated(judge_each(safety, policy, identical, "safety"), safety)] if safety else []),
        calibrated(critical_rule(tasks, show, identical), critical),
        regressions_rule(tasks, identical, confirmed),
        validity_rule(validity, show, identical),
        target_rule(target, policy),
        *([collapse] if collapse else []),
        drift_rule(tasks, policy, identical),
        control_rule(controls),
        *([judge_missing_tasks(missing)] if missing and not identical else []),
        *([cumulative] if cumulative else []),
    )
    outcome = _join_outcomes(rules)
    needed = list_items_needed(rules)
    return Verdict(
        outcome=outcome,
        rules=rules,
        macro=macro_estimate(admitted, macro, identical, shared) if macro else None,
        lost=sum(len(t.counted.lost) for t in admitted),
        gained=sum(len(t.counted.gained) for t in admitted),
        missed=miss_rates(admitted, macro, validity, show) if macro and not identical else (),
        items_needed=needed.total if needed and outcome == "inconclusive" and not is_invalid(rules) else None,
        sentence=_verdict_sentence(outcome, rules),
    )


def _orient(t: TaskComparison) -> TaskComparison:
    half = t.half and t.half._replace(comparison=comparison.orient(t.half.comparison))
    return t._replace(comparison=comparison.orient(t.comparison), half=half)


def _join_outcomes(rules: Sequence[Rule]) -> Outcome:
    """Join the rules' outcomes; if too many answers failed, only harness drift is worse."""
    outcome = worst_outcome([r.outcome for r in rules])
    return "inconclusive" if outcome == "fail" and is_invalid(rules) else outcome


def _verdict_sentence(outcome: Outcome, rules: Sequence[Rule]) -> str:
    deciding = [r for r in rules if r.outcome == outcome]
    if outcome == "inconclusive" and is_invalid(rules):
        deciding = [r for r in deciding if r.name in ("errors", "tasks")]  # the others rest on what failed
    return f"{WORDS[outcome]}: " + "; ".join(r.sentence for r in deciding)


def _check_alpha(comparisons: Sequence[Comparison], alpha: float) -> None:
    others = {c.alpha for c in comparisons} - {alpha}
    if others:
        raise ValueError(
            f"comparisons made at alpha {sorted(others)}, the policy's is {alpha}: pass it to compare_rows"
        )
