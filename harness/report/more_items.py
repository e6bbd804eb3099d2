"""Next step where a gate needs more items: limits to raise where tasks hold enough, else something else.

Invariant: a limit is advised only where items lie unused, by settings that do it as they are printed.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import floor, isfinite
from typing import NamedTuple

from harness import formatting, gating
from harness.config import CommandLine
from harness.gating import ItemsNeeded, Rule, TaskComparison, Verdict
from harness.report.document import Command
from harness.spec import Experiment, GatePolicy, Task

_MARGINS = ("macro", "each", "safety", "critical_margin")
_WIDEST = 0.1  # margin that is offered: to lose more is to forget
_STEP = 1000  # margins are offered in tenths of a point


class SpareItems(NamedTuple):
    """Test items of a task that were not asked: it asked `n` of `held`; its answers may be generated.

    The settings `keys` limit them; without any they were not drawn, and `compare` alone asks them.
    """

    task: str
    keys: tuple[str, ...]
    n: int
    held: int
    is_generated: bool = True

    @property
    def left(self) -> int:
        """Number of items that were not asked."""
        return self.held - self.n


def list_spare_items(
    experiment: Experiment, compared: Iterable[TaskComparison], count_held: Callable[[Task], int]
) -> tuple[SpareItems, ...]:
    """List the judged tasks that hold test items which were not drawn, else those beyond a limit."""
    drawn = {t.task.name: t for t in compared if isfinite(t.room)}
    if drawn:
        return tuple(
            SpareItems(name, (), t.comparison.n, t.comparison.n + int(t.room), t.task.kind == "generate")
            for name, t in drawn.items()
        )
    spare = []
    for at_suite, suite in enumerate(experiment.suites):
        for place, task in enumerate(suite.tasks):
            named = place if task.lm_eval else _name_entry(task.name, place)
            at = f"suites.{_name_entry(suite.name, at_suite)}.tasks.{named}"
            limits = {f"{at}.limit": task.limit, f"{at}.data.limits.test": task.data.limits.test}
            written = {key: limit for key, limit in limits.items() if limit is not None}
            if written and gating.may_decide(task, suite.role, suite.name, experiment.gate):
                n, generated = min(written.values()), task.kind == "generate"
                spare.append(SpareItems(task.name, tuple(written), n, count_held(task), generated))
    return tuple(one for one in spare if one.left > 0)


def _name_entry(name: str, place: int) -> str:
    """Name an entry of a list as settings do: by its place where its name would be read otherwise."""
    return str(place) if "." in name or name.isdigit() else name


def advise_more_items(
    verdicts: Sequence[Verdict],
    spare: Sequence[SpareItems],
    typed: CommandLine,
    *,
    relative: bool,
    judging: Sequence[str],
) -> Command:
    """Say how to settle verdicts that need more items: by limits where the tasks hold as many.

    Else by a wider margin where that alone would do, or by other tasks.

    `relative` says that the macro's margin is a share of the base's skill. `judging` are the words of the
    command that judges by another margin.
    """
    rules = [rule for verdict in verdicts for rule in verdict.rules]
    most = max(verdict.items_needed or 0 for verdict in verdicts)
    needed = gating.list_items_needed(rules) or ItemsNeeded({}, {}, most)
    sizes = _choose_sizes(needed, spare)
    if sizes:
        settings = [f"{key}={n}" for one, n in sizes.items() for key in one.keys]
        more = formatting.count(sum(n - one.n for one, n in sizes.items()))
        named = ", ".join(f"{one.task} {formatting.count(n)}" for one, n in sizes.items())
        line = typed.with_settings(settings).command("compare")
        return Command(line, f"judges again, on {more} more items that the tasks hold ({named})")
    left = sum(one.left for one in spare if _is_needed(needed, one))
    held = f"only {formatting.count(left)} unused items" if left else "no unused items"
    lacking = f"the tasks hold {held}, and some {formatting.count(needed.total)} more are needed"
    if margin := _find_wider_margin(rules, relative):
        line = typed.with_settings([margin]).command(*judging)
        return Command(line, f"judges by the least margin that these items can show; {lacking} otherwise")
    line = typed.command("compare")
    return Command(line, f"judges again, once suites: lists other tasks, or their files more rows; {lacking}")


def _choose_sizes(needed: ItemsNeeded, spare: Sequence[SpareItems]) -> dict[SpareItems, int]:
    """Choose how many items tasks ask in all, so that every open rule has its own; empty where they lack."""
    by_task = {task: n for name, n in needed.of_macro.items() for task in name.split(" and ")}
    by_task |= {task: max(n, by_task.get(task, 0)) for task, n in needed.of_task.items()}
    usable = {one.task: one for one in spare if _is_needed(needed, one)}
    left = {task: one.left for task, one in usable.items()}
    if any(left.get(task, 0) < n for task, n in needed.of_task.items()):
        return {}
    of_macro = sum(left[task] for task in left if task in by_task)
    if of_macro < sum(needed.of_macro.values()) or sum(left.values()) < needed.of_answers:
        return {}
    is_exact = not needed.of_answers and all(left.get(task, 0) >= n for task, n in by_task.items())
    return {one: one.n + by_task[task] if is_exact and one.keys else one.held for task, one in usable.items()}


def _is_needed(needed: ItemsNeeded, one: SpareItems) -> bool:
    """Tell whether an open rule judges by a task's items."""
    of_macro = (task for name in needed.of_macro for task in name.split(" and "))
    return one.task in (*needed.of_task, *of_macro) or (needed.of_answers > 0 and one.is_generated)


def _find_wider_margin(rules: Iterable[Rule], relative: bool) -> str:
    """Return the setting of the least margin of the macro that shows it; empty where others are open too."""
    open_rules = [rule for rule in rules if rule.outcome == "inconclusive"]
    lowest = min(
        (float(x) for rule in open_rules if isinstance(x := rule.numbers.get("lower"), float)), default=-1.0
    )
    margin, names = (floor(-lowest * _STEP) + 1) / _STEP, {rule.name for rule in open_rules}
    if names not in ({"macro"}, {"cumulative"}) or margin > _WIDEST:
        return ""
    return f"gate.{names.pop()}={100 * margin:g}%" if relative else f"gate.{names.pop()}={margin:g}"


def advise_on_power(
    experiment: Experiment,
    n: Mapping[str, int],
    spare: Sequence[SpareItems],
    warn: Callable[[Mapping[str, int], GatePolicy], Sequence[str]],
    typed: CommandLine,
) -> Command:
    """Say how to run without warnings: by the items that tasks hold, else by the least margins that do.

    `n` maps tasks to the items that they ask; `warn` says which margins so many items probably cannot show.
    """
    policy, judging = experiment.gate, ("compare", "--strict")
    if not warn({**n, **{one.task: one.held for one in spare}}, policy):
        line = typed.with_settings([f"{key}={one.held}" for one in spare for key in one.keys])
        more = formatting.count(sum(one.left for one in spare))
        return Command(line.command(*judging), f"asks {more} more items, all that the tasks hold")
    settings, wider = [], policy
    for key in _MARGINS:
        if (margin := _find_least_margin(key, policy, lambda tried: warn(n, tried))) is not None:
            settings.append(f"gate.{key}={margin:g}")
            wider = wider.model_copy(update={key: margin})
    if settings and not warn(n, wider):
        line = typed.with_settings(settings)
        return Command(line.command(*judging), "judges by the least margins that these items can show")
    return Command(typed.command(*judging), "runs, once suites: lists other tasks, or their files more rows")


def _find_least_margin(
    key: str, policy: GatePolicy, warn: Callable[[GatePolicy], Sequence[str]]
) -> float | None:
    """Find the least value of a margin that leaves fewest warnings; None where none is about it."""

    def count(margin: float) -> int:
        return len(warn(policy.model_copy(update={key: margin})))

    fewest = count(_WIDEST)
    if getattr(policy, key) is None or len(warn(policy)) <= fewest:
        return None
    steps = range(1, round(_WIDEST * _STEP) + 1)
    return steps[bisect_left(steps, True, key=lambda step: count(step / _STEP) <= fewest)] / _STEP
