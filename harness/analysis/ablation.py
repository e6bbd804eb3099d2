"""Ablation: a grid's members against its first one, or candidates that differ only in their training rows.

Invariant: every member answers the same items as the reference, which is not chosen by its result; the winner
is named by validation. Source: Benjamini & Hochberg 1995; several seeds by variance components (`seeds`).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean
from typing import Any

from harness import plugins, stats
from harness.analysis.candidate_facts import CandidateFacts, best, is_fine_tuned, target_unit
from harness.analysis.comparison import RecipeDifference
from harness.analysis.estimators import Comparison, Estimate, difference_p
from harness.analysis.seeds import (
    mean_interval,
    mean_p,
    pool_variance,
    scores,
    summarize_seeds,
    variance_components,
)
from harness.data import describe_source
from harness.spec import DecidePolicy, Recipe

Pair = Callable[[CandidateFacts, CandidateFacts], Comparison | None]
Pooled = stats.Variance | None
Means = Callable[[Sequence[CandidateFacts], Sequence[CandidateFacts]], RecipeDifference | None]


@dataclass(frozen=True, slots=True)
class Factor:
    """One member of a grid against the reference, in the target metric's unit; costs are the mean per seed.

    `p` is two-sided, `p_adjusted` by Benjamini-Hochberg over the grid; None for the reference and failed
    members.
    """

    candidate: str
    n_seeds: int
    score: float | None
    validation: float | None
    difference: Estimate | None
    p: float | None
    p_adjusted: float | None
    training_cost_usd: float
    training_s: float | None


@dataclass(frozen=True, slots=True)
class Ablation:
    """One grid: its rows in the order of the file, the reference first; `chosen` is best on validation."""

    grid: str
    reference: str
    factors: tuple[Factor, ...]
    n_tests: int
    chosen: str | None
    seed_variance_known: bool


def ablations(facts: Sequence[CandidateFacts], pair: Pair, means: Means) -> tuple[Ablation, ...]:
    """Compare the members of every grid with the first, by `pair` for runs (base, new), `means` for seeds."""
    grids: dict[str, dict[str, list[CandidateFacts]]] = {}
    for f in facts:
        source, bracket, _ = f.name.partition("[")
        if bracket:
            grids.setdefault(source, {}).setdefault(f.name, []).append(f)
    pooled = pool_variance(facts)
    compare = partial(compare_members, pair=pair, means=means, pooled=pooled)
    return tuple(compare(source, members) for source, members in grids.items() if len(members) > 1)


def compare_members(
    source: str, members: Mapping[str, Sequence[CandidateFacts]], pair: Pair, means: Means, pooled: Pooled
) -> Ablation:
    """Compare candidates with the first of them, each given by the facts of its seeds.

    `pooled` is the variance between seeds over all recipes.
    """
    finished = {name: [f for f in runs if f.state == "done"] for name, runs in members.items()}
    reference = next(iter(members))

    def compare(name: str) -> tuple[Estimate | None, float | None]:
        """Return the difference and its p: over items, and over seeds if their variance is known."""
        base_runs, new_runs = finished[reference], finished[name]
        if not base_runs or not new_runs or name == reference:
            return None, None
        if len(base_runs) == len(new_runs) == 1:
            c = pair(base_runs[0], new_runs[0])
            return (Estimate(c.delta, c.low, c.high, c.n, c.unit), difference_p(c)) if c else (None, None)
        mean_diff = means(base_runs, new_runs)
        if mean_diff is None:
            return None, None
        arms = [variance_components(scores(runs), mean_diff.change, pooled) for runs in (base_runs, new_runs)]
        seeds = [arm.seeds for arm in arms if arm] if all(arms) else []
        variance = stats.satterthwaite([mean_diff.change, *seeds])
        ends = mean_interval(mean_diff.delta, variance)
        return Estimate(mean_diff.delta, *ends, mean_diff.n, target_unit(new_runs)), mean_p(
            mean_diff.delta, variance
        )

    rows = []
    for name, runs in finished.items():
        difference, p = compare(name)
        rows.append(
            Factor(
                candidate=name,
                n_seeds=len(runs),
                score=_mean(f.target.score for f in runs if f.target is not None),
                validation=_mean(f.validation for f in runs if f.validation is not None),
                difference=difference,
                p=p,
                p_adjusted=None,
                training_cost_usd=_mean(f.training_cost_usd for f in runs) or 0.0,
                training_s=_mean(f.training.wall_s for f in runs if f.training.wall_s is not None),
            )
        )
    tested = [row.p for row in rows if row.p is not None]
    adjusted = iter(stats.benjamini_hochberg(tested))
    rows = [replace(row, p_adjusted=next(adjusted)) if row.p is not None else row for row in rows]
    every, enough = [f for runs in members.values() for f in runs], stats.MIN_SEEDS if pooled is None else 2
    chosen = best(every)
    is_known = not any(map(is_fine_tuned, every)) or all(row.n_seeds >= enough for row in rows)
    return Ablation(source, reference, tuple(rows), len(tested), chosen.name if chosen else None, is_known)


def _mean(values: Iterable[float]) -> float | None:
    known_values = list(values)
    return fmean(known_values) if known_values else None


@dataclass(frozen=True, slots=True)
class TrainingSet:
    """One candidate's training rows and their results, in the target metric's unit, with costs in USD.

    `n_rows` are the rows as trained, repeated ones included; `n_labelled` of them were labelled and paid for.
    `n_tokens` counts the trained tokens of all epochs. `estimate` is the score with its interval, None if the
    variance between seeds is unknown. The rest is as in `Factor`.
    """

    candidate: str
    source: str
    n_rows: int | None
    n_tokens: int | None
    score: float | None
    estimate: Estimate | None
    difference: Estimate | None
    p: float | None
    p_adjusted: float | None
    label_cost_usd: float | None
    training_cost_usd: float
    n_labelled: int | None = None


@dataclass(frozen=True, slots=True)
class TrainingSets:
    """Candidates of one method that differ only in their training rows."""

    method: str
    reference: str
    sets: tuple[TrainingSet, ...]
    n_tests: int
    seed_variance_known: bool


def training_sets(
    facts: Sequence[CandidateFacts],
    recipes: Mapping[str, Recipe],
    policy: DecidePolicy,
    drawn_again: Mapping[str, int],
    pair: Pair,
    means: Means,
) -> tuple[TrainingSets, ...]:
    """Compare candidates that differ only in `train` and `mix`; `drawn_again` counts repeated rows."""
    pooled = pool_variance(facts)
    seed_scores = {s.candidate: s.score for s in summarize_seeds(facts) if s.score}

    def compare(names: Sequence[str]) -> TrainingSets:
        members = {name: [f for f in facts if f.name == name] for name in names}
        ablation = compare_members(names[0], members, pair, means, pooled)
        sets = []
        for factor in ablation.factors:
            name = factor.candidate
            runs = [f for f in members[name] if f.state == "done"]
            tokens = [f.training.n_tokens for f in runs if f.training.n_tokens is not None]
            n_labelled = runs[0].n_train if runs else None
            # People or a teacher labelled each row.
            by_people = policy.label_cost_usd * (runs[0].n_train - runs[0].n_taught) if runs else 0.0
            sets.append(
                TrainingSet(
                    candidate=name,
                    source=describe_source(recipes[name]),
                    n_rows=None if n_labelled is None else n_labelled + drawn_again.get(name, 0),
                    n_tokens=round(fmean(tokens)) if tokens else None,
                    score=factor.score,
                    estimate=runs[0].target if len(runs) == 1 else seed_scores.get(name),
                    difference=factor.difference,
                    p=factor.p,
                    p_adjusted=factor.p_adjusted,
                    label_cost_usd=by_people + runs[0].rows_cost_usd if runs else None,
                    training_cost_usd=factor.training_cost_usd,
                    n_labelled=n_labelled,
                )
            )
        variance_known, method = ablation.seed_variance_known, recipes[names[0]].method
        return TrainingSets(method, ablation.reference, tuple(sets), ablation.n_tests, variance_known)

    return tuple(map(compare, _groups(facts, recipes)))


def _groups(facts: Sequence[CandidateFacts], recipes: Mapping[str, Recipe]) -> list[list[str]]:
    """Group the candidates that differ only in their rows, the reference first; equal rows once."""
    groups: dict[str, dict[Any, str]] = {}
    for name in dict.fromkeys(f.name for f in facts):
        recipe = recipes[name]
        if plugins.method(recipe.method).draws_from:
            rest = recipe.model_copy(update={"train": (), "mix": None})
            rows = (recipe.train, recipe.mix.model_dump_json() if recipe.mix else "")
            groups.setdefault(rest.model_dump_json(), {}).setdefault(rows, name)
    # The target's own rows come first; the others keep the order of the file.
    return [
        [name for _, name in sorted(g.items(), key=lambda entry: entry[0] != ((), ""))]
        for g in groups.values()
        if len(g) > 1
    ]
