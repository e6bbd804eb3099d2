"""Results for other programs: JSON that reports are read back from, CSV and JUnit XML.

Invariant: numbers are unrounded and in the metric's unit, a rate in [0, 1]; unknown values are empty. A
report that is read back prints the same. Source: JUnit's XML as GitHub, GitLab and Jenkins read it.
"""

import io
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from math import inf, isfinite
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel

from harness.analysis.candidate_facts import CandidateFacts, best_untrained
from harness.analysis.verdict import Verdict
from harness.errors import Problem, UserError
from harness.records import TrainingRecord, parse_json, read_training_record
from harness.report.columns import COMPARISON_FILE, map_values
from harness.report.escape import clean, write_csv
from harness.report.experiment_report import ExperimentReport
from harness.report.wording import SMOKE, best_first

_CANDIDATE = ("experiment", "candidate", "seed", "slice")
_ENDS = {"interval": ("", "_low", "_high")}  # of a value, as `map_values` names them
_COMPARED = (f"{column.name}{end}" for column in COMPARISON_FILE for end in _ENDS.get(column.kind, ("",)))
COLUMNS = (*_CANDIDATE, *_COMPARED, "compared_with", "evidence")
Row = dict[str, Any]
_GROUPS = ("speed", "answers")  # of CandidateFacts, whose fields the file merges with its own
_INFINITE = {"low": -inf, "lower": -inf, "high": inf, "upper": inf, "se": inf, "variance": inf}


def to_csv(report: ExperimentReport, evidence: str) -> str:
    """Write every score and paired difference, on the target to the best untrained candidate."""
    stream = io.StringIO()
    rows: list[Row] = []
    for f in best_first(report):
        common = {"experiment": report.experiment, "candidate": f.name, "seed": f.seed, "evidence": evidence}
        rows += (common | row for row in _rows(report, f))
    write_csv(stream, COLUMNS, ([row.get(name, "") for name in COLUMNS] for row in rows))
    return stream.getvalue()


def _rows(report: ExperimentReport, f: CandidateFacts) -> Iterator[Row]:
    if f.target is None:
        return
    compared = map_values(COMPARISON_FILE, f.vs_untrained) if f.vs_untrained else {}
    compared |= {"compared_with": best_untrained(report.facts) or ""} if f.vs_untrained else {}
    for i, (name, e) in enumerate([("", f.target), *f.slices.items()]):
        row = {"task": report.task, "metric": report.metric, "slice": name, "n": e.n, "n_errors": e.n_errors}
        row |= {"score": e.score, "score_low": e.low, "score_high": e.high}
        yield row if i else compared | row
    for c in report.comparisons.get(f.label, ()):
        yield {"compared_with": "base"} | map_values(COMPARISON_FILE, c)


def junit(judged: Iterable[tuple[str, Verdict, bool]], name: str) -> str:
    """Write a suite for each candidate and a case for each rule; a stopping verdict's open rules fail too."""
    root = ET.Element("testsuites", name="harness gate")
    for candidate, verdict, stops in judged:
        suite = ET.SubElement(root, "testsuite", name=clean(f"{name}: {candidate}"))
        for rule in verdict.rules:
            class_name, text = clean(f"{name}.{candidate}"), clean(rule.sentence)
            case = ET.SubElement(suite, "testcase", classname=class_name, name=rule.name, time="0")
            if rule.outcome in ("fail", "harness-drift") or (rule.outcome == "inconclusive" and stops):
                ET.SubElement(case, "failure", type=rule.outcome, message=text).text = text
            elif rule.outcome in ("inconclusive", "skipped"):
                ET.SubElement(case, "skipped", message=text)
            else:
                ET.SubElement(case, "system-out").text = text
        failures, skipped = (len(suite.findall(f"testcase/{kind}")) for kind in ("failure", "skipped"))
        suite.attrib |= {"tests": f"{len(suite)}", "failures": f"{failures}", "errors": "0"}
        suite.attrib["skipped"] = f"{skipped}"
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def to_json(report: ExperimentReport) -> dict[str, Any]:
    """Convert a report to plain types; unknown and infinite values are null."""
    plain: dict[str, Any] = to_plain(report)
    return {"evidence": SMOKE if report.smoke else "measured", **plain}


def to_plain(value: Any) -> Any:
    """Convert dataclasses and named tuples to dicts, numpy numbers to Python's, NaN and inf to None."""
    if value is None or type(value) in (str, int, bool):
        return value
    if isinstance(value, TrainingRecord):
        return to_plain(value.to_plain())
    if is_dataclass(value) and not isinstance(value, type):
        plain = {f.name: to_plain(getattr(value, f.name)) for f in fields(value)}
        for group in _GROUPS if isinstance(value, CandidateFacts) else ():
            plain |= plain.pop(group)
        return plain
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


def read(path: Path) -> ExperimentReport:
    """Read one report; raise a UserError if the file is not one."""
    try:
        report = restore(ExperimentReport, parse_json(path.read_text("utf-8")))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        why = " ".join(str(error).partition(" [type=")[0].split())
        problem = Problem(str(path), f"no report ({why})", "what harness compare wrote", "harness report")
        raise UserError(problem) from error
    if isinstance(report, ExperimentReport):
        return report
    raise UserError(str(path), "no report", "what harness compare wrote", "harness report")


def paths(folder: Path) -> list[Path]:
    """List the files of a folder that look like reports, the latest first."""
    files = []
    for path in folder.glob("*.json"):
        with path.open("rb") as file:
            files += [path] if b'"experiment"' in file.read(200) else []
    return sorted(files, key=lambda path: (-path.stat().st_mtime, path.name))


def restore(kind: Any, value: Any) -> Any:
    """Convert plain types to the type of a hint.

    Raises:
        ValueError, TypeError, KeyError, AttributeError: they are of another kind.
    """
    if value is None or kind is Any:
        return value
    origin, inside = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        kinds = [k for k in inside if k is not type(None)]
        return restore(kinds[0], value) if len(kinds) == 1 else value
    if origin is tuple:
        return tuple(restore(inside[0], item) for item in value)
    if origin is list:
        return [restore(inside[0], item) for item in value]
    if origin is dict:
        return {key: restore(inside[1], item) for key, item in value.items()}
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return kind.model_validate(value)
    if kind is TrainingRecord:
        return read_training_record(value)
    if not is_dataclass(kind) and not hasattr(kind, "_fields"):
        return value
    restored, hints = {}, _hints(kind)
    for group in _GROUPS if kind is CandidateFacts else ():
        restored[group] = restore(hints[group], value)
    for name, item in value.items():
        if name in hints:
            # A field that is always a number was infinite if it was written as null.
            was_infinite = item is None and hints[name] is float and name in _INFINITE
            restored[name] = _INFINITE[name] if was_infinite else restore(hints[name], item)
    return kind(**restored)


@cache
def _hints(kind: Any) -> dict[str, Any]:
    names = {field.name for field in fields(kind)} if is_dataclass(kind) else set(kind._fields)
    return {name: hint for name, hint in get_type_hints(kind).items() if name in names}
