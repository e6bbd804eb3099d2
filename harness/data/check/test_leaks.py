"""Contamination of the test: training rows with the question of a test row, exactly or in other words.

Invariant: the exact ones are those that a comparison would refuse, the others those that it would note.

False alarms: of the exact ones none; letter case and spaces aside the two are the same text. Those in other
words reach thresholds that 5 % of look-alikes of another sense reach too (reports/data_check.md).
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from harness.data.check import DECIDE_BY_SENSE, CheckContext, Finding
from harness.data.check._table import RowTable, TableEntry
from harness.data.check.personal_data import excerpt
from harness.data.contamination import ContaminatedRow, find_contaminated_rows
from harness.data.examples import SourcedExample
from harness.data.overlap import Encode, Overlap, overlaps
from harness.data.readers import file_of
from harness.errors import as_argument


class _AlikeRow(NamedTuple):
    """A training row, the test row that it may ask the same as, and how alike they are."""

    row: TableEntry
    item: TableEntry
    by: Overlap

    @property
    def place(self) -> str:
        return f"{self.item.where} ({self.by.measure} {self.by.similarity:.2f})"


def check(table: RowTable, given: CheckContext) -> Iterator[Finding]:
    """List the training rows that a test row repeats, and those that may ask the same in other words."""
    if given.test is None:
        return
    rows, items = (
        [SourcedExample(entry.example, entry.where) for entry in of.entries] for of in (table, given.test)
    )
    exact = find_contaminated_rows(rows, items)
    alike = _find_alike(table, given.test, {row.training.where for row in exact}, given.encode)
    # Dedup looks at words alone, so what only embeddings find is decided row by row.
    by_sense = [pair for pair in alike if pair.by.measure == "embeddings"]
    in_words = [pair for pair in alike if pair.by.measure != "embeddings"]
    dropped = [*(row.training.where for row in exact), *(pair.row.where for pair in in_words)]
    emptied = table.files_emptied_by(dropped)
    if emptied:
        yield _say_emptied(table, emptied, dropped, exact)
    exact = [row for row in exact if file_of(row.training.where) not in emptied]
    in_words = [pair for pair in in_words if file_of(pair.row.where) not in emptied]
    if exact:
        yield _say_exact(table, given.test, exact)
    if in_words:
        yield _say_alike(table, in_words, "in other words", _name_dedup_command(given.test))
    if by_sense:
        decided = f"page, where the target's `test:` is {', '.join(given.test.files)},"
        yield _say_alike(table, by_sense, "by sense", DECIDE_BY_SENSE.replace("page,", decided))


def _find_alike(table: RowTable, test: RowTable, exact: set[str], encode: Encode | None) -> list[_AlikeRow]:
    """Find what shares most of its words with a test row, and what only lies close to it; closest first."""
    left = [entry for entry in table.entries if entry.where not in exact]
    found = overlaps(
        list(map(_bare_question, left)),
        list(map(_bare_question, test.entries)),
        answers=[entry.answer for entry in left],
        encode=encode,
    )
    return [_AlikeRow(left[o.training], test.entries[o.evaluated], o) for o in found]


def _say_emptied(
    table: RowTable, emptied: Sequence[str], dropped: Sequence[str], exact: Sequence[ContaminatedRow]
) -> Finding:
    """Say of files that all their rows are contaminated: without these no row is left to train on."""
    rows = [where for where in dropped if file_of(where) in emptied]
    is_exact = {row.training.where for row in exact}.issuperset(rows)
    shown = ", ".join(emptied)
    split = "harness data split FILE --out OUT  # and test on its part, or on another file"
    return Finding(
        "error" if exact else "warning",
        f"all {len(rows):,} rows of {shown} {'are' if is_exact else 'are or may be'} in the test",
        "the score on test counts what was learned by heart, and without these rows none is left to train on",
        len(table.entries),
        tuple(rows),
        command=split
        if len(emptied) == len(table.files)
        else f"train without {shown}, or test on another file",
    )


def _say_exact(table: RowTable, test: RowTable, contaminated: Sequence[ContaminatedRow]) -> Finding:
    first = contaminated[0]
    return Finding(
        "error",
        "training rows that a test row repeats",
        "the score on test counts what was learned by heart",
        len(table.entries),
        tuple(row.training.where for row in contaminated),
        f"{first.training.where} has the question of {first.evaluated.where}: "
        f"{excerpt(' '.join(first.training.example.prompt.split()), 60)!r}",
        _name_dedup_command(test),
        beside=tuple(f"{row.evaluated.where}, with the same question" for row in contaminated),
    )


def _say_alike(table: RowTable, pairs: Sequence[_AlikeRow], how: str, command: str) -> Finding:
    return Finding(
        "warning",
        f"training rows whose question may be that of a test row, {how}",
        "read the closest pairs: a contaminated row counts what was learned by heart, a look-alike does not",
        len(table.entries),
        tuple(pair.row.where for pair in pairs),
        "; ".join(f"{pair.row.where} and {pair.place}" for pair in pairs[:3]),
        command,
        beside=tuple(f"{pair.place}: {_cut(pair.item)}" for pair in pairs),
    )


def _name_dedup_command(test: RowTable) -> str:
    """Name the command that leaves out what the test rows ask."""
    against = " ".join(f"--against {as_argument(file)}" for file in test.files)
    return f"harness data dedup FILE {against} --out OUT"


def _cut(entry: TableEntry) -> str:
    return repr(excerpt(" ".join(_bare_question(entry).split()), 80))


def _bare_question(entry: TableEntry) -> str:
    """Return the question without the context in front of it, which rows may share."""
    alone = entry.qa.question
    return alone if entry.qa.context and entry.question.endswith(alone) else entry.question
