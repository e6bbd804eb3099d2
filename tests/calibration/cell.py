"""A cell of the design: one world, what is simulated of it, and the claims that it has to bear out.

Invariant: a figure is the mean over draws of what the project's own functions printed; a claim is borne out
where the figure is within three Monte Carlo standard errors of what it allows.
"""

from collections.abc import Callable, Iterator, Mapping
from math import sqrt
from typing import NamedTuple

import numpy as np

DRAWS = 2_000
ERRORS = 3.0  # Monte Carlo standard errors that a claim may be missed by
Outcomes = Mapping[str, float]
Simulation = Callable[[np.random.Generator], Iterator[Outcomes]]


class Claim(NamedTuple):
    """What is said of a figure, as printed on the page, and the range that makes it true.

    A `gap` is what was printed less what was done, in points; everything else is a share. What is `withdrawn`
    is simulated to be seen, and nobody claims it.
    """

    says: str
    low: float = 0.0
    high: float = 1.0
    gap: bool = False
    withdrawn: bool = False


class Cell(NamedTuple):
    """One world of one estimator: `simulate` yields a draw's outcomes by the name of the claim, without end.

    The slow tests simulate `in_tests` draws of it, which may be none.
    """

    estimator: str
    world: str
    simulate: Simulation
    claims: Mapping[str, Claim]
    in_tests: int = 0

    @property
    def name(self) -> str:
        """What tells it from every other cell."""
        return f"{self.estimator}: {self.world}"


class Figure(NamedTuple):
    """What simulation gave for one claim, with its Monte Carlo standard error over so many draws."""

    mean: float
    error: float
    n: int


def claim_at_most(rate: float, says: str) -> Claim:
    """Claim that something happens at most so often."""
    return Claim(says, high=rate)


def claim_at_least(rate: float, says: str) -> Claim:
    """Claim that something happens at least so often."""
    return Claim(says, low=rate)


def claim_printed(says: str, within: float = 0.05) -> Claim:
    """Claim that a printed chance is on average that of what happens, give or take so many points."""
    return Claim(says, -within, within, gap=True)


def run(cell: Cell, n_draws: int = DRAWS, seed: int = 0) -> dict[str, Figure]:
    """Simulate a cell."""
    return {name: figure(values) for name, values in outcomes(cell, n_draws, seed).items()}


def outcomes(cell: Cell, n_draws: int, seed: int = 0) -> dict[str, list[float]]:
    """Draw outcomes of each claim; one that a draw leaves out does not count. More draws begin with the same."""
    rng = np.random.default_rng([seed, *cell.name.encode()])
    seen: dict[str, list[float]] = {name: [] for name in cell.claims}
    for _, of_draw in zip(range(n_draws), cell.simulate(rng), strict=False):
        for name, value in of_draw.items():
            seen[name].append(float(value))
    return seen


def figure(values: list[float]) -> Figure:
    """Average outcomes; the error of a share that never or always happened is that of one draw more."""
    n = len(values)
    if not n:
        return Figure(float("nan"), float("nan"), 0)
    mean, spread = float(np.mean(values)), float(np.std(values))
    return Figure(mean, (spread or sqrt(1 / (n + 2))) / sqrt(n), n)


def holds(claim: Claim, found: Figure) -> bool:
    """Tell whether a claim is borne out; one that nothing was drawn for is not, and one withdrawn cannot fail."""
    slack = ERRORS * found.error
    return claim.withdrawn or (found.n > 0 and claim.low - slack <= found.mean <= claim.high + slack)
