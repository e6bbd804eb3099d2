"""Items saved by interim analyses on answers of real models, and their error rates against a single analysis.

Pairs of models from the Open LLM Leaderboard (metabench) serve as base and candidate, as in `real_items`. The
suite is large enough to show non-inferiority of an equal model with 90 % power at the pairs' mean disagreement;
the interim analyses are at a third, two thirds and all of it. They are compared with whole benchmarks, and with
samples of these drawn as by `--sequential`: stratified by the base's answers to all items, which removes their
part of the variance. These rows have no log-probabilities; the savings of strata by the base's margin are
measured on stored runs.

`make bench ARGS="-k fewer_items"` writes the figures to `reports/benchmarks/fewer_items.md`.
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
from harness.evaluation import sampling
from reports.studies.real_items import BENCHMARKS, MACRO_DELTAS, POLICY, WIDTH, Half, pairs

MARGIN, ALPHA, POWER = 0.02, POLICY.alpha, 0.9
SHARES = (1 / 3, 2 / 3, 1.0)
PAIRS, DRAWS = 200, 10  # pairs per bin, samples per pair
# Items of the split that the Open LLM Leaderboard uses (lm-eval's task configurations).
WHOLE = {"arc": 1_172, "gsm8k": 1_319, "mmlu": 14_042, "truthfulqa": 817, "winogrande": 1_267}


class Outcome(NamedTuple):
    """A sample's verdict, and its number of items."""

    verdict: str
    n_items: int


class Line(NamedTuple):
    """A bin of true deltas: pass and fail rates of each design, and its number of items."""

    delta: float
    n_pairs: int
    disagreement: float
    passes_full: float
    passes_looks: float
    fails_full: float
    fails_looks: float
    passes_whole: float
    fails_whole: float
    passes_strata: float
    fails_strata: float
    n_full: int
    n_looks: float
    n_strata: float


def suite_size(disagreement: float) -> int:
    """Return the items per task with which an equal model passes the macro rule in 90 % of cases."""
    # (z_{1−α} + z_power)² d/m² items of all tasks together, d the share that differs, m the margin.
    # Source: Lu & Bean 1995; Chow, Shao & Wang 2008.
    z = stats.z_quantile(1 - ALPHA) + stats.z_quantile(POWER)
    return ceil(z**2 * disagreement / MARGIN**2 / len(BENCHMARKS))


def judge_macro(changed: Sequence[tuple[int, int]], sizes: Sequence[int], alpha: float) -> str:
    """Return the macro verdict of tasks with the given gains and losses."""
    deltas = [(g - k) / n for (g, k), n in zip(changed, sizes, strict=True)]
    ends = [stats.tango_interval(g, k, n, 2 * alpha) for (g, k), n in zip(changed, sizes, strict=True)]
    return name_outcome(*stats.mover_mean(deltas, ends))


def name_outcome(delta: float, ends: stats.Interval) -> str:
    """Return the verdict on a macro with these one-sided bounds."""
    assert ends.low <= delta <= ends.high
    return "pass" if ends.low > -MARGIN else "fail" if ends.high < -MARGIN else "inconclusive"


def draw_suite(halves: Sequence[Half], n: int, alphas: Sequence[float], rng: np.random.Generator):
    """Return the outcomes on one drawn suite, at its first deciding analysis, and on whole benchmarks."""
    looks = [round(n * share) for share in SHARES]
    grown = np.cumsum([changes(halves, [s] * len(halves), rng) for s in np.diff([0, *looks])], axis=0)
    full = judge_macro(grown[-1], [n] * len(halves), ALPHA)
    for flips, size, alpha in zip(grown, looks, alphas, strict=True):
        verdict = judge_macro(flips, [size] * len(halves), alpha)
        if verdict != "inconclusive":
            break
    sizes = [WHOLE[name] for name in BENCHMARKS]
    whole = judge_macro(changes(halves, sizes, rng), sizes, ALPHA)
    return (Outcome(full, n * len(halves)), Outcome(verdict, size * len(halves)), Outcome(whole, sum(sizes)))


def plan_of(disagreement: float, passed: Sequence[float]) -> sampling.SamplingPlan:
    """Plan samples of the whole benchmarks, given the shares that the base passed."""
    pools = {}
    for (name, n), share in zip(WHOLE.items(), passed, strict=True):
        items = tuple(map(str, range(n)))
        ids = {"passed": items[: round(share * n)], "failed": items[round(share * n) :]}
        pools[name] = sampling.ItemStrata(ids, dict.fromkeys(ids, disagreement), by_score=True)
    return sampling.plan(pools, [], MARGIN, ALPHA)


def draw_by_answers(halves: Sequence[Half], plan: sampling.SamplingPlan, rng: np.random.Generator) -> Outcome:
    """Simulate whole benchmarks, sample them stratified by the base's answers, and judge at each analysis."""
    benchmarks = [_draw_benchmark(h, n, rng) for h, n in zip(halves, WHOLE.values(), strict=True)]
    counts = np.zeros((len(benchmarks), 2), int)  # gained and lost among the items drawn so far
    before = np.zeros((len(benchmarks), 2), int)
    for look, alpha in enumerate(plan.alphas):
        deltas, ends = [], []
        for t, (name, (moved, sizes)) in enumerate(zip(WHOLE, benchmarks, strict=True)):
            n = plan.n(name, look)
            n_drawn = np.array([n - round(n * sizes[1] / sizes.sum()), round(n * sizes[1] / sizes.sum())])
            remaining = moved - counts[t]
            counts[t] += rng.hypergeometric(remaining, sizes - before[t] - remaining, n_drawn - before[t])
            before[t] = n_drawn
            sampled = [k for k in range(2) if n_drawn[k]]
            change = counts[t] * [1, -1] / np.maximum(n_drawn, 1)  # per item that the base failed, and passed
            deltas.append(float(sizes @ change / sizes.sum()))
            moved_in = np.diag(counts[t]).tolist()  # gains where the base failed, losses where it passed
            strata = [stats.StratumFlips(*moved_in[k], int(n_drawn[k]), int(sizes[k])) for k in sampled]
            ends.append(stats.stratified_flips_interval(strata, 2 * alpha))
        if (verdict := name_outcome(*stats.mover_mean(deltas, ends))) != "inconclusive":
            break
    return Outcome(verdict, int(before.sum()))


def _draw_benchmark(half: Half, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Simulate a benchmark: items gained and lost (2,), and items that the base failed and passed (2,)."""
    shares = [half.gained, half.lost, half.passed - half.lost]
    n_gained, n_lost, n_kept = rng.multinomial(n, [*shares, max(1 - sum(shares), 0.0)])[:3]
    return np.array([n_gained, n_lost]), np.array([n - n_lost - n_kept, n_lost + n_kept])


def changes(halves: Sequence[Half], sizes: Sequence[int], rng: np.random.Generator) -> np.ndarray:
    """Draw the given numbers of items; return the gained and lost ones of each task (tasks, 2)."""
    shares = [[h.gained, h.lost, 1 - h.gained - h.lost] for h in halves]
    return np.array([rng.multinomial(n, s)[:2] for n, s in zip(sizes, shares, strict=True)])


def study(seed: int = 0, n_pairs: int = PAIRS, n_draws: int = DRAWS) -> list[Line]:
    """Fill every bin of true deltas with pairs, and judge samples of each by all designs."""
    rng = np.random.default_rng(seed)
    drawn_pairs = pairs(rng)
    first = [[h for h, _ in split] for split in islice(drawn_pairs, 500)]
    disagreement = fmean(h.gained + h.lost for split in first for h in split)
    n, plan = (
        suite_size(disagreement),
        plan_of(disagreement, np.mean([[h.passed for h in s] for s in first], 0)),
    )
    alphas = [float(special.ndtr(-z)) for z in stats.interim_bounds(SHARES, ALPHA)]
    bins: dict[float, list[Sequence[Half]]] = {d: [] for d in MACRO_DELTAS}
    while any(len(in_bin) < n_pairs for in_bin in bins.values()):
        halves = [second for _, second in next(drawn_pairs)]
        truth = fmean(h.gained - h.lost for h in halves)
        for delta, in_bin in bins.items():
            if abs(truth - delta) <= WIDTH and len(in_bin) < n_pairs:
                in_bin.append(halves)
    return [line(delta, in_bin, n, alphas, plan, n_draws, rng) for delta, in_bin in bins.items()]


def line(
    delta: float,
    in_bin: Sequence[Sequence[Half]],
    n: int,
    alphas: Sequence[float],
    plan: sampling.SamplingPlan,
    n_draws: int,
    rng: np.random.Generator,
) -> Line:
    drawn_outcomes = [draw_suite(halves, n, alphas, rng) for halves in in_bin for _ in range(n_draws)]
    full, looks, whole = zip(*drawn_outcomes, strict=True)
    strata = [draw_by_answers(halves, plan, rng) for halves in in_bin for _ in range(n_draws)]

    def rate(outcomes: Sequence[Outcome], verdict: str) -> float:
        return fmean(o.verdict == verdict for o in outcomes)

    return Line(
        delta,
        len(in_bin),
        fmean(h.gained + h.lost for halves in in_bin for h in halves),
        rate(full, "pass"),
        rate(looks, "pass"),
        rate(full, "fail"),
        rate(looks, "fail"),
        rate(whole, "pass"),
        rate(whole, "fail"),
        rate(strata, "pass"),
        rate(strata, "fail"),
        full[0].n_items,
        fmean(o.n_items for o in looks),
        fmean(o.n_items for o in strata),
    )


class Strata(NamedTuple):
    """Share of items on which a fine-tune differs from the base, by quarters of the base's margin."""

    candidate: str
    n_items: int
    rates: tuple[float, ...]

    @property
    def saved(self) -> float:
        """Ratio of items in even sampling to items in sampling by each quarter's spread, at equal variance."""
        return fmean(self.rates) / fmean(np.sqrt(self.rates)) ** 2


class ExplainedVariance(NamedTuple):
    """Variance of an item's change over pairs of models, in all and within strata by the base's score."""

    benchmark: str
    n_pairs: int
    whole: float
    within: float

    @property
    def saved(self) -> float:
        """Ratio of items in plain sampling to items stratified by the base's score, at equal variance."""
        return self.whole / self.within


def measure_explained(seed: int = 0, n_pairs: int = 2_000) -> list[ExplainedVariance]:
    """Measure for every benchmark how much of the variance of a change the base's score explains."""
    first = [[h for h, _ in split] for split in islice(pairs(np.random.default_rng(seed)), n_pairs)]
    explained = []
    for name, halves in zip(BENCHMARKS, zip(*first, strict=True), strict=True):
        gained, lost, passed = np.array(halves).T
        whole = gained + lost - (gained - lost) ** 2
        explained.append(
            ExplainedVariance(
                name,
                n_pairs,
                float(whole.mean()),
                float(_compute_variance_within(gained, lost, passed).mean()),
            )
        )
    return explained


def _compute_variance_within(gained: np.ndarray, lost: np.ndarray, passed: np.ndarray) -> np.ndarray:
    """Return the variance of a change within the items that the base passed, and within those it failed."""
    parts = [x * (1 - x / np.maximum(share, 1e-9)) for x, share in ((gained, 1 - passed), (lost, passed))]
    return np.sum(parts, axis=0)


def strata_of(folder: Path) -> list[Strata]:
    """Measure the quarters on the multiple-choice tasks of stored fine-tunes."""
    runs_store = store.Store(folder)
    identities = (identity for identity in store.identities(runs_store) if identity.split == "test")
    row_sets = {(identity.weights_digest, identity.task): identity for identity in identities}
    finished = [run for run in store.list_runs(runs_store) if run.state == "done" and not run.served_digest]
    tuned = {run.weights_digest: run for run in reversed(finished) if run.weights_digest != run.base_digest}
    quarters_by_run = []
    for run in reversed(tuned.values()):
        by_task = []
        for key, digest in run.rows.items():
            base = row_sets.get((run.base_digest, key.removesuffix("/test")))
            rows = store.read_rows(runs_store, base.digest) if base else []
            if rows and rows[0].margin is not None and "accuracy" in rows[0].parts:
                by_task.append(quarters(rows, store.read_rows(runs_store, digest)))
        if by_task:
            rates = np.mean([rates for _, rates in by_task], axis=0).tolist()
            quarters_by_run.append(Strata(run.candidate, sum(n for n, _ in by_task), tuple(rates)))
    return quarters_by_run


def quarters(base, new) -> tuple[int, list[float]]:
    """Return a task's number of items, and the share that differs in each quarter of the base's margin."""
    answers = {row.example_id: row.parts["accuracy"] for row in new}
    closest = sorted(base, key=lambda row: (abs(row.margin), row.example_id))
    differs = [row.parts["accuracy"] != answers[row.example_id] for row in closest]
    return len(base), [fmean(part) for part in np.array_split(differs, 4)]
