"""Cells of the intervals: of a score, of a paired difference, and of its p-value."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from harness.analysis.comparison import compare_rows, estimate
from harness.analysis.estimators import difference_p
from harness.metrics import Metric
from tests.calibration.cell import Cell, Claim, claim_at_least, claim_at_most
from tests.calibration.draws import (
    Groups,
    Law,
    draw,
    lognormal,
    make_binary_law,
    make_equal_clusters,
    make_graded_law,
    make_large_and_singles,
    make_near_zero_law,
    make_rows,
    make_single_items,
    make_skewed_law,
    make_two_large,
    one_large,
    pair,
)
from tests.fake_rows import LOWER, ratio_metric

_COVERS = "the 95 % interval holds the truth"
_BOUND = "a one-sided 5 % bound is beyond the truth"


def make_score_cell(law: Law, groups: Groups, least: float, **options: Any) -> Cell:
    """Measure how often the interval of one run's score covers its true score."""

    def simulate(rng: np.random.Generator) -> Iterator[dict[str, float]]:
        arms = pair(law, groups)
        while True:
            arms.score(*draw(law, groups, rng))
            interval = estimate(law.metric, arms.base)
            yield {"covers": interval.low <= law.base <= interval.high}

    claims = {"covers": claim_at_least(least, _COVERS)}
    return Cell("interval of a score", f"{law.name}, {groups.name}", simulate, claims, **options)


def make_delta_cell(
    law: Law,
    groups: Groups,
    least: float = 0.935,
    bound: float = 0.065,
    most: float = 1.0,
    withdrawn: bool = False,
    in_tests: int = 0,
) -> Cell:
    """Measure how often a paired difference's interval covers the true one, and bounds and p-value err."""
    claims = {
        "covers": Claim(_COVERS, least, most),
        "lower": claim_at_most(bound, f"{_BOUND}, lower"),
        "upper": claim_at_most(bound, f"{_BOUND}, upper"),
    }
    if law.delta == 0:
        claims["p"] = claim_at_most(bound, "p < 0.05 of an equal model")
    if withdrawn:
        claims = {name: claim._replace(withdrawn=True) for name, claim in claims.items()}

    def simulate(rng: np.random.Generator) -> Iterator[dict[str, float]]:
        arms = pair(law, groups)
        while True:
            arms.score(*draw(law, groups, rng))
            c = compare_rows(law.metric, arms.base, arms.new)
            hits = {"covers": c.low <= law.delta <= c.high}
            hits |= {"lower": c.lower > law.delta, "upper": c.upper < law.delta}
            yield hits | ({"p": difference_p(c) < 0.05} if law.delta == 0 else {})

    world = f"{law.name}, true delta {100 * law.delta:g} points, {groups.name}"
    return Cell("interval of a paired difference", world, simulate, claims, in_tests)


def make_ratio_cell(n: int, least: float) -> Cell:
    """Measure the same for a ratio of sums, bits per byte, whose interval comes from the bootstrap (BCa)."""
    metric, truth = ratio_metric(), 0.02

    def simulate(rng: np.random.Generator) -> Iterator[dict[str, float]]:
        base, new = (make_rows(metric, make_single_items(n), "task") for _ in range(2))
        while True:
            n_bytes = rng.integers(20, 200, n).astype(float)
            old = n_bytes * rng.gamma(20, 0.05, n)
            _fill(metric, base, old, n_bytes)
            _fill(metric, new, old + n_bytes * rng.normal(truth, 0.1, n), n_bytes)
            c = compare_rows(metric, base, new)
            yield {"covers": c.low <= truth <= c.high}

    claims = {"covers": claim_at_least(least, _COVERS)}
    return Cell("interval of a paired difference", f"bits per byte, {n} items", simulate, claims)


def _fill(metric: Metric, rows, *parts: np.ndarray) -> None:
    for row, values in zip(rows, np.stack(parts, axis=1).tolist(), strict=True):
        row.parts[metric.name] = tuple(values)


def invert_direction(law: Law) -> Law:
    """Return the same scores as errors, where lower is better."""
    return law._replace(name=f"{law.name}, lower is better", metric=LOWER)


CELLS = (
    make_score_cell(make_binary_law(base=0.9), make_single_items(50), 0.93),
    make_score_cell(make_binary_law(base=0.7), make_single_items(200), 0.935),
    make_score_cell(make_binary_law(base=0.7), make_equal_clusters(40, 5), 0.925),
    make_score_cell(make_binary_law(base=0.7), lognormal(), 0.91),
    make_score_cell(make_binary_law(base=0.7), one_large(), 0.91, in_tests=300),
    make_score_cell(make_graded_law(), make_single_items(50), 0.935),
    make_score_cell(make_near_zero_law(), make_single_items(200), 0.92),
    make_score_cell(make_near_zero_law(), lognormal(), 0.91),
    make_delta_cell(make_binary_law(0.0, 0.1), make_single_items(50)),
    make_delta_cell(make_binary_law(-0.02, 0.2), make_single_items(200), in_tests=300),
    make_delta_cell(make_binary_law(-0.02, 0.05, 0.9), make_single_items(1000), most=0.965),
    make_delta_cell(invert_direction(make_binary_law(0.02)), make_single_items(200)),
    make_delta_cell(make_binary_law(-0.02), make_equal_clusters(40, 5), 0.925, 0.075),
    make_delta_cell(make_binary_law(), lognormal(), 0.91, 0.075),
    make_delta_cell(make_binary_law(), one_large(), 0.91, 0.075),
    make_delta_cell(make_binary_law(-0.02), make_two_large(), 0.91, 0.075),
    make_delta_cell(make_graded_law(-0.02), make_single_items(50), most=0.965),
    make_delta_cell(make_graded_law(), make_single_items(1000), most=0.965),
    make_delta_cell(make_skewed_law(), make_single_items(50), 0.90, 0.10),
    make_delta_cell(make_skewed_law(-0.02), make_single_items(200), 0.925, 0.075),
    make_delta_cell(make_graded_law(-0.02), make_equal_clusters(25, 8), 0.925, 0.075),
    make_delta_cell(make_graded_law(), lognormal(), 0.91, 0.075, in_tests=300),
    make_delta_cell(make_skewed_law(), lognormal(), withdrawn=True),
    make_delta_cell(make_graded_law(), one_large(), 0.91, 0.075, in_tests=300),
    make_delta_cell(make_graded_law(-0.02), make_two_large(), 0.91, 0.075),
    make_delta_cell(make_graded_law(), make_large_and_singles(), 0.91, 0.075),
    make_ratio_cell(50, 0.90),
    make_ratio_cell(200, 0.935),
)
