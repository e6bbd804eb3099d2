"""Augmented rows: those that a model made from other rows, and where these are.

Invariant: an augmented row is trained on where the row is that it was made from, or left out: it is never set
aside.
"""

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from harness.data.contamination import key
from harness.data.examples import SourcedExample, SourceText, SplitExamples
from harness.data.readers import Row
from harness.errors import Problem
from harness.formatting import pluralize
from harness.records import fold_text

# Columns of an augmented row; the last, the text that it was made from, is what tells it from others.
SOURCE, AUGMENTED, ORIGIN = "source", "augmented", "augmented_from"


def is_augmented(row: Row) -> bool:
    """Tell whether a model made a row from another one."""
    return bool(row.fields.get(ORIGIN))


def phrase_only_augmented(shown: str) -> Problem:
    """Phrase rows that were all made from rows which are not there."""
    expected, step = "the rows that they were made from as well", "put these into the same file"
    return Problem(shown, "only augmented rows", expected, step)


def origins(rows: Sequence[Row]) -> dict[str, SourceText]:
    """Map the places of augmented rows to what they were made from: rows that hold their original text."""
    made = [row for row in rows if is_augmented(row)]
    if not made:
        return {}
    places: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        for text in set() if is_augmented(row) else set(_texts(row.fields)):
            places[text].append(row.where)
    known = {row.where: str(row.fields.get(ORIGIN) or "") for row in made}
    places.pop("", None)
    return {where: SourceText(text, tuple(places.get(fold_text(text), ()))) for where, text in known.items()}


def add_origins(kept: SplitExamples, made: Mapping[str, SourceText]) -> SplitExamples:
    """Return the examples of a split, the augmented ones with what they were made from."""
    if not made:
        return kept
    return kept._replace(examples=[row._replace(origin=made.get(row.where)) for row in kept.examples])


def keep_with_origins(
    rows: Sequence[SourcedExample],
    kept: Collection[SourcedExample],
    evaluated: Sequence[SourcedExample],
    *,
    without_original: bool = True,
) -> list[SourcedExample]:
    """Return the rows that are kept, and the augmented ones whose original is kept, in the order of the file.

    One whose original is not among the rows stays where `without_original` says so, unless that is evaluated;
    where rows were set aside, one like its original may be among them. None asks what is evaluated.
    """
    if all(row.origin is None for row in rows):
        return list(kept)
    places = {row.where for row in kept}
    questions = {key(row.example) for row in evaluated}

    def stays(row: SourcedExample) -> bool:
        if row.origin is None:
            return row.where in places
        texts = {fold_text(row.origin.text), key(row.example)}
        found = bool(row.origin.places) or without_original
        return found and places.issuperset(row.origin.places) and questions.isdisjoint(texts)

    return [row for row in rows if stays(row)]


def describe_augmented_left_out(
    before: Sequence[SourcedExample], after: Sequence[SourcedExample], where: str
) -> list[str]:
    """Say how many augmented rows were left out, and why; empty of none."""
    left = {row.where for row in after}
    gone = [row.origin for row in before if row.origin is not None and row.where not in left]
    alone = sum(not origin.places for origin in gone)
    reasons = {
        "made from rows that are evaluated": len(gone) - alone,
        "made from rows that are evaluated or not in the file": alone,
    }
    return [f"{where}: {pluralize(n, 'augmented row')} left out, {why}" for why, n in reasons.items() if n]


def _texts(value: Any) -> Iterator[str]:
    """Yield all texts that a value holds, without letter case and with single spaces."""
    if isinstance(value, str):
        yield fold_text(value)
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts(inner)
