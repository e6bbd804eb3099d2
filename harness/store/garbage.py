"""What lies in a store and is referred to by nobody: rows and weights of changed recipes, lost trials.

Invariant: what a run, a champion or a night refers to is never among it, nor is what a stored run is
compared with, confirmed by or found by way of: a base's rows on the same items, the same weights in
another precision, the trials of a sweep.
"""

import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from harness.records import RowsIdentity, Run
from harness.store.disk_use import size, weights_behind
from harness.store.layout import Store, remove_folder
from harness.store.rows import identities


class Referred(NamedTuple):
    """What is referred to: digests of row sets, keys of weights' folders, digests of weights."""

    rows: frozenset[str] = frozenset()
    fit_keys: frozenset[str] = frozenset()
    weights: frozenset[str] = frozenset()


class Leftover(NamedTuple):
    """A folder or file that nobody refers to, with its bytes."""

    path: Path
    n_bytes: int


def referred(runs: Iterable[Run]) -> Referred:
    """Say what runs refer to."""
    known = list(runs)
    behind = {key: digest for run in known for key, digest in weights_behind(run).items()}
    bases = {digest for run in known for digest in (run.weights_digest, run.base_digest, run.served_digest)}
    return Referred(
        frozenset(digest for run in known for digest in run.rows.values()),
        frozenset(behind),
        frozenset({*behind.values(), *bases} - {""}),
    )


def joined(parts: Iterable[Referred]) -> Referred:
    """Join what several refer to."""
    known = list(parts)
    return Referred(*(frozenset().union(*of) for of in zip(Referred(), *known, strict=True)))


def unused(store: Store, wanted: Referred) -> list[Leftover]:
    """List complete rows and weights that nobody refers to."""
    rows = _wanted_rows(store, wanted)
    return [
        *_sized(path for path in _folders(store, "rows") if _is_whole(path) and path.name not in rows),
        *_sized(path for path in _folders(store, "weights") if not _is_wanted(path, wanted)),
    ]


def unfinished(store: Store) -> list[Leftover]:
    """List blocks of rows and trainings that are not complete, and files that were being written."""
    rows = _folders(store, "rows")
    return _sized(
        [
            *(path / "blocks" if _is_whole(path) else path for path in rows),
            *(path for path in _folders(store, "weights") if path.suffix == ".part"),
            store.folder / ".unfinished",
        ]
    )


def remove(leftovers: Iterable[Leftover]) -> None:
    """Delete what is left over."""
    for left in leftovers:
        remove_folder(left.path)


def _wanted_rows(store: Store, wanted: Referred) -> set[str]:
    """Add to the rows that are referred to those that differ in who answered or how it was computed."""
    known = identities(store)
    asked = {_asked(one) for one in known if one.digest in wanted.rows}
    beside = {one.digest for one in known if one.weights_digest in wanted.weights and _asked(one) in asked}
    return beside | wanted.rows


def _asked(one: RowsIdentity) -> tuple[str, ...]:
    """Name what was asked, and how it is scored."""
    return (one.task, one.task_version, one.split, one.prompting_digest, one.answer, one.scoring_digest)


def _is_wanted(weights: Path, wanted: Referred) -> bool:
    """Tell whether a folder of weights is referred to; what is unfinished or says of a divergence is."""
    if weights.name in wanted.fit_keys or not (weights / "fit.json").exists() or weights.suffix == ".part":
        return True
    with suppress(OSError, ValueError, KeyError):
        return json.loads((weights / "fit.json").read_text("utf-8"))["digest"] in wanted.weights
    return False


def _is_whole(rows: Path) -> bool:
    return (rows / "rows.parquet").exists()


def _folders(store: Store, kind: str) -> list[Path]:
    return sorted(path for path in (store.folder / kind).glob("*") if path.is_dir())


def _sized(paths: Iterable[Path]) -> list[Leftover]:
    return [Leftover(path, size(path)) for path in paths if path.exists()]
