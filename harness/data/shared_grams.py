"""Shared n-grams of words: which item's n-grams a row has the largest share of.

Invariant: n-grams of more than `MOST` items are boilerplate and do not count; nor, where that is requested,
those of more than `MOST` different rows, so that few items need not tell what is boilerplate.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness.data.boilerplate import MOST, n_grams

_BLOCK = 2_000  # rows


class Share(NamedTuple):
    """The places of a row and of an item, and the share of the item's n-grams that the row has, in [0, 1]."""

    row: int
    item: int
    share: float


def largest_shares(
    rows: Sequence[str], items: Sequence[str], *, n: int, least: float, rare_in_rows: bool = False
) -> list[Share]:
    """Find for each row the item of whose n-grams it has the largest share, where that is `least` or more.

    Both are folded words, single spaces between them.
    With `rare_in_rows` only n-grams that few different rows have count.
    """
    grams, owners = _join_grams([_distinct(words, n) for words in items])
    known, place, count = np.unique(grams, return_inverse=True, return_counts=True)
    telling = (count <= MOST)[place]
    if rare_in_rows:
        telling &= (_counts(rows, known, n) <= MOST)[place]
    order = np.argsort(grams[telling], kind="stable")
    grams, owners = grams[telling][order], owners[telling][order]
    of_item = np.bincount(owners, minlength=len(items))
    found: list[Share] = []
    for start in range(0, len(rows) if len(grams) else 0, _BLOCK):
        block = [_distinct(words, n) for words in rows[start : start + _BLOCK]]
        found += [
            share._replace(row=start + share.row)
            for share in _best(*_join_grams(block), grams, owners, of_item)
            if share.share >= least
        ]
    return found


def _counts(texts: Sequence[str], known: NDArray[np.uint64], n: int) -> NDArray[np.int64]:
    """Count for each of the sorted n-grams in how many different texts it stands."""
    counts = np.zeros(len(known), dtype=np.int64)
    different = list(dict.fromkeys(texts)) if len(known) else []
    for start in range(0, len(different), _BLOCK):
        grams, _ = _join_grams([np.unique(n_grams(words, n)) for words in different[start : start + _BLOCK]])
        at = np.minimum(np.searchsorted(known, grams), len(known) - 1)
        counts += np.bincount(at[known[at] == grams], minlength=len(known))
    return counts


def _best(
    queries: NDArray[np.uint64],
    rows: NDArray[np.int64],
    grams: NDArray[np.uint64],
    owners: NDArray[np.int64],
    of_item: NDArray[np.int64],
) -> list[Share]:
    """Give for each row of a block the item with the largest share of its n-grams in the row."""
    order = np.argsort(queries)
    queries, rows = queries[order], rows[order]
    first, last = np.searchsorted(grams, queries, "left"), np.searchsorted(grams, queries, "right")
    n_hits = last - first
    hit_rows = np.repeat(rows, n_hits)
    within = np.arange(len(hit_rows)) - np.repeat(n_hits.cumsum() - n_hits, n_hits)
    items = owners[np.repeat(first, n_hits) + within]
    pairs, shared = np.unique(hit_rows * len(of_item) + items, return_counts=True)
    best: dict[int, Share] = {}
    for pair, n in zip(pairs.tolist(), shared.tolist(), strict=True):
        row, item = divmod(pair, len(of_item))
        share = n / int(of_item[item])
        if row not in best or share > best[row].share:
            best[row] = Share(row, item, share)
    return list(best.values())


def _join_grams(grams: Sequence[NDArray[np.uint64]]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Put the n-grams of several texts into one array, and the place of the text of each into another."""
    together = np.concatenate([np.zeros(0, dtype=np.uint64), *grams])
    return together, np.repeat(np.arange(len(grams)), [len(of_one) for of_one in grams]).astype(np.int64)


def _distinct(words: str, n: int) -> NDArray[np.uint64]:
    return np.unique(n_grams(words, n))
