"""Goals declared for the target: a level that the smallest base should meet, and a win rate as the gain.

Invariant: each base is represented by its best candidate on validation, and the whole 95 % interval on test
has to reach the goal; candidates that a gate or a budget stops, or whose size is unknown, do not count, and
nothing is decided by it. A win rate that is declared, measured over the best untrained candidate and allowed
to decide is the gain of every seed of a recipe; the target's metric then decides nothing, and a contradiction
between the two is reported. If the win rate may not decide, nothing else does in its place.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

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
from harness.analysis.human_preferences import Wins, preference_gain
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
    meeting = []
    for base, run in bases:
        target = run.target
        if target and min(target.unit.sign * (end - goal) for end in (target.low, target.high)) >= 0:
            meeting.append((base, run))
    if not meeting:
        base, run = max(bases, key=lambda pair: unit.sign * pair[1].target.score if pair[1].target else 0.0)
        nearest = f"{run.name} on {base.name} is the nearest, {score_text(case, run)}"
        return [f"No base of known size is shown to meet the goal of {level}: {nearest}."]
    base, smallest = meeting[0]
    larger = [f"{b.name} ({_millions(b)})" for b, _ in bases if b != base]
    held = "" if base.weights_gb is None else f", {formatting.figure(base.weights_gb)} GB of weights"
    size = f"{base.name} ({_millions(base)} parameters{held})"
    text = f"The smallest base that is shown to meet the goal of {level} is {size}"
    with_it = f"with {smallest.name}, {score_text(case, smallest)}"
    chosen = next((run.base for run in case.facts if run.name == shipped), None)
    is_larger = chosen is not None and chosen.n_parameters > base.n_parameters
    also = f" {shipped} on {chosen.name} is chosen, which is larger." if chosen and is_larger else ""
    return [f"{text}, {with_it}; compared with {', '.join(larger)}.{also}"]


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


class OpenRating(NamedTuple):
    """Reason why a declared win rate may not decide, the next step, and how many ratings it needs."""

    why: str
    then: str
    n_ratings: int = 0


_RATE = "rate pairs of their answers (harness rate export FILE --pairs, or harness dashboard, Rate)"


def open_rating(case: Case) -> OpenRating | None:
    """Say what keeps the declared win rate of the judged fine-tune from deciding; None if it may decide."""
    run, other = case.judged, case.alternative
    if case.win_rate is None or run is None or other is None or case.by_wins:
        return None
    seed = next((f for f in seeds_of(case.facts, run) if f.wins is None or not _counts(f.wins, other)), run)
    wins, both = seed.wins, f"the answers of {seed.label} against those of {other.name}"
    if wins is None or wins.over != other.name:
        return OpenRating(f"there is no comparison of {both}", "compare again")
    if wins.lacking or (wins.by == PEOPLE and wins.rate is None):
        lacking = formatting.pluralize(wins.lacking, "more rating")
        if wins.by != PEOPLE:
            needs = f"{lacking} of people of the same pairs"
            why = f"{wins.by} compared {both}, and needs {needs} before it decides"
            return OpenRating(why, f"{_RATE}, or set gate.uncalibrated_judge to allow", wins.lacking)
        rated = f"people have rated {formatting.pluralize(wins.n_ratings, 'pair')} of {both}"
        why = f"there are no ratings of {both}" if wins.rate is None else f"{rated}, and {lacking} are needed"
        return OpenRating(why, _RATE, wins.lacking)
    if wins.is_open:
        why = f"too many items tell nothing of {both}: they failed, or what was preferred cannot be read"
        return OpenRating(why, "compare again, for a judge with more attempts in its rubric")
    return OpenRating(f"{wins.by} has not compared {both}", "compare again")


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
    # The target's metric may contradict the win rate on the same answers.
    also = f"By {case.metric} it is {gain_text(by_metric)} over the same candidate"
    is_gain, is_loss = by_metric.low > 0, by_metric.high < 0
    opposed = (is_gain and g.high < 0) or (is_loss and g.low > 0)
    if opposed or ((is_gain or is_loss) and g.low <= 0 <= g.high):
        kind = "a gain" if is_gain else "a loss"
        contrast = "contradicts that" if opposed else "the win rate does not show"
        return [text, f"{also}, {kind}, which {contrast}: what decides is the win rate, as declared."]
    return [text, f"{also}, which decides nothing: the win rate does."]


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
