"""Report: the first page of the written report: what to ship, why, how sure that is, and what to do next."""

import streamlit as st

from harness.report import CAPTION, experiment_document, front_file
from harness.report.pictures import NARROW
from parts import controls, project, safe_text


def page() -> None:
    """Draw the page."""
    controls.heading("Report", "What to ship, why, how sure that is, and what to do next.")
    report = controls.shown_report()
    if report is None:
        return
    document = experiment_document(report)
    safe_text.say(document.last_line, "lead")
    if (first := document.first) is not None:
        left, right = st.columns([3, 2], gap="medium")
        with left:
            safe_text.say_all(f"{reason.about}: {reason.sentence}" for reason in first.reasons)
            st.subheader("What to do next", anchor=False)
            for step in first.next_steps:
                safe_text.command(step.line, step.purpose)
        with right:
            if picture := front_file(report, NARROW):
                st.image(picture, width="stretch")
                safe_text.say(CAPTION, "name")
        # Cells do not wrap, so the table gets the whole width.
        safe_text.table(first.table.columns, first.table.rows)
        for note in first.table.notes:
            safe_text.say(note, "name")
    # The sections after the first page; other dashboard pages show the appendix.
    safe_text.say(document.lead, "name")
    for section in (s for s in document.sections if not s.appendix):
        with st.expander(safe_text.label(section.title)):
            if section.rows:
                safe_text.table(section.columns, section.rows)
            if section.lead:
                safe_text.say(section.lead)
            safe_text.say_all(section.notes)
    controls.say_absent(report, project.runs())


page()
