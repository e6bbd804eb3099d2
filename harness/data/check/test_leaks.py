"""Leaks: training rows that ask what a test row asks, as a comparison would refuse them.

False alarms: none; letter case and spaces aside the two are the same text.
"""

from collections.abc import Iterator

from harness.data.check import Finding, Given
from harness.data.check._table import Table
from harness.data.contamination import contaminated_rows
from harness.data.examples import Sourced


def check(table: Table, given: Given) -> Iterator[Finding]:
    """List the training rows that a test row repeats."""
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
            f"{' '.join(first.training.example.prompt.split())[:60]!r}",
            "contamination: drop in data: of the task leaves them out",
        )
