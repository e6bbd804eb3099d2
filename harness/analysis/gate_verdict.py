"""Verdict of the gate: from both arms' rows and a policy to pass, fail, inconclusive or harness-drift.

Invariant: pass needs non-inferiority to be shown, fail a regression; everything else is inconclusive. Every
output of a verdict, from the exit code to the dashboard, reads the `Verdict` that `judge` returns.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import NamedTuple

from harness import formatting
from harness.analysis import admission, comparison, estimators, gate_rules_on_answers
from harness.analysis.alignment import name_pooled_cluster
from harness.analysis.answers import compare_commonest_answers
from harness.analysis.control_arm_drift import ControlFacts, control_rule
from harness.analysis.estimators import Comparison
from harness.analysis.gate_rules_on_capabilities import critical_rule, judge_each, macro_estimate, macro_rule
from harness.analysis.macro import NOTHING_SHARED, SharedItems, average_macro, find_shared_items
from harness.analysis.significance import miss_rates
from harness.analysis.verdict import (
    NAMED,
    WORDS,
    AdmittedHalf,
    Rule,
    TargetFacts,
    TaskComparison,
    Verdict,
    is_in_macro,
    is_invalid,
    is_judged,
    is_named_critical,
    is_safety,
    list_ids,
    list_items_needed,
    worst_outcome,
)
from harness.errors import IncompatibleRuns
from harness.spec import GatePolicy

_FROM_BEST_TO_WORST = (0, 4, 3)  # exit codes: a fail outranks an inconclusive verdict


@dataclass(frozen=True, slots=True)
class GateResult:
    """Verdict on a candidate against a baseline, with the comparisons of every metric of every task.

    `notes` say what was left out and why. `candidate` and `baseline` are the printed names, empty within a
    report. The verdict is not corrected for the experiment's `n_members` fine-tunes.
    """

    tasks: tuple[TaskComparison, ...]
    verdict: Verdict
    policy: GatePolicy
    notes: tuple[str, ...] = ()
    candidate: str = ""
    baseline: str = ""
    n_members: int = 1


class ComparedArms(NamedTuple):
    """Comparisons of both arms on every metric and of unusable answers, for verdicts at any level."""

    tasks: Sequence[TaskComparison]
    validity: Comparison | None
    shared: SharedItems


def compare_arms(
    measured: Sequence[admission.Measurement],
    policy: GatePolicy,
    *,
    identical: bool,
    seed: int = 0,
    admitted: admission.AdmittedTasks | None = None,
) -> ComparedArms:
    """Compare both arms on all tasks; `admitted` is the admission by the base's rows, if already known.

    Raises:
        IncompatibleRuns: the arms hold different items, or two tasks have one name.
    """
    counts = Counter(m.task.name for m in measured)
    if repeated := [name for name, n in counts.items() if n > 1]:
        raise IncompatibleRuns(
            f"found several tasks named {', '.join(repeated)}; expected a name of its own for each task; "
            "next: rename them"
        )
    admitted = admitted or admission.admit_tasks(measured, seed, policy)
    compare = partial(_compare_metrics, admitted=admitted, alpha=policy.alpha, identical=identical)
    tasks = [t for m in measured for t in compare(m)]
    judged = [m for m in measured if is_judged(m.task.name, policy)]
    counted = [t for t in _keep_primary(tasks, judged) if is_in_macro(t)]
    # The share of invalid answers over the generated rows of tasks that want valid ones.
    generated = [m for m in judged if m.task.kind == "generate" and m.role != "safety"]
    base, new = ([row for m in generated for row in getattr(m, arm)] for arm in ("base", "new"))
    validity = None
    if any(row.status != "error" for row in base):
        clusters = admission.join_rows(((m.base, m.documents) for m in generated), name_pooled_cluster)
        validity = comparison.compare_validity(
            base, new, clusters=clusters, alpha=policy.alpha, identical=identical, base_errors="bounds"
        )
    return ComparedArms(tasks, validity, find_shared_items(measured, counted, admitted.cut))


def _compare_metrics(
    m: admission.Measurement, admitted: admission.AdmittedTasks, alpha: float, *, identical: bool
) -> list[TaskComparison]:
    """Compare both arms on every metric of a task that scored an item of the base, the primary first."""
    primary = m.task.primary_metric
    metrics = (m.metrics[name] for name in sorted(m.metrics, key=lambda n: n != primary))
    differences = (admission.compare_task(m, alpha, identical=identical, metric=metric) for metric in metrics)
    comparisons = [TaskComparison(m.task, m.role, c, False, "", m.suite) for c in differences if c]
    if not comparisons or comparisons[0].comparison.metric != primary:
        return comparisons
    # Safety tasks count whole: no half selects the items that the base happened to refuse.
    halves, why_not = ((), "") if m.role == "safety" else admitted.of[m.task.name]
    only_half = halves[0] if len(halves) == 1 else None
    metric, half = m.metrics[primary], None
    if only_half:
        of_half = admission.select_half(m, admitted.cut, only_half)
        if c := admission.compare_task(of_half, alpha, identical=identical):
            rest = admitted.cut.rows(m.base, admission.OTHER_HALF[only_half])
            half = AdmittedHalf(only_half, c, comparison.estimate(metric, rest).score, why_not)
    may_be_admitted = not admission.explain_reported(m.task, metric)
    n_unused = round(sum(row.weight for row in m.base)) - len(m.base)
    comparisons[0] = comparisons[0]._replace(
        base_rows_admitted=bool(halves),
        why_not="" if halves else why_not,
        half=half,
        room=n_unused if n_unused > 0 else inf,
        span=metric.range.span if halves or (m.role == "safety" and may_be_admitted) else 1.0,
        may_be_admitted=may_be_admitted,
        floor=metric.range.floor(m.task.chance),
    )
    return comparisons


def _keep_primary(
    tasks: Sequence[TaskComparison], judged: Sequence[admission.Measurement]
) -> list[TaskComparison]:
    primary = {t.task.name: t for t in tasks if t.comparison.metric == t.task.primary_metric}
    return [primary[m.task.name] for m in judged if m.task.name in primary]


def judge(
    measured: Sequence[admission.Measurement],
    policy: GatePolicy,
    *,
    target: TargetFacts | None,
    identical: bool,
    confirmed: Mapping[str, Collection[str]] | None = None,
    controls: Sequence[ControlFacts] = (),
    compared: ComparedArms | None = None,
    missing: Sequence[str] = (),
    level: float | None = None,
    cumulative: Rule | None = None,
    export: Rule | None = None,
) -> GateResult:
    """Compare both arms on every metric of every task, and judge by each task's primary metric.

    With `identical` weights the rules about weights pass by identity. `confirmed` names the pinned items that
    are lost in fp32 too, `missing` the tasks that an arm did not answer. `controls` are the control arms
    computed with the rows. `level` replaces the policy's alpha for one of several candidates. `cumulative` is
    the rule against the first base, `export` that of an artefact against its own run. `compared` is the
    result of `compare_arms`, if already known.

    Raises:
        IncompatibleRuns: the arms hold different items, or two tasks have one name.
    """
    compared = compared or compare_arms(measured, policy, identical=identical)
    judged = [m for m in measured if is_judged(m.task.name, policy)]
    tasks = _keep_primary(compared.tasks, judged)
    names = {t.task.name for t in tasks}
    uncompared = (m for m in judged if m.task.name not in names)
    unanswered = [
        m.task.name
        for m in uncompared
        if admission.may_be_judged(m.task, m.role, m.suite, m.metrics[m.task.primary_metric], policy)
    ]
    commonest: dict[str, Sequence[Comparison]] = {}
    if policy.mode_collapse is not None and not identical:
        for m in judged:
            if m.role == "capability" and m.task.kind == "generate":
                commonest[m.task.name] = compare_commonest_answers(m.base, m.new, alpha=policy.alpha)
        commonest |= {"the target": target.commonest} if target else {}
    verdict = apply_rules(
        tasks,
        policy,
        validity=compared.validity,
        target=target,
        identical=identical,
        confirmed=confirmed,
        controls=controls,
        missing=[*filter(partial(is_judged, policy=policy), missing), *unanswered],
        shared=compared.shared,
        level=level,
        cumulative=cumulative,
        export=export,
        commonest=commonest,
    )
    return GateResult(tuple(compared.tasks), verdict, policy)


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
    export: Rule | None = None,
    commonest: gate_rules_on_answers.Compared | None = None,
) -> Verdict:
    """Join every rule of the policy to a verdict; the comparisons must be made at `policy.alpha`.

    With `level`, rules that must show something (non-inferiority, a gain) are judged at that level, and rules
    that veto keep the policy's alpha. `shared` are the items that tasks share, `commonest` the shares of each
    task's commonest answer, the others as in `gate_verdict.judge`.
    """
    used_alphas = {t.comparison.alpha for t in tasks} | ({validity.alpha} if validity else set())
    if other_alphas := used_alphas - {policy.alpha}:
        raise ValueError(
            f"comparisons made at alpha {sorted(other_alphas)}, the policy's is {policy.alpha}: pass it to"
            " compare_rows"
        )
    errors = None if identical else gate_rules_on_answers.errors_rule(tasks, target, policy)
    tasks = [t.change(estimators.orient) for t in tasks]
    vetoing = [t for t in tasks if is_in_macro(t)]
    safety = [t for t in tasks if is_safety(t, policy)]
    strict_policy = policy if level is None else policy.model_copy(update={"alpha": level})
    tasks = [t.at_level(strict_policy.alpha) for t in tasks]
    validity = estimators.at_level(validity, strict_policy.alpha) if validity else None
    admitted = [t for t in tasks if is_in_macro(t)]
    macro = average_macro(admitted, strict_policy, shared) if admitted else None

    def calibrated(rule: Rule, judged: Sequence[TaskComparison]) -> Rule:
        """Leave a rule open if it rests on a judge's grades of tasks, unless the policy allows that."""
        names = [t.task.name for t in judged if estimators.is_judge(t.comparison.metric)]
        if identical or not names or policy.uncalibrated_judge == "allow":
            return rule
        text = (
            f"{rule.name}: {', '.join(names)} graded by a judge that no labels of people calibrate (they are"
            " for the target alone); another primary metric, or gate.uncalibrated_judge: allow"
        )
        return Rule(rule.name, "inconclusive", text, {"judged": names})

    critical = [t for t in tasks if is_named_critical(t.task, t.suite, policy)]
    collapse = gate_rules_on_answers.mode_collapse_rule(commonest or {}, strict_policy, identical)
    unanswered = []  # an unmeasured task may be the one that was lost
    if missing and not identical:
        problem = f"{formatting.pluralize(len(missing), 'task')} not answered by both ({list_ids(missing)})"
        text = f"tasks: {problem}; expected all, or those to judge by name (gate.tasks)"
        unanswered.append(Rule("tasks", "inconclusive", text, {"missing": list(missing[:NAMED])}))
    rules = (
        *([errors] if errors else []),
        calibrated(macro_rule(tasks, admitted, macro, strict_policy, identical, shared), admitted),
        calibrated(judge_each(vetoing, policy, identical), vetoing),
        *([calibrated(judge_each(safety, policy, identical, "safety"), safety)] if safety else []),
        calibrated(critical_rule(tasks, strict_policy, identical), critical),
        gate_rules_on_answers.regressions_rule(tasks, identical, confirmed),
        gate_rules_on_answers.validity_rule(validity, strict_policy, identical),
        gate_rules_on_answers.target_rule(target, policy),
        *([collapse] if collapse else []),
        gate_rules_on_answers.drift_rule(tasks, policy, identical),
        control_rule(controls),
        *unanswered,
        *([cumulative] if cumulative else []),
        *([export] if export else []),
    )
    outcome, invalid = worst_outcome([r.outcome for r in rules]), is_invalid(rules)
    if outcome == "fail" and invalid:  # if too many answers failed, only harness drift is worse
        outcome = "inconclusive"
    deciding = [r for r in rules if r.outcome == outcome]
    if outcome == "inconclusive" and invalid:
        deciding = [r for r in deciding if r.name in ("errors", "tasks")]  # the others rest on what failed
    needed = list_items_needed(rules)
    return Verdict(
        outcome=outcome,
        rules=rules,
        macro=macro_estimate(admitted, macro, identical, shared) if macro else None,
        lost=sum(len(t.counted.lost) for t in admitted),
        gained=sum(len(t.counted.gained) for t in admitted),
        missed=miss_rates(admitted, macro, validity, strict_policy) if macro and not identical else (),
        items_needed=needed.total if needed and outcome == "inconclusive" and not invalid else None,
        sentence=f"{WORDS[outcome]}: " + "; ".join(r.sentence for r in deciding),
    )


def exit_code(verdict: Verdict, policy: GatePolicy) -> int:
    """Return 0 for pass, 3 for fail, 4 if undecided (unless the policy passes that) or not judged."""
    if verdict.outcome == "harness-drift" or is_invalid(verdict.rules):
        return 4
    if verdict.outcome == "inconclusive":
        return 4 if policy.on_inconclusive == "fail" else 0
    return 0 if verdict.outcome == "pass" else 3


def combine_exit_codes(judged: Sequence[GateResult]) -> int:
    """Return the exit code of the worst verdict; 0 without verdicts."""
    codes = (exit_code(j.verdict, j.policy) for j in judged)
    return max(codes, key=_FROM_BEST_TO_WORST.index, default=0)


def worst_result(judged: Sequence[GateResult]) -> GateResult:
    """Return the first result whose exit code is the combined one."""
    return max(judged, key=lambda j: _FROM_BEST_TO_WORST.index(exit_code(j.verdict, j.policy)))
