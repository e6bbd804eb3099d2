"""A recipe's results over its training seeds, as against one checkpoint of it.

Invariant: with fewer than three seeds nothing is said of the variance of training but that it
is unknown; a recipe is never shown by its best seed.
Source: random effects over seeds, `stats.random_effects`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import isfinite

from harness import plugins, stats
from harness.comparison import Comparison, Estimate
from harness.decision.results import CandidateFacts, gain, is_fine_tuned
from harness.formatting import Unit

VARIANCE_UNKNOWN = "training-seed variance unknown"


@dataclass(frozen=True, slots=True)
class SeedSummary:
    """One recipe over its finished seeds: scores on test, and random effects from three seeds on.

    `score` and `gain` (over the best untrained candidate, above 0 is better) hold the mean over
    seeds with an interval for a new seed's expectation; None with fewer than three seeds.
    `seed_sd` is the standard deviation of the scores between seeds, in the metric's unit.
    """

    candidate: str
    seeds: tuple[int, ...]
    scores: tuple[float, ...]
    score: Estimate | None
    gain: Estimate | None
    seed_sd: float | None


def summarize_seeds(facts: Iterable[CandidateFacts]) -> tuple[SeedSummary, ...]:
    """Join the seeds of every recipe that trains a language model, as listed; an endpoint has none."""
    by_name: dict[str, list[CandidateFacts]] = {}
    for f in facts:
        seeded = plugins.stored_method(f.method).makes != "endpoint"
        if is_fine_tuned(f) and seeded and f.state == "done" and f.target is not None:
            by_name.setdefault(f.name, []).append(f)
    return tuple(_seed_summary(name, sorted(of, key=lambda f: f.seed)) for name, of in by_name.items())


def n_seeds(facts: Iterable[CandidateFacts], run: CandidateFacts) -> int:
    """Count the finished seeds of a run's recipe, its own included."""
    return sum(f.name == run.name and f.state == "done" for f in facts)


def gain_label(facts: Iterable[CandidateFacts], run: CandidateFacts) -> str:
    """Name a recipe whose gain is the mean over its seeds by itself, and else the one run."""
    n = n_seeds(facts, run)
    return f"{run.name} over {n} seeds" if n >= stats.MIN_SEEDS else run.label


def effects_over_seeds(values: Sequence[float], errors: Sequence[float]) -> stats.RandomEffects | None:
    """Join seeds by random effects; None with fewer than three, or where one has no finite standard error."""
    return stats.random_effects(values, errors) if all(map(isfinite, errors)) else None


def pooled_difference(pairs: Sequence[Comparison]) -> Estimate | None:
    """Average paired deltas of several seeds by random effects; None with fewer than three."""
    found = effects_over_seeds([c.delta for c in pairs], [c.se for c in pairs])
    return _estimate(found, pairs[0].n, pairs[0].unit, -1.0) if found else None


def pool_seeds(facts: Iterable[CandidateFacts]) -> list[CandidateFacts]:
    """Give runs of a recipe with three seeds or more the recipe's gains over seeds in place of their own."""
    runs = list(facts)
    return [_pool(f, [o for o in runs if o.name == f.name and o.state == "done"]) for f in runs]


def _pool(f: CandidateFacts, seeds: Sequence[CandidateFacts]) -> CandidateFacts:
    if not is_fine_tuned(f) or f.state != "done" or len(seeds) < stats.MIN_SEEDS:
        return f
    untrained = [o.vs_untrained for o in seeds if o.vs_untrained]
    prompt = [o.vs_prompt for o in seeds if o.vs_prompt]
    return replace(
        f,
        vs_untrained=_mean_pair(f.vs_untrained, untrained),
        vs_prompt=_mean_pair(f.vs_prompt, prompt),
    )


def _mean_pair(own: Comparison | None, pairs: Sequence[Comparison]) -> Comparison | None:
    over = effects_over_seeds([c.delta for c in pairs], [c.se for c in pairs])
    if own is None or over is None:
        return own
    ends = _estimate(over, own.n, own.unit, -1.0)
    return replace(own, delta=over.mean, low=ends.low, high=ends.high, se=over.se)


def _seed_summary(name: str, runs: Sequence[CandidateFacts]) -> SeedSummary:
    targets = [f.target for f in runs if f.target is not None]
    z = 2 * stats.z_quantile(0.975)
    found = effects_over_seeds([t.score for t in targets], [(t.high - t.low) / z for t in targets])
    gains = [g for f in runs if (g := gain(f.vs_untrained)) is not None]
    return SeedSummary(
        candidate=name,
        seeds=tuple(f.seed for f in runs),
        scores=tuple(t.score for t in targets),
        score=_estimate(found, targets[0].n, targets[0].unit, 0.0) if found else None,
        gain=pooled_difference(gains) if len(gains) == len(runs) else None,
        seed_sd=found.seed_sd if found else None,
    )


def _estimate(found: stats.RandomEffects, n: int, unit: Unit, least: float) -> Estimate:
    """Cut the interval to what a rate (or a difference of rates) can be."""
    low, high = stats.random_effects_interval(found)
    if unit.is_rate:
        low, high = max(low, least), min(high, 1.0)
    return Estimate(found.mean, low, high, n, unit)
