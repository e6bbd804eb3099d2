"""Sentences of evidence for a decision; every sentence carries its numbers, printed by `formatting`."""

from collections.abc import Sequence
from math import inf

from harness import formatting, plugins, stats
from harness.analysis import economics, next_step
from harness.analysis.advice import failure_sentences, need_sentences, scenario_sentence
from harness.analysis.arithmetic import Economics
from harness.analysis.candidate_facts import (
    FEW,
    UNCHECKED,
    Action,
    CandidateFacts,
    Case,
    gain,
    gain_text,
    is_cross_validated,
    is_fine_tuned,
    is_unchecked,
    list_failed_seeds,
    missing_texts,
    n_settings,
    passes_alone,
    seeds_of,
)
from harness.analysis.next_step import goal_sentences
from harness.analysis.seeds import FamilyMember, gain_label
from harness.analysis.significance import bound_passing_chance
from harness.analysis.verdict import WORDS, Verdict, name_reasons

_AMOUNTS = {  # advice on the number of training examples, by exclusive upper limit
    FEW: (
        "below 100 a prompt is the safer choice, and a fine-tune's gain counts only over three seeds or more"
    ),
    1_000: "enough for LoRA and the like, if the data stays as it is",
    10_000: "enough to fine-tune for a clearly defined task, still with LoRA and the like",
    inf: "enough to try full fine-tuning too",
}
USUAL_AMOUNTS = (
    "Rules of thumb: 200 to 1,000 for classification, 1,000 to 5,000 for extraction and generation, 5,000 or"
    " more for reasoning; small text classifiers caught up with general models at about 100 labels, reliably"
    " at 200 to 300 (Pecher et al. 2025, arXiv:2402.12819)."
)
_STOPPED = {True: ("fail", "inconclusive", "harness-drift"), False: ("fail", "harness-drift")}


def reasons(
    case: Case, numbers: Economics, action: Action, shipped: str | None, family: Sequence[FamilyMember] = ()
) -> tuple[str, ...]:
    """List the sentences behind a decision, the strongest evidence first."""
    sentences: list[str] = []
    if case.judged and case.alternative:
        sentences += _gains(case, case.judged, case.alternative)
        ratio, prompt = numbers.points_per_usd_over_untrained, numbers.points_per_usd_over_prompt
        if ratio is None:
            gained = gain_text(numbers.gain_over_untrained)
            price = f"Training {case.judged.name} has no price, so the gain itself decides: {gained}."
        else:
            over_prompt = f", over the prompt {formatting.figure(*prompt)}" if prompt else ""
            p = numbers.probability_above_tau
            likely = "" if p is None else f"; shown with a probability of {formatting.percent(p)} %"
            flips = f"at more than {formatting.figure(ratio.low)} the decision flips"
            flips = flips if ratio.low > 0 else "at no value is it recommended"
            price = (
                f"Training cost {formatting.usd(numbers.training_cost_usd)} USD and brought"
                f" {formatting.figure(*ratio)} {case.unit.name} per USD over the best untrained{over_prompt}."
                f" You ask for more than {formatting.figure(case.policy.tau)} per USD (decide.tau{likely});"
                f" {flips}."
            )
        sentences.append(price)
        sentences.append(_break_even(case, numbers, case.judged, case.alternative))
        sentences += _worth(case, numbers)
        sentences += next_step.sentences(case, numbers.spend)
    sentences += economics.budget_sentences(case.facts, case.policy)
    sentences += _gates(case)
    if family:
        alpha = next((f.standing.alpha for f in case.facts if f.standing), 0.0)
        passing = [
            f"{m.candidate} {'shown' if m.p_adjusted < alpha else 'not shown'} (p {formatting.p_value(m.p)},"
            f" corrected {formatting.p_value(m.p_adjusted)})"
            for m in family
            if m.p is not None
        ]
        chance = formatting.chance(bound_passing_chance(alpha, len(family)))
        sentences.append(
            f"{formatting.count(len(family))} fine-tunes are judged on the same items: if each had lost"
            " exactly what the margin allows, one would still pass its own gate with a chance of up to"
            f" {chance}. The choice is corrected for that (Holm at {formatting.percent(alpha)} %):"
            f" {'; '.join(passing) or 'none passes even alone'}."
        )
    sentences += filter(None, [scenario_sentence(case, action, shipped)])
    sentences += failure_sentences(case)
    sentences += need_sentences(case, shipped)
    if case.judged:
        n, name = case.judged.n_train, case.judged.name
        amount = f"How many examples {name} was trained on is unknown, so whether they suffice is too."
        if n:
            advice = next(text for below, text in _AMOUNTS.items() if n < below)
            amount = f"{formatting.pluralize(n, 'training example')}: {advice}. {USUAL_AMOUNTS}"
        sentences.append(amount)
    if case.judged and case.curve:
        scores = (
            f"{formatting.score(p.score.unit, p.score.score)} with {formatting.count(p.n_train)}"
            for p in case.curve.points
        )
        ahead = (
            f"{formatting.change(a.gain.unit, *a.gain[:3])} with {formatting.count(a.n_train)}"
            for a in case.curve.ahead
        )
        sentences.append(
            f"Learning curve of {case.curve.candidate} by training rows: {', '.join(scores)}; by a power law"
            f" about {' and '.join(ahead)} (the intervals hold the test items, not other draws of the data)."
        )
    if case.judged and shipped == case.judged.name:
        if plugins.find_method(case.judged.method).trains:
            sentences.append(_seeds(case.judged, len(seeds_of(case.facts, case.judged))))
    elif shipped and case.missing:
        missing = ", ".join(missing_texts(case.missing))
        sentences.append(f"Not compared, though it might be better still: {missing}.")
    return tuple(sentences)


def _gains(case: Case, run: CandidateFacts, alternative: CandidateFacts) -> list[str]:
    g = gain(run.vs_untrained)
    over_prompt_gain = None if case.by_wins else gain(run.vs_prompt)
    over_prompt = f"{gain_text(over_prompt_gain)} over the prompt and " if over_prompt_gain else ""
    over = f"{gain_text(g)} over {alternative.name}"
    limit = " of those within the budgets" if any(f.over_budget for f in case.facts) else ""
    chosen = f"the untrained candidate that is best on validation{limit}"
    if alternative.over_budget:
        chosen = f"{chosen.removesuffix(limit)}, though left out ({alternative.over_budget})"
    rests_on_judge = is_unchecked(case, run) and not case.by_wins
    by = f", {UNCHECKED}; what follows from that gain is as uncertain" if rests_on_judge else ""
    sentences = [f"{gain_label(run)}: {over_prompt}{over}, {chosen}{by}.", *goal_sentences(case, run)]
    if g and g.refused:
        sentences.append(f"Nothing is shown of that gain: {g.refused}.")
    tuned, plain = (n_settings(f for f in case.facts if is_fine_tuned(f) == side) for side in (True, False))
    untrained, trained = formatting.pluralize(plain, "setting"), formatting.count(tuned)
    more = "try more prompts (a grid over system, template or shots)"
    flatters = f", which flatters the fine-tunes: {more}" if tuned > plain else ""
    chose = f"Validation chose among {untrained} without training and {trained} with training"
    return [*sentences, f"{chose}{flatters}."]


def describe_power(case: Case, run: CandidateFacts) -> str:
    """Say which gain the current items would show, and what would show a smaller one."""
    g = gain(run.vs_untrained)
    if g is None or not 0 < g.se < inf:
        return f"nothing can be shown here: {g.refused}" if g and g.refused else "its spread is unknown"
    detectable = stats.detectable_mean(economics.gain_components(g), 1.0)  # at 80 % power
    items = formatting.pluralize(g.n, "item")
    threshold = f"{formatting.score(case.unit, detectable)} {case.unit.name}"
    text = f"with these {items} only a gain above {threshold} would show"
    room = abs(case.unit.bounds[1] - g.base)
    if not case.by_wins and detectable >= room:
        text += f", and {formatting.score(case.unit, room)} are left to gain"
    # What narrows the interval: rows, folds and seeds, as far as this experiment allows them.
    is_folded, n = is_cross_validated(run), economics.estimate_more_items(run) if g.delta > 0 else None
    if run.vs_untrained and run.vs_untrained.estimator == "ppi":
        more = "more labels of people"
    elif seeds := economics.list_more_seeds(case.facts, run):
        more = f"more seeds (--seeds {','.join(map(str, seeds))}), as the gain varies most between trainings"
    elif n == inf:
        more = "more seeds, as trainings of this recipe differ by more than it gains"
    else:
        rows = "rows to test on in folds" if is_folded else "test rows"
        ways = [f"{formatting.count(n)} more {rows}" if n else f"more {rows}"]
        ways += ["folds: 5 (tests on every training row)"] if case.can_fold else []
        is_of_few_seeds = not is_folded and len(seeds_of(case.facts, run)) < stats.MIN_SEEDS
        ways += ["--seeds 0,1,2"] if plugins.find_method(run.method).trains and is_of_few_seeds else []
        more = " or ".join(filter(None, [", ".join(ways[:-1]), ways[-1]]))
    return f"{text}; for more: {more}"


def _break_even(case: Case, numbers: Economics, run: CandidateFacts, alternative: CandidateFacts) -> str:
    at = numbers.break_even_requests
    if at is None:
        return "Break-even is unknown, because a cost per request is."
    costs = (
        f"{formatting.usd(run.cost_per_1k_usd)} USD per 1,000 requests against"
        f" {formatting.usd(alternative.cost_per_1k_usd)} with {alternative.name}"
    )
    if at == inf:
        return f"Break-even after ∞ requests: {run.label} is not cheaper, {costs}."
    band = (numbers.break_even_if_saving_is_a_fifth_more, numbers.break_even_if_saving_is_a_fifth_less)
    position = "within" if at <= numbers.forecast_requests else "beyond"
    shaken = f" ({' to '.join(map(formatting.round_up, band))} with a saving ±20 %)"
    spent = formatting.usd(numbers.spent_once_usd)
    priced = {
        "the teacher of its rows": run.rows_cost_usd,
        "hosting": case.policy.hosting_usd_per_month,
        "the index of documents": case.policy.index_usd_per_month,
    }
    *causes, last = ["training", "labels", *(name for name, usd in priced.items() if usd)]
    return (
        f"Break-even after {formatting.round_up(at)} requests{shaken},"
        f" {position} the {economics.forecast_text(case.policy)}:"
        f" {spent} USD for {', '.join(causes)} and {last}, {costs}."
    )


def _worth(case: Case, numbers: Economics) -> list[str]:
    """Say which value of an answer the choice rests on if its gain is shown, and where it flips."""
    g, run = numbers.gain_over_untrained, case.winner
    counts_answers = numbers.right_answer_usd is not None
    flips_at = numbers.pays_from_right_answer_usd if counts_answers else numbers.pays_from_point_usd
    if run is None or g is None or g.low <= 0 or flips_at is None:
        return []
    if not counts_answers and case.policy.point_usd is None:
        text = (
            "What a point is worth is not set (decide.point_usd), so the gain is not weighed against its cost"
        )
        return [f"{text}; {run.name} pays where it is more than {formatting.usd(flips_at)} USD."]
    if flips_at == 0:
        worth = economics.answer_text(case.by_wins) if counts_answers else "a point"
        return [f"The choice does not depend on what {worth} is worth, because {run.name} costs no more."]
    worth = f"a point being worth {formatting.usd(case.policy.point_usd)} USD (decide.point_usd)"
    if counts_answers:
        assumed = ", the default" if case.policy.right_answer_usd is None else ""
        usd, answer = formatting.usd(numbers.right_answer_usd), economics.answer_text(case.by_wins)
        worth = f"{answer} being worth {usd} USD (decide.right_answer_usd{assumed})"
    rests = f"The choice rests on {worth}"
    worth, cost = formatting.usd(numbers.gain_is_worth_usd), formatting.usd(numbers.costs_more_usd)
    weighed = f"the gain is worth {worth} USD over the horizon, and {run.name} costs {cost} USD more"
    return [f"{rests}: {weighed}. It flips at {formatting.usd(flips_at)} USD."]


def _gates(case: Case) -> list[str]:
    """Say what stops a fine-tune, or the untrained candidate that would be shipped instead."""

    def name_rules(verdict: Verdict) -> str:  # their sentences are in the gate's own table
        return f"{WORDS[verdict.outcome]} ({name_reasons(verdict)})"

    stopped = [f for f in case.facts if is_fine_tuned(f) or f is case.alternative]
    alone = [
        f"The gate on {f.label}: {name_rules(f.verdict) if is_fine_tuned(f) else f.verdict.sentence}."
        for f in stopped
        if f.verdict and f.verdict.outcome in _STOPPED[is_fine_tuned(f)]
    ]
    corrected = [
        f"The gate on {f.label} as one of {f.standing.n}, at {formatting.percent(f.standing.level)} %:"
        f" {name_rules(f.corrected)}."
        for f in stopped
        if f.standing and f.corrected and passes_alone(f) and f.corrected.outcome != "pass"
    ]
    finished = {f.name: f for f in case.facts if is_fine_tuned(f) and f.state == "done"}
    failed = [
        f"{name} does not pass: {seeds_text(seeds)} failed, and a recipe passes with all of its seeds."
        for name, run in finished.items()
        if (seeds := list_failed_seeds(case.facts, run))
    ]
    return alone + corrected + failed


def seeds_text(seeds: Sequence[int]) -> str:
    """Name seeds: `seed 1`, `seeds 1, 2`."""
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


def _seeds(run: CandidateFacts, n: int) -> str:
    spread = run.vs_untrained.components if run.vs_untrained else None
    if is_cross_validated(run):
        return (
            "Each item was answered by a model that was trained without it: the gain is the average over"
            " training sets of that size. What ships is trained on all rows, and is not measured itself."
        )
    if spread is None:
        return (
            f"Trained with {formatting.pluralize(n, 'seed')}: this judges the checkpoint, and how much the"
            " recipe varies between seeds is unknown."
        )
    df, seed_df = spread.total.df, spread.seeds.df
    covers = f"t on {formatting.figure(df)} degrees of freedom" if df is not None else "normal"
    if spread.is_pooled:
        covers += "; the seeds' variance is pooled over the recipes, as if all varied alike, on"
        covers += f" {formatting.figure(seed_df)}"
    return (
        f"Trained with {n} seeds: the gain is their mean, and its interval holds items and seeds ({covers});"
        " the checkpoint judged is the best on validation."
    )
