"""Controls that pages share: the experiment, candidates in the page's address, downloads."""

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import streamlit as st

from harness.analysis.candidate_facts import best_untrained
from harness.config import CommandLine
from harness.formatting import count
from harness.records import Run
from harness.report import SMOKE, ExperimentReport, Section, best_first
from harness.report.escape import clean, write_csv
from parts import project, safe_text

PAGE_SIZE = 50  # items of a long list


def heading(title: str, purpose: str) -> None:
    """Draw a page's heading with its experiment and a switch to others."""
    safe_text.style()
    reports, loaded = project.reports(), project.experiment()
    names = sorted(reports, key=lambda name: reports[name].smoke)
    left, right = st.columns([3, 1], vertical_alignment="bottom")
    left.title(title, anchor=False)
    if len(names) > 1:
        name = right.selectbox(
            "Experiment", names, index=names.index(project.shown()), format_func=clean, key="experiment"
        )
        remember("experiment", [name])
    single = names[0] if len(names) == 1 else loaded.experiment.name if loaded and not names else ""
    st.caption(f"**{safe_text.label(single)}** · {purpose}" if single else purpose)
    safe_text.say_all(project.unreadable_reports())


def show_empty(what: str = "No report yet.") -> None:
    """Say that there is nothing to show, and what to do."""
    activity = project.find_at_work()
    wait = f"{activity['what']} is running; this page fills when it has finished." if activity else ""
    file = project.written_file().name
    command = CommandLine.from_options(Path(file)).command("compare")
    st.info(f"{what} {wait or f'Next: `{command}` in the folder of {file}.'}")


def shown_report() -> ExperimentReport | None:
    """Return the displayed report; None, with a message, if there is none."""
    report = project.reports().get(project.shown())
    if report is None:
        show_empty()
        return None
    if report.smoke:
        st.info(f"{SMOKE[0].upper()}{SMOKE[1:]}: few items, to see that everything works.")
    safe_text.say_all(note for note in report.notes if note.startswith("fewer items"))
    return report


def report_if_any() -> ExperimentReport | None:
    """Return the displayed report, for a page that also works without one."""
    return shown_report() if project.reports() else None


def say_absent(report: ExperimentReport | None, runs: Sequence[Run]) -> None:
    """Say how many of a report's runs are not on this machine (as after a clone), and how to make them."""
    stored = {run.run_id for run in runs}
    absent = [f for f in report.facts if f.run_id not in stored] if report is not None else []
    if report is None or not absent:
        return
    n_absent, n = count(len(absent)), count(len(report.facts))
    safe_text.say(
        f"Not on this machine: {n_absent} of the {n} runs of the report {report.file_name}. Their reported "
        "figures are shown; their answers cannot be ranked or paired. Next: harness compare makes them here."
    )


def remember(key: str, values: Sequence[str]) -> None:
    """Write a choice into the page's address."""
    text = ",".join(values)
    if text and st.query_params.get(key) != text:
        st.query_params[key] = text
    elif not text and key in st.query_params:
        del st.query_params[key]


def query_values(key: str) -> list[str]:
    """Read names from the address: `?compare=a,b`; a comma inside brackets belongs to a name."""
    text, names, depth = st.query_params.get(key, ""), [""], 0
    for character in text:
        depth += (character == "[") - (character == "]")
        if character == "," and depth == 0:
            names.append("")
        else:
            names[-1] += character
    return [name.strip() for name in names if name.strip()]


def newest(runs: Sequence[Run]) -> dict[str, Run]:
    """Keep the newest finished run of each candidate and seed, by label."""
    return {run.label: run for run in runs if run.state == "done"}


def runs_of(report: ExperimentReport | None, runs: Sequence[Run]) -> dict[str, Run]:
    """Return a report's finished runs by label; without a report the newest of each label."""
    if report is None:
        return newest(runs)
    ids = {f.run_id for f in report.facts}
    return {run.label: run for run in runs if run.run_id in ids and run.state == "done"}


def name_runs(key: str, report: ExperimentReport | None, runs: Sequence[Run]) -> dict[str, Run]:
    """Return the runs to choose from by label, and those that the address names by id."""
    named = runs_of(report, runs) or newest(runs)
    return named | {name: run for name in query_values(key) for run in runs if run.run_id == name}


def order_candidates(report: ExperimentReport | None, labels: Sequence[str]) -> list[str]:
    """Order labels: the best untrained, then the others, the best on test first."""
    if report is None:
        return list(labels)
    ordered = [best_untrained(report.facts), *(f.label for f in best_first(report))]
    return [name for name in dict.fromkeys(ordered) if name is not None and name in labels]


def offer_answers(names: Sequence[str]) -> None:
    """Draw a button that opens the candidates' answers."""
    if st.button("Look at their answers"):
        experiment = {"experiment": shown} if (shown := project.shown()) else {}
        st.switch_page("answers.py", query_params=experiment | {"compare": ",".join(names)})


def choose_candidates(key: str, labels: Sequence[str], default: Sequence[str], *, title: str) -> list[str]:
    """Draw a box to choose candidates; the page's address keeps the choice."""
    wanted = [name for name in query_values(key) if name in labels]
    if missing := [name for name in query_values(key) if name not in labels]:
        safe_text.say(f"Not among these runs: {', '.join(missing)}")
    chosen = st.multiselect(
        title, labels, default=wanted or list(default), format_func=clean, key=f"{key}_chosen"
    )
    remember(key, chosen)
    return chosen


def map_to_cells(section: Section) -> list[dict[str, str]]:
    """Return each row of a report's table as a mapping of columns to cells."""
    return [dict(zip(section.columns, row, strict=True)) for row in section.rows]


def show_rows(rows: Sequence[Mapping[str, Any]], name: str = "", most: int = 520, **how: Any) -> None:
    """Show rows as a table at most `most` pixels high; with a `name`, also offer them as CSV."""
    if rows:
        st.dataframe(rows, hide_index=True, height=table_height(len(rows), most), **how)
    if name:
        offer_csv(lambda: rows, name)


def table_height(n: int, most: int = 520) -> int:
    """Return the height of a table of n rows in pixels."""
    return min(most, 38 + 35 * n)


def offer_csv(make_rows: Callable[[], Iterable[Mapping[str, Any]]], name: str) -> None:
    """Offer rows as a CSV file; they are made when it is downloaded."""

    def write() -> str:
        rows, stream = list(make_rows()), io.StringIO()
        write_csv(stream, list(rows[0]) if rows else [], (row.values() for row in rows))
        return stream.getvalue()

    st.download_button("CSV", write, f"{name}.csv", "text/csv", key=f"csv_{name}", icon=":material/download:")


def find_offset(name: str) -> int:
    """Return the offset of the displayed page of the list `name`; a new name begins at the first page."""
    return PAGE_SIZE * (int(st.session_state.get(f"page_{name}") or 1) - 1)


def turn(name: str, n: int) -> None:
    """Draw the page control of the list `name` with n items."""
    st.pagination(max(1, -(-n // PAGE_SIZE)), key=f"page_{name}")


def show_error(title: str, error: Exception) -> None:
    """Say what could not be done, and why."""
    st.error(title)
    safe_text.say_all(str(error).splitlines())
