"""What stopping at looks saves on answers of real models, and whether it errs more often than one look.

Pairs of models from the Open LLM Leaderboard (metabench) stand for a base and a candidate, as in
`real_items`. A suite of `N` items a task shows non-inferiority of an equal model with 90 % power at the
pairs' mean disagreement; the looks are at a third, two thirds and all of it. These rows hold no
log-probabilities, so items are drawn without strata here; what strata save is measured on stored runs.
Beside both stand the whole benchmarks, of which a verdict takes a part.

`PYTHONPATH=.:tests python -m tests.looks_on_real_items [RUNS]` writes the tables to
`reports/fewer_items.md`; RUNS is a folder of stored runs of the quickstart.
"""

import sys
from collections.abc import Sequence
from itertools import islice
from math import ceil
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import numpy as np
from scipy import special

from harness import stats, store
from harness.numbers import count, percent, points
from tests.real_items import BENCHMARKS, MACRO_DELTAS, POLICY, WIDTH, Half, pairs

MARGIN, ALPHA, POWER = 0.02, POLICY.alpha, 0.9
SHARES = (1 / 3, 2 / 3, 1.0)
PAIRS, DRAWS = 200, 10  # pairs a bin, samples a pair
GOAL = 5  # times fewer items
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
    alphas = [float(special.ndtr(-z)) for z in stats.look_bounds(SHARES, ALPHA)]
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


def table(lines: Sequence[Line], strata: Sequence[Strata]) -> str:
    """Write the study as Markdown."""
    first = lines[0]
    about = (
        f"{count(sum(x.n_pairs for x in lines))} pairs of models of the Open LLM Leaderboard on "
        f"{len(BENCHMARKS)} benchmarks (metabench). The full suite has {count(first.n_full)} items, with which "
        f"an equal model passes the macro (margin {percent(MARGIN)} pp, α {percent(ALPHA)} %) with "
        f"{percent(POWER)} % power at the pairs' mean disagreement. The looks are at a third, two thirds and "
        "all of it; α is spent after O'Brien and Fleming. Items are drawn at random: these rows have no "
        "log-probabilities."
    )
    lines_ = [
        f"| {points(x.delta)} | {count(x.n_pairs)} | {percent(x.disagreement)} | {percent(x.passes_full)} | "
        f"{percent(x.passes_looks)} | {percent(x.fails_full)} | {percent(x.fails_looks)} | {count(x.n_looks)} | "
        f"{x.n_full / x.n_looks:.2f} |"
        for x in lines
    ]
    head = [
        (
            "| true delta pp | pairs | disagreement % | passes, full % | passes, looks % | fails, full % | "
            "fails, looks % | items by looks | times fewer |"
        ),
        "|---|---|---|---|---|---|---|---|---|",
    ]
    again = "`PYTHONPATH=.:tests python -m tests.looks_on_real_items runs` makes these tables again."
    tables = ["# Fewer items for a verdict", "", about, "", *head, *lines_, "", *strata_table(strata)]
    tables += [*against_goal(first, strata), "", *whole_table(lines), "", again]
    return "\n".join(tables) + "\n"


def against_goal(equal: Line, strata: Sequence[Strata]) -> list[str]:
    """Say what both save together where nothing is lost, and by how much the goal is missed."""
    together = equal.n_full / equal.n_looks * min((s.saved for s in strata), default=1.0)
    said = f"Together that is {together:.1f} times fewer items for a verdict on a model that lost nothing"
    if together >= GOAL:
        return [f"{said}: the goal, {GOAL}, is met."]
    return [
        f"{said}; the goal, {GOAL}, is missed by {GOAL - together:.1f}. What bounds it:",
        "",
        "- α, power and margin fix how precisely the delta has to be known, whoever chooses the items;",
        "- items that the base was sure of flip too, so none may be left out;",
        "- a look may stop early only as far as α allows, and near the margin every look goes on to the end.",
    ]


def whole_table(lines: Sequence[Line]) -> list[str]:
    """Say what part of the whole benchmarks a verdict takes, and what the rest of them would have added."""
    n = sum(WHOLE.values())
    return [
        f"A suite that is larger than it has to be is another matter. The whole benchmarks have {count(n)} items; what they",
        "add is power that the margin does not need, as the same pairs show:",
        "",
        "| true delta pp | passes, whole % | passes, looks % | fails, whole % | fails, looks % | items by looks | times fewer |",
        "|---|---|---|---|---|---|---|",
        *(
            f"| {points(x.delta)} | {percent(x.passes_whole)} | {percent(x.passes_looks)} | {percent(x.fails_whole)} | "
            f"{percent(x.fails_looks)} | {count(x.n_looks)} | {n / x.n_looks:.1f} |"
            for x in lines
        ),
    ]


def strata_table(strata: Sequence[Strata]) -> list[str]:
    if not strata:
        return []
    return [
        "What strata save comes on top. Share of multiple-choice items of the quickstart's general suite whose",
        "score a fine-tune changed, by quarters of the base's margin, the closest calls first:",
        "",
        "| candidate | items | 1st quarter % | 2nd % | 3rd % | 4th % | times fewer at equal variance |",
        "|---|---|---|---|---|---|---|",
        *(
            f"| {s.candidate} | {count(s.n_items)} | {' | '.join(map(percent, s.rates))} | {s.saved:.2f} |"
            for s in strata
        ),
        "",
    ]


if __name__ == "__main__":
    found = [one for folder in sys.argv[1:] for one in strata_of(Path(folder))]
    (Path(__file__).parents[1] / "reports" / "fewer_items.md").write_text(table(study(), found), "utf-8")
