"""What people preferred: one small file a rating, and a table of them in the index.

Invariant: a rating's file is whole and written before the index hears of it, so the next writer brings
along one that missed it. Later ratings of one rater, pair and item count instead of earlier ones; all
are kept.
"""

import json
import threading
from dataclasses import asdict

from harness.records import Rating
from harness.store import index
from harness.store.layout import Store, is_bare_name, write_whole
from harness.store.rebuild import writing

_SAVING = threading.Lock()  # the raters of one dashboard queue here, before the lock of all processes


def save_rating(store: Store, rating: Rating) -> None:
    """Write a rating and bring it into the index, with those that missed it.

    Where there is no index none is made: whoever asks for it next builds it of all that is stored.

    Raises:
        ValueError: its id cannot name a file.
        HarnessError: the disk is full, or the index stays locked; a rating that was written is brought
            in by the next rating or run.
    """
    if not is_bare_name(rating.rating_id):
        raise ValueError(f"{rating.rating_id!r} cannot name the file of a rating")
    with _SAVING:
        text = json.dumps(asdict(rating), ensure_ascii=False, allow_nan=False) + "\n"
        write_whole(store, index.ratings_folder(store) / f"{rating.rating_id}.json", text)
        if store.index.exists():
            with writing(store) as db:
                index.add_ratings(db, store)


def list_ratings(store: Store, task: str | None = None) -> list[Rating]:
    """List the ratings, oldest first; those of one task where it is given. Waits for nobody who writes."""
    found, _ = index.ratings_on_disk(store)
    of_task = (rating for rating in found if task in (None, rating.task))
    return sorted(of_task, key=lambda rating: (rating.created, rating.rating_id))
