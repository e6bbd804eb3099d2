"""Checks of where generated rows come from: whose answers they are, and that none asks what is evaluated.

Invariant: whoever answers generates text and may be asked now; a leak is refused before rows are written.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from harness.data import PartName, contamination
from harness.data.contamination import find_contaminated_rows
from harness.data.examples import SourcedExample
from harness.data.readers import display_path
from harness.errors import Problem, UserError, refuse
from harness.evaluation.candidates import ResolvedCandidate, refuse_silent
from harness.evaluation.contamination.leaks import refuse_or_note
from harness.evaluation.session import Session
from harness.experiment.preparation.candidate_problems import key_problems


def refuse_without_text(session: Session, candidate: ResolvedCandidate) -> None:
    """Refuse a candidate that generates no text, or cannot be asked now."""
    refuse_silent(candidate)
    where = f"candidate {candidate.name}"
    if not candidate.method.makes_language_model:
        found = f"the method {candidate.source.method}, which generates no text"
        raise UserError(Problem(where, found, "a candidate that generates its answers", "name another"))
    refuse(key_problems(session, {candidate.name: where}))


def refuse_unpriced(candidate: ResolvedCandidate, price: float | None, max_cost: float | None) -> None:
    """Refuse a budget that nothing could be held against; `price` is that of a request."""
    if max_cost is not None and price is None:
        found = f"{candidate.name}, an endpoint without prices"
        step = "usd_per_million_tokens: {input: …, output: …} among its params"
        raise UserError(Problem("--max-cost", found, "prices to hold it against", step))


def check_leaks(
    session: Session, rows: Sequence[SourcedExample], part: PartName, file: str
) -> tuple[str, ...]:
    """Hold what rows ask against all that is evaluated; return notes of those alike in other words.

    `file` is where the rows stand, or will.

    Raises:
        UserError: a row asks what is evaluated.
    """
    items, task = session.target.items, session.target.task
    evaluated = [row for of in items.evaluated.values() for row in of]
    shown = display_path(file)
    if found := find_contaminated_rows(rows, evaluated, task.kind == "choice"):
        raise UserError(contamination.problems(found, shown, "leave the row out"))
    asked = tuple(row.example for row in rows)
    places = {**items.places, **{f"{part}/{row.example.id}": row.where for row in rows}}
    train, pairs = (asked, ()) if part == "train" else ((), asked)
    own = replace(items, train=train, pairs=pairs, places=places)
    others = {m.task.name: m.items for m in session.suites}
    return refuse_or_note(task, {**others, task.name: own}, {}, {part: shown}).overlap


def leak_record(session: Session, notes: Sequence[str]) -> dict[str, Any]:
    """Say in a manifest what the leak check held rows against, and what it noted."""
    evaluated = sum(map(len, session.target.items.evaluated.values()))
    return {
        "evaluated": evaluated + sum(len(m.items.test) for m in session.suites),
        "contaminated": 0,
        "in_other_words": list(notes),
    }
