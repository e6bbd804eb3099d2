"""What a store takes on the disk, and what removing each run would free.

Invariant: what two runs share is freed by neither.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from harness.records import Run
from harness.store.folders import Store, is_bare_name


class DiskUse(NamedTuple):
    """Bytes on the disk; `freed` says by run what removing it would free, but for its few kB of JSON.

    `unfinished` are blocks of rows and checkpoints of trainings that are not complete yet.
    """

    rows: int
    weights: int
    unfinished: int
    index_file: int
    freed: dict[str, int]

    @property
    def total(self) -> int:
        """All of it."""
        return self.rows + self.weights + self.unfinished + self.index_file


def disk_use(store: Store, runs: Sequence[Run]) -> DiskUse:
    """Measure the files of a store, and which of them each of its runs alone refers to."""
    rows = {path.name: size(path) for path in (store.folder / "rows").glob("*")}
    whole = {name for name in rows if store.parquet(name).exists()}
    weights = {path.name: size(path) for path in (store.folder / "weights").glob("*")}
    parts = sum(n for name, n in weights.items() if name.endswith(".part"))
    blocks = sum(n for name, n in rows.items() if name not in whole)
    return DiskUse(
        rows=sum(rows.values()) - blocks,
        weights=sum(weights.values()) - parts,
        unfinished=parts + blocks + size(store.folder / ".unfinished"),
        index_file=size(store.index),
        freed=_freed(runs, rows, weights),
    )


def size(path: Path) -> int:
    """Sum the bytes of a file, or of the files in a folder; 0 where there is none."""
    files = [path] if path.is_file() else path.rglob("*")
    return sum(found.stat().st_size for found in files if found.is_file())


def own_fit_key(run: Run, fit_keys: Counter[object], weights: Counter[str]) -> str | None:
    """Return the key of a run's weights where no other run uses them; the counts are of all runs."""
    fit_key = run.training.get("fit_key")
    if not isinstance(fit_key, str) or not is_bare_name(fit_key):
        return None
    return fit_key if fit_keys[fit_key] == 1 and weights[run.weights_digest] == 1 else None


def _freed(runs: Sequence[Run], rows: dict[str, int], weights: dict[str, int]) -> dict[str, int]:
    users = Counter(digest for run in runs for digest in set(run.rows.values()))
    fit_keys = Counter(run.training.get("fit_key") for run in runs)
    of_weights = Counter(run.weights_digest for run in runs)
    return {
        run.run_id: sum(rows.get(digest, 0) for digest in set(run.rows.values()) if users[digest] == 1)
        + weights.get(own_fit_key(run, fit_keys, of_weights) or "", 0)
        for run in runs
    }
