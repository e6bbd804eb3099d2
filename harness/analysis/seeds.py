"""Results of recipes rather than of one checkpoint: over their training seeds, and corrected as a family.

Invariant: the variances over items and between seeds are added, neither subtracted nor left out; below two
degrees of freedom the seeds' variance is unknown. A family's members are fixed before a test item is read:
one per recipe with all its seeds, and one per grid. The gate's verdict on a single run is not corrected.
Source: variance components, `stats.VarianceComponents`; Holm 1979, `stats.holm`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from math import inf, sqrt
from statistics import fmean
from typing import NamedTuple

from harness import plugins, stats
from harness.analysis.alignment import quantile
from harness.analysis.candidate_facts import (
    CandidateFacts,
    FamilyRank,
    ItemVariances,
    best,
    is_cross_validated,
    is_fine_tuned,
)
from harness.analysis.comparison import RecipeDifference, compare_recipes
from harness.analysis.estimators import Comparison, Estimate, chance_below, orient, refuse
from harness.metrics import Metric
from harness.records import SampleResult
from harness.spec import Experiment
from harness.stats import Variance, VarianceComponents

VARIANCE_UNKNOWN = "training-seed variance unknown"
Rows = Sequence[SampleResult]


@dataclass(frozen=True, slots=True)
class SeedSummary:
    """One recipe over its finished seeds, with its scores on test.

    `score` and `gain` (over the best untrained candidate, above 0 is better) hold the mean over seeds with an
    interval for a new seed's expected result; None if the variance between seeds is unknown. `seed_sd` is the
    standard deviation between seeds, in the metric's unit; `seed_df` is above R − 1 if recipes were pooled.
    """

    candidate: str
    seeds: tuple[int, ...]
    scores: tuple[float, ...]
    score: Estimate | None
    gain: Estimate | None
    seed_sd: float | None
    seed_df: float | None = None

    @property
    def is_pooled(self) -> bool:
        """Whether the variance between seeds was also estimated from other recipes."""
        return self.seed_df is not None and self.seed_df != len(self.seeds) - 1


def item_variances(
    metric: Metric, seeds: Sequence[Rows], untrained: Rows | None, prompt: Rows | None
) -> ItemVariances:
    """Return how much the mean of a recipe's seeds varies with the items, from all their rows on test."""
    changes = [compare_recipes(metric, [rows], seeds) if rows else None for rows in (untrained, prompt)]
    score = next((d for d in changes if d), None) or compare_recipes(metric, seeds[:1], seeds)
    return ItemVariances(score.score, *(d.change if d else None for d in changes))


def summarize_seeds(facts: Iterable[CandidateFacts]) -> tuple[SeedSummary, ...]:
    """Join the seeds of every recipe that trains a language model, in order, except cross-validated ones."""
    facts = list(facts)
    recipes = [r for r in _recipes(facts) if r[0].target is not None and not is_cross_validated(r[0])]
    pooled = pool_seeds(f for r in recipes for f in r)
    gains = {f.name: orient(f.vs_untrained) for f in pooled if f.vs_untrained and f.vs_untrained.components}
    seed_variance, summaries = pool_variance(facts), []
    for runs in recipes:
        seed_scores, targets = scores(runs), [f.target for f in runs if f.target is not None]
        bound = Variance((fmean(t.high - t.low for t in targets) / (2 * stats.z_quantile(0.975))) ** 2, None)
        items = runs[0].over_items.score if runs[0].over_items else bound
        components, gain = variance_components(seed_scores, items, seed_variance), gains.get(runs[0].name)
        score, mean, unit = None, fmean(seed_scores), targets[0].unit
        if components:
            ends = _cut(mean_interval(mean, components.total), *sorted(unit.bounds))
            score = Estimate(mean, *ends, targets[0].n, unit)
        summaries.append(
            SeedSummary(
                candidate=runs[0].name,
                seeds=tuple(f.seed for f in runs),
                scores=tuple(seed_scores),
                score=score,
                gain=Estimate(gain.delta, gain.low, gain.high, gain.n, gain.unit) if gain else None,
                seed_sd=sqrt(components.seeds.variance * len(seed_scores)) if components else None,
                seed_df=components.seeds.df if components else None,
            )
        )
    return tuple(summaries)


def pool_variance(facts: Iterable[CandidateFacts]) -> Variance | None:
    """Estimate the variance of one seed's score over all recipes; None below two degrees of freedom."""
    return stats.seed_variance([scores(seeds) for seeds in _recipes(facts)])


def gain_label(run: CandidateFacts) -> str:
    """Name a recipe if its gain is the mean over its seeds, else the single run."""
    components = run.vs_untrained.components if run.vs_untrained else None
    return f"{run.name} over {components.n_seeds} seeds" if components else run.label


def variance_components(
    seeds: Sequence[float], items: Variance, pooled: Variance | None
) -> VarianceComponents | None:
    """Return the variance components of a mean of seeds; two seeds take the `pooled` variance of one."""
    seed = stats.seed_variance([seeds]) or (pooled if len(seeds) > 1 else None)
    if seed is None:
        return None
    return VarianceComponents(items, Variance(seed.variance / len(seeds), seed.df), len(seeds))


def pool_seeds(facts: Iterable[CandidateFacts]) -> list[CandidateFacts]:
    """Give runs of a recipe with three seeds, or two if variances can be pooled, the recipe's mean gains."""
    runs = list(facts)
    recipes, pooled, pooled_runs = {r[0].name: r for r in _recipes(runs)}, pool_variance(runs), []
    for f in runs:
        if f.state == "done" and f.name in recipes:
            untrained = [o.vs_untrained for o in recipes[f.name] if o.vs_untrained]
            prompt = [o.vs_prompt for o in recipes[f.name] if o.vs_prompt]
            items, unit = f.over_items, f.target.unit if f.target else None
            untrained_pooled = pooled if all(unit in (None, c.unit) for c in untrained) else None
            item_variance = items and items.vs_untrained
            f = replace(
                f,
                vs_untrained=_mean_pair(f.vs_untrained, untrained, item_variance, untrained_pooled),
                vs_prompt=_mean_pair(f.vs_prompt, prompt, items and items.vs_prompt, pooled),
            )
        pooled_runs.append(f)
    return pooled_runs


def _recipes(facts: Iterable[CandidateFacts]) -> list[list[CandidateFacts]]:
    """List the finished runs of every recipe that trains a language model; an endpoint has no seeds."""
    by_name: dict[str, list[CandidateFacts]] = {}
    for f in facts:
        if is_fine_tuned(f) and f.state == "done" and not f.is_remote:
            by_name.setdefault(f.name, []).append(f)
    return [sorted(seeds, key=lambda f: f.seed) for seeds in by_name.values()]


def scores(runs: Iterable[CandidateFacts]) -> list[float]:
    """List the test scores of runs."""
    return [f.target.score for f in runs if f.target is not None]


def _mean_pair(
    pair: Comparison | None, pairs: Sequence[Comparison], items: Variance | None, pooled: Variance | None
) -> Comparison | None:
    components = variance_components([c.delta for c in pairs], items or items_at_most(pairs), pooled)
    if pair is None or components is None:
        return pair
    if refused := next((c for c in pairs if c.refused), None):
        return refuse(pair, refused.high, refused.refused)
    delta, (variance, df) = fmean(c.delta for c in pairs), components.total
    two_sided, one_sided = (
        mean_interval(delta, components.total, alpha) for alpha in (pair.alpha, 2 * pair.alpha)
    )
    low, high = _cut(two_sided, -pair.unit.span, pair.unit.span)
    return replace(
        pair, estimator="seeds", delta=delta, low=low, high=high, lower=one_sided.low, upper=one_sided.high,
        se=sqrt(variance), df=df, base_passed=None, components=components,
    )  # fmt: skip


def average_pairs(pairs: Sequence[Comparison | None]) -> RecipeDifference | None:
    """Average the differences of all seeds of two recipes; None if one is unknown, or shows nothing."""
    valid = [c for c in pairs if c is not None and not c.refused]
    if not valid or len(valid) < len(pairs):
        return None
    score_variance = Variance(inf, None)  # unknown from differences
    return RecipeDifference(fmean(c.delta for c in valid), items_at_most(valid), score_variance, valid[0].n)


def items_at_most(pairs: Sequence[Comparison]) -> Variance:
    """Bound the variance over items of a mean over seeds by the seeds' mean standard error, without rows."""
    if not pairs:
        return Variance(inf, None)
    known_dfs = [c.df for c in pairs if c.df is not None]
    return Variance(fmean(c.se for c in pairs) ** 2, min(known_dfs) if known_dfs else None)


def mean_interval(mean: float, variance: Variance, alpha: float = 0.05) -> stats.Interval:
    """Return mean ± t_{1−α/2, ν} √V, in the unit of the mean."""
    half = quantile(variance.df, 1 - alpha / 2) * sqrt(variance.variance)
    return stats.Interval(mean - half, mean + half)


def mean_p(mean: float, variance: Variance) -> float:
    """Return the two-sided p of H0 "the mean is 0"; 1 if nothing varies and it is 0."""
    if variance.variance == 0:
        return float(mean == 0)
    return 2 * chance_below(-abs(mean) / sqrt(variance.variance), variance.df)


def _cut(ends: stats.Interval, lowest: float, highest: float) -> stats.Interval:
    """Cut the interval to the possible values."""
    return stats.Interval(max(ends.low, lowest), min(ends.high, highest))


@dataclass(frozen=True, slots=True)
class Family:
    """The member (recipe or grid) of each fine-tune of an experiment, and the chance of any false pass."""

    members: dict[str, str] = field(default_factory=dict)
    alpha: float = 0.05

    @property
    def size(self) -> int:
        """The number of members."""
        return len(set(self.members.values()))


class FamilyMember(NamedTuple):
    """One member on the test items: its recipe, its largest p (None if not shown alone), and Holm's p."""

    name: str
    candidate: str
    p: float | None
    p_adjusted: float
    level: float


def family_of(experiment: Experiment) -> Family:
    """List the members of an experiment, whether or not they are selected, trained or finished."""
    recipes = experiment.candidates
    sources = {name: recipes.get(recipe.weights_of or "", recipe) for name, recipe in recipes.items()}
    gated = {name: source for name, source in sources.items() if recipes[name].role == "candidate"}
    tuned = [name for name, source in gated.items() if plugins.method(source.method).tunes]
    return Family({name: name.partition("[")[0] for name in tuned}, experiment.gate.alpha)


def family_members(facts: Sequence[CandidateFacts], family: Family) -> tuple[FamilyMember, ...]:
    """Correct the p of every member by Holm; an unmeasured or failed one is not shown."""
    tuned = [f for f in facts if is_fine_tuned(f) and not f.over_budget]
    chosen: dict[str, CandidateFacts | None] = {}
    ps: list[float | None] = []
    for name in dict.fromkeys(family.members.values()):
        run = best(f for f in tuned if family.members.get(f.name) == name)
        seeds_ps = [f.verdict.p if f.verdict else None for f in facts if run and f.name == run.name]
        chosen[name] = run
        ps.append(max((p for p in seeds_ps if p is not None), default=None) if None not in seeds_ps else None)
    filled_ps = [1.0 if p is None else p for p in ps]
    # Holm tests the smallest p at α/k, and the others up to the first that is not shown.
    adjusted, levels, n_shown = stats.holm(filled_ps), [0.0] * len(filled_ps), 0
    for i in sorted(range(len(filled_ps)), key=filled_ps.__getitem__):
        levels[i] = family.alpha / (len(filled_ps) - n_shown)
        n_shown += filled_ps[i] < levels[i]
    return tuple(
        FamilyMember(name, run.name if run else "", p, corrected, level)
        for (name, run), p, corrected, level in zip(chosen.items(), ps, adjusted, levels, strict=True)
    )


def place_in_family(facts: Sequence[CandidateFacts], family: Family) -> list[CandidateFacts]:
    """Set each fine-tune's `standing` (p, Holm's level) among the others, if there is more than one."""
    if len(family.members) < 2:
        return list(facts)
    members = {member.name: member for member in family_members(facts, family)}
    placed = []
    for f in facts:
        member = members.get(family.members.get(f.name, ""))
        if member and is_fine_tuned(f):
            p, adjusted = (member.p, member.p_adjusted) if f.name == member.candidate else (None, 1.0)
            rank = FamilyRank(family.size, family.alpha, p, adjusted, member.level, member.candidate)
            f = replace(f, standing=rank)
        placed.append(f)
    return placed
