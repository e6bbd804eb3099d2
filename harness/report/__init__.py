"""Say what an experiment found: on the terminal, as Markdown and as JSON.

Invariant: a report holds no number of its own; the three forms print the same facts, and a
smoke report is marked in each and never written where a result would be.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from harness.report.document import arithmetic_lines, markdown
from harness.report.facts import SMOKE, ExperimentReport, live_line
from harness.report.scores import score_table
from harness.report.steps import Step
from harness.report.table import terminal, terminal_table

__all__ = [
    "SMOKE",
    "ExperimentReport",
    "Step",
    "arithmetic_lines",
    "live_line",
    "markdown",
    "score_table",
    "terminal",
    "terminal_table",
    "to_json",
    "to_plain",
    "write",
]


def to_json(report: ExperimentReport) -> dict[str, Any]:
    """Turn a report into plain types; what is unknown or not finite is null."""
    plain: dict[str, Any] = to_plain(report)
    return {"evidence": SMOKE if report.smoke else "measured", **plain}


def write(report: ExperimentReport, folder: Path) -> list[Path]:
    """Write `<experiment>.md` and `<experiment>.json`, a smoke report as `<experiment>-smoke`."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = {
        folder / f"{report.file_name}.md": markdown(report),
        folder / f"{report.file_name}.json": json.dumps(to_json(report), indent=2, ensure_ascii=False) + "\n",
    }
    for path, text in texts.items():
        _replace(path, text)
    return list(texts)


def _replace(path: Path, text: str) -> None:
    # A reader never meets half a report, and an error keeps the old one.
    draft = path.with_name(f".{path.name}.part")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)


def to_plain(value: Any) -> Any:
    """Turn dataclasses and named tuples into dicts, numpy numbers into Python's, NaN and inf into None."""
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {name: to_plain(v) for name, v in value._asdict().items()}
    if isinstance(value, Mapping):
        return {str(key): to_plain(v) for key, v in value.items()}
    if isinstance(value, Sequence | set | frozenset) and not isinstance(value, str):
        return [to_plain(v) for v in value]
    if hasattr(value, "tolist"):
        return to_plain(value.tolist())
    if isinstance(value, float):
        return value if isfinite(value) else None
    return value if value is None or isinstance(value, str | int | bool) else str(value)
