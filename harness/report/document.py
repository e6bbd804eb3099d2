"""Write a report as Markdown: decision, candidates, slices, forgetting, gate, training, arithmetic.

Invariant: every name, id and message is escaped, so a `|` in it never opens a cell; every
table of a smoke report is marked as no evidence.
"""

from collections.abc import Iterable, Sequence
from math import isfinite

from harness import numbers
from harness.comparison import Comparison
from harness.decide import CandidateFacts, Decision, fine_tuned
from harness.report import recipes, steps
from harness.report.escape import clean, markdown_line
from harness.report.escape import markdown as escape
from harness.report.facts import (
    SMOKE,
    ExperimentReport,
    best_first,
    headers,
    last_line,
    measured,
    miss_basis,
    miss_text,
    sentences,
    table_rows,
)

_LOST_SHOWN = 10


def markdown(report: ExperimentReport) -> str:
    """Render the whole report; tables without rows are left out."""
    done = [f for f in best_first(report) if f.state == "done"]
    tuned = [f for f in done if fine_tuned(f)]
    lines = [
        *_head(report),
        *_section(report, "Candidates", headers(report), table_rows(report)),
        *(_bullets(sentences(report))),
        *_ablations(report),
        *_section(report, "Seeds", recipes.SEED_COLUMNS, recipes.seed_rows(report.seeds, report.metric)),
        *_curve(report),
        *_slices(report, done),
        *(line for f in tuned for line in _forgetting(report, f)),
        *(line for f in tuned for line in _steps(report, f)),
        *(line for f in tuned for line in _gate(report, f)),
        *(line for f in tuned for line in _sweep(report, f)),
        *_training(report, [f for f in done if f.training or f.training_cost_usd]),
        *(_arithmetic(report, report.decision) if report.decision else ()),
    ]
    return "\n".join(lines).rstrip("\n") + "\n"


def _head(report: ExperimentReport) -> list[str]:
    mark = f" ({SMOKE})" if report.smoke else ""
    header = [f"{_titled(name)} {measured(name, value)}" for name, value in report.header.items()]
    return [
        f"# {escape(report.experiment)}{mark}",
        "",
        f"**{escape(last_line(report))}**",
        "",
        " · ".join(map(escape, [f"Base model {report.base_model}", *header])),
        "",
    ]


def _section(
    report: ExperimentReport, title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]
) -> list[str]:
    body = [_cells(row) for row in rows]
    if not body:
        return []
    mark = f" ({SMOKE})" if report.smoke else ""
    return [f"## {title}{mark}", "", _cells(columns), "|---" * len(columns) + "|", *body, ""]


def _cells(values: Sequence[str]) -> str:
    return f"| {' | '.join(map(escape, values))} |"


def _bullets(texts: Iterable[str]) -> list[str]:
    lines = [f"- {markdown_line(text)}" for text in texts]
    return [*lines, ""] if lines else []


def _ablations(report: ExperimentReport) -> list[str]:
    lines: list[str] = []
    for a in report.ablations:
        columns, rows = recipes.ablation_columns(a), recipes.ablation_rows(a, report.metric)
        lines += _section(report, f"Ablation: {escape(a.grid)}", columns, rows)
        lines += _bullets([recipes.ablation_note(a)])
    return lines


def _curve(report: ExperimentReport) -> list[str]:
    """Show the score by the amount of training data, and what more would bring."""
    if report.curve is None:
        return []
    rows = recipes.curve_rows(report.curve, report.metric)
    return _section(report, f"Learning curve: {escape(report.curve.candidate)}", recipes.CURVE_COLUMNS, rows)


def _slices(report: ExperimentReport, done: Sequence[CandidateFacts]) -> list[str]:
    """Show every candidate on every slice, each with its interval."""
    sizes = {name: estimate.n for f in done for name, estimate in f.slices.items() if name}
    rows = [
        [f.label, *(_slice_score(report.metric, f, name) for name in sorted(sizes))] for f in done if f.slices
    ]
    columns = [f"{name} (n = {numbers.count(sizes[name])})" for name in sorted(sizes)]
    return _section(report, "Slices", ["candidate", *columns], rows if columns else [])


def _slice_score(metric: str, f: CandidateFacts, name: str) -> str:
    return numbers.score(metric, *f.slices[name][:3]) if name in f.slices else numbers.UNKNOWN


def _forgetting(report: ExperimentReport, f: CandidateFacts) -> list[str]:
    """Show base → new on every capability task and metric, then the lost items by name."""
    comparisons = [c for c in report.comparisons.get(f.label, ()) if not c.slice]
    primary = {c.task: c for c in reversed(comparisons)}
    columns = ("task", "metric", "base", "new", "change", "lost/gained", "counts in the gate")
    rows = [[*_task_row(c), _counts(report, c, c is primary[c.task])] for c in comparisons]
    lost = [_lost_items(c) for c in primary.values() if c.lost and c.metric not in numbers.OWN_UNITS]
    title = f"What {escape(f.label)} kept and lost"
    return [*_section(report, title, columns, rows), *_bullets(reversed(lost))]


def _task_row(c: Comparison) -> list[str]:
    return [
        c.task,
        c.metric,
        numbers.score(c.metric, c.base, c.base_low, c.base_high),
        numbers.score(c.metric, c.new, c.new_low, c.new_high),
        numbers.change(c.metric, c.delta, c.low, c.high) + _on_valid(c),
        f"{numbers.count(len(c.lost))}/{numbers.count(len(c.gained))}",
    ]


def _counts(report: ExperimentReport, c: Comparison, is_primary: bool) -> str:
    if not is_primary or c.metric in numbers.OWN_UNITS:
        return "no: reported only"
    why_not = report.not_admitted.get(c.task, "")
    return f"no: {why_not}" if why_not else "yes"


def _on_valid(c: Comparison) -> str:
    """Add the change among the items valid in both arms, where that is not all of them."""
    if c.n_valid == c.n or c.delta_valid is None:
        return ""
    change = numbers.change(c.metric, c.delta_valid, c.low_valid, c.high_valid)
    return f"; {change} on the {numbers.count(c.n_valid)} of {numbers.count(c.n)} valid in both"


def _lost_items(c: Comparison) -> str:
    rest = len(c.lost) - _LOST_SHOWN
    more = f" and {numbers.count(rest)} more" if rest > 0 else ""
    return f"{c.task}, lost {numbers.count(len(c.lost))}: {', '.join(c.lost[:_LOST_SHOWN])}{more}"


def _steps(report: ExperimentReport, f: CandidateFacts) -> list[str]:
    """Show the change of each task from one step to the next."""
    if f.label not in report.steps:
        return []
    columns, rows = steps.rows(report.steps[f.label])
    return _section(report, f"Where the change of {escape(f.label)} comes from", columns, rows)


def _sweep(report: ExperimentReport, f: CandidateFacts) -> list[str]:
    """Show every trial of a sweep, and which one validation chose."""
    trials = f.training.get("sweep", [])
    if not trials:
        return []
    rows = [
        [
            *map(str, trial["params"].values()),
            numbers.score(report.metric, trial["validation"])
            if trial["validation"] is not None
            else "diverged",
            "chosen" if trial["chosen"] else "",
        ]
        for trial in trials
    ]
    columns = [*trials[0]["params"], f"validation {report.metric}", ""]
    return _section(report, f"Sweep: {escape(f.label)}", columns, rows)


def _gate(report: ExperimentReport, f: CandidateFacts) -> list[str]:
    """Show each rule with its sentence, and what the gate would have missed."""
    if f.verdict is None:
        return []
    rows = [[rule.name, rule.outcome, rule.sentence] for rule in f.verdict.rules]
    missed = [miss_text(m) for m in f.verdict.missed]
    section = _section(report, f"Gate: {escape(f.label)}", ("rule", "outcome", "evidence"), rows)
    basis = miss_basis(f.verdict)
    lead = [f"{basis[0].upper()}{basis[1:]}", ""] if basis else []
    return [*section, *lead, *_bullets(missed)]


def _training(report: ExperimentReport, trained: Sequence[CandidateFacts]) -> list[str]:
    """Show the measured figures of each training run; one row a candidate."""
    names = list(dict.fromkeys(name for f in trained for name in f.training if name != "sweep"))
    columns = ["candidate", "training examples", "cost USD", *map(_titled, names)]
    rows = [
        [
            f.label,
            numbers.count(f.n_train),
            numbers.usd(f.training_cost_usd),
            *(measured(name, f.training.get(name)) for name in names),
        ]
        for f in trained
    ]
    return _section(report, "Training", columns, rows)


def _arithmetic(report: ExperimentReport, decision: Decision) -> list[str]:
    rows = [[_words(name), _value(value)] for name, value in decision.arithmetic.items()]
    missing = [f"Missing from the comparison: {what}" for what in decision.missing]
    return [*_section(report, "Arithmetic of the decision", ("input", "value"), rows), *_bullets(missing)]


def arithmetic_lines(decision: Decision) -> list[str]:
    """List the numbers behind a decision for a terminal."""
    missing = [f"Missing from the comparison: {what}" for what in decision.missing]
    return [*(f"  {_words(name)}: {_value(value)}" for name, value in decision.arithmetic.items()), *missing]


def _value(value: float | str | None) -> str:
    if value is None:
        return numbers.UNKNOWN
    if isinstance(value, str) or not isfinite(value):
        return str(value)
    return f"{value:,.4g}".replace("-", "−") if abs(value) < 1000 else numbers.count(value)


def _titled(name: str) -> str:
    """Turn the name of a measured figure into words; a time carries its unit itself."""
    return _words(name if name.endswith("_per_s") else name.removesuffix("_s"))


def _words(name: str) -> str:
    """Turn a field's name into words; the unit stays: `cost_usd` → `cost usd`."""
    return clean(name.replace("_", " "))
