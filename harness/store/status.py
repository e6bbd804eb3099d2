"""Progress of the comparison, night or rescue that holds a store, for dashboards.

Invariant: the note is about the process that holds the store: taking the store deletes an older note. A note
that cannot be written stops no work.
"""

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Self

from harness.progress import Advance, Progress
from harness.records import read_object
from harness.store.layout import Store

_EVERY_S = 1.0


class StoredProgress:
    """Passes progress on, and notes it in the store at most once a second; the note is deleted on exit.

    `what` names the running work as the start of a sentence, on `candidates`; other finished work, such as
    the measurement of a base, is not counted.
    """

    def __init__(self, inner: Progress, store: Store, what: str, candidates: Iterable[str]) -> None:
        self._inner, self._file = inner, store.progress
        self._noted, self._candidates = 0.0, set(candidates)
        self._state: dict[str, Any] = {"what": what, "candidates": len(self._candidates), "finished": []}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._file.unlink(missing_ok=True)

    @contextmanager
    def stage(self, label: str, expected_s: float = 0.0) -> Iterator[Advance]:
        """Open a stage and note it, then its progress."""
        self._note({"stage": label, "share": 0.0}, at_once=True)
        with self._inner.stage(label, expected_s) as advance:

            def both(done: float, total: float, note: str = "") -> None:
                self._note({"share": done / total if total else 0.0})
                advance(done, total, note)

            yield both

    def show(self, candidate: str, line: str, *items: str) -> None:
        """Pass on a result of a candidate that is not done yet."""
        self._inner.show(candidate, line, *items)

    def finish(self, candidate: str, line: str, *items: str) -> None:
        """Note that a candidate is done or has failed."""
        if candidate in self._candidates:
            finished = dict.fromkeys([*self._state["finished"], candidate])  # interim analyses repeat them
            self._note({"finished": list(finished)}, at_once=True)
        self._inner.finish(candidate, line, *items)

    def _note(self, changes: Mapping[str, Any], *, at_once: bool = False) -> None:
        self._state |= changes
        if at_once or time.monotonic() - self._noted > _EVERY_S:
            self._noted = time.monotonic()
            part = self._file.with_suffix(".part")
            with suppress(OSError):
                part.write_text(json.dumps(self._state, ensure_ascii=False), encoding="utf-8")
                part.replace(self._file)


def current_activity(store: Store) -> dict[str, Any] | None:
    """Return the last note of the running work: `what`, `stage`, its `share`, `candidates`, `finished`.

    Empty if nothing is noted yet, None if nothing is running.
    """
    from filelock import FileLock, Timeout

    if not (store.folder / "compare.lock").exists():
        return None
    try:
        FileLock(store.folder / "compare.lock").acquire(timeout=0).lock.release()
    except Timeout:
        return read_object(store.progress)
    except OSError:  # a folder that may only be read
        return None
    return None
