"""Do intervals over items answered in folds cover the average over training sets? A simulation, run by hand.

A world draws rows of two classes, splits them into folds as `data.folds` does (stratified), trains a learner
without each fold in turn, and compares its answers with those of another learner or of an untrained rule. The
truth is the mean of the estimate over the draws: cross-validation estimates the expected difference of learners
trained on that many rows without bias. The models of a learner differ little (class means), much (nearest
neighbour, least squares with as many weights as rows), by the seed (unsteady; collapsing, where one training in
five gives one answer to all), or only by the class shares (the commonest answer).

`PYTHONPATH=.:tests python -m reports.studies.k_fold` takes some minutes on one core and writes
`reports/k_fold.md` and `.json`.
"""

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from math import sqrt
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness import formatting
from harness.analysis.alignment import Arms
from harness.analysis.estimators import estimate_difference
from harness.metrics import Metric, mean_metric
from harness.stats import Array

ROOT = Path(__file__).parents[2]
DRAWS = 1000
ROWS, FOLDS = (60, 120), (3, 5, 10)
N_FEATURES, DISTANCE, N_WEIGHTS = 10, 1.2, 40
COLLAPSE = 0.2  # share of trainings
CLUSTER = 3  # rows per cluster
_BASIS = (
    "{draws} simulated data sets per line; a coverage of 95 % has a standard error of {error:.1f} points."
    " Written by `python -m reports.studies.k_fold`."
)
_FOUND = (
    "95 % intervals of `data.folds` cover the average over training sets of this size in {} to {} of the draws;"
    " intervals that ignore the folds in as little as {}. If one training in five collapses, a few folds may include"
    " no collapsed one, and their intervals cover it in as little as {}: no interval accounts for an event that none"
    " of its few trainings showed."
)
METRIC: Metric = mean_metric("right", lambda output, example: None)

Rng = np.random.Generator
Answer = Callable[["Rows", NDArray[np.bool_], Rng], Array]  # rows, mask of tested rows (n,) → their scores


class Rows(NamedTuple):
    """Rows: features (n, p), classes 0 or 1 (n,), and clusters (n,)."""

    features: Array
    labels: NDArray[np.intp]
    clusters: NDArray[np.intp]


class World(NamedTuple):
    """Two arms by name, the number n of rows, and the number k of folds."""

    new: str
    base: str
    n: int
    k: int
    clustered: bool = False


class Coverage(NamedTuple):
    """Coverage in [0, 1] of the interval of `compare` (`in_folds`) and of one that ignores the folds (`plain`).

    `wider` is the ratio of their median widths, `sd` the standard deviation of the estimate over draws.
    """

    world: World
    truth: float
    sd: float
    in_folds: float
    plain: float
    wider: float


def draw_rows(rng: Rng, n: int, *, clustered: bool) -> Rows:
    """Draw rows of two classes around their means; rows of a cluster have similar features."""
    size = CLUSTER if clustered else 1
    heads = rng.integers(0, 2, n // size)
    centres = rng.normal(0, 1, (n // size, N_FEATURES))
    centres[:, 0] += DISTANCE * (2 * heads - 1)
    features = np.repeat(centres, size, axis=0)
    if clustered:
        features = features + rng.normal(0, 0.5, features.shape)
    return Rows(features, np.repeat(heads, size), np.repeat(np.arange(n // size), size))


def deal(rng: Rng, rows: Rows, k: int) -> NDArray[np.intp]:
    """Assign clusters to folds (from 1), stratified by class."""
    heads = np.unique(rows.clusters, return_index=True)[1]
    order = rng.permutation(len(heads))
    order = order[np.argsort(rows.labels[heads][order], kind="stable")]
    fold = np.empty(len(heads), np.intp)
    fold[order] = np.arange(len(heads)) % k + 1
    return fold[rows.clusters]


def answer_by_means(rows: Rows, tested: NDArray[np.bool_], rng: Rng) -> Array:
    """Answer by the nearer class mean; a right answer scores 1."""
    train, labels = rows.features[~tested], rows.labels[~tested]
    middle = [train[labels == c].mean(axis=0) if (labels == c).any() else train.mean(axis=0) for c in (0, 1)]
    far = [((rows.features[tested] - m) ** 2).sum(axis=1) for m in middle]
    return ((far[1] < far[0]) == rows.labels[tested]).astype(float)


def answer_by_neighbour(rows: Rows, tested: NDArray[np.bool_], rng: Rng) -> Array:
    """Answer as the nearest training row."""
    tested_rows, train = rows.features[tested], rows.features[~tested]
    far = (tested_rows**2).sum(1)[:, None] - 2 * tested_rows @ train.T + (train**2).sum(1)
    return (rows.labels[~tested][far.argmin(axis=1)] == rows.labels[tested]).astype(float)


def answer_by_least_squares(rows: Rows, tested: NDArray[np.bool_], rng: Rng) -> Array:
    """Answer by least squares on as many random features as there are training rows of the smallest world."""
    mixed = np.tanh(rows.features @ np.random.default_rng(7).normal(0, 0.5, (N_FEATURES, N_WEIGHTS)))
    weights = np.linalg.lstsq(mixed[~tested], 2.0 * rows.labels[~tested] - 1, rcond=None)[0]
    return ((mixed[tested] @ weights > 0) == rows.labels[tested]).astype(float)


def answer_unsteadily(rows: Rows, tested: NDArray[np.bool_], rng: Rng) -> Array:
    """Answer by class means that are shifted by the training's seed."""
    moved = rows.features.copy()
    moved[~tested] += rng.normal(0, 0.6, N_FEATURES) * np.where(rows.labels[~tested] == 1, 1, -1)[:, None]
    return answer_by_means(rows._replace(features=moved), tested, rng)


def answer_or_collapse(rows: Rows, tested: NDArray[np.bool_], rng: Rng) -> Array:
    """Answer by class means; a collapsed training always gives the same answer."""
    if rng.random() < COLLAPSE:
        return (rows.labels[tested] == 0).astype(float)
    return answer_by_means(rows, tested, rng)


def answer_commonest(rows: Rows, tested: NDArray[np.bool_], rng: Rng) -> Array:
    """Answer with the commonest class of the training rows."""
    return (rows.labels[tested] == (rows.labels[~tested].mean() > 0.5)).astype(float)


def grade_by_means(rows: Rows, tested: NDArray[np.bool_], rng: Rng) -> Array:
    """Score the probability of the right class, by class means, in [0, 1]."""
    train, labels = rows.features[~tested], rows.labels[~tested]
    middle = [train[labels == c].mean(axis=0) if (labels == c).any() else train.mean(axis=0) for c in (0, 1)]
    far = [((rows.features[tested] - m) ** 2).sum(axis=1) for m in middle]
    chance = 1 / (1 + np.exp(np.clip((far[1] - far[0]) / 2, -30, 30)))
    return np.where(rows.labels[tested] == 1, chance, 1 - chance)


def answer_by_rule(rows: Rows, tested: NDArray[np.bool_], rng: Rng) -> Array:
    """Answer by an untrained rule: the sign of the sum of the first two features."""
    return ((rows.features[tested, :2].sum(axis=1) > 0) == rows.labels[tested]).astype(float)


LEARNERS: Mapping[str, Answer] = {
    "class means": answer_by_means,
    "nearest neighbour": answer_by_neighbour,
    "least squares": answer_by_least_squares,
    "unsteady": answer_unsteadily,
    "collapsing": answer_or_collapse,
    "commonest": answer_commonest,
    "graded": grade_by_means,
}
ARMS: Mapping[str, Answer] = {**LEARNERS, "rule": answer_by_rule}
PAIRS = (*((name, "rule") for name in LEARNERS), ("class means", "nearest neighbour"))


def pair_arms(world: World, rows: Rows, folds: NDArray[np.intp], rng: Rng) -> Arms:
    """Pair both arms of a world; a row is answered by its fold's model, or by the rule."""
    n, names = len(folds), (world.base, world.new)
    arm_folds = [folds if arm in LEARNERS else np.zeros_like(folds) for arm in names]
    base, new = (answer(arm, rows, f, rng)[:, None] for arm, f in zip(names, arm_folds, strict=True))
    return Arms(tuple(map(str, range(n))), rows.clusters, np.ones(n), base, new, *arm_folds)


def answer(arm: str, rows: Rows, folds: NDArray[np.intp], rng: Rng) -> Array:
    """Score the answers of each fold's model to its rows (n,)."""
    scores = np.empty(len(folds))
    for fold in np.unique(folds):
        mask = folds == fold
        scores[mask] = ARMS[arm](rows, mask, rng)
    return scores


def measure(world: World, draws: int, seed: int = 0) -> Coverage:
    """Count how often the intervals of a world's comparison cover the mean of the estimate."""
    rng = np.random.default_rng([seed, *map(ord, f"{world}")])
    deltas, ends = np.empty(draws), np.empty((draws, 2, 2))
    for draw in range(draws):
        rows = draw_rows(rng, world.n, clustered=world.clustered)
        folds = deal(rng, rows, world.k)
        arms = pair_arms(world, rows, folds, rng)
        plain = arms._replace(base_folds=np.zeros_like(folds), new_folds=np.zeros_like(folds))
        with_folds, ignoring = (estimate_difference(METRIC, each) for each in (arms, plain))
        deltas[draw], ends[draw] = with_folds.delta, [with_folds.ends(0.05), ignoring.ends(0.05)]
    truth = float(deltas.mean())
    covers = (ends[..., 0] <= truth) & (truth <= ends[..., 1])  # (draws, 2)
    widths = np.median(ends[..., 1] - ends[..., 0], axis=0)
    in_folds, plain = map(float, covers.mean(axis=0))
    return Coverage(world, truth, float(deltas.std()), in_folds, plain, float(widths[0] / widths[1]))


def worlds() -> Iterator[World]:
    """List the worlds that the page shows."""
    for (new, base), n, k in product(PAIRS, ROWS, FOLDS):
        yield World(new, base, n, k)
    for new in ("class means", "nearest neighbour"):
        yield World(new, "rule", 120, 5, clustered=True)


def page(coverages: Sequence[Coverage], draws: int) -> str:
    """Write the page."""
    steady = [c.in_folds for c in coverages if c.world.new != "collapsing"]
    rare = min((c.in_folds for c in coverages if c.world.new == "collapsing"), default=1.0)
    ignoring = min(c.plain for c in coverages if c.world.new != "collapsing")
    ends = min(steady), max(steady), ignoring, rare
    lines = [
        "# Intervals of k-fold cross-validation",
        "",
        _BASIS.format(draws=formatting.count(draws), error=100 * sqrt(0.95 * 0.05 / draws)),
        "",
        _FOUND.format(*map(_percent, ends)),
        "",
        "| new | base | rows | folds | difference | SD | in folds | ignoring them | ratio of widths |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for c in coverages:
        w = c.world
        rows = f"{w.n}{', in clusters of 3' if w.clustered else ''}"
        lines.append(
            f"| {w.new} | {w.base} | {rows} | {w.k} | {100 * c.truth:+.1f} | {100 * c.sd:.1f} | "
            f"{_percent(c.in_folds)} | {_percent(c.plain)} | {c.wider:.2f} |"
        )
    return "\n".join(lines) + "\n"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def main() -> None:
    """Simulate every world and write the page."""
    draws = int(sys.argv[1]) if len(sys.argv) > 1 else DRAWS
    coverages = []
    for world in worlds():
        coverages.append(measure(world, draws))
        sys.stdout.write(f"{coverages[-1]}\n")
    (ROOT / "reports" / "k_fold.md").write_text(page(coverages, draws), encoding="utf-8")
    plain = [{**c._asdict(), "world": c.world._asdict()} for c in coverages]
    text = json.dumps({"draws": draws, "worlds": plain}, indent=1)
    (ROOT / "reports" / "k_fold.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
