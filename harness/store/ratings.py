"""What people preferred: one small file a rating, and a table of them in the index.

Invariant: a rating's file is whole and written before the index hears of it, so `reindex` finds it
again. Later ratings of one rater, pair and item count instead of earlier ones; all are kept.
"""

import json
import threading
from collections.abc import Iterator
from dataclasses import asdict, fields
from typing import TYPE_CHECKING

from harness.records import Rating
from harness.store import index
from harness.store.folders import Store, is_bare_name, write_whole
from harness.store.runs import reindex

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

_SAVING = threading.Lock()  # the raters of one dashboard queue here, before the lock of all processes


def save_rating(store: Store, rating: Rating) -> None:
    """Write a rating and bring it into the index.

    Raises:
        ValueError: its id cannot name a file.
        HarnessError: the disk is full, or the index stays locked; a rating that was written is found
            by the next `reindex`.
    """
    if not is_bare_name(rating.rating_id):
        raise ValueError(f"{rating.rating_id!r} cannot name the file of a rating")
    with _SAVING:
        text = json.dumps(asdict(rating), ensure_ascii=False, allow_nan=False) + "\n"
        write_whole(store, index.ratings_folder(store) / f"{rating.rating_id}.json", text)
        if not store.index.exists():
            reindex(store)
            return
        with index.writing(store) as db:
            index.add_ratings(db, [rating])


def list_ratings(store: Store, task: str | None = None) -> list[Rating]:
    """List the ratings, oldest first; those of one task where it is given."""
    if not store.index.exists():
        if not any(index.ratings_folder(store).glob("*.json")):
            return []
        reindex(store)
    with index.reading(store) as db:
        return list(_rows(db, task))


def _rows(db: "DuckDBPyConnection", task: str | None) -> Iterator[Rating]:
    names = ", ".join("left_side" if field.name == "left" else field.name for field in fields(Rating))
    query = f"SELECT {names} FROM ratings WHERE task = coalesce(?, task) ORDER BY created, rating_id"
    for values in db.execute(query, [task]).fetchall():
        yield Rating(*values)
