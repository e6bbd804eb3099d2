"""Rules on unanswered items: more failed answers than the policy allows, and missing tasks.

Invariant: neither rule can improve a verdict; if too many answers failed it is inconclusive whatever the
other rules say, because they rest on missing answers.
"""

from collections.abc import Sequence

from harness import formatting
from harness.comparison import Comparison
from harness.gating.verdict import (
    Number,
    Rule,
    TargetFacts,
    TaskComparison,
    is_in_macro,
    is_named_critical,
    is_reported_only,
    is_safety,
    may_decide,
)
from harness.spec import GatePolicy

_NAMED = 20  # tasks named in a rule's numbers
_SHOWN = 3  # tasks named in a rule's sentence


def judge_missing_tasks(missing: Sequence[str]) -> Rule:
    """Leave the verdict open if tasks are missing: an unmeasured task may be the one that was lost."""
    shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
    found = f"{formatting.pluralize(len(missing), 'task')} not answered by both ({shown})"
    said = f"tasks: {found}; expected all, or those to judge by name (gate.tasks)"
    return Rule("tasks", "inconclusive", said, {"missing": list(missing[:_NAMED]), "n_missing": len(missing)})


def errors_rule(
    tasks: Sequence[TaskComparison], target: TargetFacts | None, policy: GatePolicy
) -> Rule | None:
    """Judge how many answers failed on each task; None if none did.

    A candidate's error counts as lost, one of the base as any score. The verdict is invalid beyond
    `gate.max_errors` of a task's items, and at the first error if the metric has no worst value to count it
    by.
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
        "max_errors": policy.max_errors,
        "n_errors": sum(c.errors.total for c in failed),
        "largest_share": max((c.errors.share for c in (*failed, *unscored)), default=0.0),
        "tasks": [c.task for c in (*unscored, *too_many)][:_NAMED],
    }
    if unscored or too_many:
        return Rule("errors", "inconclusive", _invalid(unscored, too_many, policy), facts)
    most = formatting.percent(policy.max_errors)
    text = (
        f"errors: {_list_tasks(failed)}; at most {most} % of a task may fail{''.join(map(_bounds, failed))}"
    )
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


def _invalid(unscored: Sequence[Comparison], too_many: Sequence[Comparison], policy: GatePolicy) -> str:
    causes = []
    if too_many:
        most = formatting.percent(policy.max_errors)
        causes.append(f"{_list_tasks(too_many)}, more than the {most} % that gate.max_errors allows")
    if unscored:
        named = ", ".join(dict.fromkeys(c.metric for c in unscored))
        why = f"{named} has no worst value to count them by, which bounds: of the task declares"
        causes.append(f"{_list_tasks(unscored)}, and {why}")
    return f"invalid: {'; '.join(causes)}"


def _list_tasks(failed: Sequence[Comparison]) -> str:
    most = sorted(failed, key=lambda c: -c.errors.share)
    rest = f" and on {formatting.pluralize(len(most) - _SHOWN, 'task')} more" if len(most) > _SHOWN else ""
    return "; ".join(map(_count_failed, most[:_SHOWN])) + rest


def _count_failed(c: Comparison) -> str:
    """Count a task's failed answers by model, with the first cause."""
    e = c.errors
    by = ((e.new, "the candidate"), (e.base, "the baseline"), (e.both, "both"))
    who = ", ".join(f"{formatting.count(n)} by {name}" for n, name in by if n)
    share = formatting.percent(e.share)
    return (
        f"{formatting.count(e.total)} of {formatting.count(e.n)} answers on {c.task} ({share} %) failed: "
        f"{who} ({e.cause})"
    )


def _bounds(c: Comparison) -> str:
    """Show how the base's failed answers could change the delta."""
    e = c.errors
    if e.delta_lost is None or e.delta_kept is None:
        return ""
    lost, kept = (formatting.change(c.unit, delta) for delta in (e.delta_lost, e.delta_kept))
    name = "pp" if c.unit.is_rate else c.unit.name
    return f"; {c.task} {lost} {name} if the baseline would have passed what it did not answer, {kept} if not"
