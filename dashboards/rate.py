"""Rate: which of two answers is better, or how good one is, without knowing whose they are.

Invariant: names stay hidden while somebody rates; order and sides depend on rater and pair; every
choice is written by the store's own writer before the next item is shown.
"""

import time
from pathlib import Path

import streamlit as st

from harness import store
from harness.comparison import human_preferences
from harness.formatting import count
from harness.records import Rating, Run
from harness.store import Store
from parts import controls, project, rating_form, safe_text
from parts.scores import Pair

_SHORTCUTS = {"left": "1", "tie": "2", "right": "3", "skip": "4"}
_KINDS = ("which of two answers is better", "how good one answer is")
_TITLES = {"left": "Left is better", "tie": "Equally good", "right": "Right is better", "skip": "Skip"}


def page() -> None:
    """Draw the page."""
    controls.heading(
        "Rate",
        "Two answers to one question, sides at random. Keys: 1 left, 2 equal, 3 right, 4 skip. Or one answer"
        " at a time, whose labels correct the metric.",
    )
    runs = controls.newest(project.runs())
    target = _target(runs)
    able = {name: run for name, run in runs.items() if f"{target}/test" in run.rows}
    if len(able) < 2:
        controls.show_empty("Two candidates with answers on the target are needed.")
        return
    with st.expander("Who rates what", expanded=not controls.query_values("rater")):
        rater = st.text_input(
            "Your name", value=", ".join(controls.query_values("rater")), max_chars=60, key="rater"
        ).strip()
        controls.remember("rater", [rater] if rater else [])
        at = int(controls.query_values("kind") == ["one"])
        one = st.radio("What", _KINDS, index=at, horizontal=True) == _KINDS[1]
        controls.remember("kind", ["one"] if one else [])
        chosen = controls.choose_candidates("rate", list(able), list(able)[:2], title="Two candidates")
    if len(chosen) != 2 or not rater:
        st.info("Choose two candidates and give your name.")
        return
    runs_of_pair = sorted((able[name] for name in chosen), key=lambda run: run.run_id)
    old, new = (run.rows[f"{target}/test"] for run in runs_of_pair)
    pair = Pair(target, "", old, new)
    if one:
        rating_form.label_answers(pair, _metric(), rater)
        return
    done = store.list_ratings(project.project().store, target)
    _turn(pair, (runs_of_pair[0], runs_of_pair[1]), rater, done)
    rating_form.show(pair, (runs_of_pair[0].label, runs_of_pair[1].label), done)


def _metric() -> str:
    """Name the metric that labels are for: the target's as written, else as last reported."""
    loaded = project.experiment()
    if loaded is not None:
        return loaded.experiment.target.primary_metric
    return next((report.metric for report in project.reports().values()), "")


def _target(runs: dict[str, Run]) -> str:
    """Name the task that is rated: the target as written, else the first one that most runs answered."""
    loaded = project.experiment()
    if loaded is not None:
        return loaded.experiment.target.name
    reported = next((report.task for report in project.reports().values() if report.task), "")
    return reported or next((key.removesuffix("/test") for run in runs.values() for key in run.rows), "")


def _turn(pair: Pair, runs: tuple[Run, Run], rater: str, done: list[Rating]) -> None:
    both = (pair.base, pair.new)
    ids = _differing_items(str(project.project().store.folder), *both, project.row_set_times(*both))
    turn = human_preferences.find_next_turn(ids, done, rater, pair.base, pair.new)
    n_done = len({r.example_id for r in done if (r.rater, r.rows_a, r.rows_b) == (rater, *both)})
    if note := st.session_state.pop("rating_note", ""):
        safe_text.say(f"The rating is kept, and comes into the index with the next one. {note}")
    st.progress(n_done / max(1, len(ids)), f"{count(n_done)} of {count(len(ids))} items whose answers differ")
    at = project.project().store
    texts = [store.read_samples(at, digest, [turn.example_id]) for digest in both] if turn else []
    rows = [found[turn.example_id] for found in texts if turn and turn.example_id in found]
    if turn is None or len(rows) < len(both):
        st.success("You have seen every item of this pair.")
        return
    if st.session_state.get("rating_item") != turn.example_id:  # the clock of an item starts
        st.session_state["rating_item"], st.session_state["rating_since"] = turn.example_id, time.time()
    # The shorter prompt: the longer one may hold passages or shots, which would tell whose answer is whose.
    safe_text.block("question", min((row.prompt for row in rows), key=len))
    ordered = rows if turn.left == "a" else rows[::-1]
    for column, side, row in zip(st.columns(2), ("left", "right"), ordered, strict=True):
        with column:
            safe_text.block(side, row.text)
    for column, (side, title) in zip(st.columns(4), _TITLES.items(), strict=True):
        column.button(
            title, key=f"choose_{side}", shortcut=_SHORTCUTS[side], width="stretch",
            type="primary" if side in ("left", "right") else "secondary",
            on_click=rating_form.save, args=(pair, runs, rater, turn, side),
        )  # fmt: skip
    if rows[0].references:
        with st.expander("Reference"):
            safe_text.block("reference", " | ".join(rows[0].references[:5]))


@st.cache_data(show_spinner=False, max_entries=32)
def _differing_items(folder: str, rows_a: str, rows_b: str, changed: tuple[int, ...]) -> list[str]:
    return store.list_differing_items(Store(Path(folder)), rows_a, rows_b)


page()
