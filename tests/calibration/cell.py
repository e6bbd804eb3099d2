"""A cell of the design: one world, its simulation, and the claims to verify.

Invariant: a figure is the mean over draws of what the project's own functions printed; a claim holds if the
figure is within three Monte Carlo standard errors of the allowed range.
"""

from collections.abc import Callable, Iterator, Mapping
from math import sqrt
from typing import NamedTuple

import numpy as np

DRAWS = 2_000
ERRORS = 3.0  # Monte Carlo standard errors by which a figure may miss a claim
Outcomes = Mapping[str, float]
Simulation = Callable[[np.random.Generator], Iterator[Outcomes]]


class Claim(NamedTuple):
    """A statement about a figure, as printed on the page, and the range that makes it true.

    A `gap` is the printed value minus the observed one, in points; other figures are shares. A `withdrawn`
    claim is simulated for information only.
    """

    says: str
    low: float = 0.0
    high: float = 1.0
    gap: bool = False
    withdrawn: bool = False


class Cell(NamedTuple):
    """One world of one estimator: `simulate` yields outcomes of draws by the name of the claim, endlessly.

    The slow tests simulate `in_tests` draws of it, possibly none.
    """

    estimator: str
    world: str
    simulate: Simulation
    claims: Mapping[str, Claim]
    in_tests: int = 0

    @property
    def name(self) -> str:
        """Name that distinguishes it from every other cell."""
        return f"{self.estimator}: {self.world}"


class Figure(NamedTuple):
    """Simulated value for one claim, with its Monte Carlo standard error over n draws."""

    mean: float
    error: float
    n: int


def claim_at_most(rate: float, says: str) -> Claim:
    """Claim that something happens at most this often."""
    return Claim(says, high=rate)


def claim_at_least(rate: float, says: str) -> Claim:
    """Claim that something happens at least this often."""
    return Claim(says, low=rate)


def claim_printed(says: str, within: float = 0.05) -> Claim:
    """Claim that a printed chance equals on average the observed one, within some points."""
    return Claim(says, -within, within, gap=True)


def run(cell: Cell, n_draws: int = DRAWS, seed: int = 0) -> dict[str, Figure]:
    """Simulate a cell."""
    return {name: figure(values) for name, values in outcomes(cell, n_draws, seed).items()}


def outcomes(cell: Cell, n_draws: int, seed: int = 0) -> dict[str, list[float]]:
    """Draw outcomes of each claim, except those that a draw omits. More draws begin with the same ones."""
    rng = np.random.default_rng([seed, *cell.name.encode()])
    values: dict[str, list[float]] = {name: [] for name in cell.claims}
    for _, of_draw in zip(range(n_draws), cell.simulate(rng), strict=False):
        for name, value in of_draw.items():
            values[name].append(float(value))
    return values


def figure(values: list[float]) -> Figure:
    """Average outcomes; a share of 0 or 1 gets the error of one more draw."""
    n = len(values)
    if not n:
        return Figure(float("nan"), float("nan"), 0)
    mean, spread = float(np.mean(values)), float(np.std(values))
    return Figure(mean, (spread or sqrt(1 / (n + 2))) / sqrt(n), n)


def holds(claim: Claim, simulated: Figure) -> bool:
    """Tell whether a claim holds; it does not without draws, and a withdrawn one cannot fail."""
    slack = ERRORS * simulated.error
    return claim.withdrawn or (simulated.n > 0 and claim.low - slack <= simulated.mean <= claim.high + slack)
