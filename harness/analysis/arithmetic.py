"""Arithmetic of a decision: every number behind it, computed once, with its words.

Invariant: pure; None if an input is unknown. Words and format of a number are declared at its field, and
every list of the numbers uses these.
"""

from collections.abc import Callable
from dataclasses import Field, dataclass, fields, replace
from math import inf, sqrt
from typing import Annotated, Any, NamedTuple

from harness import formatting, stats
from harness.analysis import economics, next_step
from harness.analysis.candidate_facts import Case, gain
from harness.analysis.economics import PerUsd
from harness.analysis.estimators import Comparison, chance_below
from harness.analysis.next_step import RowsNeeded, Spend
from harness.analysis.seeds import gain_label

_FIGURE, _COUNT, _NEEDED, _USD = formatting.figure, formatting.count, formatting.round_up, formatting.usd
_UNTRAINED, _TUNED = "the best untrained", "the fine-tune"
ENDS = ("_low", "_high")
Value = float | str | None
Amount = float | None


class Number(NamedTuple):
    """Words and formatter of one number; {unit} in the words is the unit of a change of the metric.

    It is listed as `name`, by default its field's; `part` is the attribute of the field's value that holds
    it. `ends` says that it has an interval.
    """

    words: str
    shown: Callable[..., str] = _FIGURE
    part: str = ""
    name: str = ""
    ends: bool = False


OptionalNumbers = tuple[Number, ...]  # numbers that are left out if their field is None


def _option(kind: str, attr: str) -> OptionalNumbers:
    name, words = f"more_{kind.replace(' ', '_')}", f"more {kind}"
    return (
        Number(words, _COUNT, f"{attr}.n", name),
        Number(
            f"{words}: they bring on average, {{unit}}", _FIGURE, f"{attr}.points", f"{name}_bring_points"
        ),
        Number(f"{words}: that is worth, USD", _USD, f"{attr}.worth", f"{name}_are_worth_usd"),
        Number(f"{words}: they cost, USD", _USD, f"{attr}.cost", f"{name}_cost_usd"),
    )


_SPEND: OptionalNumbers = (
    Number("next best spend", part="text", name="next_best_spend"),
    *_option("test items", "items"),
    *_option("training rows", "rows"),
)


@dataclass(frozen=True, slots=True)
class Economics:
    """Costs and returns of the judged fine-tune; without it or an alternative, only four fields are known."""

    alternative: Annotated[str | None, Number("best untrained candidate")]
    fine_tune: Annotated[str | None, Number("fine-tune")]
    tau_points_per_usd: Annotated[float, Number("τ, {unit} per USD of training")]
    forecast_requests: Annotated[float, Number("requests over the horizon", _COUNT)]
    gain_over_untrained: Annotated[
        Comparison | None, Number(f"gain over {_UNTRAINED}, {{unit}}", formatting.change, ends=True)
    ] = None
    gain_over_prompt: Annotated[
        Comparison | None, Number("gain over the prompt, {unit}", formatting.change, ends=True)
    ] = None
    training_cost_usd: Annotated[Amount, Number("training, USD", _USD)] = None
    label_cost_usd: Annotated[Amount, Number("labels of the training examples, USD", _USD)] = None
    rows_cost_usd: Annotated[Amount, (Number("training rows that a teacher wrote, USD", _USD),)] = None
    points_per_usd_over_untrained: Annotated[
        PerUsd | None, Number(f"gain over {_UNTRAINED}, {{unit}} per USD of training", ends=True)
    ] = None
    points_per_usd_over_prompt: Annotated[
        PerUsd | None, Number("gain over the prompt, {unit} per USD of training", ends=True)
    ] = None
    probability_above_tau: Annotated[
        Amount, Number(f"chance that the gain over {_UNTRAINED} exceeds τ", formatting.chance)
    ] = None
    tau_flips_at: Annotated[
        Amount, Number("τ from which that is no longer shown, {unit} per USD of training")
    ] = None
    cost_per_1k_alternative_usd: Annotated[Amount, Number(f"1,000 requests to {_UNTRAINED}, USD", _USD)] = (
        None
    )
    cost_per_1k_fine_tune_usd: Annotated[Amount, Number(f"1,000 requests to {_TUNED}, USD", _USD)] = None
    spent_once_usd: Annotated[Amount, Number(f"spent once on {_TUNED}, USD", _USD)] = None
    break_even_requests: Annotated[Amount, Number("break-even, requests", _NEEDED)] = None
    break_even_if_saving_is_a_fifth_more: Annotated[
        Amount, Number("break-even if a request saves a fifth more, requests", _NEEDED)
    ] = None
    break_even_if_saving_is_a_fifth_less: Annotated[
        Amount, Number("break-even if a request saves a fifth less, requests", _NEEDED)
    ] = None
    gain_is_worth_usd: Annotated[Amount, Number("worth of the gain over the horizon, USD", _USD)] = None
    costs_more_usd: Annotated[Amount, Number(f"what {_TUNED} costs more over the horizon, USD", _USD)] = None
    pays_from_requests: Annotated[Amount, Number(f"forecast from which {_TUNED} pays, requests", _NEEDED)] = (
        None
    )
    right_answer_usd: Annotated[Amount, (Number("worth of one more right answer, USD", _USD),)] = None
    pays_from_right_answer_usd: Annotated[
        Amount, (Number(f"worth of a right answer from which {_TUNED} pays, USD", _USD),)
    ] = None
    pays_from_point_usd: Annotated[
        Amount, (Number(f"worth of a point from which {_TUNED} pays, USD", _USD),)
    ] = None
    spend: Annotated[Spend | None, _SPEND] = None
    rows_needed: RowsNeeded | None = None


def _numbers(f: Field[Any]) -> tuple[Number, ...]:
    declared = getattr(f.type, "__metadata__", ())
    numbers = [n for d in declared for n in ((d,) if isinstance(d, Number) else d)]
    return tuple(n._replace(name=n.name or f.name) for n in numbers)


_ALWAYS = 4  # fields that are listed even without a fine-tune or an alternative
NUMBERS: dict[str, Number] = {n.name: n for f in fields(Economics) for n in _numbers(f)}


def economics_of(case: Case) -> Economics:
    """Compute every number of a decision."""
    run, rival = case.judged, case.alternative
    basics = Economics(
        alternative=rival.name if rival else None,
        fine_tune=gain_label(run) if run else None,
        tau_points_per_usd=case.policy.tau,
        forecast_requests=economics.forecast_requests(case.policy),
    )
    if run is None or rival is None:
        return basics
    policy, g = case.policy, gain(run.vs_untrained)
    prompt_gain = None if case.by_wins else gain(run.vs_prompt)
    ratio, at = economics.divide_by_usd(g, run.training_cost_usd), economics.break_even(run, rival, policy)
    one_time_usd = economics.add_one_time_costs_usd(run, rival, policy)
    items_worth = None  # option value of the gain less τ times the training cost, with more items (EVSI)
    if g and 0 < g.se < inf and (g.df is None or g.df > 1):
        scale, items = g.unit.scale, economics.gain_components(g).items
        mean, sd = scale * g.delta - policy.tau * run.training_cost_usd, scale * sqrt(items.variance)
        items_worth = stats.sample_information(mean, sd, sd * sqrt(g.n), g.n, g.df)
    rows_needed = next_step.find_rows_needed(case, run, g) if g else None
    in_answers = economics.counts_answers(policy, case.unit)
    extra_usd, above_tau = economics.costs_more_usd(run, rival, policy), None
    worth_usd = pays_from = flips_at = None
    if g and g.se > 0:  # under the distribution of the gain's interval
        least_delta = policy.tau * run.training_cost_usd / g.unit.scale
        above_tau = chance_below((g.delta - least_delta) / g.se, g.df)
    if g and extra_usd is not None:
        if g.delta > 0:  # USD per right answer, or per point, from which the gain pays for its extra cost
            flips_at = max(0.0, extra_usd) / (g.unit.scale * g.delta)
            if economics.counts_answers(policy, g.unit):
                flips_at *= 100 / economics.forecast_requests(policy)
        if (point := economics.point_worth_usd(policy, g.unit)) is not None:
            worth_usd = g.unit.scale * g.delta * point
            per_request = g.delta * economics.answer_usd(policy)
            per_request -= (extra_usd - one_time_usd) / economics.forecast_requests(policy)
            if policy.point_usd is None and per_request > 0:
                pays_from = max(0.0, one_time_usd) / per_request
    return replace(
        basics,
        gain_over_untrained=g,
        gain_over_prompt=prompt_gain,
        training_cost_usd=run.training_cost_usd,
        label_cost_usd=policy.label_cost_usd * (run.n_train - run.n_taught),
        rows_cost_usd=run.rows_cost_usd or None,
        points_per_usd_over_untrained=ratio,
        points_per_usd_over_prompt=economics.divide_by_usd(prompt_gain, run.training_cost_usd),
        probability_above_tau=above_tau,
        tau_flips_at=ratio.low if ratio and ratio.low > 0 else None,
        cost_per_1k_alternative_usd=rival.cost_per_1k_usd,
        cost_per_1k_fine_tune_usd=run.cost_per_1k_usd,
        spent_once_usd=one_time_usd,
        break_even_requests=at,
        break_even_if_saving_is_a_fifth_more=at / 1.2 if at is not None and at != inf else None,
        break_even_if_saving_is_a_fifth_less=at / 0.8 if at is not None and at != inf else None,
        gain_is_worth_usd=worth_usd,
        costs_more_usd=extra_usd,
        pays_from_requests=pays_from,
        right_answer_usd=economics.answer_usd(policy) if in_answers else None,
        pays_from_right_answer_usd=flips_at if in_answers else None,
        pays_from_point_usd=None if in_answers else flips_at,
        spend=next_step.value_next_spend(case, items_worth, rows_needed),
        rows_needed=rows_needed,
    )


def listing(numbers: Economics) -> dict[str, Value]:
    """List every number by name, as reports store them; infinity is the text `∞`."""
    values: dict[str, Value] = {}
    complete = numbers.alternative is not None and numbers.fine_tune is not None
    for f in fields(numbers)[: None if complete else _ALWAYS]:
        value = getattr(numbers, f.name)
        declared = getattr(f.type, "__metadata__", ())
        optional = any(not isinstance(declaration, Number) for declaration in declared)
        if value is not None or not optional:
            for number in _numbers(f):
                if number.ends:
                    keys = (number.name, *(f"{number.name}{end}" for end in ENDS))
                    with_ends = (value.delta, value.low, value.high) if value else (None,) * 3
                    values |= zip(keys, with_ends, strict=True)
                    continue
                inner = value
                for name in filter(None, number.part.split(".")):
                    inner = getattr(inner, name, None)
                values[number.name] = "∞" if inner == inf else inner
    return values
