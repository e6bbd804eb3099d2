"""A verdict of the gate as a document, JUnit XML and plain types.

Invariant: every format says the same: each rule with its sentence, what the gate could have
missed, and the verdict last.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from harness import gating, report
from harness.gating import GateResult, TaskComparison
from harness.report.columns import COMPARISON_COLUMNS, print_table
from harness.report.document import ResultDocument, Section
from harness.report.labels import WORDS
from harness.report.wording import (
    family_text,
    miss_basis,
    miss_text,
    name_lost_items,
)

_LOST_SHOWN = 20
_TASK_COLUMNS = ("task", "metric", "n", "base", "score", "delta", "lost_gained")
_HEADINGS = {"base": "baseline", "new": "candidate"}  # the baseline may be a champion


def gate_document(judged: GateResult) -> ResultDocument:
    """Lay a verdict out: the tasks, the rules, what the gate could have missed, and the lost items."""
    v = judged.verdict
    tasks = [t for t in judged.tasks if t.comparison.metric == t.task.primary_metric]
    rates = [t.comparison for t in tasks if t.comparison.base_passed is not None]
    lost = [name_lost_items(c, _LOST_SHOWN) for c in rates if c.lost]
    among = family_text(judged.n_members, judged.policy.alpha)
    sections = [
        _task_section(tasks),
        Section(
            "rules",
            columns=("rule", "outcome", "evidence"),
            rows=[[r.name, WORDS[r.outcome], r.sentence] for r in v.rules],
        ),
        Section(
            "missed",
            lead=f"{basis}:" if (basis := miss_basis(v)) else "",
            notes=[*map(miss_text, v.missed), *filter(None, [among])],
        ),
        Section("lost", notes=lost, detail=True),
        Section("notes", notes=judged.notes),
    ]
    title = f"{WORDS[v.outcome]}: {judged.candidate} against {judged.baseline}"
    return ResultDocument(title, sections, f"{judged.candidate}: {v.sentence}")


def junit(judged: Sequence[GateResult], name: str) -> str:
    """Write one test case a rule; what is inconclusive fails where the policy says so."""
    stops = [(j.candidate, j.verdict, gating.exit_code(j.verdict, j.policy) != 0) for j in judged]
    return report.junit(stops, name)


def to_json(judged: GateResult) -> dict[str, Any]:
    """Turn a verdict into plain types, with every metric of every task and the exit code of it alone."""
    plain: dict[str, Any] = report.to_plain(asdict(judged.verdict))
    return {
        "candidate": judged.candidate,
        "baseline": judged.baseline,
        "exit_code": gating.combine_exit_codes([judged]),
        **plain,
        "comparisons": report.to_plain([t.comparison for t in judged.tasks]),
        "family": {
            "members": judged.n_members,
            "chance": gating.bound_passing_chance(judged.policy.alpha, judged.n_members),
        },
        "policy": judged.policy.model_dump(mode="json"),
        "notes": list(judged.notes),
    }


def _task_section(tasks: Sequence[TaskComparison]) -> Section:
    """Lay out the tasks, and which of them count in the macro."""
    shown = [COMPARISON_COLUMNS[name] for name in _TASK_COLUMNS]
    columns, rows = print_table(shown, [t.comparison for t in tasks], tight=True)
    counts = [("one half" if t.half else "yes") if gating.is_in_macro(t) else "no" for t in tasks]
    heads = [*(_HEADINGS.get(head, head) for head in columns), "in the macro"]
    return Section("tasks", columns=heads, rows=[[*row, n] for row, n in zip(rows, counts, strict=True)])
