"""Rows of the study: results of one seed of a candidate, as stored in the page's JSON file.

Rows of several machines are kept together. Shares of plain LoRA's gain are computed among rows of one machine
kind, precision and number of threads (`machine`), so each machine measures the prompt and plain LoRA
itself.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from harness import formatting
from harness.analysis.candidate_facts import CandidateFacts
from harness.analysis.estimators import Estimate, mean_change
from harness.experiment.run_remarks import NO_CHANGE
from harness.report import ExperimentReport
from reports.studies.fronts.ways import PLAIN, way_of
from reports.studies.recipe_search import PUBLIC

PROMPT = "prompt"


class Row(NamedTuple):
    """Results of one seed of a candidate on a task of the study; `task` is the name of its experiment's file.

    `remark` notes that a way changed none of the weights that it was given. `goal` is the target's score,
    negative if lower is better, and `kept` the mean change of the capability suite as a rate; None if not
    measured. `public_change` is the mean change on public tasks as a rate, None if none was asked.
    `held_back` names the applied rules of the gate that do not pass.
    """

    task: str
    candidate: str
    label: str
    machine: str
    trained: bool
    goal: float | None
    kept: float | None
    target: str
    forgetting: str
    public: str
    gate: str
    held_back: list[str]
    error: str
    remark: str = ""
    public_change: float | None = None


def rows_of(task: str, machine: str, report: ExperimentReport | None) -> list[Row]:
    """List the rows of finished and failed candidates."""
    return [_row(task, machine, report, f) for f in report.facts] if report else []


def read_rows(path: Path) -> list[Row]:
    """Read the stored rows; empty without a file."""
    return [Row(**fields) for fields in json.loads(path.read_text("utf-8"))["rows"]] if path.exists() else []


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Store rows, one per line."""
    lines = ",\n".join(json.dumps(row._asdict(), ensure_ascii=False) for row in rows)
    path.write_text(f'{{"rows": [\n{lines}\n]}}\n', "utf-8")


def merge(stored: Sequence[Row], new: Sequence[Row]) -> list[Row]:
    """Merge rows; new rows of a candidate and machine replace the stored ones."""
    again = {(row.task, row.candidate, row.machine) for row in new}
    return [row for row in stored if (row.task, row.candidate, row.machine) not in again] + [*new]


def list_measured(rows: Iterable[Row], task: str, machine: str) -> set[str]:
    """Return the candidates that need no more runs here; references are measured on each machine."""
    return {
        row.candidate
        for row in rows
        if row.task == task and (row.machine == machine or not is_reference(row.candidate))
    }


def is_reference(candidate: str) -> bool:
    """Tell whether a candidate is a reference for others, and so measured on each machine."""
    return candidate == PROMPT or way_of(candidate) == PLAIN


def _row(task: str, machine: str, report: ExperimentReport, f: CandidateFacts) -> Row:
    macro, public = f.verdict.macro if f.verdict and f.trained else None, _public_change(report, f)
    target = f.target
    return Row(
        task=task,
        candidate=f.name,
        label=f.label,
        machine=machine,
        trained=f.trained,
        goal=target.unit.sign * target.score if target else None,
        kept=macro.score if macro else None,
        target=formatting.score(target.unit, *target[:3]) if target else formatting.UNKNOWN,
        forgetting=formatting.points(macro.score, macro.low, macro.high) if macro else "base weights",
        public=formatting.points(*public[:3]) if public else formatting.UNKNOWN,
        gate=f.verdict.outcome if f.verdict and f.trained else "",
        held_back=_list_failed_rules(f),
        error=f.error if f.state == "failed" else "",
        remark=next((n for n in report.notes if n.startswith(f"{f.name}: ") and NO_CHANGE in n), ""),
        public_change=public.score if public else None,
    )


def _public_change(report: ExperimentReport, f: CandidateFacts) -> Estimate | None:
    """Return the mean change on public tasks; None if none was asked."""
    first = {c.task: c for c in reversed(report.comparisons.get(f.label, ())) if c.task in PUBLIC}
    return mean_change(list(first.values())) if first else None


def _list_failed_rules(f: CandidateFacts) -> list[str]:
    if not f.trained or not f.verdict or f.verdict.outcome == "pass":
        return []
    return [rule.name for rule in f.verdict.rules if rule.outcome not in ("pass", "skipped")]
