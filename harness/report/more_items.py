"""Next step where a gate needs more items: limits to raise where tasks hold enough, else something else.

Invariant: a limit is advised only where items lie unused, by settings that do it as they are printed.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import floor, isfinite
from typing import NamedTuple

from harness import formatting, gating
from harness.config import CommandLine
from harness.gating import TaskComparison, Verdict
from harness.report.document import Command
from harness.spec import Experiment, Task

_WIDEST = 0.1  # margin of the macro that is offered: to lose more is to forget
_STEP = 1000  # margins are offered in tenths of a point


class SpareItems(NamedTuple):
    """Test items of a task that were not asked: it asked `n` of `held`.

    The settings `keys` limit them; without any they were not drawn, and `compare` alone asks them.
    """

    task: str
    keys: tuple[str, ...]
    n: int
    held: int

    @property
    def left(self) -> int:
        """Number of items that were not asked."""
        return self.held - self.n


def list_spare_items(
    experiment: Experiment, compared: Iterable[TaskComparison], count_held: Callable[[Task], int]
) -> tuple[SpareItems, ...]:
    """List the judged tasks that hold test items which were not drawn, else those beyond a limit."""
    drawn = {t.task.name: (t.comparison.n, int(t.room)) for t in compared if isfinite(t.room)}
    if drawn:
        return tuple(SpareItems(name, (), n, n + room) for name, (n, room) in drawn.items())
    spare = []
    for suite in experiment.suites:
        for place, task in enumerate(suite.tasks):
            at = f"suites.{suite.name}.tasks.{place if task.lm_eval else task.name}"
            limits = {f"{at}.limit": task.limit, f"{at}.data.limits.test": task.data.limits.test}
            written = {key: limit for key, limit in limits.items() if limit is not None}
            if written and gating.may_decide(task, suite.role, suite.name, experiment.gate):
                spare.append(SpareItems(task.name, tuple(written), min(written.values()), count_held(task)))
    return tuple(one for one in spare if one.left > 0)


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
    most = max(verdicts, key=lambda verdict: verdict.items_needed or 0)
    needed, by_task = most.items_needed or 0, _list_needed(most)
    usable = [one for one in spare if one.task in by_task or not by_task]
    left = sum(one.left for one in usable)
    if left >= needed:
        is_enough = len(usable) == len(by_task) and all(one.left >= by_task[one.task] for one in usable)
        sizes = {one: one.n + by_task[one.task] if is_enough and one.keys else one.held for one in usable}
        settings = [f"{key}={n}" for one, n in sizes.items() for key in one.keys]
        more = formatting.count(sum(n - one.n for one, n in sizes.items()))
        named = ", ".join(f"{one.task} {formatting.count(n)}" for one, n in sizes.items())
        line = typed.with_settings(settings).command("compare")
        return Command(line, f"judges again, on {more} more items that the tasks hold ({named})")
    held = f"only {formatting.count(left)} unused items" if left else "no unused items"
    lacking = f"the tasks hold {held}, and some {formatting.count(needed)} more are needed"
    if margin := _find_wider_margin(verdicts, relative):
        line = typed.with_settings([f"gate.macro={margin}"]).command(*judging)
        return Command(line, f"judges by the least margin that these items can show; {lacking} otherwise")
    line = typed.command("compare")
    return Command(line, f"judges again, once suites: lists other tasks, or their files more rows; {lacking}")


def _list_needed(verdict: Verdict) -> Mapping[str, int]:
    """Return how many more items the macro needs of each task; empty where another rule is open."""
    named = (rule.numbers.get("items_needed_by_task") for rule in verdict.rules)
    found = [text.rsplit(" ", 1) for texts in named if isinstance(texts, list) for text in texts]
    return {task: int(n.replace(",", "")) for tasks, n in found for task in tasks.split(" and ")}


def _find_wider_margin(verdicts: Sequence[Verdict], relative: bool) -> str:
    """Return the least margin of the macro by which all verdicts pass; empty where others are open too."""
    open_rules = [rule for verdict in verdicts for rule in verdict.rules if rule.outcome == "inconclusive"]
    lowest = min(
        (float(x) for rule in open_rules if isinstance(x := rule.numbers.get("lower"), float)), default=-1.0
    )
    margin = (floor(-lowest * _STEP) + 1) / _STEP
    if any(rule.name != "macro" for rule in open_rules) or margin > _WIDEST:
        return ""
    return f"{100 * margin:g}%" if relative else f"{margin:g}"
