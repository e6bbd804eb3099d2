"""The numbers behind a decision in words: what each is, in which unit, and printed as such.

Invariant: every number that a decision lists has its words here; one that another version has added is
shown by its field's name.
"""

from collections.abc import Callable, Mapping

from harness import formatting
from harness.decision import Decision
from harness.report.escape import clean
from harness.report.experiment_report import chance

_FIGURE, _COUNT, _NEEDED, _USD = formatting.figure, formatting.count, formatting.needed, formatting.usd
_UNTRAINED, _TUNED = "the best untrained", "the fine-tune"
_ENDS = ("_low", "_high")
# Of each field: its words, in which {unit} is what a change of the metric counts, and what prints it.
_FIELDS: dict[str, tuple[str, Callable[..., str]]] = {
    "alternative": ("best untrained candidate", _FIGURE),
    "fine_tune": ("fine-tune", _FIGURE),
    "tau_points_per_usd": ("τ, {unit} per USD of training", _FIGURE),
    "forecast_requests": ("requests over the horizon", _COUNT),
    "gain_over_untrained": (f"gain over {_UNTRAINED}, {{unit}}", formatting.change),
    "gain_over_prompt": ("gain over the prompt, {unit}", formatting.change),
    "training_cost_usd": ("training, USD", _USD),
    "label_cost_usd": ("labels of the training examples, USD", _USD),
    "points_per_usd_over_untrained": (f"gain over {_UNTRAINED}, {{unit}} per USD of training", _FIGURE),
    "points_per_usd_over_prompt": ("gain over the prompt, {unit} per USD of training", _FIGURE),
    "probability_above_tau": (f"chance that the gain over {_UNTRAINED} exceeds τ", chance),
    "tau_flips_at": ("τ from which that is no longer shown, {unit} per USD of training", _FIGURE),
    **{
        f"{part}_tokens_{field}": (f"{words} of a request to {who}, tokens", _COUNT)
        for field, who in (("alternative", _UNTRAINED), ("fine_tune", _TUNED))
        for part, words in (("prompt", "prompt"), ("cached", "cached part"), ("output", "answer"))
    },
    "cost_per_1k_alternative_usd": (f"1,000 requests to {_UNTRAINED}, USD", _USD),
    "cost_per_1k_fine_tune_usd": (f"1,000 requests to {_TUNED}, USD", _USD),
    "spent_once_usd": (f"spent once on {_TUNED}, USD", _USD),
    "break_even_requests": ("break-even, requests", _NEEDED),
    "break_even_if_saving_is_a_fifth_more": ("break-even if a request saves a fifth more, requests", _NEEDED),
    "break_even_if_saving_is_a_fifth_less": ("break-even if a request saves a fifth less, requests", _NEEDED),
    "gain_is_worth_usd": ("worth of the gain over the horizon, USD", _USD),
    "costs_more_usd": (f"what {_TUNED} costs more over the horizon, USD", _USD),
    "pays_from_requests": (f"forecast from which {_TUNED} pays, requests", _NEEDED),
    "perfect_information_points": ("worth of knowing the gain exactly, {unit}", _FIGURE),
    "next_best_spend": ("next best spend", _FIGURE),
    **{
        f"more_{kind.replace(' ', '_')}{field}": (f"more {kind}{words}", shown)
        for kind in ("test items", "training rows")
        for field, words, shown in (
            ("", "", _COUNT),
            ("_bring_points", ": they bring on average, {unit}", _FIGURE),
            ("_are_worth_usd", ": that is worth, USD", _USD),
            ("_cost_usd", ": they cost, USD", _USD),
        )
    },
}


def arithmetic_rows(decision: Decision, unit: formatting.Unit) -> list[tuple[str, str]]:
    """List what each number behind a decision is, and the number with its interval."""
    of = decision.arithmetic
    ends = {f"{name}{end}" for name in of for end in _ENDS}
    return [(_words(name, unit), _value(name, of, unit)) for name in of if name not in ends]


def _words(name: str, unit: formatting.Unit) -> str:
    words = _FIELDS[name][0] if name in _FIELDS else clean(name.replace("_", " "))
    return words.replace("{unit}", unit.name)


def _value(name: str, of: Mapping[str, float | str | None], unit: formatting.Unit) -> str:
    value = of[name]
    if value is None or isinstance(value, str):
        return value or formatting.UNKNOWN
    shown: Callable[..., str] = _FIELDS[name][1] if name in _FIELDS else formatting.figure
    low_high = [of[f"{name}{end}"] for end in _ENDS if f"{name}{end}" in of]
    return shown(unit, value, *low_high) if shown is formatting.change else shown(value, *low_high)
