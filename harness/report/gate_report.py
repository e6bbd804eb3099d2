"""A verdict as text, Markdown, JUnit XML and plain types.

Invariant: every form says the same: each rule with its sentence, what the gate could have
missed, and the verdict last.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from harness import formatting, gating, report
from harness.gating import GateResult, TaskComparison, Verdict
from harness.report.escape import clean, markdown_line, markdown_table
from harness.report.escape import markdown as escape
from harness.report.experiment_report import miss_basis, miss_text
from harness.report.labels import WORDS

_LOST_SHOWN = 20


def terminal(judged: GateResult) -> list[str]:
    """List the lines of a verdict, the verdict itself last."""
    v = judged.verdict
    tasks = [f"  {clean(_task_line(t))}" for t in _primary(judged)]
    rules = [f"  {WORDS[r.outcome]:<9}  {clean(r.sentence)}" for r in v.rules]
    return [
        f"{clean(judged.candidate)} against {clean(judged.baseline)}",
        *tasks,
        *rules,
        *([f"  {miss_basis(v)}"] if v.missed else []),
        *(f"    {clean(miss_text(m))}" for m in v.missed),
        *(f"  note: {clean(note)}" for note in judged.notes),
        f"{clean(judged.candidate)}: {clean(v.sentence)}",
    ]


def markdown(judged: Sequence[GateResult]) -> str:
    """Render verdicts for a summary page: the sentence, the rules, the tasks and the lost items."""
    return "\n".join(line for j in judged for line in _markdown(j)) + "\n"


def _markdown(judged: GateResult) -> list[str]:
    v = judged.verdict
    rules = [[r.name, WORDS[r.outcome], r.sentence] for r in v.rules]
    tasks = [_task_cells(t) for t in _primary(judged)]
    lost = [_lost(t) for t in _primary(judged) if t.comparison.lost and t.comparison.base_passed is not None]
    return [
        f"## {WORDS[v.outcome]}: {escape(judged.candidate)} against {escape(judged.baseline)}",
        "",
        f"**{escape(v.sentence)}**",
        "",
        *_table(("rule", "outcome", "evidence"), rules),
        *_table(("task", "metric", "baseline", "candidate", "change", "lost/gained"), tasks),
        *([f"{miss_basis(v).capitalize()}:", ""] if v.missed else []),
        *(f"- {markdown_line(text)}" for text in map(miss_text, v.missed)),
        "",
        *(f"- {markdown_line(text)}" for text in (*lost, *judged.notes)),
        "",
    ]


def junit(judged: Sequence[GateResult], name: str) -> str:
    """Write one test case a rule; what is inconclusive fails where the policy says so."""
    return report.junit(_stopped(judged), name)


def _stopped(judged: Iterable[GateResult]) -> list[tuple[str, Verdict, bool]]:
    return [(j.candidate, j.verdict, gating.exit_code(j.verdict, j.policy) != 0) for j in judged]


def to_json(judged: GateResult, exit_code: int) -> dict[str, Any]:
    """Turn a verdict into plain types; `comparisons` holds every metric of every task."""
    plain: dict[str, Any] = report.to_plain(asdict(judged.verdict))
    return {
        "candidate": judged.candidate,
        "baseline": judged.baseline,
        "exit_code": exit_code,
        **plain,
        "comparisons": report.to_plain([t.comparison for t in judged.tasks]),
        "policy": judged.policy.model_dump(mode="json"),
        "notes": list(judged.notes),
    }


def _primary(judged: GateResult) -> list[TaskComparison]:
    return [t for t in judged.tasks if t.comparison.metric == t.task.primary_metric]


def _task_cells(t: TaskComparison) -> list[str]:
    c = t.comparison
    return [
        c.task,
        c.metric,
        formatting.score(c.unit, c.base, c.base_low, c.base_high),
        formatting.score(c.unit, c.new, c.new_low, c.new_high),
        formatting.change(c.unit, c.delta, c.low, c.high),
        f"{formatting.count(len(c.lost))}/{formatting.count(len(c.gained))}",
    ]


def _task_line(t: TaskComparison) -> str:
    name, metric, base, new, change, flips = _task_cells(t)
    left_out = "" if gating.in_macro(t) or t.role != "capability" else ", not in the macro"
    n = formatting.count(t.comparison.n)
    return f"{name} ({metric}, n = {n}): {base} → {new}, {change}, lost/gained {flips}{left_out}"


def _lost(t: TaskComparison) -> str:
    ids = t.comparison.lost
    more = f" and {formatting.count(len(ids) - _LOST_SHOWN)} more" if len(ids) > _LOST_SHOWN else ""
    return f"{t.task.name}, lost {formatting.count(len(ids))}: {', '.join(ids[:_LOST_SHOWN])}{more}"


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    listed = list(rows)
    return [*markdown_table(columns, listed), ""] if listed else []
