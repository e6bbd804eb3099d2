"""Additions to a row set: sampled answers to its items, and the folds whose models answered.

Invariant: rows for a comparison are read with their folds, so every interval takes into account that one
model answered all items of a fold.

    runs/rows/<digest>/samples/00000.jsonl   the sampled answers to the items of a block
    runs/rows/<digest>/folds.json            the fold of each item by its id, from 1, with several models
"""

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path

from harness.records import Sample, SampleResult, canonical_json, load, parse_json
from harness.store.layout import (
    AGAIN,
    Store,
    clear_errors,
    failure,
    read_lines,
    rename_when_whole,
    write_whole,
)
from harness.store.rows.checksums import file_version, is_as_written, note_checksum


def write_drawn(store: Store, rows_digest: str, index: int, rows: Iterable[SampleResult]) -> None:
    """Write the sampled answers to the items of a block, if there are any."""
    drawn = ((row.example_id, sample) for row in rows for sample in row.samples)
    lines = "".join(canonical_json({"example_id": item, **asdict(sample)}) + "\n" for item, sample in drawn)
    if not lines:
        return
    path = _folder(store, rows_digest) / f"{index:05d}.jsonl"

    def write(part: Path) -> None:
        part.write_text(lines, "utf-8", newline="\n")
        note_checksum(store, path, part)

    with clear_errors(store, str(path), AGAIN):
        rename_when_whole(store, path, write)


def read_drawn(store: Store, rows_digest: str) -> dict[str, tuple[Sample, ...]]:
    """Read the sampled answers of a row set, by item; damaged files are left out.

    Empty for a set that was answered greedily.
    """
    samples_by_item: dict[str, list[Sample]] = {}
    for path in _files(store, rows_digest):
        with suppress(OSError, ValueError, TypeError):
            for line in read_lines(path) if is_as_written(path) else ():
                values = parse_json(line)
                parts = {k: None if v is None else tuple(v) for k, v in values.pop("parts").items()}
                samples_by_item.setdefault(values.pop("example_id"), []).append(Sample(parts=parts, **values))
    return {item: tuple(samples) for item, samples in samples_by_item.items()}


def read_drawn_items(store: Store, rows_digest: str) -> set[str]:
    """Read which items of a row set have sampled answers; a file is parsed once until it changes."""
    items: set[str] = set()
    for path in _files(store, rows_digest):
        with suppress(OSError):
            items |= _items_in(path, *file_version(path))
    return items


@lru_cache(maxsize=1024)
def _items_in(path: Path, *_version: int) -> frozenset[str]:
    with suppress(OSError, ValueError, KeyError, TypeError):
        if is_as_written(path):
            return frozenset(parse_json(line)["example_id"] for line in read_lines(path))
    return frozenset()


def _files(store: Store, rows_digest: str) -> list[Path]:
    return sorted(_folder(store, rows_digest).glob("*.jsonl"))


def _folder(store: Store, rows_digest: str) -> Path:
    return store.rows(rows_digest) / "samples"


def keep_folds(store: Store, rows_digest: str, folds: Mapping[str, int]) -> None:
    """Note which fold's model answered each item of a row set, before its rows are written."""
    write_whole(store, _file(store, rows_digest), json.dumps(dict(folds), sort_keys=True) + "\n")


def read_folds(store: Store, rows_digest: str) -> dict[str, int] | None:
    """Read which fold's model answered each item; None if one model answered all items.

    Raises:
        HarnessError: the file cannot be read.
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
    """Return the rows of a set with their folds, if it has any.

    Raises:
        HarnessError: the file of folds cannot be read.
    """
    folds = read_folds(store, rows_digest)
    return [replace(row, fold=folds[row.example_id]) for row in rows] if folds else rows


def _file(store: Store, rows_digest: str) -> Path:
    return store.rows(rows_digest) / "folds.json"
