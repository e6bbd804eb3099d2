"""Leaks: training rows that ask what a test row asks, exactly or in other words.

Invariant: the exact ones are those that a comparison would refuse, the others those that it would note.

False alarms: of the exact ones none; letter case and spaces aside the two are the same text. Those in other
words reach thresholds that 5 % of look-alikes of another sense reach too (reports/data_check.md).
"""

import shlex
from collections.abc import Iterator

from harness.data.check import Finding, Given
from harness.data.check._table import Entry, Table
from harness.data.check.personal_data import excerpt
from harness.data.contamination import contaminated_rows
from harness.data.examples import Sourced
from harness.data.overlap import Encode, overlaps

_BY_HAND = "harness data clean FILE --out OUT --decisions DECISIONS leaves out those that you reject"


def check(table: Table, given: Given) -> Iterator[Finding]:
    """List the training rows that a test row repeats, and those that may ask the same in other words."""
    if given.test is None:
        return
    training, evaluated = (
        [Sourced(entry.example, entry.where) for entry in of.entries] for of in (table, given.test)
    )
    if leaks := contaminated_rows(training, evaluated):
        first = leaks[0]
        yield Finding(
            "test_leaks",
            "error",
            "training rows that a test row repeats",
            "the score on test counts what was learned by heart",
            len(leaks),
            len(training),
            tuple(leak.training.where for leak in leaks),
            f"{first.training.where} asks what {first.evaluated.where} asks: "
            f"{excerpt(' '.join(first.training.example.prompt.split()), 60)!r}",
            "contamination: drop in data: of the task leaves them out",
        )
    yield from _in_other_words(table, given.test, {leak.training.where for leak in leaks}, given.encode)


def _in_other_words(table: Table, test: Table, exact: set[str], encode: Encode | None) -> Iterator[Finding]:
    """List what shares most of its words with a test row, or lies close to it, the closest first."""
    left = [entry for entry in table.entries if entry.where not in exact]
    found = overlaps(
        list(map(_asked, left)),
        list(map(_asked, test.entries)),
        answers=[entry.answer for entry in left],
        encode=encode,
    )
    if found:
        by_words = any(o.measure != "embeddings" for o in found)
        against = " ".join(f"--against {shlex.quote(file)}" for file in test.files)
        closest = "; ".join(
            f"{left[o.training].where} and {test.entries[o.evaluated].where} ({o.measure} {o.similarity:.2f})"
            for o in found[:3]
        )
        yield Finding(
            "test_leaks",
            "warning",
            "training rows that may ask what a test row asks, in other words",
            "read the closest pairs: a leak counts what was learned by heart, a look-alike does not",
            len(found),
            len(table.entries),
            tuple(left[o.training].where for o in found),
            closest,
            f"harness data dedup FILE {against} --out OUT" if by_words else _BY_HAND,
        )


def _asked(entry: Entry) -> str:
    """Return the question without its context, which rows may share."""
    return entry.question.rpartition("\n\n")[2] if entry.context else entry.question
