"""Payments for rows: what a model was paid for a file's, and the share of it that other files stand for.

Invariant: a payment is named by the rows that it was made for, so that it counts once, however many files
came of these rows.
"""

from collections.abc import Iterable
from typing import NamedTuple


class Payment(NamedTuple):
    """Payment for the rows of a file, by its sha256; `share` in [0, 1] is the part of it that counts."""

    rows: str
    cost_usd: float
    share: float = 1.0


def take_share(payments: Iterable[Payment], share: float) -> tuple[Payment, ...]:
    """Return the payments for so large a share of what they stand for; none where nothing is left."""
    held = min(max(share, 0.0), 1.0)
    return tuple(one._replace(share=one.share * held) for one in payments if held)


def join_payments(payments: Iterable[Payment]) -> tuple[Payment, ...]:
    """Join payments for the same rows, of which no more counts than the whole."""
    found: dict[str, Payment] = {}
    for one in payments:
        known = found.get(one.rows)
        share = min(1.0, one.share + (known.share if known else 0.0))
        found[one.rows] = one._replace(share=share)
    return tuple(found.values())


def total_usd(payments: Iterable[Payment]) -> float:
    """Add up payments in USD, those for the same rows once."""
    return sum(one.cost_usd * one.share for one in join_payments(payments))
