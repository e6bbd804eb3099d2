"""Cells of what is printed about the future: chances to miss a loss, and items that would settle a verdict."""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from harness.analysis.significance import power_warnings
from harness.analysis.verdict import MissRate, Verdict
from harness.spec import Suite as SuiteSpec
from harness.spec import Task
from tests.calibration.cell import Cell, Claim, claim_printed
from tests.calibration.draws import (
    Law,
    make_binary_law,
    make_equal_clusters,
    make_graded_law,
    make_single_items,
)
from tests.calibration.gates import POLICY, Suite, SuiteTask, outcome, repeat_task

Lose = Callable[[float], Law]


def make_chance_cell(
    world: str, tasks: Sequence[SuiteTask], lose: Lose, what: str, delta: float, **options: Any
) -> Cell:
    """Hold the printed chance of a wrong verdict to how often that verdict is given at the true loss.

    `what` is `macro` (every task has lost so much), `each` (one task, any of them) or `equal`.
    """

    def simulate(rng: np.random.Generator) -> Iterator[dict[str, float]]:
        suite = Suite(tasks)
        while True:
            found = suite.verdict(rng, _laws(rng, suite, lose, what, delta))
            if (said := chance(found, what, delta)) is not None:
                yield {"printed": said - _missed(found, what)}

    says = {
        "macro": f"chance to miss that all tasks lost {-100 * delta:g} points",
        "each": f"chance to miss that one task lost {-100 * delta:g} points",
        "equal": "chance that an equal model does not pass",
    }[what]
    claims = {"printed": claim_printed(f"{says}, printed less done")}
    return Cell("operating characteristic", f"{world}, {says}", simulate, claims, **options)


def _laws(rng: np.random.Generator, suite: Suite, lose: Lose, what: str, delta: float) -> list[Law]:
    if what != "each":
        return [lose(delta)] * len(suite.tasks)
    one = rng.integers(len(suite.tasks))
    return [lose(delta if i == one else 0.0) for i in range(len(suite.tasks))]


def chance(found: Verdict, what: str, delta: float) -> float | None:
    """Find a printed chance among those of a verdict."""
    return next((m.probability for m in found.missed if _is(m, what, delta)), None)


def _is(m: MissRate, what: str, delta: float) -> bool:
    return m.what.startswith(what) and abs(m.delta - delta) < 1e-9


def _missed(found: Verdict, what: str) -> bool:
    if what == "equal":
        return found.outcome != "pass"
    return outcome(found, what) == "pass"


def make_items_cell(world: str, tasks: Sequence[SuiteTask], lose: Lose, most: int, **options: Any) -> Cell:
    """Ask as many more items as an open verdict wants, and see how often they settle it.

    They are asked at the true delta that the advice assumes: the one found where that is a loss, else 0.
    Draws that want more than `most` times a task's items for one are left out.
    """

    def simulate(rng: np.random.Generator) -> Iterator[dict[str, float]]:
        suite, sizes = Suite(tasks), [len(t.groups.codes) for t in tasks]
        room = [n + most * sum(sizes) // len(sizes) for n in sizes]
        large = Suite([t._replace(groups=make_single_items(n)) for t, n in zip(tasks, room, strict=True)])
        while True:
            found = suite.verdict(rng)
            grown = more_of(found, room, sizes)
            if grown is None:
                yield {}
                continue
            again = large.cut(grown).verdict(rng, [lose(find_assumed_delta(found))] * len(tasks))
            yield {"settled": outcome(again, "macro") != "inconclusive"}

    claims = {"settled": Claim("so many more items settle the verdict (80 %)", 0.74, 0.93)}
    return Cell("items needed", world, simulate, claims, **options)


def more_of(found: Verdict, room: Sequence[int], sizes: Sequence[int]) -> list[int] | None:
    """Return how many items each task has once it was given what the macro's advice says; None beyond the room."""
    rule = next(r for r in found.rules if r.name == "macro")
    named = rule.numbers.get("items_needed_by_task", [])
    if "items_needed" not in rule.numbers or not isinstance(named, list):
        return None
    split = dict(line.rsplit(" ", 1) for line in named)
    more = [int(split.get(f"t{i}", "0").replace(",", "")) for i in range(len(sizes))]
    grown = [n + extra for n, extra in zip(sizes, more, strict=True)]
    return grown if all(n <= most for n, most in zip(grown, room, strict=True)) else None


def find_assumed_delta(found: Verdict) -> float:
    """Return the true delta under which the advice says that its items would do."""
    rule = next(r for r in found.rules if r.name == "macro")
    assert found.macro is not None
    return 0.0 if "nothing is lost" in rule.sentence else found.macro.score


def make_warning_cell(n: int, disagreement: float = 0.15, n_tasks: int = 4) -> Cell:
    """Hold what is said before a run, how often an equal model would pass the macro, to how often it does."""
    tasks = repeat_task(n_tasks, make_binary_law(0.0, disagreement), make_single_items(n))
    plain: dict[str, Any] = {"kind": "choice", "metrics": ("accuracy",), "data": {}}
    spec = SuiteSpec(
        name="s", role="capability", tasks=tuple(Task(name=f"t{i}", **plain) for i in range(n_tasks))
    )
    said = power_warnings([spec], {f"t{i}": n for i in range(n_tasks)}, POLICY)
    (share,) = re.findall(r"lost nothing passes only (\d+) %", said[0])

    def simulate(rng: np.random.Generator) -> Iterator[dict[str, float]]:
        suite = Suite(tasks)
        while True:
            yield {"printed": int(share) / 100 - (outcome(suite.verdict(rng), "macro") == "pass")}

    claims = {
        "printed": claim_printed("before a run: share of equal models that pass the macro, printed less done")
    }
    return Cell("operating characteristic", f"{n_tasks} tasks of {n} items, 15 % differ", simulate, claims)


def lose_binary(delta: float) -> Law:
    """Lose points of binary items, a fifth of which differ."""
    return make_binary_law(delta, 0.2)


_FIVE, _FOUR = (
    repeat_task(5, make_binary_law(), make_single_items(100)),
    repeat_task(4, make_binary_law(), make_single_items(50)),
)
_UNEVEN = [
    SuiteTask(make_binary_law(), make_single_items(600)),
    *repeat_task(3, make_binary_law(), make_single_items(80)),
]

CELLS = (
    make_chance_cell("5 tasks of 100 binary items", _FIVE, lose_binary, "macro", -0.01),
    make_chance_cell("5 tasks of 100 binary items", _FIVE, lose_binary, "macro", -0.02),
    make_chance_cell("5 tasks of 100 binary items", _FIVE, lose_binary, "each", -0.05, in_tests=300),
    make_chance_cell("5 tasks of 100 binary items", _FIVE, lose_binary, "each", -0.10),
    make_chance_cell("5 tasks of 100 binary items", _FIVE, lose_binary, "equal", 0.0, in_tests=300),
    make_chance_cell("4 tasks of 50 binary items", _FOUR, lose_binary, "each", -0.10),
    make_chance_cell("4 tasks of 50 binary items", _FOUR, lose_binary, "equal", 0.0),
    make_chance_cell("1 task of 600 and 3 of 80 binary items", _UNEVEN, lose_binary, "macro", -0.02),
    make_chance_cell("1 task of 600 and 3 of 80 binary items", _UNEVEN, lose_binary, "each", -0.10),
    make_chance_cell(
        "4 tasks of 100 binary items in 20 clusters of 5",
        repeat_task(4, make_binary_law(), make_equal_clusters(20, 5)),
        lose_binary,
        "equal",
        0.0,
    ),
    make_chance_cell(
        "4 tasks of 100 graded items",
        repeat_task(4, make_graded_law(), make_single_items(100)),
        make_graded_law,
        "macro",
        -0.01,
    ),
    make_chance_cell(
        "4 tasks of 100 graded items",
        repeat_task(4, make_graded_law(), make_single_items(100)),
        make_graded_law,
        "each",
        -0.05,
    ),
    make_warning_cell(100),
    make_items_cell(
        "4 tasks of 150 binary items, equal model",
        repeat_task(4, make_binary_law(), make_single_items(150)),
        lose_binary,
        8,
    ),
    make_items_cell(
        "3 tasks of 100 graded items, equal model",
        repeat_task(3, make_graded_law(), make_single_items(100)),
        make_graded_law,
        8,
    ),
    make_items_cell(
        "1 task of 400 and 4 of 80 binary items, equal model",
        [
            SuiteTask(make_binary_law(), make_single_items(400)),
            *repeat_task(4, make_binary_law(), make_single_items(80)),
        ],
        lose_binary,
        6,
    ),
)
