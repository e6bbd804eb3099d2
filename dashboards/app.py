"""The dashboard: one page a file, chosen in the side bar; `harness dashboard` starts it."""

import sys
from pathlib import Path

import streamlit as st

HERE = Path(__file__).parent
if str(HERE) not in sys.path:
    sys.path.insert(0, str(HERE))

from harness.errors import HarnessError  # noqa: E402
from harness.formatting import count, percent  # noqa: E402
from harness.report.escape import clean  # noqa: E402
from parts import project, safe_text  # noqa: E402 (needs the folder added above)

_PAGES = {
    "Results": (
        ("report", "Report"),
        ("answers", "Answers"),
        ("leaderboard", "Leaderboard"),
        ("compare", "Compare"),
        ("forgetting", "Forgetting"),
        ("pareto", "Pareto"),
        ("training", "Training"),
        ("data", "Data"),
    ),
    "Decisions": (("decide", "Decide"), ("nightly", "Nightly"), ("rate", "Rate")),
}


@st.fragment(run_every=2.0)
def status() -> None:
    """Show the progress of the running command; rerun the page when runs or reports have changed."""
    activity, n_runs, stamp = project.find_at_work(), len(project.runs()), project.stamp()
    previous_stamp = st.session_state.get("stamp")
    st.session_state["stamp"] = stamp
    if activity is None:
        st.caption(f"{count(n_runs)} runs in {safe_text.label(project.written_file().parent.name)}")
    else:
        n_done, n_candidates = len(activity.get("finished", ())), activity.get("candidates")
        share = activity.get("share", 0.0)
        st.markdown(f"**{activity['what']} is running**")
        st.progress(float(share), text=None)
        st.text(f"{clean(activity.get('stage', 'starting'))}: {percent(share)} %")
        in_all = f"; {count(n_candidates)} candidates in all" if n_candidates else ""
        st.caption(f"{count(n_done)} finished{in_all}")
    if previous_stamp is not None and previous_stamp != stamp:
        st.rerun()


def main() -> None:
    """Draw the side bar and the chosen page."""
    title = clean(project.shown()) or project.written_file().parent.name
    st.set_page_config(page_title=f"{title} · harness", layout="wide")
    only_smoke = "experiment" not in st.query_params and project.is_smoke()
    first = "answers" if only_smoke else "report"
    pages = {
        section: [
            st.Page(HERE / f"{name}.py", title=title, url_path=name, default=name == first)
            for name, title in listed
            if (HERE / f"{name}.py").exists()
        ]
        for section, listed in _PAGES.items()
    }
    page = st.navigation(pages)
    with st.sidebar:
        status()
    try:
        page.run()
    except HarnessError as error:
        st.error("This cannot be shown:")
        safe_text.say(str(error))


main()
