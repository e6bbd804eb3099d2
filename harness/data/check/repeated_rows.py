"""Repeated rows: exact duplicates, letter case and white space aside, near ones by MinHash or embeddings.

Invariant: exact duplicates are counted among all rows, near ones among those whose texts are held, and a near
duplicate is no exact one.

False alarms: 64 bits of a digest stand for a text, so two unlike rows of 10 million are taken for one with a
chance below 1 in 100,000. Near duplicates are alike by their exact Jaccard index, which clean rows may be:
those made from patterns are, and reports/data_check.md counts how often they ask the same. Those by sense
reach the threshold of contamination by sense, which 5 % of look-alikes of another sense reach.
"""

import random
from collections.abc import Iterator, Sequence

import numpy as np

from harness.data.check import DECIDE_BY_SENSE, CheckContext, Finding
from harness.data.check._table import RowTable, TableEntry
from harness.data.check.personal_data import excerpt
from harness.data.edit.dedup import NormalizedRow, fold_row, near_repeats, stand_on_same
from harness.data.near_duplicates import THRESHOLD
from harness.data.overlap import EMBEDDINGS, Encode, repeats_by_sense


def check(table: RowTable, given: CheckContext) -> Iterator[Finding]:
    """List rows that repeat an earlier one, exactly and nearly."""
    _, first, inverse = np.unique(table.digests, axis=0, return_index=True, return_inverse=True)
    again = np.flatnonzero(first[inverse.ravel()] != np.arange(len(table.digests)))
    if len(again):
        earlier = table.places(int(first[inverse.ravel()[again[0]]]))
        yield Finding(
            "warning",
            "exact duplicates of an earlier row",
            "repeated rows count twice in training, and set apart for test they contaminate it",
            len(table.digests),
            tuple(table.places(int(i)) for i in again),
            f"{table.places(int(again[0]))} repeats {earlier}",
            "harness data dedup FILE --out OUT",
            beside=tuple(table.places(int(first[inverse.ravel()[i]])) for i in again),
        )
    unlike = _unlike(table)
    near = list(_report_near_duplicates(table, unlike))
    yield from near
    if given.encode:
        named = {where for finding in near for where in finding.rows}
        yield from _find_by_sense(
            table, given.encode, [e for e in unlike if e.where not in named], given.most
        )


def _unlike(table: RowTable) -> list[TableEntry]:
    """Return the rows without exact duplicates."""
    once: dict[NormalizedRow, TableEntry] = {}
    for entry in table.entries:
        once.setdefault(fold_row(entry.qa), entry)
    return list(once.values())


def _report_near_duplicates(table: RowTable, unlike: Sequence[TableEntry]) -> Iterator[Finding]:
    """List rows that repeat an earlier one in almost the same words, as `data dedup` drops them."""
    pairs = sorted(
        (i, group.kept, alike)
        for group in near_repeats([entry.qa for entry in unlike])
        for i, alike in group.others
    )
    if pairs:
        i, kept, alike = max(pairs, key=lambda pair: pair[2])
        row, earlier = unlike[i], unlike[kept]
        yield Finding(
            "warning",
            f"near duplicates of an earlier row (Jaccard index of {THRESHOLD:g} or more)",
            "they add little to learn from, and set apart for test they contaminate it",
            len(table.entries),
            tuple(unlike[i].where for i, _, _ in pairs),
            f"{row.where} is {100 * alike:.0f} % {earlier.where}: {_cut(row)} / {_cut(earlier)}",
            "harness data dedup FILE --out OUT",
            beside=tuple(f"{unlike[k].where} ({100 * a:.0f} %): {_cut(unlike[k])}" for _, k, a in pairs),
        )


def _find_by_sense(
    table: RowTable, encode: Encode, rows: Sequence[TableEntry], most: int
) -> Iterator[Finding]:
    """List rows that repeat an earlier question in other words, among at most so many drawn rows."""
    drawn = sorted(random.Random("sense").sample(range(len(rows)), min(most, len(rows))))
    left = [rows[i] for i in drawn]
    questions = [entry.qa.question for entry in left]
    pairs = list(repeats_by_sense(questions, encode, lambda i, j: _same(left[i], left[j], table)))
    if pairs:
        i, j, cosine = max(pairs, key=lambda pair: pair[2])
        said = f", of {len(left):,} sampled" if len(left) < len(rows) else ""
        yield Finding(
            "warning",
            f"rows that may repeat an earlier question, by sense (cosine of {EMBEDDINGS:g} or more{said})",
            "read some: they add little to learn from, and set apart for test they contaminate it",
            len(left),
            tuple(left[i].where for i, _, _ in pairs),
            f"{left[i].where} and {left[j].where} ({cosine:.2f}): {_cut(left[i])} / {_cut(left[j])}",
            DECIDE_BY_SENSE,
            beside=tuple(f"{left[k].where} (embeddings {c:.2f}): {_cut(left[k])}" for _, k, c in pairs),
        )


def _same(row: TableEntry, earlier: TableEntry, table: RowTable) -> bool:
    same_label = not table.labels or row.answer == earlier.answer
    return same_label and stand_on_same(row.qa, earlier.qa)


def _cut(entry: TableEntry) -> str:
    one = excerpt(" ".join(entry.qa.question.split()), 61)
    return repr(one if len(one) <= 60 else f"{one[:59]}…")
