"""Cells of what is looked at more than once: a rescue's confirmation, and the interim analyses of fewer items."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from harness.evaluation import sampling
from harness.experiment.fewer_items import _is_settled
from harness.gating import Measurement, Verdict, cut_tasks, judge, measured_half
from harness.gating.halves import HALVES
from harness.records import SampleResult
from harness.spec import GatePolicy, Task
from tests.calibration.cell import Cell, at_most
from tests.calibration.draws import EXACT, Groups, Law, binary, equal, graded, make_rows, single
from tests.calibration.gates import LOST, POLICY, Suite, many, outcome


def rescue_cell(law: Law, groups: Groups, n_trials: int = 3, **options: Any) -> Cell:
    """Choose the trial that keeps most on the search half, and judge it once on the other."""

    def simulate(rng: np.random.Generator) -> Iterator[dict[str, float]]:
        suite = Suite(many(2, law, groups))
        cut = cut_tasks(suite.measured, 0)
        parts = [measured_half(suite.measured, cut, half) for half in HALVES]
        while True:
            drawn = []
            for _ in range(n_trials):
                suite.score(rng)
                search, confirm = (judge(p, POLICY, target=None, identical=False).verdict for p in parts)
                drawn.append((search.macro.score if search.macro else -1.0, outcome(confirm, "macro")))
            yield {"confirmed": max(drawn)[1] == "pass"}

    claims = {"confirmed": at_most(0.06, "the best of 3 trials is confirmed though it lost the margin (5 %)")}
    world = f"2 tasks of {groups.name}, {law.name}, every trial truly lost 2 points"
    return Cell("rescue", world, simulate, claims, **options)


WIDE = GatePolicy(macro=0.05)


class LargeTask:
    """A task whose base's margins say how probably each item flips; the base is right on 60 %."""

    def __init__(self, name: str, n: int) -> None:
        self.task = Task(name=name, data={}, kind="choice", metrics=("exact_match",))
        self.rows, self.n = make_rows(EXACT, single(n), name), n

    def draw(self, rng: np.random.Generator, delta: float) -> tuple[list[SampleResult], np.ndarray]:
        """Draw the base's rows with their margins, and the candidate's scores (n,)."""
        far, right = rng.exponential(1.0, self.n), rng.random(self.n) < 0.6
        closeness = 0.35 * np.exp(-far)  # 17.5 % on average
        flips = rng.random(self.n) < closeness * np.where(right, 1 - delta / 0.175 / 0.6, 1.5)
        margins = np.where(right, far, -far)
        base = [
            replace(row, margin=m, parts={"exact_match": (float(r),)})
            for row, m, r in zip(self.rows, margins.tolist(), right, strict=True)
        ]
        return base, np.where(flips, ~right, right).astype(float)


def looks_cell(
    world: str, sizes: Sequence[int], delta: float, wanted: str, says: str, **options: Any
) -> Cell:
    """Judge at every look until one settles the verdict, as `harness compare --sequential` does."""

    def simulate(rng: np.random.Generator) -> Iterator[dict[str, float]]:
        tasks = [LargeTask(f"t{i}", n) for i, n in enumerate(sizes)]
        while True:
            yield {"macro": outcome(settled(tasks, delta, rng), "macro") == wanted}

    return Cell("fewer items", world, simulate, {"macro": at_most(0.055, says)}, **options)


def settled(tasks: Sequence[LargeTask], delta: float, rng: np.random.Generator) -> Verdict:
    """Draw tasks and return the verdict of the look that settles it, or of the last."""
    drawn = {t.task.name: t.draw(rng, delta) for t in tasks}
    pools = {name: pool for name, (base, _) in drawn.items() if (pool := sampling.pool_of(base, EXACT))}
    plan = sampling.plan(pools, [], float(WIDE.macro), WIDE.alpha)
    orders = {
        name: sampling.in_order(pool, plan.drawn[name], int(rng.integers(2**31)))
        for name, pool in pools.items()
    }
    for look, alpha in enumerate(plan.alphas):
        measured = []
        for t in tasks:
            name = t.task.name
            weights = sampling.weights(pools[name], plan.drawn[name][look], orders[name])
            measured.append(_asked(t.task, *drawn[name], weights))
        policy = WIDE.model_copy(update={"alpha": alpha})
        found = judge(measured, policy, target=None, identical=False).verdict
        if _is_settled(found):
            break
    return found


def _asked(task: Task, base, scores: np.ndarray, weights) -> Measurement:
    chosen = [(row, score) for row, score in zip(base, scores, strict=True) if row.example_id in weights]
    old = [replace(row, weight=weights[row.example_id]) for row, _ in chosen]
    new = [
        replace(row, weight=weights[row.example_id], parts={"exact_match": (float(score),)})
        for row, score in chosen
    ]
    return Measurement(task, "capability", "", {"exact_match": EXACT}, old, new)


CELLS = (
    rescue_cell(binary(LOST, 0.1), single(150)),
    rescue_cell(binary(LOST), equal(30, 5)),
    rescue_cell(graded(LOST), single(100), in_tests=150),
    looks_cell(
        "1 task of 640 binary items, lost its margin of 5 points",
        (640,),
        -WIDE.macro,
        "pass",
        "macro passes a true loss of its margin at any look (α = 5 %)",
        in_tests=60,
    ),
)
