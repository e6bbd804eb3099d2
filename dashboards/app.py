"""The dashboard: one page a file, chosen in the side bar; `harness dashboard` starts it.

Invariant: pages read what is stored and compute nothing that the packages below do not; only the pages
that rate and that judge rows write.
"""

import sys
from pathlib import Path

import streamlit as st

HERE = Path(__file__).parent
if str(HERE) not in sys.path:
    sys.path.insert(0, str(HERE))

from harness.errors import HarnessError  # noqa: E402
from harness.formatting import count, percent  # noqa: E402
from harness.report.escape import clean  # noqa: E402
from parts import project, safe_text  # noqa: E402 (pages find the parts by the folder above)

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
    """Show where the command at work is; when runs or reports have come, show the page again."""
    at, now, stamp = project.find_at_work(), len(project.runs()), project.stamp()
    before = st.session_state.get("stamp")
    st.session_state["stamp"] = stamp
    if at is None:
        st.caption(f"{count(now)} runs in {safe_text.label(project.project().file.parent.name)}")
    else:
        done, of = len(at.get("finished", ())), at.get("candidates")
        st.markdown(f"**{project.worker(at)} is at work**")
        st.progress(float(at.get("share", 0.0)), text=None)
        st.text(f"{clean(at.get('stage', 'starting'))}: {percent(at.get('share', 0.0))} %")
        st.caption(f"{count(done)} finished" + (f"; {count(of)} candidates in all" if of else ""))
    if before is not None and before != stamp:
        st.rerun()


def main() -> None:
    """Draw the side bar and the chosen page."""
    title = clean(project.shown()) or project.project().file.parent.name
    st.set_page_config(page_title=f"{title} · harness", layout="wide")
    smoke_alone = "experiment" not in st.query_params and project.is_smoke()
    first = "answers" if smoke_alone else "report"
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
