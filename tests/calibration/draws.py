"""Answers of a base and a candidate with known true scores and difference.

Invariant: an item's scores have the same distribution in every world of one law, so the true difference is
the law's, for any grouping of the items; the share `together` of them follows the effects on their cluster.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from harness.metrics import Metric, mean_metric
from harness.records import SampleResult
from tests.fake_rows import EXACT

GRADED = mean_metric("score", lambda output, example: None)
Scores = np.ndarray
Draw = Callable[[np.random.Generator, int], tuple[Scores, Scores]]


class Law(NamedTuple):
    """How one item is scored in both arms: a name, the base's true score, the true difference."""

    name: str
    base: float
    delta: float
    draw: Draw
    metric: Metric


def make_binary_law(delta: float = 0.0, disagreement: float = 0.2, base: float = 0.7) -> Law:
    """Return scores of 0 and 1, a share of which differs between the arms."""
    gain, loss = (disagreement + delta) / 2, (disagreement - delta) / 2
    right = (base - loss) / (1 - disagreement)  # of the items with the same answer in both arms

    def draw(rng: np.random.Generator, n: int) -> tuple[Scores, Scores]:
        u, alike = rng.random(n), (rng.random(n) < right).astype(float)
        old = np.where(u < gain, 0.0, np.where(u < gain + loss, 1.0, alike))
        return old, np.where(u < gain, 1.0, np.where(u < gain + loss, 0.0, alike))

    return Law("binary", base, delta, draw, EXACT)


def make_graded_law(delta: float = 0.0, disagreement: float = 0.4) -> Law:
    """Return scores between 0 and 1, a share of which is redrawn for the candidate."""
    mean = 0.5 + delta / disagreement

    def draw(rng: np.random.Generator, n: int) -> tuple[Scores, Scores]:
        old, redrawn = rng.beta(2, 2, n), rng.beta(4 * mean, 4 * (1 - mean), n)
        return old, np.where(rng.random(n) < disagreement, redrawn, old)

    return Law("graded", 0.5, delta, draw, GRADED)


def make_skewed_law(delta: float = 0.0) -> Law:
    """Return scores most of which rise a little while a few fall far: 45 points on average."""
    falls = (0.05 - delta) / 0.5

    def draw(rng: np.random.Generator, n: int) -> tuple[Scores, Scores]:
        old, size = rng.uniform(0.7, 0.9, n), rng.uniform(0.5, 1.5, n)
        return old, old + np.where(rng.random(n) < falls, -0.45, 0.05) * size

    return Law("graded, few fall far", 0.8, delta, draw, GRADED)


def make_near_zero_law() -> Law:
    """Return graded scores near 0 except for a few, as of a rare quality; both arms alike."""

    def draw(rng: np.random.Generator, n: int) -> tuple[Scores, Scores]:
        old = rng.beta(0.2, 1.8, n)
        return old, old

    return Law("graded, most near 0", 0.1, 0.0, draw, GRADED)


class Groups(NamedTuple):
    """Clusters of items: their description, the cluster of each item (n,), the share that moves together."""

    name: str
    codes: np.ndarray
    together: float = 0.0


def make_single_items(n: int) -> Groups:
    """Return single items."""
    return Groups(f"{n:,} items", np.arange(n))


def make_clusters(sizes: Sequence[int], name: str, together: float = 0.5) -> Groups:
    """Return clusters of these sizes."""
    return Groups(f"{sum(sizes):,} items in {name}", np.repeat(np.arange(len(sizes)), sizes), together)


def make_equal_clusters(n_clusters: int, size: int, together: float = 0.5) -> Groups:
    """Return clusters of one size."""
    return make_clusters([size] * n_clusters, f"{n_clusters} clusters of {size}", together)


def lognormal(n_clusters: int = 60, together: float = 0.5) -> Groups:
    """Return clusters of log-normal sizes, the same in every draw."""
    sizes = np.random.default_rng(7).lognormal(1.2, 1.0, n_clusters).round().astype(int).clip(1)
    return make_clusters(sizes.tolist(), f"{n_clusters} clusters of log-normal sizes", together)


def one_large() -> Groups:
    """Return one cluster of 200 items and 20 of 5."""
    return make_clusters([200, *[5] * 20], "1 cluster of 200 and 20 of 5")


def make_two_large() -> Groups:
    """Return two clusters of 100 items and 100 of 2."""
    return make_clusters([100, 100, *[2] * 100], "2 clusters of 100 and 100 of 2")


def make_large_and_singles() -> Groups:
    """Return one cluster of 100 items and 100 single ones."""
    return make_clusters([100, *[1] * 100], "1 cluster of 100 and 100 single items")


def draw_clusters(law: Law, groups: Groups, rng: np.random.Generator) -> tuple[Scores, Scores]:
    """Draw each cluster's scores in both arms, (clusters,) each."""
    return law.draw(rng, int(groups.codes.max()) + 1)


def draw(
    law: Law, groups: Groups, rng: np.random.Generator, shared: tuple[Scores, Scores] | None = None
) -> tuple[Scores, Scores]:
    """Score every item in both arms, (n,) each; `shared` are the clusters' scores if they are given."""
    n = len(groups.codes)
    single = law.draw(rng, n)
    if not groups.together:
        return single
    shared, joins = shared or draw_clusters(law, groups, rng), rng.random(n) < groups.together
    return tuple(np.where(joins, common[groups.codes], x) for common, x in zip(shared, single, strict=True))


class Pair(NamedTuple):
    """The rows of both arms on one task, made once: `score` replaces their scores."""

    law: Law
    base: list[SampleResult]
    new: list[SampleResult]

    def score(self, old: Scores, now: Scores) -> "Pair":
        """Give the rows these scores, (n,) each."""
        name = self.law.metric.name
        for rows, scores in ((self.base, old), (self.new, now)):
            for row, score in zip(rows, scores.tolist(), strict=True):
                row.parts[name] = (score,)
        return self


def pair(
    law: Law, groups: Groups, task: str = "task", documents: Sequence[str] = (), clusters_of: str = ""
) -> Pair:
    """Make the rows of a task, on its own documents or the given ones."""
    return Pair(law, *(make_rows(law.metric, groups, task, documents, clusters_of) for _ in range(2)))


def make_rows(
    metric: Metric, groups: Groups, task: str, documents: Sequence[str] = (), clusters_of: str = ""
) -> list[SampleResult]:
    """Make one row per item, without a score yet; clusters are the task's own, or those of a collection."""
    documents = documents or [f"{task}-{i:05d}" for i in range(len(groups.codes))]
    alone = np.bincount(groups.codes)[groups.codes] == 1
    return [
        SampleResult(
            task=task,
            split="test",
            example_id=documents[i],
            position=i,
            status="ok",
            text="",
            prompt="",
            references=(),
            parts={metric.name: None},
            cluster="" if alone[i] else f"{clusters_of or task}/{code}",
            prompt_digest=documents[i],
        )
        for i, code in enumerate(groups.codes)
    ]
