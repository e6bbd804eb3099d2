"""Leaks: training rows that ask what a test row asks, exactly or in other words.

Invariant: the exact ones are those that a comparison would refuse, the others those that it would note.

False alarms: of the exact ones none; letter case and spaces aside the two are the same text. Those in other
words reach thresholds that 5 % of look-alikes of another sense reach too (reports/data_check.md).
"""

from collections.abc import Iterator

from harness.data.check import DECIDE_BY_SENSE, CheckContext, Finding
from harness.data.check._table import RowTable, TableEntry
from harness.data.check.personal_data import excerpt
from harness.data.contamination import find_contaminated_rows
from harness.data.examples import SourcedExample
from harness.data.overlap import Encode, overlaps
from harness.errors import as_argument


def check(table: RowTable, given: CheckContext) -> Iterator[Finding]:
    """List the training rows that a test row repeats, and those that may ask the same in other words."""
    if given.test is None:
        return
    training, evaluated = (
        [SourcedExample(entry.example, entry.where) for entry in of.entries] for of in (table, given.test)
    )
    if leaks := find_contaminated_rows(training, evaluated):
        first = leaks[0]
        yield Finding(
            "error",
            "training rows that a test row repeats",
            "the score on test counts what was learned by heart",
            len(training),
            tuple(leak.training.where for leak in leaks),
            f"{first.training.where} asks what {first.evaluated.where} asks: "
            f"{excerpt(' '.join(first.training.example.prompt.split()), 60)!r}",
            _name_split_command(given.test),
            beside=tuple(f"{leak.evaluated.where}, which asks the same" for leak in leaks),
        )
    yield from _find_in_other_words(table, given.test, {leak.training.where for leak in leaks}, given.encode)


def _find_in_other_words(
    table: RowTable, test: RowTable, exact: set[str], encode: Encode | None
) -> Iterator[Finding]:
    """List what shares most of its words with a test row, and what only lies close to it; closest first."""
    left = [entry for entry in table.entries if entry.where not in exact]
    found = overlaps(
        list(map(_bare_question, left)),
        list(map(_bare_question, test.entries)),
        answers=[entry.answer for entry in left],
        encode=encode,
    )
    # dedup looks at words alone, so what only embeddings find is decided row by row.
    for how, command in (("in other words", _name_split_command(test)), ("by sense", _decide_beside(test))):
        of = [o for o in found if (o.measure == "embeddings") == (how == "by sense")]
        pairs = [(left[o.training], test.entries[o.evaluated], o) for o in of]
        near = [f"{item.where} ({o.measure} {o.similarity:.2f})" for _, item, o in pairs]
        if pairs:
            yield Finding(
                "warning",
                f"training rows that may ask what a test row asks, {how}",
                "read the closest pairs: a leak counts what was learned by heart, a look-alike does not",
                len(table.entries),
                tuple(row.where for row, _, _ in pairs),
                "; ".join(f"{row.where} and {of}" for (row, _, _), of in zip(pairs[:3], near, strict=False)),
                command,
                beside=tuple(f"{of}: {_cut(item)}" for of, (_, item, _) in zip(near, pairs, strict=True)),
            )


def _name_split_command(test: RowTable) -> str:
    """Name the command that leaves out what the test rows ask."""
    against = " ".join(f"--against {as_argument(file)}" for file in test.files)
    return f"harness data dedup FILE {against} --out OUT"


def _decide_beside(test: RowTable) -> str:
    """Name the page on which leaks are decided: that of an experiment which tests on the test rows."""
    files = ", ".join(test.files)
    return DECIDE_BY_SENSE.replace("page,", f"page, where the target's `test:` is {files},")


def _cut(entry: TableEntry) -> str:
    return repr(excerpt(" ".join(_bare_question(entry).split()), 80))


def _bare_question(entry: TableEntry) -> str:
    """Return the question without the context in front of it, which rows may share."""
    alone = entry.asked.question
    return alone if entry.asked.context and entry.question.endswith(alone) else entry.question
