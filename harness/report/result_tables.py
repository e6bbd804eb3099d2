"""Tables of results: ablations, arithmetic, varied answers, more targets and win rates, and origins of runs.

Invariant: corrected p-values and win rates are shown with the uncorrected ones and the number of tests.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from harness import formatting
from harness.analysis.ablation import Ablation
from harness.analysis.answers import AnswerCounts, AnswerDiversity
from harness.analysis.arithmetic import ENDS, NUMBERS, Number
from harness.analysis.candidate_facts import CandidateFacts
from harness.analysis.decision import Decision
from harness.analysis.estimators import Estimate
from harness.analysis.seeds import VARIANCE_UNKNOWN
from harness.formatting import UNKNOWN, Unit, count, percent, points, quote, seconds
from harness.records import Run
from harness.report.document import Section
from harness.report.escape import clean
from harness.report.wording import answered_text, change_text, score_text
from harness.spec import TargetPolicy

_DIVERSITY_COLUMNS = (
    "task", "n", "commonest answer, base", "new", "change", "commonest reference",
    "distinct answers, base", "new", "the commonest new answer",
)  # fmt: skip
_DIVERSITY_NOTE = (
    "Generated answers: the share in % of the commonest one, and how many are distinct. "
    "Mode collapse is a share far above both the base's and the commonest reference's: at least twice as "
    "large, or leaving at most half as much, with a paired 95 % interval (Tango's) that excludes 0."
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
OWN_ORIGINS = ("run", "made", "weights", "base", "recipe")
_HIDDEN_ORIGINS = ("packages", "platform")


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


def diversity_section(label: str, diversities: Sequence[AnswerDiversity]) -> Section:
    """Return the diversity table of generated answers, base and new, one row per task."""
    rows = []
    for d in diversities:
        base, change, distinct = UNKNOWN, UNKNOWN, UNKNOWN
        if d.base:
            base, distinct = percent(d.base.share), _distinct(d.base)
            change = points(d.new.share - d.base.share, d.low, d.high)
        shares = (base, percent(d.new.share), change, percent(d.reference_share))
        rows.append([d.task, count(d.n), *shares, distinct, _distinct(d.new), quote(d.new.commonest)])
    title = f"How varied the answers of {label} are"
    return Section("diversity", title, _DIVERSITY_COLUMNS, rows, _DIVERSITY_NOTE, label=label)


def collapse_sentence(label: str, diversities: Sequence[AnswerDiversity]) -> str:
    """Name the tasks on which the answers have collapsed; empty if none."""
    parts = [
        f"on {d.task} {quote(d.new.commonest)} is the answer to {percent(d.new.share)} % of the "
        f"{count(d.n)} items, the base's commonest to {percent(d.base.share)} %"
        for d in diversities
        if d.collapsed and d.base
    ]
    return f"{label}: mode collapse, {'; '.join(parts)}" if parts else ""


def _distinct(answers: AnswerCounts) -> str:
    return f"{count(answers.n_distinct)} ({percent(answers.distinct_share)} %)"


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
        uncorrected = UNKNOWN if wins.uncorrected is None else percent(wins.uncorrected)
        rate = score_text(wins.rate)
        if wins.rate and wins.lacking:
            rate += f" ({formatting.pluralize(wins.lacking, 'more rating')} needed)"
        required = percent(declared.win_rate)
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
    origins = {**dict(zip(OWN_ORIGINS, values, strict=True)), **other_origins, **packages}
    return {name: _origin_text(value) for name, value in origins.items()}


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
