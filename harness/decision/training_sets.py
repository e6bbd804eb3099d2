"""Candidates that differ only in their training rows: quality against quantity.

Invariant: all answered the same test items; each is compared with the candidate on the target's own rows,
which is not chosen by its result.
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
    """One candidate's training rows and their results, in the target metric's unit, with costs in USD.

    `n_rows` are the rows as trained: a row that is twice in the file, or drawn twice by a mixture, counts
    twice. `n_labelled` of them were labelled and paid for: a row drawn again is labelled once. `n_tokens`
    counts the trained tokens of all epochs. `estimate` is the score with its interval, None if the variance
    between seeds is unknown. `difference` from the reference, `p` and `p_adjusted` (Benjamini-Hochberg over
    the table) are None for the reference.
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
    """Compare the candidates whose recipes differ only in `train` and `mix`.

    `facts` are in the order of the file; `drawn_again` maps each candidate to its number of repeated rows.
    `pair` compares two runs (base, new) on test, `means` two recipes over their seeds.
    """
    by = Comparer(pair, means, pool_variance(facts))
    over = {s.candidate: s.score for s in summarize_seeds(facts) if s.score}

    def compare(names: Sequence[str]) -> TrainingSets:
        members = {name: [f for f in facts if f.name == name] for name in names}
        ablation = compare_members(names[0], members, by)
        sets = []
        for f in ablation.factors:
            name_, again = f.candidate, drawn_again.get(f.candidate, 0)
            sets.append(_training_set(f, members[name_], recipes[name_], over.get(name_), policy, again))
        known, method = ablation.seed_variance_known, recipes[names[0]].method
        return TrainingSets(method, ablation.reference, tuple(sets), ablation.n_tests, known)

    return tuple(map(compare, _groups(facts, recipes)))


def _groups(facts: Sequence[CandidateFacts], recipes: Mapping[str, Recipe]) -> list[list[str]]:
    """Group the candidates that differ only in their rows, the reference first; equal rows once."""
    groups: dict[str, dict[Any, str]] = {}
    for name in dict.fromkeys(f.name for f in facts):
        recipe = recipes[name]
        if plugins.method(recipe.method).draws_from:
            rest = recipe.model_copy(update={"train": (), "mix": None})
            groups.setdefault(rest.model_dump_json(), {}).setdefault(_rows_of(recipe), name)
    # The target's own rows come first; the others stay in the order of the file.
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
    """Add up the labelling costs of people and a teacher, one of whom labelled each row."""
    return policy.label_cost_usd * (run.n_train - run.n_taught) + run.rows_cost_usd
