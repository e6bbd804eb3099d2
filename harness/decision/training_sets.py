"""Candidates that differ in their training rows alone: quality against quantity.

Invariant: all answered the same test items; each is compared with the one on the target's own rows, which
nobody chose by its result.
Source: the differences are those of `ablation`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from harness import plugins
from harness.comparison import Estimate
from harness.decision.ablation import Comparer, Factor, Means, Pair, compare_members
from harness.decision.results import CandidateFacts
from harness.decision.seeds import pool_variance, summarize_seeds
from harness.evaluation.candidate_rows import describe_source
from harness.spec import DecidePolicy, Recipe


@dataclass(frozen=True, slots=True)
class TrainingSet:
    """One candidate's training rows and what they brought, in the target metric's unit, with costs in USD.

    `n_rows` are the rows as trained: one that stands twice in the file, or that a mixture drew twice, is two.
    `n_labelled` of them were labelled, and cost: a row that was drawn again is the same one. `n_tokens` is
    what was trained on in all epochs. `estimate` is the score with its interval, None where the variance
    between seeds is unknown. `difference` from the reference, `p` and `p_adjusted` (Benjamini-Hochberg over
    the table) are None of the reference.
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
    """Candidates of one method that differ in their training rows alone."""

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
    """Compare the candidates whose recipes differ in `train` and `mix` alone.

    `facts` come in the order of the file; `drawn_again` says by candidate how many of its rows are the same
    row again. `pair` compares two runs (base, new) on test, `means` two recipes over their seeds.
    """
    by = Comparer(pair, means, pool_variance(facts))
    over = {s.candidate: s.score for s in summarize_seeds(facts) if s.score}

    def compare(names: Sequence[str]) -> TrainingSets:
        members = {name: [f for f in facts if f.name == name] for name in names}
        found = compare_members(names[0], members, by)
        sets = []
        for f in found.factors:
            of, again = f.candidate, drawn_again.get(f.candidate, 0)
            sets.append(_training_set(f, members[of], recipes[of], over.get(of), policy, again))
        known, method = found.seed_variance_known, recipes[names[0]].method
        return TrainingSets(method, found.reference, tuple(sets), found.n_tests, known)

    return tuple(map(compare, _groups(facts, recipes)))


def _groups(facts: Sequence[CandidateFacts], recipes: Mapping[str, Recipe]) -> list[list[str]]:
    """List the candidates of one recipe but for their rows, the reference first; the same rows once."""
    groups: dict[str, dict[Any, str]] = {}
    for name in dict.fromkeys(f.name for f in facts):
        recipe = recipes[name]
        if plugins.method(recipe.method).draws_from:
            rest = recipe.model_copy(update={"train": (), "mix": None})
            groups.setdefault(rest.model_dump_json(), {}).setdefault(_rows_of(recipe), name)
    # The target's own rows sort first; all else stays in the order of the file.
    return [
        [name for _, name in sorted(g.items(), key=lambda entry: entry[0] != _OWN)]
        for g in groups.values()
        if len(g) > 1
    ]


def _rows_of(recipe: Recipe) -> tuple[Any, ...]:
    return recipe.train, recipe.mix.model_dump_json() if recipe.mix else ""


_OWN: tuple[Any, ...] = ((), "")


def _training_set(
    factor: Factor,
    runs: Sequence[CandidateFacts],
    recipe: Recipe,
    over_seeds: Estimate | None,
    policy: DecidePolicy,
    n_again: int,
) -> TrainingSet:
    done = [f for f in runs if f.state == "done"]
    score = done[0].target if len(done) == 1 else over_seeds
    tokens = [f.training.n_tokens for f in done if f.training.n_tokens is not None]
    n_labelled = done[0].n_train if done else None
    return TrainingSet(
        candidate=factor.candidate,
        source=describe_source(recipe),
        n_rows=None if n_labelled is None else n_labelled + n_again,
        n_tokens=round(fmean(tokens)) if tokens else None,
        score=factor.score,
        estimate=score,
        difference=factor.difference,
        p=factor.p,
        p_adjusted=factor.p_adjusted,
        label_cost_usd=None if n_labelled is None else _label_cost_usd(policy, done[0]),
        training_cost_usd=factor.training_cost_usd,
        n_labelled=n_labelled,
    )


def _label_cost_usd(policy: DecidePolicy, run: CandidateFacts) -> float:
    """Add up what people and a teacher were paid for labels, of each row one of them."""
    return policy.label_cost_usd * (run.n_train - run.n_taught) + run.rows_cost_usd
