"""Conflicting answers: one question that stands there with two different answers.

False alarms: none where answers are labels; a question with two free texts may have two right ones, so it is
a note there. Digests of 64 bits stand for texts, as for repeated rows.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from harness.data.check import DECIDE, CheckContext, Finding
from harness.data.check._table import RowTable, TableEntry
from harness.data.check.personal_data import excerpt
from harness.formatting import pluralize


def check(table: RowTable, given: CheckContext) -> Iterator[Finding]:
    """List the rows whose question has another answer elsewhere."""
    questions, answers = table.digests[:, 0], table.digests[:, 1]
    _, first, inverse = np.unique(questions, return_index=True, return_inverse=True)
    differs = answers != answers[first[inverse]]
    groups = np.unique(inverse[differs])
    rows = np.flatnonzero(np.isin(inverse, groups))
    if not len(rows) or not any(entry.answer for entry in table.entries):
        return
    a = int(np.flatnonzero(differs)[0])
    b = int(first[inverse[a]])
    of = {entry.where: entry for entry in table.entries}
    other = {inverse[i]: i for i in reversed(np.flatnonzero(differs))}
    pairs = [(int(i), int(first[inverse[i]] if differs[i] else other[inverse[i]])) for i in rows]
    there = [of[where] for i in (b, a) if (where := table.places(i)) in of]
    shown = " and ".join(f"{entry.where} answers {excerpt(entry.answer, 40)!r}" for entry in there)
    question = excerpt(" ".join(there[0].question.split()), 60) if there else ""
    places = tuple(table.places(i) for i, _ in pairs)
    yield Finding(
        "error" if table.labels else "note",
        f"{pluralize(len(groups), 'question')} with different answers",
        "one of them is wrong, or the question does not hold what decides"
        if table.labels
        else "several answers may be right; a metric that compares with one reference takes others for wrong",
        len(table.digests),
        places,
        f"{question!r}: {shown}" if there else "",
        _command(table, places) if table.labels else "",
        beside=tuple(_answer_at(table.places(i), of) for _, i in pairs),
    )


def _command(table: RowTable, places: Sequence[str]) -> str:
    """Name the command that drops all of them; the page that decides one by one where none would be left."""
    if table.files_emptied_by(places):
        return DECIDE
    return (
        "harness data dedup FILE --conflicts drop --out OUT  # all of them; the Data page decides one by one"
    )


def _answer_at(where: str, held: Mapping[str, TableEntry]) -> str:
    """Say what a row answers; its place alone where its text is not held."""
    return f"{where}, which answers {excerpt(held[where].answer, 40)!r}" if where in held else where
