"""Write a report as Markdown: decision, candidates, slices, forgetting, gate, training, arithmetic.

Invariant: every name, id and message is escaped, so a `|` in it never opens a cell; every
table of a smoke report is marked as no evidence.
"""

from harness.report.escape import markdown as escape
from harness.report.escape import markdown_line, markdown_table
from harness.report.experiment_report import SMOKE, ExperimentReport, last_line
from harness.report.sections import Section, header_facts, sections


def markdown(report: ExperimentReport) -> str:
    """Render the whole report; tables without rows are left out."""
    mark = f" ({SMOKE})" if report.smoke else ""
    body = (line for section in sections(report) for line in _section(section, mark))
    return "\n".join([*_head(report, mark), *body]).rstrip("\n") + "\n"


def _head(report: ExperimentReport, mark: str) -> list[str]:
    facts = " · ".join(map(escape, header_facts(report)))
    return [f"# {escape(report.experiment)}{mark}", "", f"**{escape(last_line(report))}**", "", facts, ""]


def _section(section: Section, mark: str) -> list[str]:
    """Write a heading and a table where there are rows, then what is said of it."""
    table = [*markdown_table(section.columns, section.rows), ""]
    heading = [f"## {escape(section.title)}{mark}", "", *table]
    lead = [escape(section.lead), ""] if section.lead else []
    notes = [f"- {markdown_line(note)}" for note in section.notes]
    return [*(heading if section.rows else ()), *lead, *notes, *([""] if notes else ())]
