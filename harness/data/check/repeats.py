"""Checks for rows that repeat another one: in their own file, with another answer, or in the test.

Invariant: exact duplicates are counted among all rows, near ones among those whose texts are held. Digests of
64 bits stand for texts: two unlike rows of 10 million are taken for one with a chance below 1 in 100,000.
"""

import random
from collections.abc import Iterator, Sequence

import numpy as np

from harness.data.check import DECIDE, DECIDE_BY_SENSE, CheckContext, Finding, RowTable, Severity, TableEntry
from harness.data.check.personal_data import excerpt
from harness.data.contamination import (
    EMBEDDINGS,
    Encode,
    Overlap,
    find_contaminated_rows,
    overlaps,
    repeats_by_sense,
)
from harness.data.edit.dedup import NormalizedRow, fold_row, near_repeats, stand_on_same
from harness.data.examples import SourcedExample
from harness.data.near_duplicates import THRESHOLD
from harness.data.readers import file_of
from harness.errors import as_argument
from harness.formatting import pluralize


def check_repeated_rows(table: RowTable, given: CheckContext) -> Iterator[Finding]:
    """List rows that repeat an earlier one, exactly and nearly; a near duplicate is no exact one.

    False alarms: near duplicates are alike by their exact Jaccard index, which clean rows may be: those made
    from patterns are, and reports/data_check.md counts how often they ask the same. Those by sense reach the
    threshold of contamination by sense, which 5 % of look-alikes of another sense reach.
    """
    _, first, inverse = np.unique(table.digests, axis=0, return_index=True, return_inverse=True)
    earlier = first[inverse.ravel()]
    again = np.flatnonzero(earlier != np.arange(len(table.digests)))
    if len(again):
        title = "exact duplicates of an earlier row"
        meaning = "repeated rows count twice in training, and set apart for test they contaminate it"
        places = tuple(table.places(int(i)) for i in again)
        example = f"{table.places(int(again[0]))} repeats {table.places(int(earlier[again[0]]))}"
        step = "harness data dedup FILE --out OUT"
        beside = tuple(table.places(int(earlier[i])) for i in again)
        yield Finding("warning", title, meaning, places, example, step, beside=beside, of=len(table.digests))
    distinct: dict[NormalizedRow, TableEntry] = {}
    for entry in table.entries:
        distinct.setdefault(fold_row(entry.qa), entry)
    entries = list(distinct.values())
    groups = near_repeats([entry.qa for entry in entries])  # as `data dedup` drops them
    numbers = sorted((i, group.kept, alike) for group in groups for i, alike in group.others)
    if near := [(entries[i], entries[kept], alike) for i, kept, alike in numbers]:
        row, kept, alike = max(near, key=lambda pair: pair[2])
        title = f"near duplicates of an earlier row (Jaccard index of {THRESHOLD:g} or more)"
        meaning = "they add little to learn from, and set apart for test they contaminate it"
        places = tuple(row.where for row, _, _ in near)
        both = f"{_cut_question(row)} / {_cut_question(kept)}"
        example = f"{row.where} is {100 * alike:.0f} % {kept.where}: {both}"
        step = "harness data dedup FILE --out OUT"
        beside = tuple(f"{k.where} ({100 * a:.0f} %): {_cut_question(k)}" for _, k, a in near)
        yield Finding("warning", title, meaning, places, example, step, beside=beside)
    if given.encode:
        named = {row.where for row, _, _ in near}
        others = [entry for entry in entries if entry.where not in named]
        yield from _find_by_sense(table, given.encode, others, given.most)


def _find_by_sense(
    table: RowTable, encode: Encode, rows: Sequence[TableEntry], most: int
) -> Iterator[Finding]:
    drawn = sorted(random.Random("sense").sample(range(len(rows)), min(most, len(rows))))
    left = [rows[i] for i in drawn]

    def may_repeat(i: int, j: int) -> bool:
        same_label = not table.labels or left[i].answer == left[j].answer
        return same_label and stand_on_same(left[i].qa, left[j].qa)

    numbers = repeats_by_sense([entry.qa.question for entry in left], encode, may_repeat)
    pairs = [(left[i], left[j], cosine) for i, j, cosine in numbers]
    if pairs:
        row, first, cosine = max(pairs, key=lambda pair: pair[2])
        said = f", of {len(left):,} sampled" if len(left) < len(rows) else ""
        title = f"rows that may repeat an earlier question, by sense (cosine of {EMBEDDINGS:g} or more{said})"
        meaning = "read some: they add little to learn from, and set apart for test they contaminate it"
        places = tuple(row.where for row, _, _ in pairs)
        both = f"{_cut_question(row)} / {_cut_question(first)}"
        example = f"{row.where} and {first.where} ({cosine:.2f}): {both}"
        beside = tuple(f"{e.where} (embeddings {c:.2f}): {_cut_question(e)}" for _, e, c in pairs)
        yield Finding(
            "warning", title, meaning, places, example, DECIDE_BY_SENSE, beside=beside, of=len(left)
        )


def _cut_question(entry: TableEntry) -> str:
    one = excerpt(" ".join(entry.qa.question.split()), 61)
    return repr(one if len(one) <= 60 else f"{one[:59]}…")


def check_conflicting_answers(table: RowTable, given: CheckContext) -> Iterator[Finding]:
    """List the rows whose question has another answer elsewhere.

    False alarms: none where answers are labels; a question with two free texts may have two right ones, so it
    is a note there.
    """
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
    beside = [
        f"{where}, which answers {excerpt(of[where].answer, 40)!r}" if where in of else where
        for where in (table.places(i) for _, i in pairs)
    ]
    there = [of[where] for i in (b, a) if (where := table.places(i)) in of]
    shown = " and ".join(f"{entry.where} answers {excerpt(entry.answer, 40)!r}" for entry in there)
    question = excerpt(" ".join(there[0].question.split()), 60) if there else ""
    places = tuple(table.places(i) for i, _ in pairs)
    all_of_them = "  # all of them; the Data page decides one by one"
    command = f"harness data dedup FILE --conflicts drop --out OUT{all_of_them}"
    if table.files_emptied_by(places):
        command = DECIDE
    severity: Severity = "error" if table.labels else "note"
    title = f"{pluralize(len(groups), 'question')} with different answers"
    meaning = (
        "one of them is wrong, or the question does not hold what decides"
        if table.labels
        else "several answers may be right; a metric that compares with one reference takes others for wrong"
    )
    example = f"{question!r}: {shown}" if there else ""
    step = command if table.labels else ""
    yield Finding(
        severity, title, meaning, places, example, step, beside=tuple(beside), of=len(table.digests)
    )


def check_test_leaks(table: RowTable, given: CheckContext) -> Iterator[Finding]:
    """List training rows that a test row repeats, exactly or in other words, and augmented test rows.

    The exact ones and augmented test rows are those that a comparison would refuse; it would note the others.
    False alarms: of the exact ones none; letter case and spaces aside the two are the same text. Those in
    other words reach thresholds that 5 % of look-alikes of another sense reach too (reports/data_check.md).
    """
    if given.test is None:
        return
    if augmented := tuple(entry.where for entry in given.test.entries if entry.is_augmented):
        title = "augmented rows in the test, which a comparison refuses"
        meaning = "a row made from another one is no evidence of its own, and it may repeat a training row"
        step = "test on the rows without a text in augmented_from, and train on the others"
        n_held = len(given.test.entries)
        yield Finding("error", title, meaning, augmented, augmented[0], step, of=n_held)
    rows = [SourcedExample(entry.example, entry.where) for entry in table.entries]
    items = [SourcedExample(entry.example, entry.where) for entry in given.test.entries]
    exact = find_contaminated_rows(rows, items)
    exact_places = {row.training.where for row in exact}
    left = [entry for entry in table.entries if entry.where not in exact_places]
    found = overlaps(
        list(map(_bare_question, left)),
        list(map(_bare_question, given.test.entries)),
        answers=[entry.answer for entry in left],
        encode=given.encode,
    )
    alike = [(left[o.training].where, given.test.entries[o.evaluated], o) for o in found]
    # Dedup looks at words alone, so what only embeddings find is decided row by row.
    by_sense = [pair for pair in alike if pair[2].measure == "embeddings"]
    in_words = [pair for pair in alike if pair[2].measure != "embeddings"]
    dropped = [*(row.training.where for row in exact), *(where for where, *_ in in_words)]
    emptied = table.files_emptied_by(dropped)
    if emptied:
        # Without these no row is left to train on.
        contaminated = tuple(where for where in dropped if file_of(where) in emptied)
        are = "are" if exact_places.issuperset(contaminated) else "are or may be"
        files = ", ".join(emptied)
        step = f"train without {files}, or test on another file"
        if len(emptied) == len(table.files):
            step = "harness data split FILE --out OUT  # and test on its part, or on another file"
        title = f"all {len(contaminated):,} rows of {files} {are} in the test"
        without = "without these rows none is left to train on"
        meaning = f"the score on test counts what was learned by heart, and {without}"
        severity: Severity = "error" if exact else "warning"
        yield Finding(severity, title, meaning, contaminated, command=step)
    exact = [row for row in exact if file_of(row.training.where) not in emptied]
    in_words = [pair for pair in in_words if file_of(pair[0]) not in emptied]
    against = " ".join(f"--against {as_argument(file)}" for file in given.test.files)
    command = f"harness data dedup FILE {against} --out OUT"
    if exact:
        first = exact[0]
        question = excerpt(" ".join(first.training.example.prompt.split()), 60)
        title = "training rows that a test row repeats"
        meaning = "the score on test counts what was learned by heart"
        places = tuple(row.training.where for row in exact)
        example = f"{first.training.where} has the question of {first.evaluated.where}: {question!r}"
        beside = tuple(f"{row.evaluated.where}, with the same question" for row in exact)
        yield Finding("error", title, meaning, places, example, command, beside=beside)
    if in_words:
        yield _say_alike(in_words, "in other words", command)
    if by_sense:
        decided = f"page, where the target's `test:` is {', '.join(given.test.files)},"
        yield _say_alike(by_sense, "by sense", DECIDE_BY_SENSE.replace("page,", decided))


def _say_alike(pairs: Sequence[tuple[str, TableEntry, Overlap]], how: str, command: str) -> Finding:
    """List training rows by their places, each with the test row that it is like."""
    places = [f"{item.where} ({o.measure} {o.similarity:.2f})" for _, item, o in pairs]
    questions = [excerpt(" ".join(_bare_question(item).split()), 80) for _, item, _ in pairs]
    rows = tuple(where for where, *_ in pairs)
    title = f"training rows whose question may be that of a test row, {how}"
    meaning = (
        "read the closest pairs: a contaminated row counts what was learned by heart, a look-alike does not"
    )
    example = "; ".join(f"{row} and {place}" for row, place in zip(rows[:3], places, strict=False))
    beside = tuple(f"{place}: {asked!r}" for place, asked in zip(places, questions, strict=True))
    return Finding("warning", title, meaning, rows, example, command, beside=beside)


def _bare_question(entry: TableEntry) -> str:
    """Return the question without the context in front of it, which rows may share."""
    alone = entry.qa.question
    return alone if entry.qa.context and entry.question.endswith(alone) else entry.question
