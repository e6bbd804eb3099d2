"""Next step where a gate needs more items: limits to raise where tasks hold enough, else something else.

Invariant: a limit is advised only where items lie unused, by settings that do it as they are printed.
"""

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence

from harness import formatting
from harness.config import CommandLine
from harness.gating import WIDEST_MARGIN, SpareItems, Verdict, find_settling
from harness.report.document import Command
from harness.spec import Experiment, GatePolicy

_MARGINS = ("macro", "each", "safety", "critical_margin")
_STEP = 1000  # margins are offered in tenths of a point


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
    found = find_settling(verdicts, spare, relative=relative)
    if found.sizes:
        settings = [f"{key}={n}" for one, n in found.sizes.items() for key in one.keys]
        more = formatting.count(sum(n - one.n for one, n in found.sizes.items()))
        named = ", ".join(f"{one.task} {formatting.count(n)}" for one, n in found.sizes.items())
        line = typed.with_settings(settings).command("compare")
        return Command(line, f"judges again, on {more} more items that the tasks hold ({named})")
    lacking = f"the tasks hold {found.held_text}, and some {formatting.count(found.needed)} more are needed"
    if found.margin:
        line = typed.with_settings([found.margin]).command(*judging)
        return Command(line, f"judges by the least margin that these items can show; {lacking} otherwise")
    line = typed.command("compare")
    return Command(line, f"judges again, once suites: lists other tasks, or their files more rows; {lacking}")


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

    fewest = count(WIDEST_MARGIN)
    if getattr(policy, key) is None or len(warn(policy)) <= fewest:
        return None
    steps = range(1, round(WIDEST_MARGIN * _STEP) + 1)
    return steps[bisect_left(steps, True, key=lambda step: count(step / _STEP) <= fewest)] / _STEP
