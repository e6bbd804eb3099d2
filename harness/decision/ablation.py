"""Ablation: a grid's members against its first one, corrected for multiple testing.

Invariant: every member answers the same items as the reference; the reference is the first in
the file, so nobody chose it by its result; the winner on validation is named, never that on test.
Source: Benjamini & Hochberg 1995; several seeds by random effects (`decide.seeds`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from harness import stats
from harness.comparison import Comparison, Estimate, difference_p
from harness.decision.results import CandidateFacts, best, is_fine_tuned
from harness.decision.seeds import effects_over_seeds, pooled_difference

Pair = Callable[[CandidateFacts, CandidateFacts], Comparison | None]


@dataclass(frozen=True, slots=True)
class Factor:
    """One member of a grid against the reference, in the target metric's unit; costs are a seed's mean.

    `p` is two-sided and as if nothing else had been looked at, `p_adjusted` corrected by
    Benjamini-Hochberg over the grid. Both are None of the reference itself and of what failed.
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


def ablations(facts: Sequence[CandidateFacts], pair: Pair) -> tuple[Ablation, ...]:
    """Compare the members of every grid with the first; `pair` compares two runs (base, new) on test."""
    grids: dict[str, dict[str, list[CandidateFacts]]] = {}
    for f in facts:
        source, bracket, _ = f.name.partition("[")
        if bracket:
            grids.setdefault(source, {}).setdefault(f.name, []).append(f)
    return tuple(_ablation(source, members, pair) for source, members in grids.items() if len(members) > 1)


def _ablation(source: str, members: dict[str, list[CandidateFacts]], pair: Pair) -> Ablation:
    reference, *others = members
    rows = [_factor(name, members[name], None, None) for name in (reference,)]
    for name in others:
        pairs = _pairs(members[reference], members[name], pair)
        rows.append(_factor(name, members[name], *_difference(pairs)))
    tested = [row.p for row in rows if row.p is not None]
    adjusted = iter(stats.benjamini_hochberg(tested))
    rows = [replace(row, p_adjusted=next(adjusted)) if row.p is not None else row for row in rows]
    chosen = best(f for of in members.values() for f in of)
    return Ablation(
        source,
        reference,
        tuple(rows),
        len(tested),
        chosen.name if chosen else None,
        not any(is_fine_tuned(f) for of in members.values() for f in of)
        or all(row.n_seeds >= stats.MIN_SEEDS for row in rows),
    )


def _pairs(base: Sequence[CandidateFacts], new: Sequence[CandidateFacts], pair: Pair) -> list[Comparison]:
    """Compare seed with seed; a run that failed has no partner."""
    of_seed = {f.seed: f for f in base if f.state == "done"}
    partners = [(of_seed[f.seed], f) for f in new if f.state == "done" and f.seed in of_seed]
    return [c for old, now in partners if (c := pair(old, now)) is not None]


def _difference(pairs: Sequence[Comparison]) -> tuple[Estimate | None, float | None]:
    """Return the difference with its p: random effects from three seeds on, else over items alone."""
    if not pairs:
        return None, None
    over = effects_over_seeds([c.delta for c in pairs], [c.se for c in pairs])
    if over:
        return pooled_difference(pairs), stats.random_effects_p(over)
    first = pairs[0]
    if len(pairs) == 1:
        return Estimate(first.delta, first.low, first.high, first.n, first.unit), difference_p(first)
    # Two seeds on the same items: no interval of their mean is wider than the mean of theirs.
    mean = replace(
        first,
        delta=fmean(c.delta for c in pairs),
        low=fmean(c.low for c in pairs),
        high=fmean(c.high for c in pairs),
        se=fmean(c.se for c in pairs),
        estimator="cluster-t",
    )
    return Estimate(mean.delta, mean.low, mean.high, mean.n, mean.unit), difference_p(mean)


def _factor(
    name: str, runs: Sequence[CandidateFacts], difference: Estimate | None, p: float | None
) -> Factor:
    done = [f for f in runs if f.state == "done"]
    scores = [f.target.score for f in done if f.target is not None]
    seconds = [f.training.wall_s for f in done if f.training.wall_s is not None]
    validations = [f.validation for f in done if f.validation is not None]
    return Factor(
        candidate=name,
        n_seeds=len(done),
        score=fmean(scores) if scores else None,
        validation=fmean(validations) if validations else None,
        difference=difference,
        p=p,
        p_adjusted=None,
        training_cost_usd=fmean(f.training_cost_usd for f in done) if done else 0.0,
        training_s=fmean(seconds) if seconds else None,
    )
