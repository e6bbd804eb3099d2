"""Data: what the check finds in the target's rows, and suspect labels to accept or reject.

Invariant: the page shows the findings of `harness data check`, and writes nothing but decisions, which
lie beside the rows; `harness data clean --decisions` makes them true in a new file.
"""

from pathlib import Path

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from harness.data.check import Finding
from harness.data.edit.decisions import Decision, decisions_file, keep_decision, kept_decisions
from harness.errors import HarnessError
from harness.experiment.check_rows import Checked, examine_target
from harness.formatting import count
from harness.records import checksum
from harness.report.findings import places, share_text, summary
from harness.spec import Task
from parts import controls, project, safe_text

_AT_ONCE = 10
_FACT_COLUMNS = ("figure", "meaning")


def page() -> None:
    """Draw the page."""
    controls.heading("Data", "What is wrong with the target's rows, the worst first.")
    loaded = project.experiment()
    task = loaded.experiment.target if loaded else None
    files = _files(task) if task else {}
    if task is None or not files:
        controls.nothing("No rows of a target are named in harness.yaml.")
        return
    try:
        with st.spinner("Checking the rows: this takes some seconds for a thousand of them."):
            checked = _checked(task.model_dump_json(), tuple(files.items()))
    except HarnessError as error:
        st.error("These rows cannot be checked:")
        safe_text.say_all(str(error).splitlines())
        return
    safe_text.say(summary(checked.findings), "lead")
    for finding in checked.findings:
        if finding.severity != "note":
            _alarm(finding)
    _suspects(checked)
    st.subheader("Figures", anchor=False)
    notes = [f for f in checked.findings if f.severity == "note"]
    rows = [(" ".join(filter(None, (f.title, share_text(f)))), f.meaning) for f in notes]
    safe_text.table(_FACT_COLUMNS, rows)


def _files(task: Task) -> dict[str, int]:
    """Map the files that the check reads to the time of their last change; empty where there are none."""
    named = [path for path in (task.data.source("train"), task.data.test) if path] if task.data else []
    return {path: Path(path).stat().st_mtime_ns for path in named if Path(path).is_file()}


@st.cache_resource(show_spinner=False, max_entries=4)
def _checked(task: str, files: tuple[tuple[str, int], ...]) -> Checked:
    """Check the rows, again only when a file has changed."""
    return examine_target(Task.model_validate_json(task))


def _alarm(finding: Finding) -> None:
    said = " ".join(filter(None, (f"{finding.severity}: {finding.title}", share_text(finding))))
    with st.expander(safe_text.label(said), expanded=finding.severity == "error"):
        safe_text.say_all(
            f"{name}: {text}"
            for name, text in (
                ("rows", places(finding, 20)),
                ("example", finding.example),
                ("means", finding.meaning),
            )
            if text
        )
        safe_text.command(finding.command, "")


def _suspects(checked: Checked) -> None:
    """Show the suspect labels that nobody has decided on, and take decisions."""
    suspects = next((f for f in checked.findings if f.labels), None)
    if suspects is None:
        return
    path = checked.table.files[0]
    try:
        kept, digest = kept_decisions(path), checksum(Path(path))
    except HarnessError as error:
        st.error("No decisions can be kept:")
        safe_text.say_all(str(error).splitlines())
        return
    entries = {entry.where: entry for entry in checked.table.entries}
    left = [
        (entries[where], label)
        for where, label in zip(suspects.rows, suspects.labels, strict=True)
        if _line(where) not in kept
    ]
    st.subheader("Suspect labels", anchor=False)
    done = len(suspects.rows) - len(left)
    safe_text.say(f"{count(done)} of {count(len(suspects.rows))} decided; kept in {decisions_file(path)}")
    for entry, label in left[:_AT_ONCE]:
        safe_text.block(f"{entry.where}: {entry.answer}, or {label}?", entry.question)
        line, of = _line(entry.where), (path, digest)
        accept, drop, keep = st.columns([2, 1, 1])
        _button(accept, f"Relabel: {label}", of, line, Decision("relabel", label))
        _button(drop, "Drop the row", of, line, Decision("drop"))
        _button(keep, f"Keep: {entry.answer}", of, line, Decision("keep"))
    if done:
        safe_text.command(
            f"harness data clean {path} --out NEW --decisions {decisions_file(path)}", "makes them true"
        )


def _button(column: DeltaGenerator, text: str, rows: tuple[str, str], line: int, of: Decision) -> None:
    shown = safe_text.label(text)
    key = f"{of.decision}_{line}"
    column.button(shown, key=key, on_click=_decide, args=(*rows, line, of), width="stretch")


def _decide(path: str, digest: str, line: int, of: Decision) -> None:
    """Keep a decision on the content that was shown, or say why not."""
    try:
        keep_decision(path, line, of, digest)
    except HarnessError as error:
        st.error("The decision is not kept:")
        safe_text.say_all(str(error).splitlines())


def _line(where: str) -> int:
    return int(where[len(where.rstrip("0123456789")) :])


page()
