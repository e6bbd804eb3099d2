"""What a rater chose: timed, and written by the store's own writer.

Invariant: a choice has its own file before the next item is shown, also where the index is held.
"""

import time
import uuid
from datetime import UTC, datetime
from typing import Any

import streamlit as st

from harness import store
from harness.comparison.human import Turn
from harness.errors import HarnessError
from harness.records import Rating, Run
from parts import project, safe_text
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
