"""Cells of what is looked at more than once: a rescue's confirmation, and the interim analyses of fewer items."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from harness.evaluation import sampling
from harness.experiment.fewer_items import _is_settled
from harness.gating import Measurement, cut_tasks, judge, measured_half
from harness.gating.halves import HALVES
from harness.records import SampleResult
from harness.spec import GatePolicy, Task
from tests.calibration.cell import Cell, Claim, at_least, at_most
from tests.calibration.draws import (
    EXACT,
    Groups,
    Law,
    binary,
    draw,
    equal,
    graded,
    lognormal,
    make_rows,
    pair,
    single,
    skewed,
)
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

    def __init__(self, name: str, n: int, delta: float) -> None:
        self.name, self.metric, self.delta = name, EXACT, delta
        self.rows, self.n = make_rows(EXACT, single(n), name), n

    def draw(self, rng: np.random.Generator) -> tuple[list[SampleResult], np.ndarray]:
        """Draw the base's rows with their margins, and the candidate's scores (n,)."""
        far, right = rng.exponential(1.0, self.n), rng.random(self.n) < 0.6
        closeness = 0.35 * np.exp(-far)  # 17.5 % on average
        flips = rng.random(self.n) < closeness * np.where(right, 1 - self.delta / 0.175 / 0.6, 1.5)
        margins = np.where(right, far, -far)
        base = [
            replace(row, margin=m, parts={"exact_match": (float(r),)})
            for row, m, r in zip(self.rows, margins.tolist(), right, strict=True)
        ]
        return base, np.where(flips, ~right, right).astype(float)


class PlainTask:
    """A task without margins, as of generated answers: scores after a law, in clusters."""

    def __init__(self, name: str, law: Law, groups: Groups) -> None:
        self.name, self.metric = name, law.metric
        self.law, self.groups, self.pair = law, groups, pair(law, groups, name)

    def draw(self, rng: np.random.Generator) -> tuple[list[SampleResult], np.ndarray]:
        """Draw the base's rows, and the candidate's scores (n,)."""
        old, new = draw(self.law, self.groups, rng)
        return self.pair.score(old, new).base, new


Drawn = LargeTask | PlainTask


def looks_cell(
    world: str, tasks: Sequence[Drawn], claims: Mapping[str, Claim], policy: GatePolicy = WIDE, **options: Any
) -> Cell:
    """Judge at every look until one settles the verdict, as `harness compare --sequential` does.

    Claims are of outcomes of the macro, and `first fail` of one at the first look.
    """

    def simulate(rng: np.random.Generator) -> Iterator[dict[str, float]]:
        while True:
            said, look = settled(tasks, policy, rng)
            yield {name: said == name or (said, look, name) == ("fail", 0, "first fail") for name in claims}

    return Cell("fewer items", world, simulate, claims, **options)


def settled(tasks: Sequence[Drawn], policy: GatePolicy, rng: np.random.Generator) -> tuple[str, int]:
    """Draw tasks and return what the macro says at the look that settles the verdict, and which that is."""
    drawn = {t.name: t.draw(rng) for t in tasks}
    pools = {t.name: pool for t in tasks if (pool := sampling.pool_of(drawn[t.name][0], t.metric))}
    plan = sampling.plan(pools, [], float(policy.macro), policy.alpha)
    orders = {
        name: sampling.in_order(pool, plan.drawn[name], int(rng.integers(2**31)))
        for name, pool in pools.items()
    }
    for look, alpha in enumerate(plan.alphas):
        measured = []
        for t in tasks:
            weights = sampling.weights(pools[t.name], plan.drawn[t.name][look], orders[t.name])
            measured.append(_asked(t, *drawn[t.name], weights))
        at_look = policy.model_copy(update={"alpha": alpha})
        found = judge(measured, at_look, target=None, identical=False).verdict
        if _is_settled(found):
            break
    return outcome(found, "macro"), look


def _asked(t: Drawn, base, scores: np.ndarray, weights) -> Measurement:
    chosen = [(row, score) for row, score in zip(base, scores, strict=True) if row.example_id in weights]
    old = [replace(row, weight=weights[row.example_id]) for row, _ in chosen]
    new = [
        replace(row, weight=weights[row.example_id], parts={t.metric.name: (float(score),)})
        for row, score in chosen
    ]
    task = Task(name=t.name, data={}, kind="choice", metrics=(t.metric.name,))
    return Measurement(task, "capability", "", {t.metric.name: t.metric}, old, new)


def plain(n_tasks: int, law: Law, groups: Groups) -> list[PlainTask]:
    """Return so many tasks of one kind."""
    return [PlainTask(f"t{i}", law, groups) for i in range(n_tasks)]


def at_margin(most: float = 0.055) -> dict[str, Claim]:
    """Claim that a loss of the margin is rarely passed, and rarely called more than it is."""
    return {
        "pass": at_most(most, "macro passes a true loss of its margin at any look (α = 5 %)"),
        "fail": at_most(most, "macro fails a true loss of its margin, and no more, at any look (α = 5 %)"),
    }


FELL = -0.20
COLLAPSED = {"first fail": at_least(0.9, "a loss of 20 points is found at the first look")}

CELLS = (
    rescue_cell(binary(LOST, 0.1), single(150)),
    rescue_cell(binary(LOST), equal(30, 5)),
    rescue_cell(graded(LOST), single(100), in_tests=150),
    looks_cell(
        "1 task of 640 binary items with margins, lost its margin of 5 points",
        [LargeTask("t0", 640, -WIDE.macro)],
        at_margin(),
        in_tests=60,
    ),
    looks_cell(
        "1 task of 1,600 binary items without margins, lost its margin of 5 points",
        plain(1, binary(-WIDE.macro), single(1600)),
        at_margin(),
    ),
    looks_cell(
        "4 tasks of 150 binary items, all lost their margin of 5 points",
        plain(4, binary(-WIDE.macro), single(150)),
        at_margin(),
        in_tests=60,
    ),
    looks_cell(
        "4 tasks of 300 binary items in 60 clusters of 5, all lost their margin of 5 points",
        plain(4, binary(-WIDE.macro), equal(60, 5)),
        at_margin(0.065),
    ),
    looks_cell(
        "3 tasks of binary items in clusters of log-normal sizes, all lost their margin of 5 points",
        plain(3, binary(-WIDE.macro), lognormal()),
        at_margin(0.075),
    ),
    looks_cell(
        "4 tasks of 150 graded items, all lost their margin of 5 points",
        plain(4, graded(-WIDE.macro), single(150)),
        at_margin(),
    ),
    looks_cell(
        "4 tasks of 150 graded items of which few fall far, all lost their margin of 5 points",
        plain(4, skewed(-WIDE.macro), single(150)),
        at_margin(0.075),
    ),
    looks_cell(
        "4 tasks of 300 binary items in 60 clusters of 5 and 4 of 150, equal model",
        [*plain(4, binary(), equal(60, 5)), *(PlainTask(f"g{i}", binary(), single(150)) for i in range(4))],
        {"fail": at_most(0.05, "macro fails an equal model at any look (α = 5 %)")},
        POLICY,
    ),
    looks_cell(
        "4 tasks of 300 binary items in 60 clusters of 5 and 4 of 150, all lost 20 points",
        [
            *plain(4, binary(FELL, 0.3), equal(60, 5)),
            *(PlainTask(f"g{i}", binary(FELL, 0.3), single(150)) for i in range(4)),
        ],
        COLLAPSED,
        POLICY,
        in_tests=30,
    ),
)
