"""Verdict of the gate, its rules' outcomes, and which rule judges a task.

Invariant: an outcome is `pass`, `fail`, `inconclusive` or `harness-drift` (a rule may also be `skipped`),
and a set of outcomes is as good as its worst.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Literal, NamedTuple

from harness import formatting
from harness.analysis.estimators import Comparison, Estimate, at_level, rescale
from harness.analysis.human_preferences import Wins
from harness.spec import GatePolicy, Task

Half = Literal["search", "confirm"]  # of a task's items
Outcome = Literal["pass", "fail", "inconclusive", "harness-drift"]
RuleOutcome = Literal["pass", "fail", "inconclusive", "harness-drift", "skipped"]
# Printed word for each outcome of a verdict or a rule.
WORDS: dict[str, str] = {
    "pass": "PASS",
    "fail": "FAIL",
    "inconclusive": "UNDECIDED",
    "harness-drift": "DRIFT",
    "skipped": formatting.UNKNOWN,
}
# What a rule of a verdict is about.
_REASONS = {
    "macro": "forgetting",
    "each": "forgetting on a task",
    "cumulative": "forgetting since the first base",
    "safety": "safety",
    "critical": "a critical task",
    "regressions": "pinned items",
    "validity": "unusable answers",
    "drift": "drift on texts",
    "target": "gain",
    "export": "loss against its own run",
    "errors": "failed answers",
    "tasks": "tasks not measured",
}
Number = float | int | str | list[str]
_TO_BE_SHOWN = ("macro", "critical", "validity", "target", "mode collapse")
_GROUNDS = ("errors", "tasks", "control")  # rules behind every p: all answered, and by the same harness
NAMED = 20  # items, or tasks, named in a rule's numbers


class AdmittedHalf(NamedTuple):
    """The one half of a task that counts, the base's score on the other, and why that one is left out."""

    name: Half
    comparison: Comparison
    admitting_score: float
    why: str


class TaskComparison(NamedTuple):
    """One task of a suite as compared on its primary metric; `why_not` says why it is not admitted.

    `half` is set if only one half of the items counts in the macro. `room` is the number of items that were
    not drawn, infinite if all were evaluated. Margins are shares of `span`, the range of the primary
    metric, or of the skill above `floor`. `may_be_admitted` is False if it never counts in the macro.
    """

    task: Task
    role: str
    comparison: Comparison
    base_rows_admitted: bool
    why_not: str
    suite: str = ""
    half: AdmittedHalf | None = None
    room: float = inf
    span: float = 1.0
    may_be_admitted: bool = True
    floor: float = 0.0

    @property
    def counted(self) -> Comparison:
        """The comparison of the items that count in the macro, its changes shares of the metric's range."""
        return rescale(self.half.comparison if self.half else self.comparison, self.span)

    def change(self, change: Callable[[Comparison], Comparison]) -> "TaskComparison":
        """Return a copy with `change` applied to its comparison and to its half's."""
        half = self.half and self.half._replace(comparison=change(self.half.comparison))
        return self._replace(comparison=change(self.comparison), half=half)

    def at_level(self, alpha: float) -> "TaskComparison":
        """Return a copy with one-sided bounds at another level."""
        return self.change(lambda c: at_level(c, alpha))


class TargetFacts(NamedTuple):
    """Result on the test split: the score, and the gain over the best untrained candidate.

    `labels_missing` of people keep a judge's metric from deciding. `commonest` compares the shares of the
    commonest answers, if the policy limits them.
    """

    score: Estimate
    gain: Comparison | None
    labels_missing: int = 0
    wins: Wins | None = None
    commonest: tuple[Comparison, ...] = ()


class MissRate(NamedTuple):
    """The chance of a wrong verdict at a true delta: a missed loss, or an equal model that is not passed."""

    delta: float
    probability: float
    what: str


@dataclass(frozen=True, slots=True)
class Rule:
    """Outcome of one rule of the policy, and the numbers its sentence rests on."""

    name: Literal[
        "errors", "macro", "each", "safety", "critical", "regressions", "validity", "target", "mode collapse",
        "export", "drift", "control", "tasks", "cumulative",
    ]  # fmt: skip
    outcome: RuleOutcome
    sentence: str
    numbers: dict[str, Number]


class ItemsNeeded(NamedTuple):
    """Numbers of more items that would probably settle the open rules of a verdict.

    `of_task` names tasks that have to provide the items themselves, `of_macro` tasks that others of the macro
    could replace (`a and b` share items); `of_answers` are generated ones of any task.
    """

    of_task: Mapping[str, int]
    of_macro: Mapping[str, int]
    of_answers: int

    @property
    def total(self) -> int:
        """The number of items in all; those of one task serve every rule."""
        macro_needed = {name: max(n, self.of_task.get(name, 0)) for name, n in self.of_macro.items()}
        return max(sum({**self.of_task, **macro_needed}.values()), self.of_answers)


def list_items_needed(rules: Iterable[Rule]) -> ItemsNeeded | None:
    """List the items that would settle all open rules; None without one, or if items do not settle one."""
    open_rules = [rule for rule in rules if rule.outcome == "inconclusive"]
    if not open_rules or not all(rule.numbers.get("items_needed") for rule in open_rules):
        return None
    of_task, of_macro, of_answers = dict[str, int](), dict[str, int](), 0
    for rule in open_rules:
        texts = rule.numbers.get("items_needed_by_task")
        if not isinstance(texts, list):
            of_answers = max(of_answers, int(str(rule.numbers["items_needed"])))
            continue
        parts = of_macro if rule.name in ("macro", "cumulative") else of_task
        for name, _, n in (text.rpartition(" ") for text in texts):
            parts[name] = max(int(n.replace(",", "")), parts.get(name, 0))
    return ItemsNeeded(of_task, of_macro, of_answers)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Verdict of the gate on a run. `macro` is the delta; `missed` the gate's operating characteristic.

    `lost` and `gained` count items over the admitted capability tasks. `items_needed` would probably settle
    an inconclusive verdict; None if items do not settle it.
    """

    outcome: Outcome
    rules: tuple[Rule, ...]
    macro: Estimate | None
    lost: int
    gained: int
    missed: tuple[MissRate, ...]
    items_needed: int | None
    sentence: str

    @property
    def deciding(self) -> list[Rule]:
        """The rules that have the verdict's outcome."""
        return [rule for rule in self.rules if rule.outcome == self.outcome]

    def numbers(self, rule_name: str) -> Mapping[str, Number]:
        """Return the numbers of a rule; empty if it was not applied."""
        return next((rule.numbers for rule in self.rules if rule.name == rule_name), {})

    @property
    def p(self) -> float | None:
        """The largest p of the rules to be shown; None if one is not, if answers are missing, or on drift."""
        if any(r.name in _GROUNDS and r.outcome not in ("pass", "skipped") for r in self.rules):
            return None
        rules = [r for r in self.rules if r.name in _TO_BE_SHOWN and r.outcome != "skipped"]
        if any(r.outcome != "pass" for r in rules):
            return None
        return max((p for r in rules if isinstance(p := r.numbers.get("p"), float)), default=0.0)


def is_invalid(rules: Sequence[Rule]) -> bool:
    """Tell whether so many answers failed that nothing was judged, whatever the other rules say."""
    return any(rule.name == "errors" and rule.outcome == "inconclusive" for rule in rules)


def worst_outcome(outcomes: Sequence[RuleOutcome]) -> Outcome:
    """Join outcomes by rank: harness drift first, then fail, then inconclusive, then pass."""
    if "harness-drift" in outcomes:
        return "harness-drift"
    return "fail" if "fail" in outcomes else "inconclusive" if "inconclusive" in outcomes else "pass"


def is_in_macro(t: TaskComparison) -> bool:
    """Tell whether a task counts in the macro and may veto."""
    return t.role == "capability" and t.base_rows_admitted and not is_reported_only(t.task)


def is_safety(t: TaskComparison, policy: GatePolicy) -> bool:
    """Tell whether the rule on safety judges a task: critical ones have a stricter rule of their own."""
    judged = t.role == "safety" and policy.safety is not None and t.may_be_admitted
    return judged and not is_named_critical(t.task, t.suite, policy)


def is_judged(task: str, policy: GatePolicy) -> bool:
    """Tell whether a task is one of those that the policy names; if it names none, all are."""
    return not policy.tasks or task in policy.tasks


def is_named_critical(task: Task, suite: str, policy: GatePolicy) -> bool:
    """Tell whether the policy names a task critical, by its name or by its suite."""
    return bool({task.name, suite} & set(policy.critical))


def may_decide(task: Task, role: str, suite: str, policy: GatePolicy) -> bool:
    """Tell whether a rule of the policy judges a task, as far as that is known before it is measured."""
    if not is_judged(task.name, policy):
        return False
    if is_reported_only(task):
        return policy.drift is not None
    judged = ("capability", "regression", *([] if policy.safety is None else ["safety"]))
    return role in judged or is_named_critical(task, suite, policy)


def is_reported_only(task: Task) -> bool:
    """Tell whether a task is measured in bits per byte, which no rule judges."""
    return task.kind == "bits_per_byte" or task.primary_metric == "bits_per_byte"


def is_perplexity(t: TaskComparison) -> bool:
    """Tell whether a text's first metric is perplexity, which no limit in bits per byte judges."""
    return t.task.primary_metric == "perplexity"


def name_reasons(verdict: Verdict) -> str:
    """Name what the rules that settle a verdict are about."""
    return ", ".join(dict.fromkeys(_REASONS.get(rule.name, rule.name) for rule in verdict.deciding))


def add_items_needed(
    facts: dict[str, Number], outcome: str, more: int | Mapping[str, int | None] | None
) -> dict[str, Number]:
    """Add the number of items that would settle an open rule, in all or by task, if they are known."""
    if outcome != "inconclusive" or more is None or more == {}:
        return facts
    if isinstance(more, int):
        return {**facts, "items_needed": more}
    known_counts = {task: n for task, n in more.items() if n}
    if len(known_counts) < len(more):
        return facts
    by_task = [f"{task} {formatting.count(n)}" for task, n in known_counts.items()]
    return {**facts, "items_needed": sum(known_counts.values()), "items_needed_by_task": by_task}


def list_ids(ids: Sequence[str]) -> str:
    """Name the first five items, and the number of the others."""
    rest = f" and {len(ids) - 5} more" if len(ids) > 5 else ""
    return ", ".join(ids[:5]) + rest
