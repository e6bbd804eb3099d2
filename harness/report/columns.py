"""Columns of results: the values that all formats show of runs and comparisons.

Invariant: the columns of runs and of comparisons, and the tables made of them, are listed only here; those of
`records.SERVING` are also in SQL and trackers. Sections of other results (`sections.py`, `result_tables.py`)
name their own columns, and `interchange.py` those that its CSV adds.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

from harness import plugins
from harness.analysis.candidate_facts import CandidateFacts, best_untrained, gain, is_fine_tuned
from harness.analysis.estimators import Comparison, Estimate
from harness.formatting import RATE, UNKNOWN, Unit, count, figure, points
from harness.metrics import short_name
from harness.records import SERVING, Run
from harness.report import wording
from harness.report.experiment_report import ExperimentReport

Row = TypeVar("Row")
Kind = Literal["text", "number", "interval"]
_NO_CHANGE = Estimate(0.0, 0.0, 0.0, 0)


@dataclass(frozen=True, slots=True)
class Column(Generic[Row]):
    """Column with its name in files, heading, meaning, unrounded value and text of a row (short if tight)."""

    name: str
    heading: str
    meaning: str
    value: Callable[[Row], Any]
    text: Callable[[Row, bool], str]
    kind: Kind = "text"


@dataclass(frozen=True, kw_only=True)
class Result:
    """One run as shown in tables: its facts, stored run, rank, and scores by the target's `others`."""

    facts: CandidateFacts
    is_reference: bool = False
    metric: str = ""
    run: Run | None = None
    others: Mapping[str, Estimate | None] = field(default_factory=dict)
    rank: int | None = None
    is_champion: bool = False


def _shown(
    name: str,
    heading: str,
    meaning: str,
    value: Callable[[Row], Any],
    text: Callable[[Any], str] = str,
    kind: Kind = "text",
) -> Column[Row]:

    def print_value(row: Row, tight: bool) -> str:
        cell = value(row)
        return UNKNOWN if cell is None else text(cell)

    return Column(name, heading, meaning, value, print_value, kind)


def _stored(name: str, meaning: str, text: Callable[[str], str] = str) -> Column[Result]:
    return _shown(name, name.replace("_", " "), meaning, lambda row: getattr(row.run, name, None), text)


def _figure(name: str, heading: str, meaning: str) -> Column[Result]:

    def text(row: Result, tight: bool) -> str:
        return wording.print_measured(row.facts, name, tight=tight)

    return Column(
        name, heading, meaning, lambda row: wording.find_shown_figure(row.facts, name), text, "number"
    )


def _forgetting(f: CandidateFacts) -> Estimate | None:
    is_model = plugins.find_method(f.method).makes_language_model
    if f.state == "failed" or _is_unjudged_baseline(f) or not is_model:
        return None
    if not is_fine_tuned(f):
        return _NO_CHANGE
    return f.verdict.macro if f.verdict else None


def _forgetting_text(row: Result, tight: bool) -> str:
    if (change := _forgetting(row.facts)) is not None:
        return "0 (base weights)" if change is _NO_CHANGE else points(*change[:3])
    if _is_unjudged_baseline(row.facts):
        return f"{UNKNOWN} ({'not judged' if tight else 'a baseline, not judged'})"
    return UNKNOWN


def _is_unjudged_baseline(f: CandidateFacts) -> bool:
    return f.state != "failed" and f.baseline and f.trained


def _flips(f: CandidateFacts) -> str | None:
    judged = f.verdict if is_fine_tuned(f) else None
    return wording.flips_text(judged.lost, judged.gained) if judged else None


def _by_name(*columns: Column[Row]) -> Mapping[str, Column[Row]]:
    return {column.name: column for column in columns}


def _choose(columns: Mapping[str, Column[Row]], names: str) -> tuple[Column[Row], ...]:
    return tuple(columns[name] for name in names.split())


# fmt: off
# Columns of a candidate's run, in the order of the leaderboard.
CANDIDATE_COLUMNS = _by_name(
    _shown("rank", "rank", "those whose paired difference holds 0 share one", lambda r: r.rank, count,
        "number"),
    _shown("champion", "★", "what gates compare with", lambda r: r.is_champion, lambda is_it: "★" * is_it),
    _shown("candidate", "candidate", "its name in `harness.yaml`; the best on test stands first",
        lambda r: r.facts.label),
    _shown("metric", "metric", "the target's metric", lambda r: r.metric),
    _shown("verdict", "verdict",
        "the gate's: PASS where the items show that no loss is beyond your margin, and that the gain"
        " is as large as gate.target asks for; FAIL where they show a loss beyond it or a smaller gain,"
        " UNDECIDED where they cannot tell; with 95 % confidence", lambda r: wording.verdict_word(r.facts)),
    Column("target", "target\n{metric}", "score on the test items", lambda r: r.facts.target,
        lambda r, tight: wording.target_text(r.facts, tight=tight) + wording.unread_mark(r.facts),
        "interval"),
    Column("gain", "{gain}vs best\nuntrained",
        "paired difference from `this one`, the best on validation of those that train no language model",
        lambda r: _NO_CHANGE if r.is_reference else gain(r.facts.vs_untrained),
        lambda r, tight: (
            "(this one)" if r.is_reference else wording.change_text(gain(r.facts.vs_untrained), whole=tight)
        ), "interval"),
    Column("forgetting", "other skills", "average change over the capability tasks, in points,"
        " below 0 where skills were lost; – without a language model",
        lambda r: _forgetting(r.facts), _forgetting_text, "interval"),
    _shown("lost_gained", "lost/gained", "items of these tasks that got worse/better than with the base",
        lambda r: _flips(r.facts)),
    *(_figure(f.name, f.heading, f.meaning) for f in SERVING),
    _shown("prompt_tokens", "tokens of a prompt", "mean of a request on test",
        lambda r: r.facts.tokens and r.facts.tokens.prompt, figure, "number"),
    _shown("output_tokens", "tokens of an answer", "mean of a request on test",
        lambda r: r.facts.tokens and r.facts.tokens.output, figure, "number"),
    _shown("disturbed", "disturbed", "figures that other work disturbed",
        lambda r: ", ".join(r.facts.speed.disturbed)),
    _stored("created", "when it was made", lambda created: created[:16].replace("T", " ")),
    _stored("method", "how its weights were made"),
    _stored("prompting", "how it is prompted"),
    _stored("base_model", "the base model", lambda name: name.rpartition("/")[2]),
    _stored("run_id", "the run, a folder of the store"),
)
RESULT_TABLE = _choose(
    CANDIDATE_COLUMNS,
    "candidate target gain forgetting lost_gained cost_per_1k_usd latency_p50_s verdict",
)
SPEED_TABLE = _choose(
    CANDIDATE_COLUMNS,
    "candidate latency_p50_s latency_p95_s requests_per_s prompt_tokens output_tokens cost_per_1k_usd",
)
_FILE_ALONE = ("metric", "lost_gained", "disturbed")  # only in the leaderboard's CSV

# Columns of a comparison on one task by one metric.
COMPARISON_COLUMNS: Mapping[str, Column[Comparison]] = _by_name(
    _shown("task", "task", "the task", lambda c: c.task),
    _shown("metric", "metric", "the metric", lambda c: c.metric),
    _shown("n", "n", "items", lambda c: c.n, count, "number"),
    _shown("n_paired", "n paired", "items that are compared", lambda c: c.n, count, "number"),
    _shown("n_errors", "errors", "answers that failed", lambda c: c.errors.new + c.errors.both, count,
        "number"),
    Column("base", "base", "score of what it is compared with",
        lambda c: Estimate(c.base, c.base_low, c.base_high, c.n, c.unit),
        lambda c, _: wording.arm_texts(c)[0], "interval"),
    Column("score", "new", "score of the candidate",
        lambda c: Estimate(c.new, c.new_low, c.new_high, c.n, c.unit),
        lambda c, _: wording.arm_texts(c)[1], "interval"),
    Column("delta", "change", "paired difference", lambda c: c,
        lambda c, _: wording.change_text(c), "interval"),
    _shown("lost_gained", "lost/gained", "items that got worse/better",
        lambda c: wording.flips_text(len(c.lost), len(c.gained))),
    _shown("lost", "lost", "items that got worse", lambda c: len(c.lost), count, "number"),
    _shown("gained", "gained", "items that got better", lambda c: len(c.gained), count, "number"),
)
COMPARISON_FILE = _choose(
    COMPARISON_COLUMNS, "task metric n n_errors score base delta n_paired lost gained"
)
FORGETTING_TABLE = _choose(COMPARISON_COLUMNS, "task metric base score delta lost_gained")
GATE_TABLE = _choose(COMPARISON_COLUMNS, "task metric n base score delta lost_gained")
COMPARE_PAGE = _choose(COMPARISON_COLUMNS, "task metric base score delta lost gained n")
# fmt: on


def leaderboard_columns(metrics: Sequence[str]) -> list[Column[Result]]:
    """List the columns of the leaderboard; scores by other metrics follow the primary one."""
    columns = [column for name, column in CANDIDATE_COLUMNS.items() if name not in _FILE_ALONE]
    at = columns.index(CANDIDATE_COLUMNS["target"]) + 1
    return [*columns[:at], *map(metric_column, metrics), *columns[at:]]


def metric_column(metric: str) -> Column[Result]:
    """Return the column of scores by another metric of the target."""
    name, title, meaning = f"by {metric}", metric.replace("_", " "), CANDIDATE_COLUMNS["target"].meaning
    return _shown(name, title, meaning, lambda row: row.others.get(metric), wording.answered_text, "interval")


def heading(column: Column[Any], metric: str = "", unit: Unit = RATE) -> str:
    """Return a column's heading, with the metric's short name and direction if known."""
    better = unit.higher_is_better
    short = f"{short_name(metric)}{'' if better else ' ↓'}"
    return column.heading.format(metric=short, gain="" if better else "gain ").strip()


def result_headings(report: ExperimentReport) -> dict[str, str]:
    """Return the headings of the result table; they may be wrapped at line breaks."""
    return {column.name: heading(column, report.metric, report.unit) for column in RESULT_TABLE}


def result_rows(report: ExperimentReport, *, tight: bool = False) -> list[dict[str, str]]:
    """Format the result table, the best candidates first and failed ones last; `tight` shortens cells."""
    reference = best_untrained(report.facts)
    rows = [Result(facts=f, is_reference=f.name == reference) for f in wording.best_first(report)]
    return [{column.name: column.text(row, tight) for column in RESULT_TABLE} for row in rows]


def print_table(
    columns: Iterable[Column[Row]], rows: Iterable[Row], *, tight: bool = False
) -> tuple[list[str], list[list[str]]]:
    """Format the headings and cells of some columns."""
    column_list = list(columns)
    heads = [heading(column).replace("\n", " ") for column in column_list]
    return heads, [[column.text(row, tight) for column in column_list] for row in rows]


def map_values(columns: Iterable[Column[Row]], row: Row) -> dict[str, Any]:
    """Map column names to a row's unrounded values; `_low` and `_high` are the ends of intervals."""
    values: dict[str, Any] = {}
    for column in columns:
        value = column.value(row)
        values[column.name] = value
        if column.kind == "interval":
            values[column.name] = value.delta if isinstance(value, Comparison) else value and value.score
            ends = (value.low, value.high) if value else (None, None)
            values[f"{column.name}_low"], values[f"{column.name}_high"] = ends
    return values
