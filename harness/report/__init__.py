"""Say what an experiment found: on the terminal, as Markdown, HTML, JSON, CSV, JUnit and a picture.

Invariant: a report holds no number of its own; its forms print the same facts, and a
smoke report is marked in each and never written where a result would be.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from harness.cache import make_private_folder
from harness.gating import Verdict, is_invalid
from harness.records import TrainingRecord
from harness.report.document import Command, ResultDocument, Section, markdown, print_document, terminal_lines
from harness.report.experiment_report import (
    AttributionStep,
    ExperimentReport,
    ShownItem,
    ShownPrompt,
    describe_answer,
    describe_prompt,
    excerpt,
    show_items,
)
from harness.report.html import html
from harness.report.interchange import junit, to_csv
from harness.report.labels import CLASSES, ERROR, RIGHT, WORDS, WRONG, mark_answer
from harness.report.more_items import advise_more_items, advise_on_power
from harness.report.plots import front_file
from harness.report.reading import KeptReport, read, read_kept, restore
from harness.report.reading import paths as kept_reports
from harness.report.sections import arithmetic_lines, experiment_document
from harness.report.tables.origin_tables import origin
from harness.report.tables.target_tables import targets_section
from harness.report.tables.training_tables import (
    figure_title,
    print_tried_value,
    sets_section,
    trial_line,
    trials_section,
)
from harness.report.terminal import ScoreRow, print_last, score_table, terminal, terminal_table
from harness.report.training_diagnosis import describe_forgetting, diagnose, front_sentence
from harness.report.wording import (
    SMOKE,
    best_first,
    describe_unread,
    family_text,
    figure_text,
    first_result_line,
    last_line,
    live_line,
    target_text,
    verdict_word,
)


def to_json(report: ExperimentReport) -> dict[str, Any]:
    """Turn a report into plain types; what is unknown or not finite is null."""
    plain: dict[str, Any] = to_plain(report)
    return {"evidence": SMOKE if report.smoke else "measured", **plain}


def write(report: ExperimentReport, folder: Path) -> list[Path]:
    """Write every form, as `<experiment>.md` and so on; a smoke report as `<experiment>-smoke`.

    A form that has nothing to say (JUnit without a verdict, a picture without points) is left out,
    and one that an earlier report wrote is removed.
    """
    return write_forms(folder, report.file_name, _forms(report))


def write_forms(folder: Path, name: str, forms: Mapping[str, str]) -> list[Path]:
    """Write texts by suffix as files of one name; for an empty one there is no file afterwards."""
    make_private_folder(folder)
    texts = {folder / f"{name}{suffix}": text for suffix, text in forms.items()}
    for path, text in texts.items():
        if text:
            _replace(path, text)
        else:
            path.unlink(missing_ok=True)
    return [path for path, text in texts.items() if text]


def _forms(report: ExperimentReport) -> dict[str, str]:
    plain = to_json(report)
    judged = [(f.label, f.verdict, _stops(report, f.verdict)) for f in report.facts if f.verdict]
    return {
        ".md": markdown(experiment_document(report)),
        ".json": json.dumps(plain, indent=2, ensure_ascii=False) + "\n",
        ".html": html(report),
        ".csv": to_csv(report, plain["evidence"]),
        ".junit.xml": junit(judged, report.file_name) if judged else "",
        ".front.svg": front_file(report),
    }


def _stops(report: ExperimentReport, verdict: Verdict) -> bool:
    if verdict.outcome == "inconclusive":
        return report.undecided_fails or is_invalid(verdict.rules)
    return verdict.outcome != "pass"


def _replace(path: Path, text: str) -> None:
    # A reader never meets half a report, and an error keeps the old one.
    draft = path.with_name(f".{path.name}.part")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)


_PLAIN = (str, int, bool)


def to_plain(value: Any) -> Any:
    """Turn dataclasses and named tuples into dicts, numpy numbers into Python's, NaN and inf into None."""
    if value is None or type(value) in _PLAIN:
        return value
    if isinstance(value, TrainingRecord):
        return to_plain(value.to_plain())
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {name: to_plain(v) for name, v in value._asdict().items()}
    if hasattr(value, "model_dump"):
        return to_plain(value.model_dump())
    if isinstance(value, Mapping):
        return {str(key): to_plain(v) for key, v in value.items()}
    if isinstance(value, Sequence | set | frozenset) and not isinstance(value, str):
        return [to_plain(v) for v in value]
    if hasattr(value, "tolist"):
        return to_plain(value.tolist())
    if isinstance(value, float):
        return value if isfinite(value) else None
    return value if isinstance(value, str | int | bool) else str(value)
