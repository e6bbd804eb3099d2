"""Pass rates that the gate prints, compared with its observed pass rates on answers of real models.

Pairs of models from the Open LLM Leaderboard (metabench) serve as base and candidate. The disagreement that
the gate sees comes from a random half of each benchmark's items; the observed rates come from samples of the
other half, whose delta is the true one. So the printed rates are tested on items that they were not computed
from.

`PYTHONPATH=.:tests:tests/browser python -m reports.studies.real_items` writes the table to `reports/gate_on_real_items.md`.
"""

import gzip
import json
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from conftest import find_shared_data

from harness import stats
from harness.analysis.estimators import Comparison
from harness.formatting import count, percent, points
from harness.analysis.verdict import TaskComparison
from harness.analysis.macro import average_macro
from harness.analysis.significance import miss_rates
from harness.spec import GatePolicy, Task

BENCHMARKS = {
    "arc": "arc-4PL-MAP-0.005-v2",
    "gsm8k": "gsm8k-2PL-EAPsum-0.001",
    "mmlu": "mmlu-3PL-MAP-0.01",
    "truthfulqa": "truthfulqa-2PL-EAPsum-0.01",
    "winogrande": "winogrande-4PL-MAP-0.005",
}
N = 300  # items per task that the simulated gate sees
MACRO_DELTAS, TASK_DELTAS = (0.0, -0.01, -0.02, -0.03, -0.05), (-0.05, -0.10)
WIDTH = 0.0025  # half a bin of true macro deltas
PAIRS, DRAWS = 450, 40  # pairs per bin, samples per pair
POLICY = GatePolicy()


class Rate(NamedTuple):
    """A line of the table: printed and observed pass rates at a true delta."""

    what: str
    delta: float
    n_pairs: int
    printed: float
    done: float


class Half(NamedTuple):
    """Shares of a half's items that were gained, lost, and passed by the base."""

    gained: float
    lost: float
    passed: float


def answers() -> dict[str, np.ndarray]:
    """Read each benchmark's 0/1 scores (models, items) of the models that all benchmarks have."""
    by_benchmark: dict[str, dict[str, str]] = {}
    for name, file in BENCHMARKS.items():
        path = find_shared_data(f"rows/metabench_irt/{file}.responses.jsonl.gz")
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            rows = map(json.loads, lines)
            by_benchmark[name] = {row["model"]: row["y"] for row in rows if row.get("y")}
    shared = sorted(set.intersection(*map(set, by_benchmark.values())))
    return {
        name: np.array([np.frombuffer(scores[model].encode(), np.uint8) - ord("0") for model in shared])
        for name, scores in by_benchmark.items()
    }


def halves(old: np.ndarray, new: np.ndarray, rng: np.random.Generator) -> tuple[Half, Half]:
    """Split a pair's items at random, and return the shares of changes in both halves."""
    order = rng.permutation(len(old))
    parts = np.array_split(order, 2)
    return tuple(
        Half(*(float(np.mean(f)) for f in (new[p] > old[p], new[p] < old[p], old[p] == 1))) for p in parts
    )


def pairs(rng: np.random.Generator) -> Iterator[list[tuple[Half, Half]]]:
    """Yield endless random pairs of models whose macro scores differ by at most 8 points."""
    matrices = list(answers().values())
    macro = np.mean([m.mean(axis=1) for m in matrices], axis=0)
    while True:
        i, j = rng.integers(0, len(macro), 2)
        if i != j and abs(macro[i] - macro[j]) < 0.08:
            yield [halves(m[i], m[j], rng) for m in matrices]


@cache
def ends(gains: float, losses: float) -> tuple[float, float]:
    """Return Tango's one-sided bounds for these flips among N items."""
    return stats.tango_interval(gains, losses, N, 2 * POLICY.alpha)


def comparison(gains: float, losses: float) -> Comparison:
    """Return a comparison of N items with these gains and losses; fields that the gate ignores are made up."""
    lower, upper = stats.tango_interval(gains, losses, N, 2 * POLICY.alpha)
    delta = (gains - losses) / N
    return Comparison(
        task="t",
        metric="accuracy",
        n=N,
        n_clusters=N,
        base=0.6,
        base_low=0.55,
        base_high=0.65,
        new=0.6 + delta,
        new_low=0.5,
        new_high=0.7,
        delta=delta,
        low=lower,
        high=upper,
        se=(upper - lower) / 3.29,
        disagreement=(gains + losses) / N,
        lost=(),
        gained=(),
        estimator="tango",
        lower=lower,
        upper=upper,
        base_passed=N,
    )


def compute_printed_chances(first: Sequence[Half]) -> dict[tuple[str, float], float]:
    """Return the operating characteristic that the gate prints for the first halves."""
    tasks = [
        TaskComparison(
            Task(name=f"t{i}", data={}), "capability", comparison(N * h.gained, N * h.lost), True, ""
        )
        for i, h in enumerate(first)
    ]
    rates = miss_rates(tasks, average_macro(tasks, POLICY), None, POLICY)
    return {(m.what, m.delta): m.probability for m in rates}


def draws(half: Half, rng: np.random.Generator, n_draws: int) -> np.ndarray:
    """Sample N items from a half: gains and losses (n_draws, 2)."""
    return rng.multinomial(N, [half.gained, half.lost, 1 - half.gained - half.lost], n_draws)[:, :2]


def macro_passes(second: Sequence[Half], rng: np.random.Generator, n_draws: int = DRAWS) -> float:
    """Return how often the macro rule passes on samples of the second halves."""
    delta, below = np.zeros(n_draws), np.zeros(n_draws)
    for half in second:
        sampled = draws(half, rng, n_draws)
        task_delta = (sampled[:, 0] - sampled[:, 1]) / N
        delta += task_delta / len(second)
        below += (task_delta - np.array([ends(*map(int, row))[0] for row in sampled])) ** 2 / len(second) ** 2
    return float(np.mean(delta - np.sqrt(below) > -POLICY.macro))


def task_passes(half: Half, rng: np.random.Generator, n_draws: int = DRAWS) -> float:
    """Return how often the rule `each` lets one task pass on samples of a half."""
    return float(np.mean([_passes_each(int(g), int(k)) for g, k in draws(half, rng, n_draws)]))


@cache
def _passes_each(gains: int, losses: int) -> bool:
    """Decide a single task as the rule `each`: it fails with a shown loss and a delta beyond the margin."""
    has_loss = stats.tango_regression_p(gains, losses, N, 0.0) < POLICY.alpha
    return not (has_loss and (gains - losses) / N < -POLICY.each)


def study(seed: int = 0, n_pairs: int = PAIRS) -> list[Rate]:
    """Fill every bin of true deltas with pairs, and average printed and observed pass rates."""
    rng = np.random.default_rng(seed)
    macro: dict[float, list[tuple[float, float]]] = {d: [] for d in MACRO_DELTAS}
    each: dict[float, list[tuple[float, float]]] = {d: [] for d in TASK_DELTAS}
    for split in pairs(rng):
        first, second = [a for a, _ in split], [b for _, b in split]
        truth = float(np.mean([h.gained - h.lost for h in second]))
        if (bin_ := _bin(truth, macro, n_pairs)) is not None:
            printed = compute_printed_chances(first)
            macro[bin_].append((_passes(printed, bin_), macro_passes(second, rng)))
        for first_half, second_half in split:
            if (bin_ := _bin(second_half.gained - second_half.lost, each, n_pairs)) is not None:
                each[bin_].append((compute_printed_chances([first_half])["each", bin_], task_passes(second_half, rng)))
        if all(len(rates) >= n_pairs for rates in (*macro.values(), *each.values())):
            break
    return [
        Rate(rule, delta, len(rates), *(float(np.mean(x)) for x in zip(*rates, strict=True)))
        for rule, bins in (("macro", macro), ("each, first_half task", each))
        for delta, rates in bins.items()
    ]


def _bin(truth: float, bins: dict[float, list[tuple[float, float]]], n_pairs: int) -> float | None:
    return next((d for d, rates in bins.items() if abs(truth - d) <= WIDTH and len(rates) < n_pairs), None)


def _passes(printed: dict[tuple[str, float], float], delta: float) -> float:
    return printed["macro", delta] if delta else 1 - printed["equal", 0.0]


def table(rates: Sequence[Rate]) -> str:
    """Write the study as Markdown."""
    about = (
        f"{count(sum(r.n_pairs for r in rates))} pairs of models of the Open LLM Leaderboard on "
        f"{len(BENCHMARKS)} benchmarks (metabench), {N} items per task. The printed rates are computed from one half of "
        "the items, the observed rates from samples of the other half, whose delta is the true one."
    )
    lines = [
        "# The gate on answers of real models",
        "",
        about,
        "",
        "| rule | true delta pp | pairs | passes, printed % | passes, observed % | difference pp |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r.what} | {points(r.delta)} | {count(r.n_pairs)} | {percent(r.printed)} | {percent(r.done)} | "
        f"{points(r.done - r.printed)} |"
        for r in rates
    ]
    again = "`PYTHONPATH=.:tests:tests/browser python -m reports.studies.real_items` makes this table again."
    return "\n".join([*lines, "", again]) + "\n"


if __name__ == "__main__":
    (Path(__file__).parents[1] / "gate_on_real_items.md").write_text(table(study()), "utf-8")
