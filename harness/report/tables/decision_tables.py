"""Tables of what the decision rests on: seeds, ablations, learning curve, arithmetic in words, and speed.

Invariant: a corrected p-value never stands without the raw one, and the number of tests; a number of the
arithmetic that another version has added is shown by its field's name. A figure of speed that other work
disturbed has its mark.
"""

from collections.abc import Iterable, Mapping, Sequence

from harness import formatting
from harness.decision import (
    VARIANCE_UNKNOWN,
    Ablation,
    CandidateFacts,
    Decision,
    Factor,
    LearningCurve,
    SeedSummary,
)
from harness.decision.arithmetic import ENDS, NUMBERS, Number, Value
from harness.formatting import UNKNOWN, Unit, count, figure, seconds
from harness.report.columns import CANDIDATE_COLUMNS, SPEED_TABLE, Result, print_table
from harness.report.document import Section
from harness.report.escape import clean
from harness.report.wording import change_text, describe_disturbed, score_text

_SEED_COLUMNS = ("candidate", "seeds", "score of each", "over seeds", "SD between seeds", "vs best untrained")
_CURVE_COLUMNS = ("training rows", "score", "over all rows", "training cost USD")


def curve_section(curve: LearningCurve) -> Section:
    """Lay out the sizes that were trained on, then what the fit expects of two and four times the data."""
    rows = [
        (
            formatting.count(p.n_train),
            score_text(p.score),
            "(all)" if p is curve.points[-1] else "",
            formatting.usd(p.training_cost_usd),
        )
        for p in curve.points
    ]
    rows += [
        (formatting.count(a.n_train), "expected", change_text(a.gain), formatting.UNKNOWN)
        for a in curve.ahead
    ]
    return Section("curve", f"Learning curve: {curve.candidate}", _CURVE_COLUMNS, rows)


def ablation_section(a: Ablation, unit: Unit) -> Section:
    """Lay out a grid's members by what differs, the reference first, and say how they were compared."""
    columns = (a.grid, "score", "change", "p", "p corrected", "cost USD", "trained in")
    rows = [_factor_row(f, a, unit) for f in a.factors]
    looked = f"p corrected for {formatting.count(a.n_tests)} looks (Benjamini-Hochberg)"
    chosen = f"; best on validation: {_short(a.chosen, a.grid)}" if a.chosen else ""
    seeds = "" if a.seed_variance_known else f"; {VARIANCE_UNKNOWN} (fewer than 3 seeds)"
    note = f"{a.grid}: paired on test with {_short(a.reference, a.grid)}, {looked}{chosen}{seeds}"
    return Section("ablation", f"Ablation: {a.grid}", columns, rows, notes=[note])


def seed_section(seeds: Iterable[SeedSummary], unit: Unit) -> Section:
    """Lay out every recipe that was trained with several seeds."""
    rows = [_seed_row(s, unit) for s in seeds if len(s.seeds) > 1]
    return Section("seeds", "Seeds", _SEED_COLUMNS, rows)


def seed_sentences(seeds: Iterable[SeedSummary], unit: Unit) -> list[str]:
    """Say what is known over seeds, and of which recipes nothing is."""
    known = [_describe_seeds(s, unit) for s in seeds if s.score]
    unknown = ", ".join(
        f"{s.candidate} ({formatting.pluralize(len(s.seeds), 'seed')})" for s in seeds if not s.score
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


def _describe_seeds(s: SeedSummary, unit: Unit) -> str:
    each = ", ".join(formatting.score(unit, x) for x in s.scores)
    gain = f", {formatting.change(unit, *s.gain[:3])} over the best untrained" if s.gain else ""
    over = formatting.score(unit, *s.score[:3]) if s.score else VARIANCE_UNKNOWN
    pooled = f", pooled over recipes on {formatting.count(s.seed_df)} df" if s.is_pooled else ""
    return (
        f"{s.candidate} over {formatting.pluralize(len(s.seeds), 'seed')}: {over} ({each}; SD between seeds "
        f"{formatting.score(unit, s.seed_sd)}{pooled}){gain}, over items and seeds"
    )


def _short(name: str, grid: str) -> str:
    return name.removeprefix(f"{grid}[").removesuffix("]")


def arithmetic_rows(decision: Decision, unit: formatting.Unit) -> list[tuple[str, str]]:
    """List what each number behind a decision is, and the number with its interval."""
    of, unit = decision.arithmetic, decision.unit or unit
    ends = {f"{name}{end}" for name in of for end in ENDS}
    return [_arithmetic_row(name, of, unit) for name in of if name not in ends]


def _arithmetic_row(name: str, of: Mapping[str, Value], unit: formatting.Unit) -> tuple[str, str]:
    number = NUMBERS.get(name) or Number(clean(name.replace("_", " ")))
    words, value = number.words.replace("{unit}", unit.name), of[name]
    if value is None or isinstance(value, str):
        return words, value or formatting.UNKNOWN
    low_high = [of[f"{name}{end}"] for end in ENDS if f"{name}{end}" in of]
    in_unit = [unit] if number.shown is formatting.change else []
    return words, number.shown(*in_unit, value, *low_high)


_SPEED_LEAD = (
    "p50 and p95: half and 95 % of single requests take no longer, each from the question to the answer with"
    " its retrieval. Requests a second: answered in batches. Tokens: the mean of a request on test."
)


def speed_section(done: Sequence[CandidateFacts]) -> Section:
    """Lay out latency, throughput, tokens and cost of finished runs, one a row."""
    notes = [note] if (note := describe_disturbed(done)) else []
    columns = (CANDIDATE_COLUMNS[name] for name in SPEED_TABLE)
    heads, rows = print_table(columns, [Result(facts=f) for f in done])
    return Section("speed", "Speed and tokens", heads, rows, _SPEED_LEAD, notes)


_LOAD_COLUMNS = (
    "candidate",
    "at once",
    "requests a second",
    "first token p50",
    "first token p95",
    "first token alone",
)
_LOAD_NOTE = (
    "Requests sent at once (concurrency), how many of them are answered a second, and the time after which"
    " half and 95 % of them have their first token, retrieval included; next to it the first token of a"
    " request that is sent alone. A model in the harness's own process answers them in one batch, so"
    " their first tokens come together. At a server they are requests for one token."
)


def load_section(facts: Iterable[CandidateFacts]) -> Section:
    """Lay out one row a candidate that got several requests at once."""
    rows = []
    for f in facts:
        if of := f.under_load:
            times = (of.first_token_p50_s, of.first_token_p95_s, of.first_token_alone_s)
            shown = (UNKNOWN if time is None else seconds(time) for time in times)
            rows.append([f.label, count(of.n), figure(of.requests_per_s), *shown])
    return Section("load", "Under load", _LOAD_COLUMNS, rows, _LOAD_NOTE)
