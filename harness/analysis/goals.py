"""Goals declared for the target: a level that the smallest base should meet, and a win rate as the gain.

Invariant: each base is represented by its best candidate on validation, and the whole 95 % interval on test
has to reach the goal. A win rate that is declared and allowed to decide is the gain of every seed of a
recipe; if it may not decide, nothing else does in its place.
"""

from collections.abc import Sequence
from dataclasses import replace

from harness import formatting
from harness.analysis.candidate_facts import (
    BaseSize,
    CandidateFacts,
    Case,
    alternative,
    best,
    gain,
    gain_text,
    is_fine_tuned,
    list_passing_runs,
    list_within_budgets,
    score_text,
    seeds_of,
)
from harness.analysis.estimators import Estimate
from harness.analysis.human_preferences import OpenRating, Wins, find_open_rating, preference_gain
from harness.analysis.seeds import gain_label
from harness.spec import PEOPLE


def size_sentences(case: Case, goal: float | None, shipped: str | None) -> list[str]:
    """Say which of several bases is the smallest that meets the goal; empty with one base or no goal."""
    passing = {run.run_id for run in list_passing_runs(case.facts)}
    groups: dict[BaseSize, list[CandidateFacts]] = {}
    for run in list_within_budgets(case.facts):
        allowed = run.run_id in passing or not is_fine_tuned(run)
        if run.base and run.state == "done" and run.target and allowed:
            groups.setdefault(run.base, []).append(run)
    best_by_base = [(base, best_run) for base, runs in groups.items() if (best_run := best(runs))]
    bases = sorted(best_by_base, key=lambda pair: (pair[0].n_parameters, pair[0].weights_gb or 0.0))
    if goal is None or len(bases) < 2:
        return []
    unit = case.unit
    level = f"{formatting.score(unit, goal)}{' %' if unit.is_rate else ''}"
    meeting = [
        (base, run)
        for base, run in bases
        if run.target and min(unit.sign * (end - goal) for end in run.target[1:3]) >= 0
    ]
    if not meeting:
        return [f"No base of known size is shown to meet the goal of {level}."]
    base, smallest = meeting[0]
    held = "" if base.weights_gb is None else f", {formatting.figure(base.weights_gb)} GB of weights"
    size = f"{base.name} ({_millions(base)} parameters{held})"
    text = f"The smallest base that is shown to meet the goal of {level} is {size}"
    chosen = next((run.base for run in case.facts if run.name == shipped), None)
    is_larger = chosen is not None and chosen.n_parameters > base.n_parameters
    also = f" {shipped} on {chosen.name} is chosen, which is larger." if chosen and is_larger else ""
    return [f"{text}, with {smallest.name}, {score_text(case, smallest)}.{also}"]


def _millions(base: BaseSize) -> str:
    n = base.n_parameters
    return f"{formatting.count(n / 1e6)} million" if n >= 1e6 else formatting.count(n)


def judge_by_wins(facts: Sequence[CandidateFacts]) -> list[CandidateFacts]:
    """Replace the gain of each recipe whose seeds' win rates may all decide by the win rates of its seeds."""
    other = alternative(facts)
    wins = {f.run_id: f.wins for f in facts if f.wins and other and _counts(f.wins, other)}
    done = [f for f in facts if f.state == "done" and is_fine_tuned(f)]
    open_ones = {f.name for f in done if f.run_id not in wins}
    return [
        replace(
            f,
            vs_untrained=preference_gain(wins[f.run_id]),
            over_items=f.over_items and f.over_items._replace(vs_untrained=None),
        )
        if f.run_id in wins and f.name not in open_ones
        else f
        for f in facts
    ]


def _counts(wins: Wins, other: CandidateFacts) -> bool:
    return wins.counts_as_gain and wins.over == other.name


def open_rating(case: Case) -> OpenRating | None:
    """Say what keeps the declared win rate of the judged fine-tune from deciding; None if it may decide."""
    run, other = case.judged, case.alternative
    if case.win_rate is None or run is None or other is None or case.by_wins:
        return None
    seed = next((f for f in seeds_of(case.facts, run) if f.wins is None or not _counts(f.wins, other)), run)
    answers = f"the answers of {seed.label}"
    if seed.wins is None or seed.wins.over != other.name:
        both = f"{answers} against those of {other.name}"
        return OpenRating(f"there is no comparison of {both}", "compare again")
    return find_open_rating(seed.wins, answers)


def goal_sentences(case: Case, run: CandidateFacts) -> list[str]:
    """Say how often the fine-tune is preferred, and whether the target's metric agrees."""
    wins, g = run.wins, gain(run.vs_untrained)
    if not case.by_wins or wins is None or wins.rate is None or g is None:
        return []
    own = f"{_rate_text(wins.rate)} of items, {basis_text(wins)}"
    if g.components is None:
        several = len(seeds_of(case.facts, run)) > 1
        name = f"{run.name} (seed {run.seed})" if several else run.name
        preferred = f"{name} is preferred to {wins.over} on {own}"
    else:
        over_seeds = Estimate(g.base + g.delta, max(g.base + g.low, 0.0), min(g.base + g.high, 1.0), g.n)
        preferred = f"{gain_label(run)} is preferred to {wins.over} on {_rate_text(over_seeds)} of items"
        preferred += f", its checkpoint judged (seed {run.seed}) on {own}"
    goal = f"{formatting.percent(case.win_rate)} % (gate.target.win_rate)"
    text = f"The goal is a win rate of {goal}: {preferred}."
    by_metric = gain((case.by_metric or {}).get(run.run_id))
    if by_metric is None:
        return [text]
    also = f"By {case.metric} it is {gain_text(by_metric)} over the same candidate"
    contradicts = (by_metric.low > 0 and g.high < 0) or (by_metric.high < 0 and g.low > 0)
    contrast = "contradicts the win rate and " if contradicts else ""
    return [text, f"{also}, which {contrast}decides nothing: the win rate does."]


def basis_text(wins: Wins) -> str:
    """Describe whose preferences a win rate rests on: `by people on 120 pairs`."""
    pairs = formatting.pluralize(wins.n_ratings, "pair")
    if not wins.corrected:
        return f"by {wins.by}, a judge that too few ratings of people check yet"
    if not wins.n_ratings:
        return f"by {wins.by}, for all answers are equal"
    if wins.by == PEOPLE:
        return f"by people on {pairs}"
    own = formatting.percent(wins.uncorrected)
    return f"by {wins.by} as people correct it on {pairs} ({own} % before correction)"


def _rate_text(rate: Estimate | None) -> str:
    return f"{formatting.score(rate.unit, *rate[:3])} %" if rate else "an unknown share"
