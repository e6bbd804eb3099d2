"""Results for other programs: a report as CSV, a row a candidate × task × metric × slice, and JUnit XML.

Invariant: numbers are unrounded and in the metric's unit, a rate in [0, 1]; what is unknown is empty; no text
can be taken for a formula by a spreadsheet. A test case is a rule; none passes that the gate does not pass.
Source: JUnit's XML as GitHub, GitLab and Jenkins read it: testsuites, testsuite, testcase, failure, skipped.
"""

import io
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator
from typing import Any

from harness.comparison import Comparison, Estimate
from harness.decision import CandidateFacts, best_untrained
from harness.gating import Rule, Verdict
from harness.report.columns import COMPARISON_COLUMNS, COMPARISON_FILE, list_names, map_values
from harness.report.escape import clean, write_csv
from harness.report.experiment_report import ExperimentReport
from harness.report.wording import best_first

_COMPARED = [COMPARISON_COLUMNS[name] for name in COMPARISON_FILE]
COLUMNS = ("experiment", "candidate", "seed", *list_names(_COMPARED), "compared_with", "evidence")
Row = dict[str, Any]


def to_csv(report: ExperimentReport, evidence: str) -> str:
    """Write every score and every paired difference; the target's is to the best untrained candidate."""
    stream = io.StringIO()
    rows: list[Row] = []
    for f in best_first(report):
        own = {"experiment": report.experiment, "candidate": f.name, "seed": f.seed, "evidence": evidence}
        rows += (own | row for row in _rows(report, f))
    write_csv(stream, COLUMNS, ([row.get(name, "") for name in COLUMNS] for row in rows))
    return stream.getvalue()


def _rows(report: ExperimentReport, f: CandidateFacts) -> Iterator[Row]:
    if f.target is None:
        return
    best = best_untrained(report.facts)
    named = {"task": report.task, "metric": report.metric}
    compared = _comparison_cells(f.vs_untrained, best or "") if f.vs_untrained else {}
    yield compared | named | {"slice": ""} | _estimate_cells(f.target)
    yield from (named | {"slice": name} | _estimate_cells(e) for name, e in f.slices.items())
    yield from (_comparison_cells(c, "base") for c in report.comparisons.get(f.label, ()))


def _estimate_cells(e: Estimate) -> Row:
    return {"n": e.n, "n_errors": e.n_errors, "score": e.score, "score_low": e.low, "score_high": e.high}


def _comparison_cells(c: Comparison, with_: str) -> Row:
    return {"compared_with": with_} | map_values(_COMPARED, c)


def junit(judged: Iterable[tuple[str, Verdict, bool]], name: str) -> str:
    """Write one suite a candidate, each with its verdict and whether that stops a release.

    Where it does, its inconclusive rules are failures too.
    """
    root = ET.Element("testsuites", name="harness gate")
    for candidate, verdict, stops in judged:
        cases = [_case(f"{name}.{candidate}", rule, stops) for rule in verdict.rules]
        suite = ET.SubElement(
            root,
            "testsuite",
            name=clean(f"{name}: {candidate}"),
            tests=str(len(cases)),
            failures=str(sum(case.find("failure") is not None for case in cases)),
            errors="0",
            skipped=str(sum(case.find("skipped") is not None for case in cases)),
        )
        suite.extend(cases)
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _case(name: str, rule: Rule, stops: bool) -> ET.Element:
    case = ET.Element("testcase", classname=clean(name), name=rule.name, time="0")
    said = clean(rule.sentence)
    if rule.outcome in ("fail", "harness-drift") or (rule.outcome == "inconclusive" and stops):
        ET.SubElement(case, "failure", type=rule.outcome, message=said).text = said
    elif rule.outcome in ("inconclusive", "skipped"):
        ET.SubElement(case, "skipped", message=said)
    else:
        ET.SubElement(case, "system-out").text = said
    return case
