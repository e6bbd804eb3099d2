"""What a rater chose: timed, and written by the store's own writer.

Invariant: a choice has its own file before the next item is shown, also where the index is held.
"""

import time
import uuid
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import streamlit as st

from harness import store
from harness.comparison import human
from harness.comparison.human import PreferenceResult, Turn
from harness.errors import HarnessError
from harness.formatting import count, interval, p_value, plain, points
from harness.records import Rating, Run
from harness.report.escape import clean
from harness.stats import Strength
from parts import controls, project, safe_text
from parts.paired_runs import Pair


def begin(turn: Turn) -> None:
    """Start the clock of an item when it is shown first."""
    if st.session_state.get("rating_item") != turn.example_id:
        st.session_state["rating_item"], st.session_state["rating_since"] = turn.example_id, time.time()


def say_unindexed() -> None:
    """Say that the last choice was kept without the index, if so."""
    if note := st.session_state.pop("rating_note", ""):
        safe_text.say(f"The rating is kept, and comes into the index with the next one. {note}")


def save(pair: Pair, runs: tuple[Run, Run], rater: str, turn: Turn, side: str) -> None:
    """Write the choice of a side, `tie` or `skip`."""
    other: Any = "b" if turn.left == "a" else "a"
    choice: Any = {"left": turn.left, "right": other}.get(side, side)
    rating = Rating(
        rating_id=uuid.uuid4().hex,
        rater=rater,
        created=datetime.now(UTC).isoformat(timespec="milliseconds"),
        task=pair.task,
        split="test",
        example_id=turn.example_id,
        run_a=runs[0].run_id,
        run_b=runs[1].run_id,
        rows_a=pair.base,
        rows_b=pair.new,
        left=turn.left,
        choice=choice,
        seconds=round(time.time() - st.session_state.get("rating_since", time.time()), 1),
    )
    try:
        store.save_rating(project.project().store, rating)
    except HarnessError as error:  # the rating's own file is written first
        st.session_state["rating_note"] = str(error)


def show(pair: Pair, names: tuple[str, str], done: list[Rating]) -> None:
    """Say what all ratings of the pair show, and of all pairs where more candidates were rated."""
    stamp = tuple(r.rating_id for r in done)
    found = _outcome(stamp, pair.base, pair.new, done)
    with st.expander(f"What the ratings of this pair show ({count(found.n_ratings)})"):
        if found.rate is None or found.strength is None:
            st.text("Nothing yet.")
            return
        r, s = found.rate, found.strength
        share = interval(r.rate, r.low, r.high)
        safe_text.say(
            f"{names[1]} is preferred to {names[0]} on {share} % of {count(found.n_items)} items", "lead"
        )
        alpha = f"{plain(found.agreement)} (Krippendorff's alpha; 0 is chance, 1 is all)"
        counted = {"raters": len(found.raters), "won": r.wins, "lost": r.losses, "equal": r.ties}
        counted["skipped"] = found.n_skipped
        safe_text.say_all(
            [
                ", ".join(f"{word} {count(n)}" for word, n in counted.items()),
                f"sign test: p = {p_value(r.p)}",
                f"strength: {elo(s)} Elo points (Bradley-Terry, interval over items)",
                f"agreement of raters: {alpha}",
            ]
        )
        _all(_strengths(stamp, done))
        controls.offer_csv(lambda: [asdict(rating) for rating in done], "ratings")


def _all(found: dict[str, Strength]) -> None:
    """List the strengths of all rated runs, the strongest first."""
    if len(found) < 3:
        return
    labels = {run.run_id: run.label for run in project.runs()}
    ordered = sorted(found.items(), key=lambda one: -(one[1].elo or 0.0))
    rows = [{"candidate": clean(labels.get(run_id, run_id)), "Elo points": elo(s)} for run_id, s in ordered]
    safe_text.say(
        f"All rated candidates of this task, compared with {clean(labels.get(min(found), min(found)))}:"
    )
    st.dataframe(rows, hide_index=True)


def elo(s: Strength) -> str:
    """Print a strength with its interval; `points` prints hundredths, and Elo points are no rates."""
    return points(*(None if x is None else x / 100 for x in (s.elo, s.low, s.high)))


@st.cache_data(show_spinner=False, max_entries=32)
def _outcome(stamp: tuple[str, ...], rows_a: str, rows_b: str, _done: list[Rating]) -> PreferenceResult:
    return human.outcome(_done, rows_a, rows_b)


@st.cache_data(show_spinner=False, max_entries=32)
def _strengths(stamp: tuple[str, ...], _done: list[Rating]) -> dict[str, Strength]:
    return human.strengths(_done)
