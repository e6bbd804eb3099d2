"""What people preferred: one small file a rating, and a table of them in the index.

Invariant: a rating's file is whole and written before the index hears of it, which catches up later where
somebody holds it. Later ratings of one rater, pair and item count instead of earlier ones; all
are kept.
"""

import json
import threading
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from harness.records import Rating
from harness.store import index
from harness.store.layout import Store, is_bare_name, write_whole

_SAVING = threading.Lock()  # the raters of one dashboard queue here, before the lock of all processes


def save_rating(store: Store, rating: Rating) -> None:
    """Write a rating and let the index hear of it, unless somebody holds that open.

    Where there is no index none is made: whoever asks for it next builds it of all that is stored.

    Raises:
        ValueError: its id cannot name a file.
        HarnessError: the disk is full.
    """
    if not is_bare_name(rating.rating_id):
        raise ValueError(f"{rating.rating_id!r} cannot name the file of a rating")
    with _SAVING:
        text = json.dumps(asdict(rating), ensure_ascii=False, allow_nan=False) + "\n"
        write_whole(store, _folder(store) / f"{rating.rating_id}.json", text)
        if store.index.exists():
            index.update(store)


def list_ratings(store: Store, task: str | None = None) -> list[Rating]:
    """List the ratings, oldest first; those of one task where it is given. Waits for nobody who writes."""
    found = []
    for path in sorted(_folder(store).glob("*.json")):
        with suppress(OSError, ValueError, TypeError):
            found.append(Rating(**json.loads(path.read_text("utf-8"))))
    of_task = (rating for rating in found if task in (None, rating.task))
    return sorted(of_task, key=lambda rating: (rating.created, rating.rating_id))


def _folder(store: Store) -> Path:
    return store.folder / "ratings"
