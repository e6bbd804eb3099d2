"""Goals declared for the target, and the value of information: more test items, more rows, or choosing now.

Invariant: every option is valued by the points of the target metric that it brings on average over choosing
now, less its cost; what was not measured has no value. More rows are advised only if their gain would be
shown and would pay for labels and training. Each base is represented by its best candidate on validation,
and the whole 95 % interval on test has to reach a goal. A win rate that is declared and allowed to decide is
the gain of every seed of a recipe; if it may not decide, no other goal replaces it. Source: expected
value of sample information, Raiffa & Schlaifer 1961; `stats.sample_information`.
"""

from collections.abc import Sequence
from dataclasses import replace
from math import sqrt
from typing import Literal, NamedTuple

from harness import formatting, stats
from harness.analysis import economics
from harness.analysis.candidate_facts import (
    FEW,
    BaseSize,
    CandidateFacts,
    Case,
    best,
    best_untrained_facts,
    find_stopping_seed,
    gain,
    gain_text,
    is_cross_validated,
    is_fine_tuned,
    is_gain_shown,
    list_passing_runs,
    score_text,
    seeds_of,
)
from harness.analysis.estimators import Comparison, Estimate
from harness.analysis.human_preferences import OpenRating, Wins, find_open_rating, preference_gain
from harness.analysis.seeds import gain_label
from harness.analysis.significance import find_settling
from harness.analysis.verdict import Verdict
from harness.spec import PEOPLE

_WORTH_SAYING = 0.01  # points: smaller gains do not matter
Kind = Literal["test items", "training rows"]
MORE_THAN_FEW = f"collect {FEW} examples, or show it over {stats.MIN_SEEDS} seeds with --seeds 0,1,2"


def size_sentences(case: Case, goal: float | None, shipped: str | None) -> list[str]:
    """Say which of several bases is the smallest that meets the goal; empty with one base or no goal."""
    passing = {run.run_id for run in list_passing_runs(case.facts)}
    groups: dict[BaseSize, list[CandidateFacts]] = {}
    for run in case.facts:
        allowed = not run.over_budget and (run.run_id in passing or not is_fine_tuned(run))
        if run.base and run.state == "done" and run.target and allowed:
            groups.setdefault(run.base, []).append(run)
    best_by_base = {base: best_run for base, runs in groups.items() if (best_run := best(runs))}
    if goal is None or len(best_by_base) < 2:
        return []
    unit = case.unit
    level = f"{formatting.score(unit, goal)}{' %' if unit.is_rate else ''}"
    meeting = [
        (base, best_by_base[base])
        for base in sorted(best_by_base, key=lambda base: (base.n_parameters, base.weights_gb or 0.0))
        if (reached := best_by_base[base].target)
        and min(unit.sign * (end - goal) for end in reached[1:3]) >= 0
    ]
    if not meeting:
        return [f"No base of known size is shown to meet the goal of {level}."]
    base, smallest = meeting[0]
    size_text = "" if base.weights_gb is None else f", {formatting.figure(base.weights_gb)} GB of weights"
    n, count = base.n_parameters, formatting.count
    size = f"{base.name} ({f'{count(n / 1e6)} million' if n >= 1e6 else count(n)} parameters{size_text})"
    text = f"The smallest base that is shown to meet the goal of {level} is {size}"
    chosen = next((run.base for run in case.facts if run.name == shipped), None)
    is_larger = chosen is not None and chosen.n_parameters > base.n_parameters
    larger_text = f" {shipped} on {chosen.name} is chosen, which is larger." if chosen and is_larger else ""
    return [f"{text}, with {smallest.name}, {score_text(case, smallest)}.{larger_text}"]


def judge_by_wins(facts: Sequence[CandidateFacts]) -> list[CandidateFacts]:
    """Replace the gain of each recipe whose seeds' win rates may all decide by the win rates of its seeds."""
    rival = best_untrained_facts(facts)
    wins = {f.run_id: f.wins for f in facts if f.wins and rival and f.wins.counts_as_gain_over(rival.name)}
    finished = [f for f in facts if f.state == "done" and is_fine_tuned(f)]
    open_names = {f.name for f in finished if f.run_id not in wins}
    return [
        replace(
            f,
            vs_untrained=preference_gain(wins[f.run_id]),
            over_items=f.over_items and f.over_items._replace(vs_untrained=None),
        )
        if f.run_id in wins and f.name not in open_names
        else f
        for f in facts
    ]


def open_rating(case: Case) -> OpenRating | None:
    """Say what keeps the declared win rate of the judged fine-tune from deciding; None if it may decide."""
    run, rival = case.judged, case.alternative
    if case.win_rate is None or run is None or rival is None or case.by_wins:
        return None
    seeds = (f for f in seeds_of(case.facts, run) if not (f.wins and f.wins.counts_as_gain_over(rival.name)))
    seed = next(seeds, run)
    answers = f"the answers of {seed.label}"
    if seed.wins is None or seed.wins.over != rival.name:
        pair = f"{answers} against those of {rival.name}"
        return OpenRating(f"there is no comparison of {pair}", "compare again")
    return find_open_rating(seed.wins, answers)


def goal_sentences(case: Case, run: CandidateFacts) -> list[str]:
    """Say how often the fine-tune is preferred, and whether the target's metric agrees."""
    wins, g = run.wins, gain(run.vs_untrained)
    if not case.by_wins or wins is None or wins.rate is None or g is None:
        return []

    def share(rate: Estimate) -> str:
        return f"{formatting.score(rate.unit, *rate[:3])} % of items"

    wins_text = f"{share(wins.rate)}, {basis_text(wins)}"
    if g.components is None:
        several = len(seeds_of(case.facts, run)) > 1
        name = f"{run.name} (seed {run.seed})" if several else run.name
        preferred = f"{name} is preferred to {wins.over} on {wins_text}"
    else:
        over_seeds = Estimate(g.base + g.delta, max(g.base + g.low, 0.0), min(g.base + g.high, 1.0), g.n)
        preferred = f"{gain_label(run)} is preferred to {wins.over} on {share(over_seeds)}"
        preferred += f", its checkpoint judged (seed {run.seed}) on {wins_text}"
    goal = f"{formatting.percent(case.win_rate)} % (gate.target.win_rate)"
    text = f"The goal is a win rate of {goal}: {preferred}."
    by_metric = gain((case.by_metric or {}).get(run.run_id))
    if by_metric is None:
        return [text]
    metric_text = f"By {case.metric} it is {gain_text(by_metric)} over the same candidate"
    contradicts = (by_metric.low > 0 and g.high < 0) or (by_metric.high < 0 and g.low > 0)
    contrast = "contradicts the win rate and " if contradicts else ""
    return [text, f"{metric_text}, which {contrast}decides nothing: the win rate does."]


def basis_text(wins: Wins) -> str:
    """Describe whose preferences a win rate rests on: `by people on 120 pairs`."""
    pairs = formatting.pluralize(wins.n_ratings, "pair")
    if not wins.corrected:
        return f"by {wins.by}, a judge that too few ratings of people check yet"
    if not wins.n_ratings:
        return f"by {wins.by}, for all answers are equal"
    if wins.by == PEOPLE:
        return f"by people on {pairs}"
    uncorrected = formatting.percent(wins.uncorrected)
    return f"by {wins.by} as people correct it on {pairs} ({uncorrected} % before correction)"


class SpendingOption(NamedTuple):
    """`n` more items or rows: points on average, and their value and cost in USD, None if unknown."""

    kind: Kind
    n: int
    points: float
    worth: float | None
    cost: float | None

    @property
    def net(self) -> float | None:
        """The value less the cost in USD, None if the cost is unknown; the points if they have no price."""
        if self.worth is None:
            return self.points
        return None if self.cost is None else self.worth - self.cost


class Spend(NamedTuple):
    """The options, None if unknown. The decision waits for people's `labels` or `ratings` first."""

    items: SpendingOption | None
    rows: SpendingOption | None
    labels: int = 0
    ratings: int = 0

    @property
    def best(self) -> SpendingOption | None:
        """The option with the highest net value, if one is worth more than it costs."""
        net_values = [(o, o.net) for o in (self.items, self.rows) if o and o.points >= _WORTH_SAYING]
        worthy = [(o, net) for o, net in net_values if net is not None and net > 0]
        return max(worthy, key=lambda option: option[1], default=(None, 0.0))[0]

    @property
    def is_unpriced(self) -> bool:
        """Whether no option is known to pay, and an option that might has an unknown cost."""
        unpriced = [o for o in (self.items, self.rows) if o and o.points >= _WORTH_SAYING and o.net is None]
        return self.best is None and bool(unpriced)

    @property
    def text(self) -> str:
        """Name the labels or ratings needed first, else the most valuable option: `200 more test items`."""
        if self.is_unpriced and not (self.ratings or self.labels):
            return "unknown: a price is missing"
        if self.ratings or self.labels:
            n, noun = (self.ratings, "more rating") if self.ratings else (self.labels, "more label")
            return f"{formatting.pluralize(n, noun)} of people"
        return f"{formatting.count(self.best.n)} more {self.best.kind}" if self.best else "choose now"


class RowsNeeded(NamedTuple):
    """An amount of training rows that would pay: the gain it would bring, its value and its cost in USD."""

    n_train: int
    gain: Estimate
    worth: float
    cost: float


def value_next_spend(case: Case, worth: float | None, rows_needed: RowsNeeded | None) -> Spend | None:
    """Value twice the items, `worth` points, and the `rows_needed`; None if neither changes the choice."""
    run, rival = case.judged, case.alternative
    if run is None or rival is None:
        return None
    rating = open_rating(case)
    if (rating and rating.n_ratings) or case.n_labels_missing:
        return Spend(None, None, case.n_labels_missing, rating.n_ratings if rating else 0)
    if rival.over_budget:
        return None
    seed = find_stopping_seed(case.facts, run)
    if fails_gate(seed) or (seed.verdict is not None and seed.verdict.outcome == "harness-drift"):
        return None
    g = gain(run.vs_untrained)
    items = None
    if worth is not None and g:  # as many test items again: each costs a label, and both candidates answer it
        prices = [f.cost_per_1k_usd for f in (run, rival)]
        answers_usd = sum(price or 0.0 for price in prices) / 1000
        cost = None if None in prices else g.n * (case.policy.label_cost_usd + answers_usd)
        items = SpendingOption("test items", g.n, worth, _usd(case, worth), cost)
    return Spend(items, _rows(case, run, rows_needed))


def fails_gate(run: CandidateFacts) -> bool:
    """Tell whether the gate fails a fine-tune for another reason than a target that training might reach."""
    failed = [r.name for r in run.verdict.rules if r.outcome == "fail"] if run.verdict else []
    return run.verdict is not None and run.verdict.outcome == "fail" and failed != ["target"]


def _rows(case: Case, run: CandidateFacts, rows_needed: RowsNeeded | None) -> SpendingOption | None:
    """Value more training rows by the learning curve: the better choice's gain with them minus that now."""
    g, curve = gain(run.vs_untrained), None if case.by_wins else case.curve
    if g is None or curve is None or curve.candidate != run.name:
        return None
    n_now, tau = curve.points[-1].n_train, case.policy.tau
    scale = g.unit.scale
    now = max(0.0, scale * g.delta - tau * run.training_cost_usd)
    options = []
    for ahead in curve.ahead:
        training = run.training_cost_usd * ahead.n_train / n_now
        points = max(0.0, scale * (g.delta + ahead.gain.score) - tau * training) - now
        n = ahead.n_train - n_now
        cost = case.policy.label_cost_usd * n + training
        options.append(SpendingOption("training rows", n, points, _usd(case, points), cost))
    if rows_needed:
        return next(o for o in options if o.n == rows_needed.n_train - n_now)
    return next((o for o in options if o.net and o.net > 0), options[0])


def _usd(case: Case, points: float) -> float | None:
    point = economics.point_worth_usd(case.policy, case.unit)
    return None if point is None else points * point


def sentences(case: Case, spend: Spend | None) -> list[str]:
    """Say what to spend on next, with the gain and cost of every option."""
    run = case.judged
    if run is None:
        return []
    seed = find_stopping_seed(case.facts, run)
    if spend is None and fails_gate(seed):
        rescue_text = (
            f"; harness rescue {seed.name} tries versions that keep more" if is_gain_shown(seed) else ""
        )
        no_option = "neither more test items nor more training rows are shown to change the choice"
        return [f"Next best spend: {no_option} while {seed.label} fails its gate{rescue_text}."]
    if spend is None:
        return []
    if spend.labels or spend.ratings:
        reason = "more test items and training rows have no value before"
        return [f"Next best spend: {spend.text}, which the decision waits for; {reason}."]
    best_spend = spend.text if spend.best or spend.is_unpriced else "none, choose now"
    if spend.items is None:
        items = "What more test items would bring is not known: the gain has no spread."
    else:
        items, unit = f"{formatting.count(spend.items.n)} more test items would", case.unit.name
        if spend.items.points < _WORTH_SAYING:
            items += f" hardly change the choice (worth less than {_WORTH_SAYING:g} {unit} on average)."
        else:
            points = f"{formatting.plain(spend.items.points)} {unit} on average, by a better choice"
            items += f" bring {points}{_price_text(spend.items)}."
    if economics.point_worth_usd(case.policy, case.unit) is None:
        prices = " Costs are not weighed, because a point has no price (decide.point_usd)."
    else:
        prices = " Labels count as free (decide.label_cost_usd)." if case.policy.label_cost_usd == 0 else ""
        is_assumed = case.policy.right_answer_usd is None
        is_assumed &= economics.counts_answers(case.policy, case.unit)
        if is_assumed and not (case.winner and is_gain_shown(case.winner)):  # else the choice itself says so
            usd = formatting.usd(economics.answer_usd(case.policy))
            answer = economics.answer_text(case.by_wins).capitalize()
            prices += f" {answer} counts as {usd} USD (decide.right_answer_usd)."
    rows = "What more training rows would bring"
    if case.by_wins and case.curve is not None:
        rows += f" to the win rate is not known: the learning curve is of {case.metric}."
    elif spend.rows is None or case.curve is None:
        rows += " is not measured, so they are not compared (harness compare --learning-curve measures it)."
    else:
        o, unit = spend.rows, case.unit.name
        ahead = next(a for a in case.curve.ahead if a.n_train == o.n + case.curve.points[-1].n_train)
        added = formatting.change(ahead.gain.unit, *ahead.gain[:3])
        effect = f"{formatting.count(o.n)} more training rows would add about {added} {unit} to {run.label}"
        rows = f"{effect}, {formatting.plain(o.points)} to the choice{_price_text(o)}."
        if o.points < _WORTH_SAYING:
            rows = f"{effect}, which would not change what is best."
    return [f"Next best spend: {best_spend}. {items} {rows}{prices}"]


def _price_text(option: SpendingOption) -> str:
    if option.worth is None:
        return ""
    price = "an unknown price" if option.cost is None else f"{formatting.usd(option.cost)} USD"
    return f", worth {formatting.usd(option.worth)} USD for {price}"


def more_items_text(case: Case, open_verdicts: Sequence[Verdict]) -> str:
    """Say what would settle all these verdicts; refer to their sentences if items do not settle one."""
    if not open_verdicts or not all(verdict.items_needed for verdict in open_verdicts):
        return "the gate's sentence says what would settle it"
    return find_settling(open_verdicts, case.spare, relative=case.relative).text


def too_few(case: Case, run: CandidateFacts) -> str:
    """Say why a gain from so few examples does not count yet; empty if it does."""
    n = len(seeds_of(case.facts, run))
    if not 0 < run.n_train < FEW or n >= stats.MIN_SEEDS or is_cross_validated(run):
        return ""
    seeds = formatting.pluralize(n, "seed")
    return f"{run.n_train} training examples and {seeds} are too few to rely on that"


def find_rows_needed(case: Case, run: CandidateFacts, current: Comparison) -> RowsNeeded | None:
    """Find the smallest larger amount of data that would pay for a fine-tune without a shown gain."""
    curve = None if case.by_wins else case.curve
    point = economics.point_worth_usd(case.policy, case.unit)
    if curve is None or curve.candidate != run.name or point is None:
        return None
    scale = current.unit.scale
    n_now = curve.points[-1].n_train
    for ahead in curve.ahead:
        total = current.delta + ahead.gain.score
        low = total - sqrt((current.delta - current.low) ** 2 + (ahead.gain.score - ahead.gain.low) ** 2)
        high = total + sqrt((current.high - current.delta) ** 2 + (ahead.gain.high - ahead.gain.score) ** 2)
        total_gain = Estimate(total, low, high, current.n, current.unit)
        training = run.training_cost_usd * ahead.n_train / n_now
        cost = case.policy.label_cost_usd * (ahead.n_train - n_now) + training
        worth = scale * total_gain.score * point
        if total_gain.low > 0 and ahead.gain.low > 0 and worth > cost:
            return RowsNeeded(ahead.n_train, total_gain, worth, cost)
    return None
