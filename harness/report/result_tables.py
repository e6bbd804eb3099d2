"""Tables of results: what the decision rests on, speed, more targets and win rates, and origins of runs.

Invariant: corrected p-values and win rates are shown with the uncorrected ones and the number of tests;
disturbed figures of speed are marked.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from harness import formatting
from harness.analysis.ablation import Ablation
from harness.analysis.arithmetic import ENDS, NUMBERS, Number
from harness.analysis.candidate_facts import CandidateFacts
from harness.analysis.decision import Decision
from harness.analysis.estimators import Estimate
from harness.analysis.next_step import basis_text
from harness.analysis.seeds import VARIANCE_UNKNOWN, SeedSummary
from harness.analysis.target_scores import LearningCurve
from harness.formatting import UNKNOWN, Unit, count, figure, seconds
from harness.records import PARITY, Run
from harness.report.columns import SPEED_TABLE, Result, print_table
from harness.report.document import Section
from harness.report.escape import clean
from harness.report.experiment_report import AttributionStep
from harness.report.wording import answered_text, change_text, describe_disturbed, figure_text, score_text
from harness.spec import TargetPolicy

_SEED_COLUMNS = ("candidate", "seeds", "score of each", "over seeds", "SD between seeds", "vs best untrained")
_CURVE_COLUMNS = ("training rows", "score", "over all rows", "training cost USD")
_SPEED_LEAD = (
    "p50 and p95: half and 95 % of single requests take no longer, each from the question to the answer with"
    " its retrieval. Requests a second: answered in batches. Tokens: the mean of a request on test."
)
_LOAD_COLUMNS = (
    "candidate", "at once", "requests a second", "first token p50", "first token p95", "first token alone",
)  # fmt: skip
_LOAD_NOTE = (
    "Requests sent at once (concurrency), how many of them are answered a second, and the time after which"
    " half and 95 % of them have their first token, retrieval included; next to it the first token of a"
    " request that is sent alone. A model in the harness's own process answers them in one batch, so"
    " their first tokens come together. At a server they are requests for one token."
)
_TARGETS_COLUMNS = ("target", "candidate", "score", "vs best untrained", "vs prompt")
_TARGETS_NOTE = (
    "Every candidate answered these as it is: nothing was trained for them or chosen on them, and neither the"
    " gate nor the decision looks at them. The best untrained is that of each target, by its validation rows;"
    " without any there is none."
)
_WINS_COLUMNS = (
    "candidate", "over", "by", "win rate, %", "before correction", "pairs people rated", "required",
)  # fmt: skip
_WINS_NOTE = (
    "win rate: the share of test items on which the candidate's answer is preferred, a tie being half of one,"
    " as gate.target.win_rate requires it; it is the gain that the decision goes by."
)
_SCORE_COLUMNS = ("task", "n-shot", "metric", "score [95 % interval]", "n")
Origins = Mapping[str, Mapping[str, str]]
_OWN_ORIGINS = ("run", "made", "weights", "base", "recipe")
_HIDDEN_ORIGINS = ("packages", "platform")
Table = tuple[str, Sequence[str], Sequence[Sequence[str]]]


def curve_section(curve: LearningCurve) -> Section:
    """Show the trained sizes, then the expected gains of two and four times the data."""
    rows = []
    for p in curve.points:
        is_all = "(all)" if p is curve.points[-1] else ""
        rows.append((count(p.n_train), score_text(p.score), is_all, formatting.usd(p.training_cost_usd)))
    rows += [(count(a.n_train), "expected", change_text(a.gain), UNKNOWN) for a in curve.ahead]
    return Section("curve", f"Learning curve: {curve.candidate}", _CURVE_COLUMNS, rows)


def ablation_section(a: Ablation, unit: Unit) -> Section:
    """Show a grid's members, the reference first, and how they were compared."""
    columns = (a.grid, "score", "change", "p", "p corrected", "cost USD", "trained in")
    rows = []
    for f in a.factors:
        change = "(reference)" if f.candidate == a.reference else change_text(f.difference)
        p_values = map(formatting.p_value, (f.p, f.p_adjusted))
        costs = (formatting.usd(f.training_cost_usd), seconds(f.training_s))
        rows.append([_short(f.candidate, a.grid), formatting.score(unit, f.score), change, *p_values, *costs])
    looked = f"p corrected for {count(a.n_tests)} looks (Benjamini-Hochberg)"
    chosen = f"; best on validation: {_short(a.chosen, a.grid)}" if a.chosen else ""
    seeds = "" if a.seed_variance_known else f"; {VARIANCE_UNKNOWN} (fewer than 3 seeds)"
    note = f"{a.grid}: paired on test with {_short(a.reference, a.grid)}, {looked}{chosen}{seeds}"
    return Section("ablation", f"Ablation: {a.grid}", columns, rows, notes=[note])


def seed_section(seeds: Iterable[SeedSummary], unit: Unit) -> Section:
    """Show every recipe that was trained with several seeds."""
    rows = []
    for s in seeds:
        if len(s.seeds) > 1:
            each = ", ".join(formatting.score(unit, x) for x in s.scores)
            over = score_text(s.score) if s.score else VARIANCE_UNKNOWN
            pooled = f" (pooled over recipes, {count(s.seed_df)} df)" if s.is_pooled else ""
            spread = formatting.score(unit, s.seed_sd) + pooled
            rows.append([s.candidate, ", ".join(map(str, s.seeds)), each, over, spread, change_text(s.gain)])
    return Section("seeds", "Seeds", _SEED_COLUMNS, rows)


def _short(name: str, grid: str) -> str:
    return name.removeprefix(f"{grid}[").removesuffix("]")


def arithmetic_rows(decision: Decision, unit: formatting.Unit) -> list[tuple[str, str]]:
    """List the name of each number behind a decision, and the number with its interval."""
    values, unit = decision.arithmetic, decision.unit or unit
    ends = {f"{name}{end}" for name in values for end in ENDS}
    rows = []
    for name, value in values.items():
        if name in ends:
            continue
        number = NUMBERS.get(name) or Number(clean(name.replace("_", " ")))
        words = number.words.replace("{unit}", unit.name)
        if value is None or isinstance(value, str):
            rows.append((words, value or UNKNOWN))
        else:
            low_high = [values[f"{name}{end}"] for end in ENDS if f"{name}{end}" in values]
            in_unit = [unit] if number.shown is formatting.change else []
            rows.append((words, number.shown(*in_unit, value, *low_high)))
    return rows


def speed_section(finished: Sequence[CandidateFacts]) -> Section:
    """Show latency, throughput, tokens and cost of finished runs."""
    notes = [note] if (note := describe_disturbed(finished)) else []
    heads, rows = print_table(SPEED_TABLE, [Result(facts=f) for f in finished])
    return Section("speed", "Speed and tokens", heads, rows, _SPEED_LEAD, notes)


def parity_section(finished: Sequence[CandidateFacts]) -> Section:
    """Compare artefacts with the runs that they were exported from."""
    served = [f for f in finished if f.parity]
    figures = [p for p in PARITY if any(p.name in f.parity for f in served)]
    rows = [[f.label, *(figure_text(p.name, f.parity.get(p.name)) for p in figures)] for f in served]
    note = "Flipped answers say nothing by themselves: the run against itself in fp32 is their floor."
    columns = ["artefact", *(p.heading for p in figures)]
    return Section("parity", "Parity of artefacts", columns, rows, notes=[note] if rows else [])


def load_section(facts: Iterable[CandidateFacts]) -> Section:
    """Show the candidates that got several requests at once."""
    rows = []
    for f in facts:
        if load := f.speed.under_load:
            times = (load.first_token_p50_s, load.first_token_p95_s, load.first_token_alone_s)
            time_texts = (UNKNOWN if time is None else seconds(time) for time in times)
            rows.append([f.label, count(load.n), figure(load.requests_per_s), *time_texts])
    return Section("load", "Under load", _LOAD_COLUMNS, rows, _LOAD_NOTE)


def targets_section(finished: Sequence[CandidateFacts]) -> Section:
    """Show each candidate's score, target by target, the best first."""
    pairs = [(f, target) for f in finished for target in f.more_targets]
    pairs.sort(key=lambda pair: -pair[1].score.unit.sign * pair[1].score.score)
    tasks = dict.fromkeys(target.task for f in finished for target in f.more_targets)
    rows = []
    for f, target in (pair for task in tasks for pair in pairs if pair[1].task == task):
        gain_text = "(this one)" if f.name == target.untrained else change_text(target.vs_untrained)
        cells = (answered_text(target.score), gain_text, change_text(target.vs_prompt))
        rows.append([f"{target.task} ({target.metric})", f.label, *cells])
    return Section("more targets", "More targets", _TARGETS_COLUMNS, rows, _TARGETS_NOTE)


def wins_section(facts: Sequence[CandidateFacts], declared: TargetPolicy | None) -> Section:
    """Show win rates where one is required, and what each judge prefers."""
    if declared is None or declared.win_rate is None:
        return Section("wins")
    rows: list[list[str]] = []
    notes: list[str] = []
    for f in facts:
        if (wins := f.wins) is None:
            continue
        uncorrected = UNKNOWN if wins.uncorrected is None else formatting.percent(wins.uncorrected)
        rate = score_text(wins.rate)
        if wins.rate and wins.lacking:
            rate += f" ({formatting.pluralize(wins.lacking, 'more rating')} needed)"
        required = formatting.percent(declared.win_rate)
        rows.append([f.label, wins.over, wins.by, rate, uncorrected, count(wins.n_ratings), required])
        if (bias := wins.bias) is None:
            continue
        pair, unit = f"{wins.by} on {f.label} against {wins.over}", "points of win rate more than people do"
        if bias.first:
            rate = score_text(bias.first)
            first = f"the answer shown first won {rate} % of comparisons, where 50 % favours no place"
            notes.append(f"{pair}: {first}")
        if bias.longer:
            won = score_text(bias.longer)
            notes.append(f"{pair}: the longer answer won {won} % of pairs whose lengths differ")
        if bias.favour:
            by = change_text(bias.favour)
            notes.append(f"{pair}: it favours {f.label} by {by} {unit} on the same pairs")
        if longer := bias.longer_beside_people:
            by = change_text(longer.favour)
            also = "" if longer.is_length else "; what else sets the two apart may be the cause as well"
            notes.append(f"{pair}: it favours the longer answer by {by} {unit}{also}")
    return Section("wins", "Win rates", _WINS_COLUMNS, rows, _WINS_NOTE, notes)


def wins_sentence(f: CandidateFacts, declared: TargetPolicy | None) -> str:
    """Describe how often a candidate is preferred; empty if no win rate is required or known."""
    wins = f.wins
    if declared is None or declared.win_rate is None or wins is None or wins.rate is None:
        return ""
    required = f"{formatting.percent(declared.win_rate)} % is required"
    lacking = (
        f"; {formatting.pluralize(wins.lacking, 'more rating')} of people needed" if wins.lacking else ""
    )
    rate = score_text(wins.rate)
    return f"preferred to {wins.over} on {rate} % of items {basis_text(wins)}, where {required}{lacking}"


class ScoreRow(NamedTuple):
    """Score of a task, or of one task of a group (`part`); None if nothing was scored."""

    task: str
    part: str
    num_fewshot: int
    metric: str
    estimate: Estimate | None


def score_section(scores: Iterable[ScoreRow]) -> Section:
    """Show scores; each task is named once."""
    rows, previous = list[list[str]](), ("", "")
    for s in scores:
        is_first, previous = (s.task, s.part) != previous, (s.task, s.part)
        cells = (str(s.num_fewshot), s.metric, score_text(s.estimate))
        n = count(s.estimate.n if s.estimate else 0)
        rows.append([(s.part or s.task) if is_first else "", *cells, n])
    return Section("scores", columns=_SCORE_COLUMNS, rows=rows)


def origin(run: Run) -> dict[str, str]:
    """Return everything that a run's numbers depend on, each as text."""
    recipe = {k: v for k, v in run.recipe.items() if v}
    values = (run.run_id, run.created, run.weights_digest, run.base_digest, recipe)
    packages = {name: v for name, v in (run.provenance.get("packages") or {}).items() if v is not None}
    other_origins = {name: v for name, v in run.provenance.items() if name not in _HIDDEN_ORIGINS}
    origins = {**dict(zip(_OWN_ORIGINS, values, strict=True)), **other_origins, **packages}
    return {name: _origin_text(value) for name, value in origins.items()}


def provenance_tables(origins: Origins) -> Iterator[Table]:
    """Yield two tables: what the runs share, and each run's own."""
    shared = list(dict.fromkeys(name for run in origins.values() for name in run if name not in _OWN_ORIGINS))
    rows = []
    for name in shared:
        by_value: dict[str, list[str]] = {}
        for label, run in origins.items():
            by_value.setdefault(run.get(name, UNKNOWN), []).append(label)
        value_texts = (f"{value} ({', '.join(labels)})" for value, labels in by_value.items())
        rows.append((name.replace("_", " "), "; ".join(by_value if len(by_value) == 1 else value_texts)))
    yield "Provenance", ("what", "value"), rows
    own_rows = [(label, *(run.get(name, UNKNOWN) for name in _OWN_ORIGINS)) for label, run in origins.items()]
    yield "Runs", ("candidate", *_OWN_ORIGINS), own_rows


def _origin_text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, Mapping):
        return UNKNOWN if value is None else str(value)
    parts = []
    for key, inner in value.items():
        text = f"({_origin_text(inner)})" if isinstance(inner, Mapping) else _origin_text(inner)
        parts.append(str(key) if inner == {} else f"{key} {text}")
    return ", ".join(parts)


def steps_section(label: str, steps: Sequence[AttributionStep]) -> Section:
    """Show the change of each task from one step to the next."""
    columns = ["task", *(clean(f"{s.what}: {s.new} − {s.base}") for s in steps)]
    changes = [{c.task: c for c in reversed(s.tasks)} for s in steps]
    tasks = dict.fromkeys(c.task for s in steps for c in s.tasks)
    rows = [[task, *(change_text(by_task.get(task)) for by_task in changes)] for task in tasks]
    if any(s.target for s in steps):
        rows.insert(0, ["target", *(change_text(s.target) for s in steps)])
    if any(s.macro for s in steps):
        rows.append(["mean of the tasks that count", *(change_text(s.macro) for s in steps)])
    return Section("steps", f"Where the change of {label} comes from", columns, rows, label=label)
