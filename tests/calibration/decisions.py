"""Cells of the decision: gains over seeds, their probability, items for a gain, and many candidates."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from harness.analysis.candidate_facts import CandidateFacts, Case
from harness.analysis.comparison import compare_rows, estimate
from harness.analysis.decision import Decision, decide
from harness.analysis.economics import estimate_more_items
from harness.analysis.estimators import Estimate
from harness.analysis.seeds import Family, item_variances
from harness.spec import DecidePolicy
from tests.calibration.cell import Cell, Claim, claim_at_most, claim_printed
from tests.calibration.draws import (
    EXACT,
    GRADED,
    Law,
    Pair,
    Scores,
    draw,
    make_binary_law,
    make_graded_law,
    make_rows,
    make_single_items,
    pair,
)
from tests.calibration.gates import LOST, Suite, repeat_task

POLICY = DecidePolicy()
_ALTERNATIVES = {"prompt": "zero_shot", "fixed": "few_shot(select=fixed)", "knn": "few_shot(select=knn)"}
Answer = Callable[[np.random.Generator, Scores, Scores, float], Scores]


def make_untrained() -> list[CandidateFacts]:
    """Return the fair alternatives, of which the prompt is the best."""
    level = Estimate(0.7, 0.6, 0.8, 200)
    return [
        CandidateFacts(
            name,
            f"{name}-0",
            "base",
            prompting,
            "generate",
            0,
            False,
            "done",
            target=level,
            validation=0.7 - i / 100,
        )
        for i, (name, prompting) in enumerate(_ALTERNATIVES.items())
    ]


def make_fine_tune(name: str, seed: int, arms: Pair, **changes: Any) -> CandidateFacts:
    """Describe one seed of a fine-tune by its test rows."""
    metric = arms.law.metric
    c, level = compare_rows(metric, arms.base, arms.new), estimate(metric, arms.new)
    fields: dict[str, Any] = {"target": level, "validation": 0.8, "vs_untrained": c, "vs_prompt": c}
    fields |= {"n_train": 1000, "training_cost_usd": 1.0} | changes
    return CandidateFacts(
        name, f"{name}-{seed}", "lora", "zero_shot", "generate", seed, True, "done", **fields
    )


def make_decision(facts: Sequence[CandidateFacts], alpha: float = 0.05) -> Decision:
    """Decide between fine-tunes, which are one family at alpha, and the alternatives."""
    return decide(
        Case([*make_untrained(), *facts], POLICY, "score"),
        closed_labels=False,
        has_documents=False,
        family=Family({f.name: f.name for f in facts}, alpha),
    )


class Recipe:
    """One recipe's seeds on the same items; `facts` redraws everything, with gains that differ by seed."""

    def __init__(self, kind: str, n: int, n_seeds: int, spread: float) -> None:
        self.law = Law(kind, 0.0, 0.0, draw, EXACT if kind == "binary" else GRADED)
        self.item_se = (0.2 / n) ** 0.5 if kind == "binary" else (0.12**2 / 3 / n) ** 0.5
        self.n, self.sd = n, spread * self.item_se
        base = make_rows(self.law.metric, make_single_items(n), "target")
        self.pairs = [
            Pair(self.law, base, make_rows(self.law.metric, make_single_items(n), "target"))
            for _ in range(n_seeds)
        ]

    def facts(self, rng: np.random.Generator, gain: float = 0.0) -> tuple[list[CandidateFacts], float]:
        """Draw the seeds; return them and the true gain of the first one's checkpoint.

        Half of the changes on items are common to all seeds, the other half are a seed's own.
        """
        effects = gain + np.clip(rng.normal(0, self.sd, len(self.pairs)), -0.15, 0.15)
        old, common = self._base(rng), rng.random(self.n)
        for arms, effect in zip(self.pairs, effects, strict=True):
            u = np.where(rng.random(self.n) < 0.5, common, rng.random(self.n))
            arms.score(old, self._answers(old, u, float(effect)))
        rows = [arms.new for arms in self.pairs]
        over = item_variances(self.law.metric, rows, self.pairs[0].base, None) if len(rows) > 1 else None
        fine_tunes = [make_fine_tune("lora", i, arms, over_items=over) for i, arms in enumerate(self.pairs)]
        return fine_tunes, float(effects[0])

    def _base(self, rng: np.random.Generator) -> Scores:
        if self.law.name == "binary":
            return (rng.random(self.n) < 0.7).astype(float)
        return rng.uniform(0.3, 0.7, self.n)

    def _answers(self, old: Scores, u: Scores, effect: float) -> Scores:
        if self.law.name == "binary":
            changes = np.where(old == 0, (0.2 + effect) / 0.6, (0.2 - effect) / 1.4)
            return np.where(u < changes, 1 - old, old)
        return old + effect + 0.24 * (u - 0.5)


_GAIN = "gain_over_untrained"


def make_seeds_cell(kind: str, n: int, n_seeds: int, spread: float, **options: Any) -> Cell:
    """Measure how often the gain over the best untrained candidate is covered, and 0 called a probable gain.

    From three seeds on the gain is the recipe's, for a new seed; with fewer it is the checkpoint's.
    """

    def simulate(rng: np.random.Generator) -> Iterator[dict[str, float]]:
        recipe = Recipe(kind, n, n_seeds, spread)
        while True:
            facts, first = recipe.facts(rng)
            arithmetic = make_decision(facts).arithmetic
            truth = 0.0 if n_seeds > 2 else first
            low, high = (arithmetic[f"{_GAIN}_{end}"] for end in ("low", "high"))
            chance = arithmetic["probability_above_tau"]
            hits = {"covers": low <= truth <= high}
            yield hits | ({"sure": chance is not None and chance >= 0.95} if truth == 0 else {})

    gain_name = "a new seed's expected gain" if n_seeds > 2 else "the checkpoint's gain"
    # If seeds hardly differ, the interaction of items and seeds is in both variances.
    lowest, highest = (0.92, 0.985 if spread else 0.995) if n_seeds > 2 else (0.935, 1.0)
    claims = {"covers": Claim(f"the 95 % interval holds {gain_name}", lowest, highest)}
    if n_seeds > 2 or not spread:
        claims["sure"] = claim_at_most(
            0.065, "a gain of 0 is printed with a probability of 95 % or more (5 %)"
        )
    between = f"{spread:g} times the items' standard error between seeds"
    world = f"{kind}, {n} items, {n_seeds} seed{'s' * (n_seeds > 1)}, {between}"
    return Cell("seeds", world, simulate, claims, **options)


def make_pooled_seeds_cell(n_recipes: int = 3, n: int = 200) -> Cell:
    """Measure the same for recipes with two seeds each, with their variances between seeds pooled."""

    def simulate(rng: np.random.Generator) -> Iterator[dict[str, float]]:
        recipes = [Recipe("binary", n, 2, 1.0) for _ in range(n_recipes)]
        while True:
            facts = [
                replace(f, name=f"lora-{i}", run_id=f"lora-{i}-{f.seed}")
                for i, recipe in enumerate(recipes)
                for f in recipe.facts(rng)[0]
            ]
            arithmetic = make_decision(facts).arithmetic
            yield {"covers": arithmetic[f"{_GAIN}_low"] <= 0 <= arithmetic[f"{_GAIN}_high"]}

    claims = {"covers": Claim("the 95 % interval holds a new seed's expected gain", 0.92, 0.995)}
    world = f"{n_recipes} recipes with 2 seeds each, binary, {n} items, 1 times the items' standard error"
    return Cell("seeds", world, simulate, claims)


def make_probability_cell(kind: str, n: int, n_seeds: int = 1, **options: Any) -> Cell:
    """Compare the printed probability of a gain with the share of true ones, from far below 0 to above."""

    def simulate(rng: np.random.Generator) -> Iterator[dict[str, float]]:
        recipe = Recipe(kind, n, n_seeds, 1.0 if n_seeds > 2 else 0.0)
        while True:
            gain = float(rng.uniform(-4, 4)) * recipe.item_se
            chance = make_decision(recipe.facts(rng, gain)[0]).arithmetic["probability_above_tau"]
            yield {"printed": chance - (gain > 0)} if chance is not None and 0.6 <= chance <= 0.98 else {}

    claims = {
        "printed": claim_printed("a probability from 60 to 98 %, printed less the share that truly gains")
    }
    world = f"{kind}, {n} items, {n_seeds} seed{'s' * (n_seeds > 1)}, all gains equally likely"
    return Cell("probability of a gain", world, simulate, claims, **options)


def make_gain_items_cell(
    law: Callable[[float], Law], gain: float, n: int, max_factor: int = 15, **options: Any
) -> Cell:
    """Add as many test items as would distinguish the observed gain from none, at that gain."""

    def simulate(rng: np.random.Generator) -> Iterator[dict[str, float]]:
        arms, large = (
            pair(law(gain), make_single_items(n)),
            pair(law(gain), make_single_items(n * (max_factor + 1))),
        )
        while True:
            facts = make_fine_tune("lora", 0, arms.score(*draw(law(gain), make_single_items(n), rng)))
            g, more = facts.vs_untrained, estimate_more_items(facts)
            if g is None or not g.low <= 0 < g.delta or more is None or more > max_factor * n:
                yield {}
                continue
            size = n + more
            again = Pair(arms.law, large.base[:size], large.new[:size])
            again.score(*draw(law(g.delta), make_single_items(size), rng))
            yield {"shown": compare_rows(arms.law.metric, again.base, again.new).low > 0}

    claims = {"shown": Claim("so many more test items show the gain found (80 %)", 0.74, 0.93)}
    return Cell("items needed", f"gain of {law(gain).name} items, {n} so far", simulate, claims, **options)


def make_family_cell(n_candidates: int, delta: float, says: str, gain: float = 0.1, **options: Any) -> Cell:
    """Measure how often one of several fine-tunes is shipped though none should be."""
    law = make_binary_law(delta, 0.1)

    def simulate(rng: np.random.Generator) -> Iterator[dict[str, float]]:
        suite, arms = (
            Suite(repeat_task(2, law, make_single_items(100))),
            pair(make_binary_law(gain), make_single_items(200)),
        )
        while True:
            arms.score(*draw(make_binary_law(gain), make_single_items(200), rng))
            fact = make_fine_tune("lora", 0, arms)
            facts = [
                replace(fact, name=f"lora-{i}", run_id=f"lora-{i}", verdict=suite.verdict(rng), validation=v)
                for i, v in enumerate(rng.uniform(0.75, 0.85, n_candidates))
            ]
            yield {"ships": make_decision(facts).action == "fine-tune"}

    claims = {"ships": claim_at_most(0.055, says)}
    world = f"{n_candidates} candidates, each truly {100 * delta:g} points on 2 tasks of 100 binary items"
    return Cell("several candidates", world, simulate, claims, **options)


CELLS = (
    make_seeds_cell("binary", 200, 1, 0.0),
    make_seeds_cell("binary", 200, 2, 1.0),
    make_seeds_cell("binary", 200, 3, 0.0, in_tests=300),
    make_seeds_cell("binary", 200, 3, 1.0),
    make_seeds_cell("binary", 200, 3, 3.0),
    make_seeds_cell("binary", 200, 5, 0.0),
    make_seeds_cell("binary", 200, 5, 1.0),
    make_seeds_cell("graded", 100, 3, 0.0),
    make_seeds_cell("graded", 100, 3, 3.0),
    make_seeds_cell("graded", 100, 5, 1.0),
    make_pooled_seeds_cell(),
    make_probability_cell("binary", 200, in_tests=600),
    make_probability_cell("graded", 100),
    make_probability_cell("binary", 200, 3),
    make_gain_items_cell(make_binary_law, 0.03, 200, in_tests=300),
    make_gain_items_cell(make_graded_law, 0.02, 200),
    make_family_cell(1, LOST, "a fine-tune that lost the margin is shipped (5 %)"),
    make_family_cell(8, LOST, "one that lost the margin is shipped (5 %)"),
    make_family_cell(3, LOST, "one that lost the margin is shipped (5 %)", in_tests=200),
)
