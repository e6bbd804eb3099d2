"""Folds of a row set that several models answered, one a fold: which of them answered each item.

Invariant: what reads rows for a comparison reads the folds with them, so no interval forgets that the items
of a fold were answered by one model.

    runs/rows/<digest>/folds.json    the fold of each item by its id, from 1
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from harness.records import SampleResult, load
from harness.store.layout import Store, failure, write_whole


def keep_folds(store: Store, rows_digest: str, folds: Mapping[str, int]) -> None:
    """Note which fold's model answered each item of a row set, before its rows are written."""
    write_whole(store, _file(store, rows_digest), json.dumps(dict(folds), sort_keys=True) + "\n")


def read_folds(store: Store, rows_digest: str) -> dict[str, int] | None:
    """Read which fold's model answered each item; None where one model answered all, or nothing is noted.

    Raises:
        HarnessError: what was noted cannot be read.
    """
    path = _file(store, rows_digest)
    if not path.exists():
        return None
    try:
        return load(dict[str, int], path.read_bytes())
    except (OSError, ValueError) as error:
        step = f"remove {path}, then harness compare, which writes it again"
        cause = str(error).splitlines()[0]
        raise failure(str(path), f"damaged ({cause})", "the fold of each item", step) from None


def attach_folds(store: Store, rows_digest: str, rows: list[SampleResult]) -> list[SampleResult]:
    """Return the rows of a set with their folds, where it has some.

    Raises:
        HarnessError: what was noted of them cannot be read.
    """
    folds = read_folds(store, rows_digest)
    return [replace(row, fold=folds[row.example_id]) for row in rows] if folds else rows


def _file(store: Store, rows_digest: str) -> Path:
    return store.rows(rows_digest) / "folds.json"
