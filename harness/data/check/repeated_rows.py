"""Repeated rows: exact duplicates, letter case and white space aside, and near duplicates by MinHash.

Invariant: exact duplicates are counted among all rows, near ones among those whose texts are held, and a near
duplicate is no exact one.

False alarms: 64 bits of a digest stand for a text, so two unlike rows of 10 million are taken for one with a
chance below 1 in 100,000. Near duplicates are alike by their exact Jaccard index, which clean rows may be:
those made from patterns are, and reports/data_check.md counts how often they ask the same.
"""

from collections.abc import Iterator

import numpy as np

from harness.data.check import Finding, Given
from harness.data.check._table import Entry, Table
from harness.data.check.personal_data import excerpt
from harness.data.contamination import fold_text
from harness.data.near_duplicates import THRESHOLD, near_duplicates


def check(table: Table, given: Given) -> Iterator[Finding]:
    """List rows that repeat an earlier one, exactly and nearly."""
    _, first, inverse = np.unique(table.digests, axis=0, return_index=True, return_inverse=True)
    again = np.flatnonzero(first[inverse.ravel()] != np.arange(len(table.digests)))
    if len(again):
        earlier = table.places(int(first[inverse.ravel()[again[0]]]))
        yield Finding(
            "repeated_rows",
            "warning",
            "exact duplicates of an earlier row",
            "repeated rows count twice in training, and set apart for test they are leaks",
            len(again),
            len(table.digests),
            tuple(table.places(int(i)) for i in again),
            f"{table.places(int(again[0]))} repeats {earlier}",
            "harness data dedup FILE --out OUT",
            beside=tuple(table.places(int(first[inverse.ravel()[i]])) for i in again),
        )
    yield from _near(table)


def _near(table: Table) -> Iterator[Finding]:
    """List rows that repeat an earlier question in almost the same words: of one context, with one label."""
    once: dict[str, Entry] = {}
    for entry in table.entries:
        once.setdefault(fold_text("\n".join((entry.question, *sorted(entry.example.references)))), entry)
    unlike = list(once.values())
    pairs = sorted(
        (i, group.kept, alike)
        for group in near_duplicates(
            [_strip_context(entry) for entry in unlike], same=lambda i, j: _same(unlike[i], unlike[j], table)
        )
        for i, alike in group.others
    )
    if pairs:
        i, kept, alike = max(pairs, key=lambda pair: pair[2])
        row, earlier = unlike[i], unlike[kept]
        yield Finding(
            "repeated_rows",
            "warning",
            f"near duplicates of an earlier row (Jaccard index of {THRESHOLD:g} or more)",
            "they add little to learn from, and set apart for test they are leaks",
            len(pairs),
            len(table.entries),
            tuple(unlike[i].where for i, _, _ in pairs),
            f"{row.where} is {100 * alike:.0f} % {earlier.where}: {_cut(row)} / {_cut(earlier)}",
            "harness data dedup FILE --out OUT",
            beside=tuple(f"{unlike[k].where} ({100 * a:.0f} %): {_cut(unlike[k])}" for _, k, a in pairs),
        )


def _strip_context(entry: Entry) -> str:
    """Return the question without its context, which many questions share."""
    return entry.question.rpartition("\n\n")[2] if entry.context else entry.question


def _same(row: Entry, earlier: Entry, table: Table) -> bool:
    return row.context == earlier.context and (not table.labels or row.answer == earlier.answer)


def _cut(entry: Entry) -> str:
    one = excerpt(" ".join(_strip_context(entry).split()), 61)
    return repr(one if len(one) <= 60 else f"{one[:59]}…")
