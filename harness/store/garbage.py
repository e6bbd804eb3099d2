"""Disk use of a store and garbage collection: what nothing refers to, and what work in progress still wants.

Invariant: what a run, a champion or a night refers to is never garbage, nor is what a stored run is compared
with, confirmed by or found by way of: a base's rows on the same items, the same weights in another precision,
the trials of a sweep. Whatever ends a process, the name of what it was at stays until that has been finished.

    runs/.begun/<name>      an empty file
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from harness.records import RowsIdentity, Run, is_bare_name, read_object
from harness.store.layout import Store, write_whole
from harness.store.rows import identities


class References(NamedTuple):
    """References to stored files: digests of row sets, keys of weights' folders, digests of weights."""

    rows: frozenset[str] = frozenset()
    fit_keys: frozenset[str] = frozenset()
    weights: frozenset[str] = frozenset()


class Leftover(NamedTuple):
    """A folder or file that nobody refers to, with its bytes."""

    path: Path
    n_bytes: int


def run_references(runs: Iterable[Run]) -> References:
    """Say what runs refer to."""
    known = list(runs)
    behind = {key: digest for run in known for key, digest in weights_behind(run).items()}
    bases = {digest for run in known for digest in (run.weights_digest, run.base_digest, run.served_digest)}
    return References(
        frozenset(digest for run in known for digest in run.rows.values()),
        frozenset(behind),
        frozenset({*behind.values(), *bases} - {""}),
    )


def join_references(parts: Iterable[References]) -> References:
    """Join what several refer to."""
    known = list(parts)
    return References(*(frozenset().union(*of) for of in zip(References(), *known, strict=True)))


def list_unreferenced(store: Store, wanted: References) -> list[Leftover]:
    """List complete rows and weights that nobody refers to."""
    rows = list_wanted_rows(store, wanted)
    return [
        *_leftovers(path for path in _folders(store, "rows") if _is_whole(path) and path.name not in rows),
        *_leftovers(path for path in _folders(store, "weights") if not _is_wanted(path, wanted)),
    ]


def list_unfinished(store: Store) -> list[Leftover]:
    """List blocks of rows and trainings that are not complete, and files that were being written."""
    rows = _folders(store, "rows")
    return _leftovers(
        [
            *(path / "blocks" if _is_whole(path) else path for path in rows),
            *(path for path in _folders(store, "weights") if path.suffix == ".part"),
            store.folder / ".unfinished",
        ]
    )


def list_wanted_rows(store: Store, wanted: References) -> set[str]:
    """Add to the rows that are referred to those that differ in who answered or how it was computed."""
    known = identities(store)
    questions = {_question(one) for one in known if one.digest in wanted.rows}
    weights = wanted.weights | set(points_of(store, wanted.fit_keys))
    beside = {one.digest for one in known if one.weights_digest in weights and _question(one) in questions}
    return beside | wanted.rows


def points_of(store: Store, fit_keys: Iterable[str]) -> Iterator[str]:
    """Yield the digests of the weights that are kept along trainings, by which a pruner ended some."""
    for key in filter(is_bare_name, fit_keys):
        for record in store.weights(key).glob("tracked/*/fit.json"):
            if isinstance(digest := read_object(record).get("digest"), str):
                yield digest


def _question(one: RowsIdentity) -> tuple[str, ...]:
    """Name what was evaluated, and how it is scored."""
    return (one.task, one.task_version, one.split, one.prompting_digest, one.answer, one.scoring_digest)


def _is_wanted(weights: Path, wanted: References) -> bool:
    """Tell whether a folder of weights is referred to; what is unfinished or says of a divergence is."""
    if weights.name in wanted.fit_keys or not (weights / "fit.json").exists() or weights.suffix == ".part":
        return True
    digest = read_object(weights / "fit.json").get("digest")
    return isinstance(digest, str) and digest in wanted.weights


def _is_whole(rows: Path) -> bool:
    return (rows / "rows.parquet").exists()


def _folders(store: Store, kind: str) -> list[Path]:
    return sorted(path for path in (store.folder / kind).glob("*") if path.is_dir())


def _leftovers(paths: Iterable[Path]) -> list[Leftover]:
    return [Leftover(path, size(path)) for path in paths if path.exists()]


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
    return DiskUse(**named, others=others, freed=_count_freed_bytes(runs, rows, weights))


def size(path: Path) -> int:
    """Sum the bytes of a file, or of the files in a folder; 0 where there is none."""
    files = [path] if path.is_file() else path.rglob("*")
    return sum(found.stat().st_size for found in files if found.is_file())


def weights_behind(run: Run) -> dict[str, str]:
    """Map the keys of the weights that a run is found by way of to their digests, its own among them.

    Others are those that its training began with, and the trials of its sweep.
    """
    own = {run.training.fit_key: run.weights_digest} if run.training.fit_key else {}
    return run.training.stands_on | own


def find_own_fit_key(run: Run, fit_keys: Counter[str], weights: Counter[str]) -> str | None:
    """Return the key of a run's weights where no other run needs them; the counts are those of all runs."""
    fit_key = run.training.fit_key
    return fit_key if fit_key and fit_keys[fit_key] == 1 and weights[run.weights_digest] == 1 else None


def count_needed_keys(runs: Iterable[Run]) -> Counter[str]:
    """Count by how many runs each key of weights is needed."""
    return Counter(key for run in runs for key in weights_behind(run))


def _count_freed_bytes(runs: Sequence[Run], rows: dict[str, int], weights: dict[str, int]) -> dict[str, int]:
    users = Counter(digest for run in runs for digest in set(run.rows.values()))
    fit_keys, of_weights = count_needed_keys(runs), Counter(run.weights_digest for run in runs)
    return {
        run.run_id: sum(rows.get(digest, 0) for digest in set(run.rows.values()) if users[digest] == 1)
        + weights.get(find_own_fit_key(run, fit_keys, of_weights) or "", 0)
        for run in runs
    }


def begin(store: Store, name: str) -> None:
    """Note that something has begun.

    Raises:
        UserError: the name cannot name a file.
        HarnessError: the disk is full.
    """
    write_whole(store, store.place(".begun", name), "")


def end(store: Store, name: str) -> None:
    """Note that something is finished, or given up."""
    store.place(".begun", name).unlink(missing_ok=True)


def list_begun(store: Store) -> list[str]:
    """List what has begun and not finished."""
    return sorted(path.name for path in (store.folder / ".begun").glob("*"))
