"""Cells of printed predictions: chances to miss a loss, and items that would settle a verdict."""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from harness.analysis.significance import power_warnings
from harness.analysis.verdict import Verdict
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
    world: str, tasks: Sequence[SuiteTask], lose: Lose, kind: str, delta: float, **options: Any
) -> Cell:
    """Compare the printed chance of a wrong verdict with how often that verdict is given at the true loss.

    `kind` is `macro` (every task has lost this much), `each` (one task, any of them) or `equal`.
    """

    def simulate(rng: np.random.Generator) -> Iterator[dict[str, float]]:
        suite = Suite(tasks)
        while True:
            verdict = suite.verdict(rng, _laws(rng, suite, lose, kind, delta))
            if (printed := chance(verdict, kind, delta)) is not None:
                yield {"printed": printed - _missed(verdict, kind)}

    says = {
        "macro": f"chance to miss that all tasks lost {-100 * delta:g} points",
        "each": f"chance to miss that one task lost {-100 * delta:g} points",
        "equal": "chance that an equal model does not pass",
    }[kind]
    claims = {"printed": claim_printed(f"{says}, printed less done")}
    return Cell("operating characteristic", f"{world}, {says}", simulate, claims, **options)


def _laws(rng: np.random.Generator, suite: Suite, lose: Lose, kind: str, delta: float) -> list[Law]:
    if kind != "each":
        return [lose(delta)] * len(suite.tasks)
    losing = rng.integers(len(suite.tasks))
    return [lose(delta if i == losing else 0.0) for i in range(len(suite.tasks))]


def chance(verdict: Verdict, kind: str, delta: float) -> float | None:
    """Find a printed chance in a verdict."""
    missed = (m for m in verdict.missed if m.what.startswith(kind) and abs(m.delta - delta) < 1e-9)
    return next((m.probability for m in missed), None)


def _missed(verdict: Verdict, kind: str) -> bool:
    if kind == "equal":
        return verdict.outcome != "pass"
    return outcome(verdict, kind) == "pass"


def make_items_cell(world: str, tasks: Sequence[SuiteTask], lose: Lose, factor: int, **options: Any) -> Cell:
    """Add as many items as an open verdict asks for, and measure how often they settle it.

    They are drawn at the true delta that the advice assumes: the observed one if that is a loss, else 0.
    Draws that ask for more than `factor` times a task's items are left out.
    """

    def simulate(rng: np.random.Generator) -> Iterator[dict[str, float]]:
        suite, sizes = Suite(tasks), [len(t.groups.codes) for t in tasks]
        room = [n + factor * sum(sizes) // len(sizes) for n in sizes]
        large = Suite([t._replace(groups=make_single_items(n)) for t, n in zip(tasks, room, strict=True)])
        while True:
            verdict = suite.verdict(rng)
            grown = more_of(verdict, room, sizes)
            if grown is None:
                yield {}
                continue
            again = large.cut(grown).verdict(rng, [lose(find_assumed_delta(verdict))] * len(tasks))
            yield {"settled": outcome(again, "macro") != "inconclusive"}

    claims = {"settled": Claim("so many more items settle the verdict (80 %)", 0.74, 0.93)}
    return Cell("items needed", world, simulate, claims, **options)


def more_of(verdict: Verdict, room: Sequence[int], sizes: Sequence[int]) -> list[int] | None:
    """Return each task's number of items according to the macro's advice; None if it exceeds the room."""
    rule = next(r for r in verdict.rules if r.name == "macro")
    lines = rule.numbers.get("items_needed_by_task", [])
    if "items_needed" not in rule.numbers or not isinstance(lines, list):
        return None
    split = dict(line.rsplit(" ", 1) for line in lines)
    more = [int(split.get(f"t{i}", "0").replace(",", "")) for i in range(len(sizes))]
    grown = [n + extra for n, extra in zip(sizes, more, strict=True)]
    return grown if all(n <= limit for n, limit in zip(grown, room, strict=True)) else None


def find_assumed_delta(verdict: Verdict) -> float:
    """Return the true delta that the advice assumes."""
    rule = next(r for r in verdict.rules if r.name == "macro")
    assert verdict.macro is not None
    return 0.0 if "nothing is lost" in rule.sentence else verdict.macro.score


def make_warning_cell(n: int, disagreement: float = 0.15, n_tasks: int = 4) -> Cell:
    """Compare the share of equal models that pass the macro, as stated before a run, with the true share."""
    tasks = repeat_task(n_tasks, make_binary_law(0.0, disagreement), make_single_items(n))
    plain: dict[str, Any] = {"kind": "choice", "metrics": ("accuracy",), "data": {}}
    spec = SuiteSpec(
        name="s", role="capability", tasks=tuple(Task(name=f"t{i}", **plain) for i in range(n_tasks))
    )
    warnings = power_warnings([spec], {f"t{i}": n for i in range(n_tasks)}, POLICY)
    (share,) = re.findall(r"lost nothing passes only (\d+) %", warnings[0])

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
    make_chance_cell("4 tasks of 100 binary items in 20 clusters of 5",
                     repeat_task(4, make_binary_law(), make_equal_clusters(20, 5)), lose_binary, "equal", 0.0),
    make_chance_cell("4 tasks of 100 graded items", repeat_task(4, make_graded_law(), make_single_items(100)),
                     make_graded_law, "macro", -0.01),
    make_chance_cell("4 tasks of 100 graded items", repeat_task(4, make_graded_law(), make_single_items(100)),
                     make_graded_law, "each", -0.05),
    make_warning_cell(100),
    make_items_cell("4 tasks of 150 binary items, equal model",
                    repeat_task(4, make_binary_law(), make_single_items(150)), lose_binary, 8),
    make_items_cell("3 tasks of 100 graded items, equal model",
                    repeat_task(3, make_graded_law(), make_single_items(100)), make_graded_law, 8),
    make_items_cell("1 task of 400 and 4 of 80 binary items, equal model",
                    [SuiteTask(make_binary_law(), make_single_items(400)),
                     *repeat_task(4, make_binary_law(), make_single_items(80))], lose_binary, 6),
)  # fmt: skip
