"""Settling of open verdicts: by unused items of the tasks, a wider margin, or other tasks.

Invariant: items are named only where the tasks hold them unused; every sentence and next step on an open
verdict comes from one `Settling`.
"""

from collections.abc import Callable, Iterable, Sequence
from math import floor, isfinite
from typing import NamedTuple

from harness import formatting
from harness.gating.verdict import (
    ItemsNeeded,
    Rule,
    TaskComparison,
    Verdict,
    list_items_needed,
    may_decide,
)
from harness.spec import Experiment, Task

WIDEST_MARGIN = 0.1  # margin that is offered: to lose more is to forget
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
            if written and may_decide(task, suite.role, suite.name, experiment.gate):
                n, generated = min(written.values()), task.kind == "generate"
                spare.append(SpareItems(task.name, tuple(written), n, count_held(task), generated))
    return tuple(one for one in spare if one.left > 0)


def _name_entry(name: str, place: int) -> str:
    """Name an entry of a list as settings do: by its place where its name would be read otherwise."""
    return str(place) if "." in name or name.isdigit() else name


class Settling(NamedTuple):
    """Ways to settle open verdicts: `needed` more items, while the tasks hold `left` unused.

    `sizes` says how many items tasks have to ask in all, empty where they hold too few; `margin` is then
    the setting of the least margin that the items at hand can show, empty where there is none.
    """

    needed: int
    left: int
    sizes: dict[SpareItems, int]
    margin: str

    @property
    def held_text(self) -> str:
        """Say how many items the tasks hold unused, where they hold too few."""
        return f"only {formatting.count(self.left)} unused items" if self.left else "no unused items"

    @property
    def text(self) -> str:
        """Say what would settle the verdicts, and whether it exists."""
        more = f"some {formatting.count(self.needed)} more items would settle it"
        if self.sizes:
            return f"{more}, and the tasks hold them"
        shown = f" ({self.margin} can be shown)" if self.margin else ""
        return f"{more}, but the tasks hold {self.held_text}{shown}"


def find_settling(verdicts: Sequence[Verdict], spare: Sequence[SpareItems], *, relative: bool) -> Settling:
    """Find what would settle verdicts that need more items.

    `relative` says that the macro's margin is a share of the base's skill.
    """
    rules = [rule for verdict in verdicts for rule in verdict.rules]
    most = max((verdict.items_needed or 0 for verdict in verdicts), default=0)
    needed = list_items_needed(rules) or ItemsNeeded({}, {}, most)
    left = sum(one.left for one in spare if _is_needed(needed, one))
    sizes = _choose_sizes(needed, spare)
    margin = "" if sizes else _find_wider_margin(rules, relative)
    return Settling(needed.total, left, sizes, margin)


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
    if names not in ({"macro"}, {"cumulative"}) or margin > WIDEST_MARGIN:
        return ""
    return f"gate.{names.pop()}={100 * margin:g}%" if relative else f"gate.{names.pop()}={margin:g}"
