"""What a store takes on the disk, and what removing each run would free.

Invariant: what two runs share is freed by neither.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from harness.records import Run
from harness.store.layout import Store, is_bare_name


class DiskUse(NamedTuple):
    """Bytes on the disk; `freed` says by run what removing it would free, but for its few kB of JSON.

    `unfinished` are blocks of rows and checkpoints of trainings that are not complete yet, `control`
    and `nightly` what the control arm and nights answered, `others` everything else: the files of
    runs, ratings, measurements of noise, smoke runs.
    """

    rows: int
    weights: int
    unfinished: int
    index_file: int
    control: int
    nightly: int
    others: int
    freed: dict[str, int]

    @property
    def total(self) -> int:
        """All of it."""
        return sum(self[:-1])


def disk_use(store: Store, runs: Sequence[Run]) -> DiskUse:
    """Measure the files of a store, and which of them each of its runs alone refers to."""
    rows = {path.name: size(path) for path in (store.folder / "rows").glob("*")}
    whole = {name for name in rows if store.parquet(name).exists()}
    weights = {path.name: size(path) for path in (store.folder / "weights").glob("*")}
    parts = sum(n for name, n in weights.items() if name.endswith(".part"))
    blocks = sum(n for name, n in rows.items() if name not in whole)
    named = {
        "rows": sum(rows.values()) - blocks,
        "weights": sum(weights.values()) - parts,
        "unfinished": parts + blocks + size(store.folder / ".unfinished"),
        "index_file": size(store.index),
        "control": size(store.folder / "control"),
        "nightly": size(store.folder / "nightly"),
    }
    others = size(store.folder) - sum(named.values())
    return DiskUse(**named, others=others, freed=_freed(runs, rows, weights))


def size(path: Path) -> int:
    """Sum the bytes of a file, or of the files in a folder; 0 where there is none."""
    files = [path] if path.is_file() else path.rglob("*")
    return sum(found.stat().st_size for found in files if found.is_file())


def weights_behind(run: Run) -> dict[str, str]:
    """Map the keys of the weights that a run is found by way of to their digests, its own among them.

    Others are those that its training began with, and the trials of its sweep.
    """
    behind = dict(run.training.get("stands_on", {}))
    fit_key = run.training.get("fit_key")
    return behind | ({fit_key: run.weights_digest} if isinstance(fit_key, str) else {})


def own_fit_key(run: Run, fit_keys: Counter[str], weights: Counter[str]) -> str | None:
    """Return the key of a run's weights where no other run needs them; the counts are those of all runs."""
    fit_key = run.training.get("fit_key")
    if not isinstance(fit_key, str) or not is_bare_name(fit_key):
        return None
    return fit_key if fit_keys[fit_key] == 1 and weights[run.weights_digest] == 1 else None


def needed_keys(runs: Iterable[Run]) -> Counter[str]:
    """Count by how many runs each key of weights is needed."""
    return Counter(key for run in runs for key in weights_behind(run))


def _freed(runs: Sequence[Run], rows: dict[str, int], weights: dict[str, int]) -> dict[str, int]:
    users = Counter(digest for run in runs for digest in set(run.rows.values()))
    fit_keys, of_weights = needed_keys(runs), Counter(run.weights_digest for run in runs)
    return {
        run.run_id: sum(rows.get(digest, 0) for digest in set(run.rows.values()) if users[digest] == 1)
        + weights.get(own_fit_key(run, fit_keys, of_weights) or "", 0)
        for run in runs
    }
