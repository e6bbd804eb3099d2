"""What all ratings of a pair of candidates show.

Invariant: closed at first, so that nobody's choice is led.
"""

from dataclasses import asdict

import streamlit as st

from harness.comparison import human
from harness.comparison.human import PreferenceResult
from harness.formatting import count, interval, p_value, plain, points
from harness.records import Rating
from harness.report.escape import clean
from harness.stats import Strength
from parts import controls, project, safe_text
from parts.paired_runs import Pair


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
