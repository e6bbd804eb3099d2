"""Data: findings in the target's rows, and rows to relabel, drop or keep."""

import shlex
from pathlib import Path

import streamlit as st

from harness.data.edit.changes import RowDecision, decisions_file, keep_decision, read_decisions
from harness.errors import HarnessError, as_argument
from harness.experiment.check_rows import CheckReport, examine_target
from harness.formatting import count
from harness.records import checksum
from harness.report.escape import clean
from harness.report.findings import places, share_text, summary
from harness.spec import Task
from parts import controls, project, safe_text

_AT_ONCE = 10


def page() -> None:
    """Draw the page."""
    controls.heading("Data", "Problems of the target's rows, the worst first.")
    loaded = project.experiment()
    task = loaded.experiment.target if loaded else None
    paths = (task.data.source("train"), task.data.test) if task else ()
    files = {path: Path(path).stat().st_mtime_ns for path in paths if path and Path(path).is_file()}
    if task is None or not files:
        controls.show_empty("No rows of a target are named in harness.yaml.")
        return
    # The model is never part of the page's address, so that no link can load one.
    encoder = st.text_input(
        "Also find duplicates and contamination by meaning: id or folder of a sentence-transformers model",
        placeholder="sentence-transformers/all-MiniLM-L6-v2",
        help="As harness data check --embeddings: rows that share few words but may ask the same question.",
        key="encoder",
    ).strip()
    try:
        with st.spinner("Checking the rows: this takes some seconds for a thousand of them."):
            checked = _check_rows(task.model_dump_json(), tuple(files.items()), encoder)
    except HarnessError as error:
        controls.show_error("These rows cannot be checked:", error)
        return
    safe_text.say(summary(checked.findings), "lead")
    for finding in checked.findings:
        if finding.severity != "note":
            title = " ".join(filter(None, (f"{finding.severity}: {finding.title}", share_text(finding))))
            with st.expander(safe_text.label(title), expanded=finding.severity == "error"):
                details = {"rows": places(finding, 20), "example": finding.example, "means": finding.meaning}
                safe_text.say_all(f"{name}: {text}" for name, text in details.items() if text)
                safe_text.command(finding.command, "")
    _decisions(checked)
    st.subheader("Rows", anchor=False)
    search_text = st.text_input("Search", placeholder="in questions and answers", key="sought_row").lower()
    entries = checked.table.entries
    matching = [e for e in entries if search_text in e.question.lower() or search_text in e.answer.lower()]
    offset = controls.find_offset(f"rows/{search_text}")
    controls.show_rows(
        [
            {"row": clean(e.where), "question": clean(e.question), "answer": clean(e.answer)}
            for e in matching[offset : offset + controls.PAGE_SIZE]
        ]
    )
    st.caption(f"{count(len(matching))} of {count(len(entries))} rows")
    controls.turn(f"rows/{search_text}", len(matching))
    st.subheader("Figures", anchor=False)
    notes = [f for f in checked.findings if f.severity == "note"]
    rows = [(" ".join(filter(None, (f.title, share_text(f)))), f.meaning) for f in notes]
    safe_text.table(("figure", "meaning"), rows)


@st.cache_resource(show_spinner=False, max_entries=4)
def _check_rows(task: str, files: tuple[tuple[str, int], ...], encoder: str) -> CheckReport:
    """Check the rows; cached until a file or the embedding model changes."""
    return examine_target(Task.model_validate_json(task), embeddings=encoder or None)


def _decisions(checked: CheckReport) -> None:
    """Show rows without a decision, each under the first finding that names it, with buttons."""
    to_decide = [f for f in checked.findings if f.labels]
    alarms = [f for f in checked.findings if f.severity != "note" and not f.labels]
    to_decide += [f for f in alarms if f.related or "--decisions" in f.command]
    if not to_decide:
        return
    path = checked.table.files[0]
    try:
        kept_decisions, digest = read_decisions(path), checksum(Path(path))
    except HarnessError as error:
        controls.show_error("No decisions can be kept:", error)
        return
    column, entries = checked.table.answer_column, {entry.where: entry for entry in checked.table.entries}
    decided_rows, shown_rows = set[str](), set[str]()
    for finding in to_decide:
        # Rows in the table, each with the proposed label and the similar row.
        nothing = ("",) * len(finding.rows)
        labelled_rows = zip(finding.rows, finding.labels or nothing, finding.related or nothing, strict=True)
        finding_rows = [
            (entries[where], label, near)
            for where, label, near in labelled_rows
            if where in entries and where not in shown_rows
        ]
        shown_rows |= {entry.where for entry, _, _ in finding_rows}
        decided = {entry.where for entry, _, _ in finding_rows if _line(entry.where) in kept_decisions}
        decided_rows |= decided
        st.subheader(safe_text.label(finding.title), anchor=False)
        total = count(len(finding_rows))
        safe_text.say(f"{count(len(decided))} of {total} decided; kept in {decisions_file(path)}")
        for entry, label, near in [row for row in finding_rows if row[0].where not in decided][:_AT_ONCE]:
            proposal = f", or {label}?" if label else f", near {near}" if near else ""
            safe_text.block(f"{entry.where}: {entry.answer}{proposal}", entry.question)
            keep = f"Keep: {entry.answer}" if label else "Keep the row"
            choices = {f"Relabel: {label}": RowDecision("relabel", label)} if label and column else {}
            choices |= {"Drop the row": RowDecision("drop"), keep: RowDecision("keep")}
            slots, line = st.columns([2, 1, 1])[-len(choices) :], _line(entry.where)
            for slot, (text, decision) in zip(slots, choices.items(), strict=True):
                title, key = safe_text.label(text), f"{decision.decision}_{line}"
                arguments = (path, digest, column, line, decision)
                slot.button(title, key=key, on_click=_decide, args=arguments, width="stretch")
    if decided_rows:
        options, kept_in = shlex.join(checked.table.reading.options), as_argument(str(decisions_file(path)))
        command = f"harness data clean {as_argument(path)} {options} --out NEW --decisions {kept_in}"
        safe_text.command(command.replace("  ", " "), "applies the decisions")


def _decide(path: str, digest: str, column: str | None, line: int, decision: RowDecision) -> None:
    try:
        keep_decision(path, line, decision, digest, column)
    except HarnessError as error:
        controls.show_error("The decision is not kept:", error)


def _line(where: str) -> int:
    return int(where[len(where.rstrip("0123456789")) :])


page()
