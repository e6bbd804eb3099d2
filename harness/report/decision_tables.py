"""Tables of what the decision computed: seeds, ablations, learning curve, and the arithmetic in words.

Invariant: a corrected p-value never stands without the raw one, and the number of tests; every number that a
decision lists has its words here, one that another version has added is shown by its field's name.
"""

from collections.abc import Callable, Iterable, Mapping

from harness import formatting
from harness.decision import VARIANCE_UNKNOWN, Ablation, Decision, Factor, LearningCurve, SeedSummary
from harness.formatting import Unit
from harness.report.escape import clean
from harness.report.experiment_report import chance

SEED_COLUMNS = ("candidate", "seeds", "score of each", "over seeds", "SD between seeds", "vs best untrained")


CURVE_COLUMNS = ("training rows", "score", "over all rows", "training cost USD")


def curve_rows(curve: LearningCurve) -> list[tuple[str, ...]]:
    """List the sizes that were trained on, then what the fit expects of two and four times the data."""
    measured = [
        (
            formatting.count(p.n_train),
            formatting.score(p.score.unit, *p.score[:3]),
            "(all)" if p is curve.points[-1] else "",
            formatting.usd(p.training_cost_usd),
        )
        for p in curve.points
    ]
    expected = [
        (
            formatting.count(a.n_train),
            "expected",
            formatting.change(a.gain.unit, *a.gain[:3]),
            formatting.UNKNOWN,
        )
        for a in curve.ahead
    ]
    return [*measured, *expected]


def ablation_columns(a: Ablation) -> tuple[str, ...]:
    """Name the columns of one grid's table."""
    return (a.grid, "score", "change", "p", "p corrected", "cost USD", "trained in")


def ablation_rows(a: Ablation, unit: Unit) -> list[tuple[str, ...]]:
    """List a grid's members by what differs, the reference first."""
    return [_factor_row(f, a, unit) for f in a.factors]


def ablation_note(a: Ablation) -> str:
    """Say how a grid was compared and which member validation chose."""
    looked = f"p corrected for {formatting.count(a.n_tests)} looks (Benjamini-Hochberg)"
    chosen = f"; best on validation: {_short(a.chosen, a.grid)}" if a.chosen else ""
    seeds = "" if a.seed_variance_known else f"; {VARIANCE_UNKNOWN} (fewer than 3 seeds)"
    return f"{a.grid}: paired on test with {_short(a.reference, a.grid)}, {looked}{chosen}{seeds}"


def seed_rows(seeds: Iterable[SeedSummary], unit: Unit) -> list[tuple[str, ...]]:
    """List every recipe that was trained with several seeds."""
    return [_seed_row(s, unit) for s in seeds if len(s.seeds) > 1]


def seed_sentences(seeds: Iterable[SeedSummary], unit: Unit) -> list[str]:
    """Say what is known over seeds, and of which recipes nothing is."""
    known = [_over_seeds(s, unit) for s in seeds if s.score]
    unknown = ", ".join(
        f"{s.candidate} ({formatting.counted(len(s.seeds), 'seed')})" for s in seeds if not s.score
    )
    return [*known, *([f"{VARIANCE_UNKNOWN}: {unknown}; 3 are needed"] if unknown else [])]


def _factor_row(f: Factor, a: Ablation, unit: Unit) -> tuple[str, ...]:
    is_reference = f.candidate == a.reference
    change = formatting.change(unit, *f.difference[:3]) if f.difference else formatting.UNKNOWN
    return (
        _short(f.candidate, a.grid),
        formatting.score(unit, f.score),
        "(reference)" if is_reference else change,
        formatting.p_value(f.p),
        formatting.p_value(f.p_adjusted),
        formatting.usd(f.training_cost_usd),
        formatting.seconds(f.training_s),
    )


def _seed_row(s: SeedSummary, unit: Unit) -> tuple[str, ...]:
    over = formatting.score(unit, *s.score[:3]) if s.score else VARIANCE_UNKNOWN
    gain = formatting.change(unit, *s.gain[:3]) if s.gain else formatting.UNKNOWN
    return (
        s.candidate,
        ", ".join(map(str, s.seeds)),
        ", ".join(formatting.score(unit, x) for x in s.scores),
        over,
        formatting.score(unit, s.seed_sd),
        gain,
    )


def _over_seeds(s: SeedSummary, unit: Unit) -> str:
    each = ", ".join(formatting.score(unit, x) for x in s.scores)
    gain = f", {formatting.change(unit, *s.gain[:3])} over the best untrained" if s.gain else ""
    over = formatting.score(unit, *s.score[:3]) if s.score else VARIANCE_UNKNOWN
    return (
        f"{s.candidate} over {formatting.counted(len(s.seeds), 'seed')}: {over} ({each}; SD between seeds "
        f"{formatting.score(unit, s.seed_sd)}){gain}, by random effects"
    )


def _short(name: str, grid: str) -> str:
    return name.removeprefix(f"{grid}[").removesuffix("]")


_FIGURE, _COUNT, _NEEDED, _USD = formatting.figure, formatting.count, formatting.needed, formatting.usd
_UNTRAINED, _TUNED = "the best untrained", "the fine-tune"
_ENDS = ("_low", "_high")
# Of each field: its words, in which {unit} is what a change of the metric counts, and what prints it.
_ARITHMETIC: dict[str, tuple[str, Callable[..., str]]] = {
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
    return [
        (_arithmetic_words(name, unit), _arithmetic_value(name, of, unit)) for name in of if name not in ends
    ]


def _arithmetic_words(name: str, unit: formatting.Unit) -> str:
    words = _ARITHMETIC[name][0] if name in _ARITHMETIC else clean(name.replace("_", " "))
    return words.replace("{unit}", unit.name)


def _arithmetic_value(name: str, of: Mapping[str, float | str | None], unit: formatting.Unit) -> str:
    value = of[name]
    if value is None or isinstance(value, str):
        return value or formatting.UNKNOWN
    shown: Callable[..., str] = _ARITHMETIC[name][1] if name in _ARITHMETIC else formatting.figure
    low_high = [of[f"{name}{end}"] for end in _ENDS if f"{name}{end}" in of]
    return shown(unit, value, *low_high) if shown is formatting.change else shown(value, *low_high)
