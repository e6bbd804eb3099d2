"""The decision between candidates: prompt, retrieve, fine-tune, or measure more.

Invariant: pure. A fine-tune is recommended only if its gain over the best untrained candidate is shown, its
gate passes and the fair alternatives were compared; every reason carries its numbers.
"""

from dataclasses import dataclass
from typing import NamedTuple

from harness import formatting
from harness.analysis import next_step
from harness.analysis.arithmetic import Economics, economics_of, listing
from harness.analysis.candidate_facts import (
    Action,
    CandidateFacts,
    Case,
    action_of,
    advise_on_missing,
    best,
    best_untrained_facts,
    find_stopping_seed,
    gain,
    gain_text,
    is_fine_tuned,
    is_gain_shown,
    list_failed_seeds,
    list_missing_alternatives,
    list_passing_runs,
    missing_texts,
    n_settings,
    passes_alone,
    score_text,
    seeds_of,
    strongest_run,
)
from harness.analysis.economics import apply_budgets, forecast_text
from harness.analysis.explain import describe_power, reasons, seeds_text
from harness.analysis.seeds import Family, FamilyMember, family_members, place_in_family, pool_seeds
from harness.analysis.verdict import WORDS
from harness.formatting import Unit

NO_FAMILY = Family()


@dataclass(frozen=True, slots=True)
class Decision:
    """Recommended action and candidate, with reasons; `missing` names comparisons that were not made.

    `family` holds the members over which the gate's rules are corrected, if there are several. `unit` is that
    of the gain, if it differs from the target metric's.
    """

    action: Action
    candidate: str | None
    sentence: str
    reasons: tuple[str, ...]
    arithmetic: dict[str, float | str | None]
    missing: tuple[str, ...]
    family: tuple[FamilyMember, ...] = ()
    unit: Unit | None = None


class _Recommendation(NamedTuple):
    action: Action
    candidate: str | None
    sentence: str


def decide(
    case: Case,
    *,
    closed_labels: bool,
    has_documents: bool,
    family: Family = NO_FAMILY,
    goal: float | None = None,
) -> Decision:
    """Recommend one candidate, or say what has to be measured first; `case` has no choices yet.

    `closed_labels` and `has_documents` say which alternatives the target allows. A fine-tune must pass its
    gate as one member of the `family`. With a `goal`, a level of the target's metric, the smallest base that
    meets it is named.
    """
    facts = case.facts
    by_metric = {f.run_id: f.vs_untrained for f in pool_seeds(facts)}
    corrected = any(f.vs_untrained and f.vs_untrained.estimator == "ppi" for f in facts)
    within = apply_budgets(facts, case.policy)
    with_gain = within if case.win_rate is None else next_step.judge_by_wins(within)
    facts = place_in_family(pool_seeds(with_gain), family)
    case = case._replace(
        facts=facts,
        alternative=best_untrained_facts(facts),
        winner=best(list_passing_runs(facts)),
        strongest=strongest_run(facts),
        missing=list_missing_alternatives(facts, closed_labels, has_documents),
        by_metric=by_metric,
        # There is a difference between arms that people's labels could have corrected.
        unchecked=not corrected
        and any(f.vs_untrained and f.vs_untrained.estimator != "identical" for f in facts),
    )
    numbers = economics_of(case)
    choice = _choose(case, numbers)
    members = family_members(facts, family) if family.size > 1 else ()
    size = next_step.size_sentences(case, goal, choice.candidate)
    return Decision(
        *choice,
        (*reasons(case, numbers, *choice[:2], members), *size),
        listing(numbers),
        tuple(missing_texts(case.missing)),
        members,
        case.unit if case.by_wins else None,
    )


def _choose(case: Case, numbers: Economics) -> _Recommendation:
    if drifted := [f.label for f in case.facts if f.verdict and f.verdict.outcome == "harness-drift"]:
        return _leave_undecided(
            f"the harness drifted while {', '.join(drifted)} answered, as the control arm shows",
            "do what its verdict says next and compare again",
        )
    if case.alternative is None:
        why = "nothing untrained was measured, so there is nothing to compare with"
        failed = (f.name for f in case.facts if not is_fine_tuned(f) and f.state == "failed")
        return _leave_undecided(why, advise_on_missing(case.missing, failed))
    # The gate may stop a fine-tune, however often its answers are preferred.
    is_stopped = case.judged is not None and next_step.fails_gate(find_stopping_seed(case.facts, case.judged))
    if (rating := next_step.open_rating(case)) and not is_stopped:
        return _leave_undecided(f"the goal is a win rate, and {rating.why}", rating.then)
    if missing := case.n_labels_missing:
        # Refuse to decide by the grades of a judge that were not checked against people's labels.
        labels = formatting.pluralize(missing, "more label")
        return _leave_undecided(
            f"{case.metric} is graded by a judge, and the answers that count need {labels} of people before a"
            " decision rests on it",
            "harness rate export FILE, fill in its column label, harness rate import FILE; or set"
            " gate.uncalibrated_judge to allow",
        )
    if case.judged and case.alternative.over_budget:
        return _choose_within_budget(case, numbers, case.judged, case.alternative)
    if case.winner and is_gain_shown(case.winner):
        return _choose_with_gain(case, numbers, case.winner, case.alternative)
    if case.judged:
        return _choose_without_gain(case, numbers, case.judged, case.alternative)
    untrained = case.alternative
    if unfinished := [f.label for f in case.facts if is_fine_tuned(f) and not f.over_budget]:
        return _leave_undecided(
            f"{untrained.name} is the best untrained candidate, but {', '.join(unfinished)} failed",
            f"fix that and compare again{_meanwhile(case, untrained)}",
        )
    if untrained.over_budget:
        why = f"every candidate is left out, {untrained.name} because {untrained.over_budget}"
        return _leave_undecided(why, "try others, or allow more")
    fast = [f for f in case.facts if f.state == "done" and not f.over_budget]
    several = f", {formatting.pluralize(n_settings(fast), 'setting')} tried"
    best_of = f"the best of {formatting.count(len(fast))}{several if n_settings(fast) != len(fast) else ''}"
    no_tune = "keeps the budgets" if any(map(is_fine_tuned, case.facts)) else "was compared"
    why = f"{score_text(case, untrained)}, on validation {best_of}; no fine-tune {no_tune}"
    return _ship(case, untrained, why)


def _ship(case: Case, run: CandidateFacts, why: str) -> _Recommendation:
    if run.verdict and run.verdict.outcome == "fail":
        # A candidate on the base's own weights forgets nothing: it fails only by missing the declared goal.
        return _leave_undecided(
            f"{run.name} would be it ({why}), but misses the declared target", "try other candidates"
        )
    if case.trivial and case.trivial.is_above(run.target):
        return _leave_undecided(
            f"{run.name} would be it, but {score_text(case, run)} is less than {case.trivial.text}",
            "check that the labels follow from the questions",
        )
    if _has_worst_score(case, run):
        return _leave_undecided(
            f"{run.name} would be it, but {score_text(case, run)} is the worst score there is",
            "check the questions, the references and the metric, or compare candidates on a larger base",
        )
    caveat = ""
    if case.trivial and run.target and run.target.low <= case.trivial.share:
        caveat = f"; {run.name} is not shown to be better than {case.trivial.text}"
    return _Recommendation(action_of(run), run.name, f"Ship {run.name}: {why}{caveat}.")


def _has_worst_score(case: Case, run: CandidateFacts) -> bool:
    """Tell whether no answer scores above the metric's worst value; not checked where wins decide."""
    reached = run.target
    return not case.by_wins and reached is not None and reached.score == reached.unit.bounds[0]


def _meanwhile(case: Case, run: CandidateFacts) -> str:
    """Name the run to ship until a question is settled; empty if that run itself must not be shipped."""
    worse = case.trivial is not None and case.trivial.is_above(run.target)
    if run.over_budget or worse or next_step.fails_gate(run) or _has_worst_score(case, run):
        return ""
    return f"; ship {run.name} until then"


def _leave_undecided(why: str, then: str) -> _Recommendation:
    return _Recommendation("undecided", None, f"Undecided: {why}; {then}.")


def _choose_within_budget(
    case: Case, numbers: Economics, run: CandidateFacts, slow: CandidateFacts
) -> _Recommendation:
    """Recommend a fine-tune if no untrained candidate keeps the budget and it beats the prompt."""
    g, over, ratio = gain(run.vs_prompt), "the prompt", numbers.points_per_usd_over_prompt
    if case.by_wins:
        g, over, ratio = gain(run.vs_untrained), slow.name, numbers.points_per_usd_over_untrained
    alone = f"no untrained candidate keeps the budget ({slow.name} is the best of them)"
    gains = f"{run.name} gains {gain_text(g)} over {over}"
    if case.missing:
        return _leave_undecided(
            f"{alone}, and one that might was not compared", advise_on_missing(case.missing)
        )
    if case.winner is None:
        return _leave_undecided(
            f"{alone}, and no fine-tune that does passes its gate", "try faster candidates"
        )
    if g is None or g.low <= 0 or (ratio and ratio.low <= case.policy.tau):
        tau = case.policy.tau
        over = f"more than {tau:g} {case.unit.name} per USD of training" if tau else "a gain"
        return _leave_undecided(f"{alone}; {gains}, but {over} is not shown", "try faster candidates")
    if few := next_step.too_few(case, run):
        return _leave_undecided(f"{alone}; {gains}, but {few}", next_step.MORE_THAN_FEW)
    return _ship(case, run, f"{score_text(case, run)}; {alone}, {gains}, and the gate passes")


def _choose_with_gain(
    case: Case, numbers: Economics, winner: CandidateFacts, alternative: CandidateFacts
) -> _Recommendation:
    gain_clause = f"{gain_text(gain(winner.vs_untrained))} over {alternative.name}"
    gains = f"{winner.name} gains {gain_clause}"
    if case.missing:
        why = f"{gains}, but the comparison that decides this is missing"
        return _leave_undecided(why, advise_on_missing(case.missing))
    if few := next_step.too_few(case, winner):
        why = f"{score_text(case, alternative)}; {gains}, but {few} ({next_step.MORE_THAN_FEW})"
        return _ship(case, alternative, why)
    tau = case.policy.tau
    ratio = numbers.points_per_usd_over_untrained
    if ratio and ratio.high <= tau:
        tau_clause = f"less than {tau:g} {case.unit.name} per USD of training"
        why = f"{score_text(case, alternative)}; {gains}, but {tau_clause}"
        return _ship(case, alternative, why)
    if ratio and ratio.low <= tau:
        why = f"{gains}, but more than {tau:g} {case.unit.name} per USD of training is not shown"
        return _leave_undecided(why, f"measure on more test items{_meanwhile(case, alternative)}")
    worth_usd, more_usd = numbers.gain_is_worth_usd, numbers.costs_more_usd
    if worth_usd is not None and more_usd is not None and worth_usd <= more_usd:
        worth, cost = formatting.usd(worth_usd), formatting.usd(more_usd)
        weighed = f"over the {forecast_text(case.policy)} that is worth {worth} USD and costs {cost} USD more"
        if numbers.pays_from_requests is not None:
            weighed += f"; it pays from {formatting.round_up(numbers.pays_from_requests)} requests"
        return _ship(case, alternative, f"{score_text(case, alternative)}; {gains}, but {weighed}")
    return _ship(
        case, winner, f"{score_text(case, winner)}, {gain_clause} (the best untrained), and the gate passes"
    )


def _choose_without_gain(
    case: Case, numbers: Economics, compared: CandidateFacts, alternative: CandidateFacts
) -> _Recommendation:
    """Keep the untrained candidate, or wait for a gate that could still pass a gaining fine-tune."""
    passing = {f.name for f in list_passing_runs(case.facts)}
    tuned = [f for f in case.facts if is_fine_tuned(f) and f.state == "done" and not f.over_budget]
    blocked = [f for f in tuned if is_gain_shown(f) and f.name not in passing]

    def list_failing(run: CandidateFacts) -> list[int]:
        return [f.seed for f in seeds_of(case.facts, run) if f.verdict and f.verdict.outcome == "fail"]

    if pending := [f for f in blocked if not list_failing(f)]:
        run = best(pending) or pending[0]
        gains = f"{run.name} gains {gain_text(gain(run.vs_untrained))} over {alternative.name}"
        meanwhile, seeds = _meanwhile(case, alternative), seeds_of(case.facts, run)
        if unmeasured := [f.seed for f in seeds if f.verdict is None]:
            subject = "it" if len(unmeasured) == len(seeds) else seeds_text(unmeasured)
            why = f"{gains}, but what {subject} forgot was not measured"
            return _leave_undecided(why, f"add suites: and compare again{meanwhile}")
        open_ = (f for f in seeds if f.verdict and f.verdict.outcome == "inconclusive")
        if undecided := {f.seed: judged for f in open_ if (judged := f.corrected or f.verdict)}:
            gate = "its gate" if len(undecided) == len(seeds) else f"the gate of {seeds_text([*undecided])}"
            settle = next_step.more_items_text(case, [*undecided.values()])
            why = f"{gains}, but {gate} is {WORDS['inconclusive']}"
            return _leave_undecided(why, f"{settle}{meanwhile}")
        if failed := list_failed_seeds(case.facts, run):
            why = f"{gains}, but {seeds_text(failed)} failed"
            return _leave_undecided(why, f"fix that and compare again{meanwhile}")
        f, standing = next((f, f.standing) for f in (run, *seeds) if passes_alone(f) and f.standing)
        if standing.p is None:
            why = f"of its grid {standing.chosen} is best on validation, and only that one is judged for it"
            settle = "compare it as a recipe of its own on new test items"
        else:
            why = (
                f"its gate passes alone (p {formatting.p_value(standing.p)}), not as one of {standing.n}"
                f" fine-tunes (by Holm {formatting.p_value(standing.p_adjusted)}, below {standing.alpha:g} is"
                " required)"
            )
            settle = next_step.more_items_text(case, [f.corrected] if f.corrected else [])
        return _leave_undecided(f"{gains}, but {why}", f"{settle}{meanwhile}")
    if blocked:
        run = best(blocked) or blocked[0]
        gains = f"{run.name} gains {gain_text(gain(run.vs_untrained))} over it"
        failing = list_failing(run)
        fails_all = len(failing) == len(seeds_of(case.facts, run))
        outcome = "fails" if fails_all else f"with {seeds_text(failing)} it fails"
        return _ship(case, alternative, f"{score_text(case, alternative)}; {gains}, but {outcome} the gate")
    g = gain(compared.vs_untrained)
    if g is None:
        why = f"{compared.name} was not compared with {alternative.name} on the same items"
        return _leave_undecided(why, "compare again")
    best_spend = numbers.spend.best if numbers.spend else None
    more_rows = numbers.rows_needed
    if more_rows and best_spend and best_spend.kind == "training rows":
        amount = f"{gain_text(g)} over {alternative.name}"
        rows, later = formatting.count(more_rows.n_train), formatting.change(case.unit, *more_rows.gain[:3])
        sentence = (
            f"Collect more data: {compared.name} gains {amount} now, and with {rows} training rows it would"
            f" gain about {later}, worth {formatting.usd(more_rows.worth)} USD for"
            f" {formatting.usd(more_rows.cost)} USD{_meanwhile(case, alternative)}."
        )
        return _Recommendation("collect more data", None, sentence)
    is_best_of_all = compared is case.strongest or case.strongest is None
    which = f"the best fine-tune{'' if is_best_of_all else ' that passes the gate'}"
    verdict = f"is worse ({gain_text(g)})"
    if g.high >= 0:
        verdict = f"is not shown to help ({gain_text(g)}): {describe_power(case, compared)}"
    return _ship(case, alternative, f"{score_text(case, alternative)}; {compared.name}, {which}, {verdict}")
