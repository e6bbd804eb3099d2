"""Write verdicts as JUnit XML, which continuous integration shows beside its tests.

Invariant: a test case a rule; nothing passes there that the gate does not pass.
Source: JUnit's XML as GitHub, GitLab and Jenkins read it: testsuites, testsuite, testcase, failure, skipped.
"""

import xml.etree.ElementTree as ET
from collections.abc import Iterable

from harness.gating import Rule, Verdict
from harness.report.escape import clean


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
