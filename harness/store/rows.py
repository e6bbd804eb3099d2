"""Row sets: blocks, one Parquet file when they are complete, sampled answers and folds.

Invariant: a complete set holds positions 0, 1, 2, … without a gap; a set computed under a limit grows by
whole blocks. A checksum is noted before its file gets its name.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import HarnessError
from harness.records import (
    BLOCK,
    RowsIdentity,
    Sample,
    SampleResult,
    canonical_json,
    load,
    load_files,
    many_rows,
    parse_json,
)
from harness.store import layout
from harness.store.layout import Store
from harness.store.parquet_files import (
    COLUMNS,
    DIGEST,
    READ_NAMED,
    READ_PARQUET,
    SELECTED,
    WITHOUT_TEXTS,
    file_version,
    is_as_written,
    memory,
    note_checksum,
    parquet_ids,
    pattern,
    row_of,
    rows_from,
    whole_file,
    write_checked,
)

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection


def list_stored_blocks(store: Store, identity: RowsIdentity, ids: Sequence[str] | None = None) -> set[int]:
    """List the blocks that need not be computed again; with `ids`, those with exactly these examples."""
    ids_by_block = _chunks(parquet_ids(store.parquet(identity.digest)) or [])
    ids_by_block |= _readable_blocks(store, identity.digest)
    if identity.decoding:
        sampled_items = read_drawn_items(store, identity.digest)
        ids_by_block = {index: ids for index, ids in ids_by_block.items() if sampled_items.issuperset(ids)}
    if ids is None:
        return set(ids_by_block)
    chunks = _chunks(ids)
    return {index for index, block in chunks.items() if ids_by_block.get(index, [])[: len(block)] == block}


def append_block(store: Store, identity: RowsIdentity, index: int, rows: Sequence[SampleResult]) -> None:
    """Write one finished block: positions BLOCK·index, BLOCK·index + 1, … in this order."""
    positions = [row.position for row in rows]
    if not 0 < len(rows) <= BLOCK or positions != [BLOCK * index + i for i in range(len(rows))]:
        raise ValueError(f"block {index} holds positions from {BLOCK * index} without gaps, not {positions}")
    folder = store.rows(identity.digest)
    lines = ""
    for row in rows:
        try:
            lines += canonical_json({name: getattr(row, name) for name in COLUMNS}) + "\n"
        except ValueError as error:
            reason = "NaN and inf are not stored; unknown is None"
            raise ValueError(f"row {row.example_id!r} of {row.task}: {reason}") from error
    if not _read_identity(folder / "identity.json"):
        if parquet_ids(path := store.parquet(identity.digest)) is None:  # rows of another identity
            path.unlink(missing_ok=True)
        layout.write_record(store, folder / "identity.json", identity)
    pairs = ((row.example_id, sample) for row in rows for sample in row.samples)
    samples = "".join(canonical_json({"example_id": item, **asdict(s)}) + "\n" for item, s in pairs)
    if samples:
        path = folder / "samples" / f"{index:05d}.jsonl"
        with write_checked(store, path) as temp_path:
            temp_path.write_text(samples, "utf-8", newline="\n")
    layout.write_whole(store, _block_path(folder, index), lines)


def complete_rows(store: Store, identity: RowsIdentity, n_rows: int) -> None:
    """Merge the finished blocks into one Parquet file, in place of earlier rows at their positions."""
    path, blocks = store.parquet(identity.digest), _readable_blocks(store, identity.digest)
    stored_ids = parquet_ids(path) or []
    if not blocks and len(stored_ids) >= n_rows:
        return
    with layout.clear_errors(store, f"rows {identity.digest}", layout.AGAIN), memory() as db:
        _merge(db, [_block_path(path.parent, index) for index in blocks], path if stored_ids else None)
        # Rows at positions 0, 1, 2, … without a gap or a repeated example are kept.
        ordered = "SELECT *, row_number() OVER (ORDER BY position) - 1 AS expected FROM merged"
        query = f"SELECT count(*), count(DISTINCT example_id) FROM ({ordered}) WHERE position = expected"
        ((n_whole, n_distinct),) = db.execute(query).fetchall()
        if n_whole < n_rows:
            where = f"rows {identity.digest} of {identity.task}/{identity.split}"
            found = f"{n_whole:,} of {n_rows:,} rows; block {n_whole // BLOCK} is missing or cut short"
            raise HarnessError(where, found, "every block", layout.AGAIN)
        n_kept = int(n_whole) if n_distinct == n_whole else n_rows
        select = f"SELECT * FROM merged WHERE position < {n_kept} ORDER BY position"
        with layout.rename_when_whole(store, path) as temp_path:
            quoted = str(temp_path).replace("'", "''")
            db.execute(f"COPY ({select}) TO '{quoted}' (FORMAT parquet)")
            note_checksum(store, path, temp_path)
    for block in (path.parent / "blocks").glob("*.jsonl"):  # keeps those that another process just wrote
        if block.stem.isdigit() and int(block.stem) * BLOCK < n_kept:
            block.unlink(missing_ok=True)
    with suppress(OSError):  # it is gone, or not empty
        (path.parent / "blocks").rmdir()


def remove_merged_blocks(store: Store, rows_digest: str = "*") -> None:
    """Delete the blocks that a killed writer left of complete row sets, or of one of them."""
    for folder in (store.folder / "rows").glob(f"{rows_digest}/blocks"):
        stored_ids = parquet_ids(folder.with_name("rows.parquet")) or []
        for index, ids in _readable_blocks(store, folder.parent.name).items():
            if stored_ids[BLOCK * index :][: len(ids)] == ids:
                _block_path(folder.parent, index).unlink(missing_ok=True)
        with suppress(OSError):  # it is not empty
            folder.rmdir()


def has_rows(store: Store, identity: RowsIdentity, ids: Sequence[str]) -> bool:
    """Tell whether the complete set begins with these examples, in order, with their sampled answers."""
    is_complete = is_stored_as(store.parquet(identity.digest), ids)
    return is_complete and (not identity.decoding or read_drawn_items(store, identity.digest).issuperset(ids))


def is_stored_as(path: Path, ids: Sequence[str]) -> bool:
    """Tell whether any file of rows begins with these examples, in this order."""
    stored_ids = parquet_ids(path)
    return stored_ids is not None and stored_ids[: len(ids)] == list(ids)


def read_rows(
    store: Store, rows_digest: str, n: int | None = None, *, texts: bool = True
) -> list[SampleResult]:
    """Read a complete row set by position, at most `n` rows; without `texts` these are left empty."""
    return read_many(store, [rows_digest], n, texts=texts)[rows_digest]


def read_many(
    store: Store, rows_digests: Iterable[str], n: int | None = None, *, texts: bool = True
) -> dict[str, list[SampleResult]]:
    """Read many complete row sets at once, each as `read_rows` reads one; twice as fast."""
    digests = dict.fromkeys(rows_digests)
    if missing := [digest for digest in digests if not store.parquet(digest).exists()]:
        raise layout.describe_missing_rows(store, missing)
    rows_by_digest: dict[str, list[SampleResult]] = {digest: [] for digest in digests}
    selected, limit = SELECTED if texts else WITHOUT_TEXTS, "" if n is None else f"WHERE position < {n:d}"
    query = f"SELECT {DIGEST} AS digest, {selected} FROM {READ_NAMED} {limit} ORDER BY position"
    files = [whole_file(store.parquet(digest)) for digest in digests]
    with layout.clear_errors(store, f"rows {', '.join(digests)}", layout.ANEW), many_rows(), memory() as db:
        for digest, *values in db.execute(query, [files]).fetchall() if files else ():
            rows_by_digest[digest].append(row_of(values))
    for digest, rows in rows_by_digest.items():
        if folds := read_folds(store, digest):
            rows_by_digest[digest] = [replace(row, fold=folds[row.example_id]) for row in rows]
    return rows_by_digest


def read_identity(store: Store, rows_digest: str) -> RowsIdentity:
    """Read the identity of a row set; a missing or damaged one is an error."""
    path = store.rows(rows_digest) / "identity.json"
    if not path.exists():
        raise layout.describe_missing_rows(store, [rows_digest])
    if identity := _read_identity(path):
        return identity
    step = f"remove {path.parent}, then harness compare, which computes its rows again"
    raise HarnessError(str(path), "a damaged file", f"what the rows {rows_digest} depend on", step)


def _read_identity(path: Path) -> RowsIdentity | None:
    """Read an identity, cached until its file changes; None if its digest does not match its folder."""
    with suppress(OSError):
        return _identity_in(path, *file_version(path))
    return None


@lru_cache(maxsize=16_384)
def _identity_in(path: Path, *_version: int) -> RowsIdentity | None:
    loaded = load_files(RowsIdentity, [path])
    return next((identity for identity in loaded if identity.digest == path.parent.name), None)


def read_blocks(store: Store, identity: RowsIdentity, ids: Sequence[str]) -> dict[int, list[SampleResult]]:
    """Read the finished blocks that hold exactly these examples, of a set that may be incomplete."""
    stored_blocks = list_stored_blocks(store, identity, ids)
    path, blocks = store.parquet(identity.digest), _readable_blocks(store, identity.digest)
    if not stored_blocks:
        return {}
    with memory() as db:
        _merge(db, [_block_path(path.parent, i) for i in blocks], path if parquet_ids(path) else None)
        rows = rows_from(db, "merged")
    n_by_block = {i: len(block) for i, block in _chunks(ids).items() if i in stored_blocks}
    rows_by_block: dict[int, list[SampleResult]] = {i: [] for i in n_by_block}
    for row in rows:
        index = row.position // BLOCK
        if len(rows_by_block.get(index, ())) < n_by_block.get(index, 0):
            rows_by_block[index].append(row)
    samples_by_item = read_drawn(store, identity.digest) if identity.decoding else {}
    return {
        index: [replace(row, samples=samples_by_item.get(row.example_id, ())) for row in block]
        for index, block in rows_by_block.items()
    }


def identities(store: Store) -> list[RowsIdentity]:
    """List the identities of the stored row sets; unreadable ones are left out."""
    return list(filter(None, map(_read_identity, sorted((store.folder / "rows").glob("*/identity.json")))))


def list_variants(store: Store, identity: RowsIdentity) -> list[RowsIdentity]:
    """List the complete row sets that differ from `identity` at most in how they were computed."""
    names = ("template_digest", "precision", "engine", "layout_digest", "device_class")
    whole = [rows for rows in identities(store) if store.parquet(rows.digest).exists()]
    return [rows for rows in whole if rows == replace(identity, **{n: getattr(rows, n) for n in names})]


def _chunks(ids: Sequence[str]) -> dict[int, list[str]]:
    return {start // BLOCK: list(ids[start : start + BLOCK]) for start in range(0, len(ids), BLOCK)}


def _block_path(folder: Path, index: int) -> Path:
    return folder / "blocks" / f"{index:05d}.jsonl"


def _readable_blocks(store: Store, rows_digest: str) -> dict[int, list[str]]:
    ids_by_block = {}
    for path in sorted((store.rows(rows_digest) / "blocks").glob("*.jsonl")):
        with suppress(OSError, ValueError, KeyError, TypeError):
            rows, index = [parse_json(line) for line in layout.read_lines(path)], int(path.stem)
            ids = [row["example_id"] for row in rows]
            if [row["position"] for row in rows] == [BLOCK * index + i for i in range(len(rows))]:
                ids_by_block[index] = ids
    return ids_by_block


def _merge(db: "DuckDBPyConnection", blocks: Sequence[Path], parquet: Path | None) -> None:
    table = ", ".join(f'"{name}" {kind}' for name, kind in COLUMNS.items())
    db.execute(f"CREATE TEMP TABLE merged ({table})")
    if blocks:
        columns = ", ".join(f"\"{name}\": '{kind}'" for name, kind in COLUMNS.items())
        options = "format = 'newline_delimited', hive_partitioning = false"
        source = f"read_json(?, columns = {{{columns}}}, {options})"
        db.execute(f"INSERT INTO merged BY NAME SELECT * FROM {source}", [list(map(pattern, blocks))])
    if parquet:
        new_blocks = f"SELECT position // {BLOCK} FROM merged"
        kept_rows = f"SELECT * FROM {READ_PARQUET} WHERE position // {BLOCK} NOT IN ({new_blocks})"
        db.execute(f"INSERT INTO merged BY NAME {kept_rows}", [pattern(parquet)])


def _drawn_files(store: Store, rows_digest: str) -> list[Path]:
    return sorted((store.rows(rows_digest) / "samples").glob("*.jsonl"))


def read_drawn(store: Store, rows_digest: str) -> dict[str, tuple[Sample, ...]]:
    """Read the sampled answers of a row set, by item; damaged files are left out."""
    samples_by_item: dict[str, list[Sample]] = {}
    for path in _drawn_files(store, rows_digest):
        with suppress(OSError, ValueError, TypeError):
            for line in layout.read_lines(path) if is_as_written(path) else ():
                values = parse_json(line)
                parts = {k: None if v is None else tuple(v) for k, v in values.pop("parts").items()}
                samples_by_item.setdefault(values.pop("example_id"), []).append(Sample(parts=parts, **values))
    return {item: tuple(samples) for item, samples in samples_by_item.items()}


def read_drawn_items(store: Store, rows_digest: str) -> set[str]:
    """Read which items of a row set have sampled answers; a file is cached until it changes."""
    items: set[str] = set()
    for path in _drawn_files(store, rows_digest):
        with suppress(OSError):
            items |= _items_in(path, *file_version(path))
    return items


@lru_cache(maxsize=1024)
def _items_in(path: Path, *_version: int) -> frozenset[str]:
    with suppress(OSError, ValueError, KeyError, TypeError):
        if is_as_written(path):
            return frozenset(parse_json(line)["example_id"] for line in layout.read_lines(path))
    return frozenset()


def keep_folds(store: Store, rows_digest: str, folds: Mapping[str, int]) -> None:
    """Record which fold's model answered each item of a row set, before its rows are written."""
    path = store.rows(rows_digest) / "folds.json"
    layout.write_whole(store, path, json.dumps(dict(folds), sort_keys=True) + "\n")


def read_folds(store: Store, rows_digest: str) -> dict[str, int] | None:
    """Read which fold's model answered each item; None if one model answered all items."""
    path = store.rows(rows_digest) / "folds.json"
    if not path.exists():
        return None
    try:
        return load(dict[str, int], path.read_bytes())
    except (OSError, ValueError) as error:
        step = f"remove {path}, then harness compare, which writes it again"
        cause = str(error).splitlines()[0]
        raise HarnessError(str(path), f"damaged ({cause})", "the fold of each item", step) from None
