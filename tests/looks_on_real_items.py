"""What stopping at looks saves on answers of real models, and whether it errs more often than one look.

Pairs of models from the Open LLM Leaderboard (metabench) stand for a base and a candidate, as in
`real_items`. A suite of `N` items a task shows non-inferiority of an equal model with 90 % power at the
pairs' mean disagreement; the looks are at a third, two thirds and all of it. These rows hold no
log-probabilities, so items are drawn without strata here; what strata save is measured on stored runs.
Beside both stand the whole benchmarks, of which a verdict takes a part.

`make bench ARGS="-k fewer_items"` writes what it gives to `reports/benchmarks/fewer_items.md`.
"""

from collections.abc import Sequence
from itertools import islice
from math import ceil
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import numpy as np
from scipy import special

from harness import stats, store
from tests.real_items import BENCHMARKS, MACRO_DELTAS, POLICY, WIDTH, Half, pairs

MARGIN, ALPHA, POWER = 0.02, POLICY.alpha, 0.9
SHARES = (1 / 3, 2 / 3, 1.0)
PAIRS, DRAWS = 200, 10  # pairs a bin, samples a pair
# Items of the split that the Open LLM Leaderboard asks (lm-eval's task configurations).
WHOLE = {"arc": 1_172, "gsm8k": 1_319, "mmlu": 14_042, "truthfulqa": 817, "winogrande": 1_267}


class Outcome(NamedTuple):
    """How a sample was judged, and on how many items."""

    verdict: str
    n_items: int


class Line(NamedTuple):
    """One bin of true deltas: how each way judges, and how many items it took."""

    delta: float
    n_pairs: int
    disagreement: float
    passes_full: float
    passes_looks: float
    fails_full: float
    fails_looks: float
    passes_whole: float
    fails_whole: float
    n_full: int
    n_looks: float


def suite_size(disagreement: float) -> int:
    """Return the items of each task with which an equal model passes the macro in 90 % of cases."""
    return ceil(stats.noninferiority_n(disagreement, MARGIN, ALPHA, POWER) / len(BENCHMARKS))


def judged(changed: Sequence[tuple[int, int]], sizes: Sequence[int], alpha: float) -> str:
    """Judge the macro of tasks with so many gains and losses among their items."""
    own = [(g - k) / n for (g, k), n in zip(changed, sizes, strict=True)]
    ends = [stats.tango_interval(g, k, n, 2 * alpha) for (g, k), n in zip(changed, sizes, strict=True)]
    delta, (low, high) = stats.mover_mean(own, ends)
    assert low <= delta <= high
    return "pass" if low > -MARGIN else "fail" if high < -MARGIN else "inconclusive"


def sampled(halves: Sequence[Half], n: int, alphas: Sequence[float], rng: np.random.Generator):
    """Draw one suite, and the whole benchmarks; return what all of it says, its first look that decides, and they."""
    looks = [round(n * share) for share in SHARES]
    grown = np.cumsum([changes(halves, [s] * len(halves), rng) for s in np.diff([0, *looks])], axis=0)
    full = judged(grown[-1], [n] * len(halves), ALPHA)
    for seen, size, alpha in zip(grown, looks, alphas, strict=True):
        verdict = judged(seen, [size] * len(halves), alpha)
        if verdict != "inconclusive":
            break
    sizes = [WHOLE[name] for name in BENCHMARKS]
    whole = judged(changes(halves, sizes, rng), sizes, ALPHA)
    return (
        Outcome(full, n * len(halves)),
        Outcome(verdict, size * len(halves)),
        Outcome(whole, sum(sizes)),
    )


def changes(halves: Sequence[Half], sizes: Sequence[int], rng: np.random.Generator) -> np.ndarray:
    """Draw so many items of each task; return how many of them are gained and lost (tasks, 2)."""
    shares = [[h.gained, h.lost, 1 - h.gained - h.lost] for h in halves]
    return np.array([rng.multinomial(n, s)[:2] for n, s in zip(sizes, shares, strict=True)])


def study(seed: int = 0, n_pairs: int = PAIRS, n_draws: int = DRAWS) -> list[Line]:
    """Fill every bin of true deltas with pairs, and judge samples of each both ways."""
    rng = np.random.default_rng(seed)
    drawn = pairs(rng)
    n = suite_size(fmean(h.gained + h.lost for split in islice(drawn, 500) for h, _ in split))
    alphas = [float(special.ndtr(-z)) for z in stats.interim_bounds(SHARES, ALPHA)]
    bins: dict[float, list[Sequence[Half]]] = {d: [] for d in MACRO_DELTAS}
    while any(len(of) < n_pairs for of in bins.values()):
        halves = [other for _, other in next(drawn)]
        truth = fmean(h.gained - h.lost for h in halves)
        for delta, of in bins.items():
            if abs(truth - delta) <= WIDTH and len(of) < n_pairs:
                of.append(halves)
    return [line(delta, of, n, alphas, n_draws, rng) for delta, of in bins.items()]


def line(
    delta: float,
    of: Sequence[Sequence[Half]],
    n: int,
    alphas: Sequence[float],
    n_draws: int,
    rng: np.random.Generator,
) -> Line:
    drawn = [sampled(halves, n, alphas, rng) for halves in of for _ in range(n_draws)]
    full, looks, whole = zip(*drawn, strict=True)

    def rate(outcomes: Sequence[Outcome], verdict: str) -> float:
        return fmean(o.verdict == verdict for o in outcomes)

    return Line(
        delta,
        len(of),
        fmean(h.gained + h.lost for halves in of for h in halves),
        rate(full, "pass"),
        rate(looks, "pass"),
        rate(full, "fail"),
        rate(looks, "fail"),
        rate(whole, "pass"),
        rate(whole, "fail"),
        full[0].n_items,
        fmean(o.n_items for o in looks),
    )


class Strata(NamedTuple):
    """How often a fine-tune differs from the base by quarters of the base's margin, and what that saves."""

    candidate: str
    n_items: int
    rates: tuple[float, ...]

    @property
    def saved(self) -> float:
        """Items drawn evenly over items drawn by the spread of each quarter, at the same variance."""
        return fmean(self.rates) / fmean(np.sqrt(self.rates)) ** 2


def strata_of(folder: Path) -> list[Strata]:
    """Measure the quarters on the multiple-choice tasks of stored fine-tunes."""
    at = store.Store(folder)
    of_base = {(one.weights_digest, one.task): one for one in store.identities(at) if one.split == "test"}
    done = [run for run in store.list_runs(at) if run.state == "done" and not run.served_digest]
    tuned = {run.weights_digest: run for run in reversed(done) if run.weights_digest != run.base_digest}
    out = []
    for run in reversed(tuned.values()):
        found = []
        for key, digest in run.rows.items():
            base = of_base.get((run.base_digest, key.removesuffix("/test")))
            rows = store.read_rows(at, base.digest) if base else []
            if rows and rows[0].margin is not None and "accuracy" in rows[0].parts:
                found.append(quarters(rows, store.read_rows(at, digest)))
        if found:
            rates = np.mean([rates for _, rates in found], axis=0).tolist()
            out.append(Strata(run.candidate, sum(n for n, _ in found), tuple(rates)))
    return out


def quarters(base, new) -> tuple[int, list[float]]:
    """Return how many items a task has, and the share that differs in each quarter of the base's margin."""
    answers = {row.example_id: row.parts["accuracy"] for row in new}
    closest = sorted(base, key=lambda row: (abs(row.margin), row.example_id))
    differs = [row.parts["accuracy"] != answers[row.example_id] for row in closest]
    return len(base), [fmean(part) for part in np.array_split(differs, 4)]
