"""Items that an open verdict needs, and what would settle several of them.

Invariant: planned from widths that were found, which hold n, disagreement and clusters; a task is given more
items in proportion to what each of its items adds to the width (Neyman), and never more than it holds. Items
are named only where the tasks hold them unused; every sentence and next step on an open verdict comes from
one `Settling`.
Source: Chow, Shao & Wang 2008 for the sample size; Neyman 1934 for the allocation
"""

from collections.abc import Callable, Iterable, Sequence
from math import ceil, floor, inf, isfinite, sqrt
from typing import NamedTuple

from harness import formatting, stats
from harness.comparison import Comparison
from harness.gating.verdict import (
    ItemsNeeded,
    Rule,
    TaskComparison,
    Verdict,
    list_items_needed,
    may_decide,
)
from harness.spec import Experiment, Task
from harness.stats import Array, Interval

POWER = 0.8
MOST_ITEMS = 100  # times the items at hand: beyond that, more items are no advice
_NAMED = 8  # tasks named with their items
_ROUNDING = 1e-9
_BISECTIONS = 60


class DeltaPart(NamedTuple):
    """One task's part in a delta: the standard error that it adds, its n items, and how many more it holds.

    `room` is infinite where items are written, not drawn.
    """

    name: str
    se: float
    n: int
    room: float = inf


class MoreItems(NamedTuple):
    """Number of more items that would settle a margin, by task, and the sentence; None where none would."""

    items: int | None
    sentence: str
    by_task: tuple[str, ...] = ()


def lower_se(c: Comparison) -> float:
    """Return the standard error that the lower one-sided bound amounts to."""
    return (c.delta - c.lower) / stats.z_quantile(1 - c.alpha)


def upper_se(c: Comparison) -> float:
    """Return the standard error that the upper one-sided bound amounts to."""
    return (c.upper - c.delta) / stats.z_quantile(1 - c.alpha)


def find_planning_se(c: Comparison, se: float) -> float:
    """Return the standard error from which to foretell what more items would show.

    The bounds of few scores of 0 and 1 are wider than their spread, by an amount that falls with n
    and not with its root. So their spread is taken from the items that were lost and gained, half an
    item added to each and two to all: what was never seen among few is not taken for impossible.
    Infinite where too few clusters leave the spread unknown: then no number of items can be promised.

    Source: the added items after Agresti & Min 2005.
    """
    if c.refused:
        return inf
    if c.base_passed is None or c.estimator == "identical":
        return se
    grow = c.n / (c.n + 2)
    return stats.paired_se((c.n * c.disagreement + 1) / (c.n + 2), c.n, c.delta * grow, c.design_effect)


def find_facing_se(delta: float, ends: Interval, margin: float, alpha: float) -> float:
    """Return the standard error that the one-sided bound between the delta and −margin amounts to."""
    width = delta - ends.low if delta >= -margin else ends.high - delta
    return width / stats.z_quantile(1 - alpha)


def describe_more_items(
    delta: float,
    parts: Sequence[DeltaPart],
    margin: float,
    alpha: float,
    found_se: float,
    correlations: Array | None = None,
) -> MoreItems:
    """Say how many more items would settle the margin with 80 % power, and under which true delta.

    `parts` hold the standard errors to plan with (`find_planning_se`), `found_se` is that of the bound which
    left the margin open (`find_facing_se`): it is used where by the planned ones the items at hand would have
    done. The true delta is taken to be the observed one where that is a loss, else 0 (a gain that is not
    shown is not counted on), however many items that takes. Where the observed loss lies so close
    to the margin that a hundred times the items would not tell them apart, the number is that for
    a true delta of 0.
    """
    se = stats.quadrature([part.se for part in parts], correlations)
    if not isfinite(se):
        return MoreItems(None, "too few clusters to tell how much items differ; add items of other clusters")
    truth = min(delta, 0.0)
    wanted = abs(truth + margin) / _reach(alpha)
    if 0 < se <= wanted:
        parts = [part._replace(se=part.se * found_se / se) for part in parts]
        se = found_se
    if _growth(se, wanted) <= MOST_ITEMS or (truth == 0 and isfinite(_growth(se, wanted))):
        assumed = "the loss is as large as it looks" if truth < 0 else "nothing is lost"
        return _advise(parts, wanted, correlations, "", f"would probably settle it if {assumed}")
    if truth == 0:
        return MoreItems(None, "no number of items would settle so small a margin")
    at_margin = "the loss looks as large as the margin, which no reasonable number of items would settle"
    wanted = margin / _reach(alpha)
    if se <= wanted:
        return MoreItems(None, at_margin)
    before = f"{at_margin}; if nothing is lost, "
    return _advise(parts, wanted, correlations, before, "probably would")


def _advise(
    parts: Sequence[DeltaPart], wanted: float, correlations: Array | None, before: str, after: str
) -> MoreItems:
    more = allocate_items(parts, wanted, correlations)
    if more is None:
        room = formatting.count(ceil(sum(part.room for part in parts)))
        return MoreItems(None, f"the {room} items that the tasks still hold would not settle it")
    n = max(1, sum(more))
    needed = sorted((-m, part.name) for m, part in zip(more, parts, strict=True) if m)
    by_task = tuple(f"{name} {formatting.count(-m)}" for m, name in needed)
    rest = f" and {formatting.pluralize(len(by_task) - _NAMED, 'task')} more" if len(by_task) > _NAMED else ""
    named = f" ({', '.join(by_task[:_NAMED])}{rest})" if len(parts) > 1 and by_task else ""
    return MoreItems(n, f"{before}some {formatting.count(n)} more items {after}{named}", by_task)


def allocate_items(
    parts: Sequence[DeltaPart], wanted: float, correlations: Array | None = None
) -> tuple[int, ...] | None:
    """Give each part the fewest more items with which the standard error of all falls to the one wanted.

    n_i + m_i ∝ se_i √n_i, at least n_i and at most what the task holds. None where all that the tasks hold
    would not do.

    Source: Neyman 1934; Cochran 1977, section 5.5.
    """

    def grow(scale: float) -> list[float]:
        return [min(max(part.n, scale * part.se * sqrt(part.n)), part.n + part.room) for part in parts]

    def se(sizes: Sequence[float]) -> float:
        widths = [part.se * sqrt(part.n / size) for part, size in zip(parts, sizes, strict=True)]
        return stats.quadrature(widths, correlations)

    now = se([part.n for part in parts])
    if se([part.n + part.room for part in parts]) > wanted:
        return None
    if now <= wanted:
        return (0,) * len(parts)
    evenly = (now / wanted) ** 2  # by which all parts would have to grow alike
    low, high = 0.0, evenly * max(sqrt(part.n) / part.se for part in parts if part.se)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if se(grow(middle)) > wanted else (low, middle)
    return tuple(ceil(size - part.n - _ROUNDING * size) for part, size in zip(parts, grow(high), strict=True))


def find_settling_growth(se: float, gap: float, alpha: float) -> float:
    """Return by how much the items must grow until the gap is (z_{1−α} + z_power) standard errors."""
    return _growth(se, gap / _reach(alpha))


def _growth(se: float, wanted: float) -> float:
    times = se / wanted if wanted > 0 else inf
    return times * times  # ** raises where the square is beyond what a float holds


def _reach(alpha: float) -> float:
    return stats.z_quantile(1 - alpha) + stats.z_quantile(POWER)


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
