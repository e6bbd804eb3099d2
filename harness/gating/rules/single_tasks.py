"""Rules on single tasks, of capability or safety: none may be shown to have lost more than its margin.

Invariant: comparisons are oriented so that a negative delta is a loss; the veto is corrected by Holm over the
tasks, and needs no further correction next to a pass (Berger 1982).
"""

from collections.abc import Sequence
from typing import Literal

from harness import comparison, formatting, stats
from harness.gating.items_needed import DeltaPart, describe_more_items, find_planning_se, upper_se
from harness.gating.rules.sentences import (
    NAMED,
    add_items_of_tasks,
    comparison_facing_se,
    delta_text,
    loss_margin_text,
)
from harness.gating.verdict import Number, Rule, TaskComparison, margin_of
from harness.spec import GatePolicy


def judge_each(
    admitted: Sequence[TaskComparison],
    policy: GatePolicy,
    identical: bool,
    name: Literal["each", "safety"] = "each",
) -> Rule:
    """Fail if a task is shown, by Holm over the tasks, to have lost more than its own margin.

    Inconclusive if the observed loss is beyond the margin and a loss is shown, but not one beyond the margin:
    the task must not be reported as passed. The same holds for a task with too few items to show even the
    loss of all of them.
    """
    if identical:
        return Rule(name, "pass", f"{name}: no task can have lost anything, by identity of the weights", {})
    if not admitted:
        what = "admitted capability" if name == "each" else "safety"
        return Rule(name, "skipped", f"{name}: no {what} task was measured", {})
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
            f"{t.task.name}/{i}" for t in vetoed + doubtful + too_small for i in t.counted.lost[:NAMED]
        ],
        "n_tasks": len(admitted),
        "p_smallest": min(beyond),
    }
    if vetoed:
        named = "; ".join(loss_margin_text(t, policy) for t in vetoed)
        return Rule(name, "fail", f"{name}: more than the margin was lost: {named}", facts)
    if doubtful:
        return _doubtful_rule(name, doubtful, policy, alpha, facts)
    if too_small:
        named = "; ".join(loss_margin_text(t, policy) for t in too_small)
        return Rule(name, "inconclusive", f"{name}: too few items to tell: {named}", facts)
    lowest = min(admitted, key=lambda t: t.counted.delta)
    n_tasks = formatting.pluralize(len(admitted), "task")
    sentence = f"{name}: none of {n_tasks} is shown to have lost more than its margin"
    return Rule(name, "pass", f"{sentence} (lowest: {delta_text(lowest)})", facts)


def _holm_p(admitted: Sequence[TaskComparison], margins: Sequence[float]) -> list[float]:
    pairs = zip(admitted, margins, strict=True)
    return stats.holm([comparison.regression_p(t.counted, margin) for t, margin in pairs])


def _is_too_small(t: TaskComparison, alpha: float) -> bool:
    """Tell whether not even the loss of every item would be shown; clusters count as single items."""
    n = t.counted.n_clusters
    return stats.tango_regression_p(0, n, n, 0.0) >= alpha


def _doubtful_rule(
    name: Literal["each", "safety"],
    doubtful: Sequence[TaskComparison],
    policy: GatePolicy,
    alpha: float,
    facts: dict[str, Number],
) -> Rule:
    task_texts, more = [], dict[str, int | None]()
    for t in doubtful:
        c, margin = t.counted, margin_of(t, policy)
        part = DeltaPart(t.task.name, find_planning_se(c, upper_se(c)), c.n, t.room)
        advice = describe_more_items(c.delta, [part], margin, alpha, comparison_facing_se(c, margin))
        task_texts.append(f"{loss_margin_text(t, policy)} ({advice.sentence})")
        more[t.task.name] = advice.items
    sentence = f"{name}: whether more than the margin was lost is open: {'; '.join(task_texts)}"
    return Rule(name, "inconclusive", sentence, add_items_of_tasks(facts, "inconclusive", more))
