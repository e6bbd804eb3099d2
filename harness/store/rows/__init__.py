"""Row sets: finished blocks while they are computed, one Parquet file when they are complete.

Invariant: a complete set holds positions 0, 1, 2, … without a gap; a set that was computed
under a limit grows by whole blocks and never has to be computed again. A checksum is noted before its
file gets its name, and none is forgotten, so a file that is whole is not taken for a damaged one.

    runs/rows/<digest>/checksums.json          one CRC-32 for each rows.parquet that was written
    runs/rows/<digest>/samples/00000.jsonl     the answers that were drawn to the items of a block
"""

import json
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, fields, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.records import (
    BLOCK,
    RowsIdentity,
    Sample,
    SampleResult,
    canonical_json,
    load,
    load_files,
    many_rows,
)
from harness.store.layout import (
    AGAIN,
    Store,
    clear_errors,
    failure,
    missing_rows,
    rename_when_whole,
    write_record,
    write_whole,
)

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection


COLUMNS = {
    "task": "VARCHAR",
    "split": "VARCHAR",
    "example_id": "VARCHAR",
    "position": "BIGINT",
    "status": "VARCHAR",
    "text": "VARCHAR",
    "prompt": "VARCHAR",
    "references": "VARCHAR[]",
    "parts": "MAP(VARCHAR, DOUBLE[])",
    "cluster": "VARCHAR",
    "slice": "VARCHAR",
    "gold_logprob": "DOUBLE",
    "gold_bytes": "BIGINT",
    "margin": "DOUBLE",
    "n_prompt_tokens": "BIGINT",
    "n_output_tokens": "BIGINT",
    "compute_s": "DOUBLE",
    "prompt_digest": "VARCHAR",
    "output_digest": "VARCHAR",
    "boundary_merged": "BOOLEAN",
    "finish_reason": "VARCHAR",
    "passages": "VARCHAR[]",
    "recall": "DOUBLE",
    "attempt": "BIGINT",
    "weight": "DOUBLE",
    "error": "VARCHAR",
}
# One of the answers that were drawn to an item, as a line of JSON holds it.
SAMPLE_COLUMNS = {
    "example_id": "VARCHAR",
    "index": "BIGINT",
    "text": "VARCHAR",
    "status": "VARCHAR",
    "parts": "MAP(VARCHAR, DOUBLE[])",
    "finish_reason": "VARCHAR",
    "n_prompt_tokens": "BIGINT",
    "n_output_tokens": "BIGINT",
    "compute_s": "DOUBLE",
    "mean_logprob": "DOUBLE",
    "error": "VARCHAR",
}
ANEW = "harness compare, which computes damaged rows again"
# A folder named like `x=1` is no column of ours.
READ_PARQUET = "read_parquet(?, hive_partitioning = false)"
_FIELDS = tuple(field.name for field in fields(SampleResult) if field.name in COLUMNS)
_SELECTED = ", ".join(f'"{name}"' for name in _FIELDS)
# The references say what the worst answer to an item is, where there is none to be scored.
FAILED = "('error', 'incomplete')"
OF_ERRORS = f'CASE WHEN status IN {FAILED} THEN "references" ELSE [] END'
_EMPTY = {"text": "''", "prompt": "''", "references": OF_ERRORS, "passages": "[]"}
_WITHOUT_TEXTS = ", ".join(_EMPTY.get(name, f'"{name}"') for name in _FIELDS)
_TUPLES = tuple(place for place, name in enumerate(_FIELDS) if COLUMNS[name].endswith("[]"))
_PARTS = _FIELDS.index("parts")


def stored_blocks(store: Store, identity: RowsIdentity, ids: Sequence[str] | None = None) -> set[int]:
    """List the blocks that need not be computed again.

    With `ids`, the example ids in the order of their positions, only blocks that hold
    exactly these examples count: not one cut short by a limit, nor one of another order.
    """
    ids_by_block = _chunks(_parquet_ids(store.parquet(identity.digest)) or [])
    ids_by_block |= _readable_blocks(store, identity.digest)
    if identity.decoding:
        drawn = read_drawn(store, identity.digest)
        ids_by_block = {index: ids for index, ids in ids_by_block.items() if drawn.keys() >= set(ids)}
    if ids is None:
        return set(ids_by_block)
    wanted = _chunks(ids)
    return {index for index, block in wanted.items() if ids_by_block.get(index, [])[: len(block)] == block}


def append_block(store: Store, identity: RowsIdentity, index: int, rows: Sequence[SampleResult]) -> None:
    """Write one finished block: positions BLOCK·index, BLOCK·index + 1, … in this order.

    Raises:
        ValueError: a number is NaN or infinite, or the positions are not those of the block.
        HarnessError: the disk is full.
    """
    positions = [row.position for row in rows]
    if not 0 < len(rows) <= BLOCK or positions != _positions(index, len(rows)):
        raise ValueError(f"block {index} holds positions from {BLOCK * index} without gaps, not {positions}")
    folder = store.rows(identity.digest)
    lines = "".join(map(_line, rows))
    if not (folder / "identity.json").exists():
        write_record(store, folder / "identity.json", identity)
    if samples := "".join(_sample_line(row.example_id, one) for row in rows for one in row.samples):
        _write_samples(store, _samples_folder(folder) / f"{index:05d}.jsonl", samples)
    write_whole(store, _block_path(folder, index), lines)


def complete_rows(store: Store, identity: RowsIdentity, n_rows: int) -> None:
    """Turn the finished blocks into one Parquet file; rows that it held before stay in it.

    A block written again replaces the rows of its positions. Where older rows behind
    `n_rows` turn out to be of another order (an example would occur twice), they are dropped.

    Raises:
        HarnessError: a block is missing, or the disk is full.
    """
    path, blocks = store.parquet(identity.digest), _readable_blocks(store, identity.digest)
    stored = _parquet_ids(path) or []
    if not blocks and len(stored) >= n_rows:
        return
    with clear_errors(store, f"rows {identity.digest}", AGAIN), memory() as db:
        _merge(db, [_block_path(path.parent, index) for index in blocks], path if stored else None)
        n_kept = _whole_prefix(db, n_rows, identity)
        select = f"SELECT * FROM merged WHERE position < {n_kept} ORDER BY position"
        copy = f"COPY ({select}) TO '{{}}' (FORMAT parquet)"

        def write(part: Path) -> None:
            db.execute(copy.format(str(part).replace("'", "''")))
            note_checksum(store, path, part)

        rename_when_whole(store, path, write)
    _remove_blocks(path.parent / "blocks", n_kept)


def remove_merged_blocks(store: Store) -> None:
    """Delete blocks that a complete set holds already: whoever completed it was ended before it could."""
    for folder in (store.folder / "rows").glob("*/blocks"):
        stored = _parquet_ids(folder.with_name("rows.parquet")) or []
        for index, ids in _readable_blocks(store, folder.parent.name).items():
            if stored[BLOCK * index :][: len(ids)] == ids:
                _block_path(folder.parent, index).unlink(missing_ok=True)
        _remove_if_empty(folder)


def has_rows(store: Store, identity: RowsIdentity, ids: Sequence[str]) -> bool:
    """Tell whether the complete set begins with these examples, in order, with what was drawn to each."""
    whole = is_stored_as(store.parquet(identity.digest), ids)
    return whole and (not identity.decoding or read_drawn(store, identity.digest).keys() >= set(ids))


def is_stored_as(path: Path, ids: Sequence[str]) -> bool:
    """Tell whether a file of rows, wherever it lies, begins with these examples, in this order."""
    stored = _parquet_ids(path)
    return stored is not None and stored[: len(ids)] == list(ids)


def read_rows(
    store: Store, rows_digest: str, n: int | None = None, *, texts: bool = True
) -> list[SampleResult]:
    """Read a complete row set by position; with `n`, at most the first n.

    Without `texts` the answers, prompts, passages and, but for errors, references are left empty: statistics
    need none.

    Raises:
        HarnessError: the set is missing or unreadable.
    """
    path = store.parquet(rows_digest)
    if not path.exists():
        raise missing_rows(store, [rows_digest])
    limit = "" if n is None else f"WHERE position < {n:d}"
    with clear_errors(store, f"rows {rows_digest}", ANEW), memory() as db:
        return rows_from(db, f"{READ_PARQUET} {limit}", pattern(path), texts=texts)


def read_many(
    store: Store, rows_digests: Iterable[str], *, texts: bool = True
) -> dict[str, list[SampleResult]]:
    """Read many complete row sets at once, each by position, as `read_rows` reads one; twice as fast.

    Raises:
        HarnessError: a set is missing or unreadable.
    """
    wanted = dict.fromkeys(rows_digests)
    if missing := [digest for digest in wanted if not store.parquet(digest).exists()]:
        raise missing_rows(store, missing)
    out: dict[str, list[SampleResult]] = {digest: [] for digest in wanted}
    if not wanted:
        return out
    source = READ_PARQUET.replace(")", ", filename = true)")
    selected = _SELECTED if texts else _WITHOUT_TEXTS
    query = f"SELECT parse_path(filename)[-2] AS digest, {selected} FROM {source} ORDER BY digest, position"
    files = [pattern(store.parquet(digest)) for digest in wanted]
    import duckdb

    try:
        with many_rows(), memory() as db:
            for digest, *values in db.execute(query, [files]).fetchall():
                out[digest].append(_row(values))
    except duckdb.Error:  # reading one by one says which it is
        return {digest: read_rows(store, digest, texts=texts) for digest in wanted}
    return out


def read_drawn(store: Store, rows_digest: str) -> dict[str, tuple[Sample, ...]]:
    """Read the answers that were drawn to the items of a row set, by item; damaged files are left out.

    Empty of a set that was answered greedily.
    """
    out: dict[str, list[Sample]] = {}
    for path in sorted(_samples_folder(store.rows(rows_digest)).glob("*.jsonl")):
        with suppress(OSError, ValueError, TypeError):
            if is_as_written(path) is not True:
                continue
            # Only \n ends a line: answers may hold the other characters that str.splitlines knows.
            for line in path.read_bytes().decode().removesuffix("\n").split("\n"):
                said = json.loads(line)
                parts = {k: None if v is None else tuple(v) for k, v in said.pop("parts").items()}
                out.setdefault(said.pop("example_id"), []).append(Sample(parts=parts, **said))
    return {item: tuple(samples) for item, samples in out.items()}


def read_identity(store: Store, rows_digest: str) -> RowsIdentity:
    """Read what a row set depends on.

    Raises:
        HarnessError: the set is missing.
    """
    path = store.rows(rows_digest) / "identity.json"
    if not path.exists():
        raise missing_rows(store, [rows_digest])
    return load(RowsIdentity, path.read_bytes())


def read_blocks(store: Store, identity: RowsIdentity, ids: Sequence[str]) -> dict[int, list[SampleResult]]:
    """Read the finished blocks that hold exactly these examples, of a set that need not be complete."""
    done = stored_blocks(store, identity, ids)
    path, loose = store.parquet(identity.digest), _readable_blocks(store, identity.digest)
    if not done:
        return {}
    with memory() as db:
        _merge(db, [_block_path(path.parent, i) for i in loose], path if _parquet_ids(path) else None)
        rows = rows_from(db, "merged")
    wanted = {i: len(block) for i, block in _chunks(ids).items() if i in done}
    by_block: dict[int, list[SampleResult]] = {i: [] for i in wanted}
    for row in rows:
        index = row.position // BLOCK
        if len(by_block.get(index, ())) < wanted.get(index, 0):
            by_block[index].append(row)
    drawn = read_drawn(store, identity.digest) if identity.decoding else {}
    return {
        index: [replace(row, samples=drawn.get(row.example_id, ())) for row in block]
        for index, block in by_block.items()
    }


def identities(store: Store) -> list[RowsIdentity]:
    """List what the stored row sets depend on; sets whose file cannot be read are left out."""
    return load_files(RowsIdentity, sorted((store.folder / "rows").glob("*/identity.json")))


def pattern(path: Path) -> str:
    """Write a path so that DuckDB, which reads paths as patterns, finds just this file."""
    return re.sub(r"([*?\[])", r"[\1]", str(path))


def _line(row: SampleResult) -> str:
    try:
        return canonical_json({name: getattr(row, name) for name in _FIELDS}) + "\n"
    except ValueError as error:
        reason = "NaN and inf are not stored; unknown is None"
        raise ValueError(f"row {row.example_id!r} of {row.task}: {reason}") from error


def _sample_line(example_id: str, sample: Sample) -> str:
    """Write an answer that was drawn as a line of JSON."""
    return canonical_json({"example_id": example_id, **asdict(sample)}) + "\n"


def _samples_folder(folder: Path) -> Path:
    return folder / "samples"


def _write_samples(store: Store, path: Path, lines: str) -> None:
    def write(part: Path) -> None:
        part.write_text(lines, "utf-8", newline="\n")
        note_checksum(store, path, part)

    with clear_errors(store, str(path), AGAIN):
        rename_when_whole(store, path, write)


def rows_from(
    db: "DuckDBPyConnection", source: str, *values: object, texts: bool = True
) -> list[SampleResult]:
    """Read rows by position; their columns come in the order of the fields, which is the fastest way."""
    selected = _SELECTED if texts else _WITHOUT_TEXTS
    query = f"SELECT {selected} FROM {source} ORDER BY position"
    with many_rows():
        return [_row(list(row)) for row in db.execute(query, values).fetchall()]


def _row(values: list[Any]) -> SampleResult:
    for place in _TUPLES:
        values[place] = tuple(values[place])
    values[_PARTS] = {k: None if v is None else tuple(v) for k, v in values[_PARTS].items()}
    return SampleResult(*values)


def _positions(index: int, n_rows: int) -> list[int]:
    return list(range(BLOCK * index, BLOCK * index + n_rows))


def _chunks(ids: Sequence[str]) -> dict[int, list[str]]:
    return {start // BLOCK: list(ids[start : start + BLOCK]) for start in range(0, len(ids), BLOCK)}


def _block_path(folder: Path, index: int) -> Path:
    return folder / "blocks" / f"{index:05d}.jsonl"


def _readable_blocks(store: Store, rows_digest: str) -> dict[int, list[str]]:
    paths = sorted((store.rows(rows_digest) / "blocks").glob("*.jsonl"))
    ids_by_block = {int(path.stem): _block_ids(path) for path in paths if path.stem.isdigit()}
    return {index: ids for index, ids in ids_by_block.items() if ids}


def _block_ids(path: Path) -> list[str]:
    """Return the example ids of a block; none where its file is damaged."""
    try:
        # Only \n ends a line: answers may hold the other characters that str.splitlines knows.
        rows = [json.loads(line) for line in path.read_bytes().decode().removesuffix("\n").split("\n")]
        whole = [row["position"] for row in rows] == _positions(int(path.stem), len(rows))
        return [row["example_id"] for row in rows] if whole else []
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _remove_blocks(folder: Path, n_kept: int) -> None:
    """Delete the blocks that are in the Parquet file, and no block that another process just wrote."""
    for path in folder.glob("*.jsonl"):
        if path.stem.isdigit() and int(path.stem) * BLOCK < n_kept:
            path.unlink(missing_ok=True)
    _remove_if_empty(folder)


def _remove_if_empty(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _parquet_ids(path: Path) -> list[str] | None:
    """Return the example ids by position, or None where there is no file, or a damaged one."""
    try:
        found = path.stat()
    except OSError:
        return None
    return _ids_in(path, found.st_ino, found.st_mtime_ns, found.st_size)


@lru_cache(maxsize=256)
def _ids_in(path: Path, *_version: int) -> list[str] | None:
    """Read the ids of a file as it is now; several runs refer to one, and opening it takes milliseconds."""
    import duckdb

    try:
        whole = is_as_written(path)
        if whole is False:
            return None
        # What was written before checksums were noted is read in all its columns instead.
        columns = "example_id" if whole else "example_id, hash(file)"
        query = f"SELECT {columns} FROM {READ_PARQUET} AS file ORDER BY position"
        with memory() as db:
            return [example_id for example_id, *_ in db.execute(query, [pattern(path)]).fetchall()]
    except (OSError, duckdb.Error):
        return None


def _merge(db: "DuckDBPyConnection", blocks: Sequence[Path], parquet: Path | None) -> None:
    table = ", ".join(f'"{name}" {kind}' for name, kind in COLUMNS.items())
    db.execute(f"CREATE TEMP TABLE merged ({table})")
    if blocks:
        columns = ", ".join(f"\"{name}\": '{kind}'" for name, kind in COLUMNS.items())
        options = "format = 'newline_delimited', hive_partitioning = false"
        source = f"read_json(?, columns = {{{columns}}}, {options})"
        db.execute(f"INSERT INTO merged BY NAME SELECT * FROM {source}", [list(map(pattern, blocks))])
    if parquet:
        new = f"SELECT position // {BLOCK} FROM merged"
        kept = f"SELECT * FROM {READ_PARQUET} WHERE position // {BLOCK} NOT IN ({new})"
        db.execute(f"INSERT INTO merged BY NAME {kept}", [pattern(parquet)])


def _whole_prefix(db: "DuckDBPyConnection", n_rows: int, identity: RowsIdentity) -> int:
    """Return how many rows lie at positions 0, 1, 2, … without a gap or a repeated example."""
    ordered = "SELECT *, row_number() OVER (ORDER BY position) - 1 AS expected FROM merged"
    query = f"SELECT count(*), count(DISTINCT example_id) FROM ({ordered}) WHERE position = expected"
    ((n_whole, n_distinct),) = db.execute(query).fetchall()
    if n_whole < n_rows:
        where = f"rows {identity.digest} of {identity.task}/{identity.split}"
        found = f"{n_whole:,} of {n_rows:,} rows; block {n_whole // BLOCK} is missing or cut short"
        raise failure(where, found, "every block", AGAIN)
    return int(n_whole) if n_distinct == n_whole else n_rows


@contextmanager
def memory() -> Iterator["DuckDBPyConnection"]:
    """Open a cursor of the database that has no file."""
    with _database().cursor() as db:
        yield db


@cache
def _database() -> "DuckDBPyConnection":
    """Make the one in-memory database that reads and writes Parquet; making one costs 25 ms."""
    import duckdb

    # A file that was replaced must not be answered from memory.
    return hide_progress_bar(duckdb.connect(config={"enable_external_file_cache": False}))


def hide_progress_bar(db: "DuckDBPyConnection") -> "DuckDBPyConnection":
    """Keep the bar that DuckDB draws during long queries off stdout, which belongs to the result."""
    db.execute("SET enable_progress_bar = false")
    return db


_PIECE = 1 << 20  # bytes


def note_checksum(store: Store, path: Path, written: Path) -> None:
    """Note what is about to become a file, while it still has another name.

    Raises:
        HarnessError: the disk is full.
    """
    known = {*(_read_checksums(path) or ()), _checksum(written)}
    write_whole(store, _file(path), json.dumps(sorted(known)) + "\n")


def is_as_written(path: Path) -> bool | None:
    """Tell whether a file holds what was written to it; None where that was not noted.

    Raises:
        OSError: the file cannot be read.
    """
    found = _checksum(path)  # before what is noted is read: another process may replace the file in between
    known = _read_checksums(path)
    return None if known is None else found in known


def _read_checksums(path: Path) -> list[str] | None:
    with suppress(OSError, ValueError):
        return load(list[str], _file(path).read_bytes())
    return None


def _file(path: Path) -> Path:
    return path.with_name("checksums.json")


def _checksum(path: Path) -> str:
    value = 0
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            value = zlib.crc32(piece, value)
    return f"{value:08x}"
