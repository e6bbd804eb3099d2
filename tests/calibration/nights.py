"""Cells of the nightly test: false alarms over a year, and how soon a loss is found.

The items of a pool are asked in turn, repeatedly; each night other weights of a recipe answer, or the same
ones for a week, or pinned ones. The reference and each training have a seed effect of a point on all items.
"""

from collections.abc import Callable, Iterator
from datetime import date, timedelta
from typing import Any, NamedTuple

import numpy as np

from harness.lifecycle.nightly_alarm import build_report
from harness.lifecycle.nightly_state import Night, NightCandidate, SeriesNight, State
from harness.spec import NightlyPolicy
from tests.calibration.cell import Cell, claim_at_least, claim_at_most
from tests.calibration.draws import Scores

POLICY = NightlyPolicy()
ITEMS = POLICY.items
SERIES = ("target", "capability")
SEED_SD, RIGHT = 0.01, 0.7
FIRST = date(2026, 1, 1)
Answer = Callable[[np.random.Generator, Scores, float], Scores]


class Kind(NamedTuple):
    """How items are scored: expected scores of items, and an answer to each with a shift in points."""

    name: str
    expected: Callable[[np.random.Generator, int], Scores]
    answer: Answer


def _draw_binary(rng: np.random.Generator, expected: Scores, more: float) -> Scores:
    right, moved = rng.random(len(expected)) < expected, rng.random(len(expected))
    rises, falls = moved < more / (1 - RIGHT), moved < -more / RIGHT
    return ((right & ~falls) | rises).astype(float)


def _draw_graded(rng: np.random.Generator, expected: Scores, more: float) -> Scores:
    return np.clip(expected + more + rng.normal(0, 0.15, len(expected)), 0, 1)


def _draw_skewed(rng: np.random.Generator, expected: Scores, more: float) -> Scores:
    falls = rng.random(len(expected)) < (0.05 - more) / 0.5
    return expected + np.where(falls, -0.45, 0.05) * rng.uniform(0.5, 1.5, len(expected))


# Two answers to an item differ in 5 % of cases, in 10 % after losing 5 points: most items are easy or hard.
BINARY = Kind("binary", lambda rng, n: rng.beta(0.135 * RIGHT, 0.135 * (1 - RIGHT), n), _draw_binary)
GRADED = Kind("graded", lambda rng, n: rng.uniform(0.5, 0.6, n), _draw_graded)
SKEWED = Kind("graded, few fall far", lambda rng, n: rng.uniform(0.7, 0.9, n), _draw_skewed)


class Making(NamedTuple):
    """Nights between trainings (0: never, pinned weights answer), and the reference's number of trainings."""

    every: int
    n_references: int = 1

    @property
    def name(self) -> str:
        """Description on the page."""
        if not self.every:
            return "weights never change"
        often = "every night" if self.every == 1 else f"every {self.every} nights"
        reference = f"the mean of {self.n_references} makings" if self.n_references > 1 else "one making"
        return f"weights made anew {often}, against {reference}"


class Pool(NamedTuple):
    """The items of one series: their expected scores, and their scores in the reference."""

    expected: Scores
    reference: Scores


def make_pool(kind: Kind, making: Making, size: int, rng: np.random.Generator) -> Pool:
    """Draw the items of a series and let the reference answer them."""
    expected = kind.expected(rng, size)
    if kind is SKEWED:  # the skew is that of the change, from the reference
        return Pool(expected, expected)
    answers = [kind.answer(rng, expected, _seed_effect(making, rng)) for _ in range(making.n_references)]
    return Pool(expected, np.mean(answers, axis=0))


def _seed_effect(making: Making, rng: np.random.Generator) -> float:
    return float(rng.normal(0, SEED_SD)) if making.every else 0.0


def nights(
    kind: Kind, making: Making, size: int, n: int, rng: np.random.Generator, lost: float = 0.0
) -> list[Night]:
    """Draw n nights of a candidate with two series; the target loses `lost` points."""
    pools = {name: make_pool(kind, making, size, rng) for name in SERIES}
    drawn_nights, count, effect = [], 0, 0.0
    for k in range(n):
        if making.every and k % making.every == 0:
            count, effect = count + 1, _seed_effect(making, rng)
        items = np.arange(k * ITEMS, (k + 1) * ITEMS) % size
        series = {
            name: _series(kind, pool, items, effect - lost * (name == "target"), rng)
            for name, pool in pools.items()
        }
        fields: dict[str, Any] = {"making": f"w{count}" if count else "", "n_references": making.n_references}
        tested = f"w{count}" if count else f"pass {k * ITEMS // size}"
        candidate = NightCandidate("lora", "reference", tested, (), series, **fields)
        day = (FIRST + timedelta(days=k)).isoformat()
        drawn_nights.append(Night(day, "", "", "", "bf16", "", {}, (candidate,), {}, {}))
    return drawn_nights


def _series(kind: Kind, pool: Pool, items: np.ndarray, more: float, rng: np.random.Generator) -> SeriesNight:
    answers = kind.answer(rng, pool.expected[items], more)
    changes = answers - pool.reference[items]
    return SeriesNight({f"c{i}": d for i, d in zip(items.tolist(), changes.tolist(), strict=True)}, {})


def is_alarm(drawn_nights: list[Night]) -> bool:
    """Tell whether the report of the last night calls a regression, which stays once it was shown."""
    return build_report("world", POLICY, drawn_nights, State()).verdict == "regression"


def make_quiet_cell(kind: Kind, making: Making, size: int, n: int, **options: Any) -> Cell:
    """Measure how often nights of a recipe without loss raise an alarm."""

    def simulate(rng: np.random.Generator) -> Iterator[dict[str, float]]:
        while True:
            yield {"alarm": is_alarm(nights(kind, making, size, n, rng))}

    world = f"{kind.name}, {n} nights of {ITEMS} items from a pool of {size:,}, {making.name}"
    return Cell("nightly", world, simulate, {"alarm": claim_at_most(0.05, "a false alarm, ever")}, **options)


def make_loss_cell(
    kind: Kind, making: Making, by: int, size: int = 1200, withdrawn: bool = False, **options: Any
) -> Cell:
    """Measure how often a loss of 5 points on the target is found by a night."""

    def simulate(rng: np.random.Generator) -> Iterator[dict[str, float]]:
        while True:
            yield {"found": is_alarm(nights(kind, making, size, by, rng, lost=0.05))}

    says = f"a loss of 5 points is found by night {by} (median)"
    claims = {"found": claim_at_least(0.5, says)._replace(withdrawn=withdrawn)}
    world = f"{kind.name}, {by} nights of {ITEMS} items, {making.name}"
    return Cell("nightly", world, simulate, claims, **options)


PINNED, NIGHTLY, WEEKLY = Making(0), Making(1, 3), Making(7, 3)

CELLS = (
    make_quiet_cell(BINARY, NIGHTLY, 900, 365),
    make_quiet_cell(BINARY, WEEKLY, 900, 365),
    make_quiet_cell(BINARY, Making(1), 900, 60, in_tests=60),
    make_quiet_cell(GRADED, WEEKLY, 900, 365),
    make_quiet_cell(GRADED, NIGHTLY, 900, 365),
    make_quiet_cell(SKEWED, PINNED, 1200, 60, in_tests=100),
    make_loss_cell(BINARY, PINNED, 7, in_tests=150),
    make_loss_cell(BINARY, NIGHTLY, 7),
    make_loss_cell(BINARY, WEEKLY, 7, withdrawn=True),
    make_loss_cell(BINARY, WEEKLY, 8),
    make_loss_cell(GRADED, PINNED, 10),
    make_loss_cell(GRADED, NIGHTLY, 10),
    make_loss_cell(GRADED, WEEKLY, 10),
)
