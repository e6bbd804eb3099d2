"""Rate: which of two answers is better, or how good one is, without knowing whose they are.

Invariant: names stay hidden while somebody rates; order and sides depend on rater and pair; each choice is
written to its own file before the next item is shown, also while the index is locked. Items come in the
order of `harness rate export`, so that labels from both form one random sample.
"""

import time
import uuid
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import streamlit as st

from harness import store
from harness.analysis import human_preferences
from harness.analysis.human_preferences import PreferenceResult, Turn
from harness.analysis.people_labels import answer_digest, draw_items, is_correctable, select_scored
from harness.config import current_labels, digest_question, rubric_of
from harness.errors import HarnessError
from harness.formatting import count, interval, p_value, plain, points
from harness.records import AnswerLabel, LabelSet, Rating, Run, SampleResult
from harness.report.escape import clean
from harness.stats import Strength
from harness.store import Store
from parts import controls, project, safe_text
from parts.scores import Pair

_SHORTCUTS = {"left": "1", "tie": "2", "right": "3", "skip": "4"}
_KINDS = ("which of two answers is better", "how good one answer is")
_TITLES = {"left": "Left is better", "tie": "Equally good", "right": "Right is better", "skip": "Skip"}
_TWO = {"Bad": 0.0, "Good": 1.0}
_FIVE = {"Bad": 0.0, "Rather bad": 0.25, "In between": 0.5, "Rather good": 0.75, "Good": 1.0}


def save(pair: Pair, runs: tuple[Run, Run], rater: str, turn: Turn, side: str) -> None:
    """Write the choice of a side, `tie` or `skip`."""
    other_side: Any = "b" if turn.left == "a" else "a"
    choice: Any = {"left": turn.left, "right": other_side}.get(side, side)
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
        store.save_ratings(project.runs_store(), [rating])
    except HarnessError as error:  # the rating's own file is written first
        st.session_state["rating_note"] = str(error)


def show(pair: Pair, names: tuple[str, str], ratings: list[Rating]) -> None:
    """Show the result of the pair's ratings, and of all pairs if more candidates were rated."""
    stamp = tuple(r.rating_id for r in ratings)
    result, strengths = _count(stamp, pair.base, pair.new, ratings)

    def elo(s: Strength) -> str:  # `points` expects hundredths, Elo points are not rates
        return points(*(None if x is None else x / 100 for x in (s.elo, s.low, s.high)))

    with st.expander(f"What the ratings of this pair show ({count(result.n_ratings)})"):
        if result.rate is None or result.strength is None:
            st.text("Nothing yet.")
            return
        r, s = result.rate, result.strength
        share = interval(r.rate, r.low, r.high)
        n = count(result.n_items)
        safe_text.say(f"{names[1]} is preferred to {names[0]} on {share} % of {n} items", "lead")
        alpha = f"{plain(result.agreement)} (Krippendorff's alpha; 0 is chance, 1 is full agreement)"
        counted = {"raters": len(result.raters), "won": r.wins, "lost": r.losses, "equal": r.ties}
        counted["skipped"] = result.n_skipped
        safe_text.say_all(
            [
                ", ".join(f"{word} {count(n)}" for word, n in counted.items()),
                f"sign test: p = {p_value(r.p)}",
                f"strength: {elo(s)} Elo points (Bradley-Terry, interval over items)",
                f"agreement of raters: {alpha}",
            ]
        )
        if len(strengths) > 2:
            labels = {run.run_id: run.label for run in project.runs()}
            first = min(strengths)
            safe_text.say(f"All rated candidates of this task, compared with {labels.get(first, first)}:")
            strongest_first = sorted(strengths.items(), key=lambda item: -(item[1].elo or 0.0))
            rows = [(clean(labels.get(run_id, run_id)), elo(s)) for run_id, s in strongest_first]
            st.dataframe([{"candidate": name, "Elo points": s} for name, s in rows], hide_index=True)
        controls.offer_csv(lambda: [asdict(rating) for rating in ratings], "ratings")


@st.cache_data(show_spinner=False, max_entries=32)
def _count(
    stamp: tuple[str, ...], rows_a: str, rows_b: str, _ratings: list[Rating]
) -> tuple[PreferenceResult, dict[str, Strength]]:
    return human_preferences.outcome(_ratings, rows_a, rows_b), human_preferences.strengths(_ratings)


def label_answers(pair: Pair, metric: str, rater: str) -> None:
    """Show the next answer without a label by the rater, with its question, and save the label."""
    if not is_correctable(project.metric(pair.task, metric)):
        controls.show_empty(f"Labels can correct metrics that are means in [0, 1], and {metric} is not one.")
        return
    order, is_binary = _answers(
        str(project.runs_store().folder), metric, pair, project.row_set_times(pair.base, pair.new)
    )
    task, label_sets = project.task(pair.task), store.list_labels(project.runs_store(), pair.task)
    label_sets = current_labels(label_sets, task) if task is not None else label_sets
    by_rater = [s for s in label_sets if (s.rater, s.metric) == (rater, metric)]
    labelled_answers = {label.answer for s in by_rater for label in s.labels}
    n_done = sum(answer in labelled_answers for answer, _ in order)
    st.progress(n_done / max(1, len(order)), f"{count(n_done)} of {count(len(order))} answers")
    following = next((row for answer, row in order if answer not in labelled_answers), None)
    if following is None:
        st.success("You have labelled every answer of this pair.")
        return
    with suppress(HarnessError):
        if task is not None and (rubric := rubric_of(task, metric)):
            safe_text.block("criteria", rubric.criteria.strip())
    question, row = following
    safe_text.block("question", question)
    safe_text.block("answer", row.text)
    choices = _TWO if is_binary else _FIVE

    def save_label(label: float) -> None:
        now = datetime.now(UTC).isoformat(timespec="microseconds")
        entry = AnswerLabel(answer_digest(metric, row), row.example_id, label)
        criteria = digest_question(task, metric) if task is not None else ""
        label_set = LabelSet(uuid.uuid4().hex, now, row.task, row.split, metric, rater, (entry,), criteria)
        store.save_labels(project.runs_store(), label_set)

    for digit, (column, (title, label)) in enumerate(
        zip(st.columns(len(choices)), choices.items(), strict=True), 1
    ):
        column.button(
            f"{title} ({plain(label).rstrip('0').rstrip('.')})", key=f"label_{digit}", shortcut=str(digit),
            width="stretch", on_click=save_label, args=(label,),
        )  # fmt: skip
    _offer_reference(row)


def _offer_reference(row: SampleResult) -> None:
    if row.references:
        with st.expander("Reference"):
            safe_text.block("reference", " | ".join(row.references[:5]))


@st.cache_data(show_spinner=False, max_entries=8)
def _answers(
    folder: str, metric: str, pair: Pair, changed: tuple[int, ...]
) -> tuple[list[tuple[str, tuple[str, SampleResult]]], bool]:
    """List the answers by digest with their question, by item; and whether all scores are 0 or 1."""
    runs_store = Store(Path(folder))
    arms = [select_scored(metric, store.read_rows(runs_store, digest)) for digest in (pair.base, pair.new)]
    answers: dict[str, tuple[str, SampleResult]] = {}
    for item in draw_items(set(arms[0]) | set(arms[1]), pair.task, metric):
        rows = [arm[item] for arm in arms if item in arm]
        question = min((row.prompt for row in rows), key=len)
        # The order by digest does not reveal the candidate.
        by_answer = sorted(((answer_digest(metric, row), row) for row in rows), key=lambda pair: pair[0])
        answers |= {answer: (question, row) for answer, row in by_answer}
    grades = {row.parts[metric] for arm in arms for row in arm.values()}
    return list(answers.items()), grades <= {(0.0,), (1.0,)}


def page() -> None:
    """Draw the page."""
    controls.heading(
        "Rate",
        "Two answers to one question, sides at random. Keys: 1 left, 2 equal, 3 right, 4 skip. Or one answer"
        " at a time, whose labels correct the metric.",
    )
    runs = controls.newest(project.runs())
    # What is rated: the target in harness.yaml, else the last report's, else the first run's.
    loaded, reports = project.experiment(), project.reports().values()
    if loaded is not None:
        target, metric = loaded.experiment.target.name, loaded.experiment.target.primary_metric
    else:
        keys = (key.removesuffix("/test") for run in runs.values() for key in run.rows)
        target = next((report.task for report in reports if report.task), "") or next(keys, "")
        metric = next((report.metric for report in reports), "")
    ratable = {name: run for name, run in runs.items() if f"{target}/test" in run.rows}
    if len(ratable) < 2:
        controls.show_empty("Two candidates with answers on the target are needed.")
        return
    with st.expander("Who rates what", expanded=not controls.query_values("rater")):
        rater = st.text_input(
            "Your name", value=", ".join(controls.query_values("rater")), max_chars=60, key="rater"
        ).strip()
        controls.remember("rater", [rater] if rater else [])
        kind = int(controls.query_values("kind") == ["one"])
        single = st.radio("What", _KINDS, index=kind, horizontal=True) == _KINDS[1]
        controls.remember("kind", ["one"] if single else [])
        chosen = controls.choose_candidates("rate", list(ratable), list(ratable)[:2], title="Two candidates")
    if len(chosen) != 2 or not rater:
        st.info("Choose two candidates and give your name.")
        return
    a, b = sorted((ratable[name] for name in chosen), key=lambda run: run.run_id)
    pair = Pair(target, "", a.rows[f"{target}/test"], b.rows[f"{target}/test"])
    if single:
        label_answers(pair, metric, rater)
        return
    ratings = store.list_ratings(project.runs_store(), target)
    _turn(pair, (a, b), rater, ratings)
    show(pair, (a.label, b.label), ratings)


def _turn(pair: Pair, runs: tuple[Run, Run], rater: str, ratings: list[Rating]) -> None:
    arms = (pair.base, pair.new)
    ids = _differing_items(str(project.runs_store().folder), *arms, project.row_set_times(*arms))
    turn = human_preferences.find_next_turn(ids, ratings, rater, pair.base, pair.new)
    n_done = len({r.example_id for r in ratings if (r.rater, r.rows_a, r.rows_b) == (rater, *arms)})
    if note := st.session_state.pop("rating_note", ""):
        safe_text.say(f"The rating is saved, and will be indexed with the next one. {note}")
    st.progress(n_done / max(1, len(ids)), f"{count(n_done)} of {count(len(ids))} items whose answers differ")
    runs_store = project.runs_store()
    samples = [store.read_samples(runs_store, digest, [turn.example_id]) for digest in arms] if turn else []
    rows = [by_id[turn.example_id] for by_id in samples if turn and turn.example_id in by_id]
    if turn is None or len(rows) < len(arms):
        st.success("You have seen every item of this pair.")
        return
    if st.session_state.get("rating_item") != turn.example_id:  # start timing the item
        st.session_state["rating_item"], st.session_state["rating_since"] = turn.example_id, time.time()
    # The shorter prompt: passages or shots in the longer one would reveal the candidates.
    safe_text.block("question", min((row.prompt for row in rows), key=len))
    ordered = rows if turn.left == "a" else rows[::-1]
    for column, side, row in zip(st.columns(2), ("left", "right"), ordered, strict=True):
        with column:
            safe_text.block(side, row.text)
    for column, (side, title) in zip(st.columns(4), _TITLES.items(), strict=True):
        column.button(
            title, key=f"choose_{side}", shortcut=_SHORTCUTS[side], width="stretch",
            type="primary" if side in ("left", "right") else "secondary",
            on_click=save, args=(pair, runs, rater, turn, side),
        )  # fmt: skip
    _offer_reference(rows[0])


@st.cache_data(show_spinner=False, max_entries=32)
def _differing_items(folder: str, rows_a: str, rows_b: str, changed: tuple[int, ...]) -> list[str]:
    return store.list_differing_items(Store(Path(folder)), rows_a, rows_b)


page()
