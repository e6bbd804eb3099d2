"""The folders in the index: JSON files verbatim, and the scores of complete row sets.

Invariant: the index is compared with the folders by modification time, so `sync` brings any index up to date,
whatever it missed. Texts stay in the Parquet files, which a view reads as fast.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import __version__
from harness.errors import HarnessError
from harness.records import Rating, Run, load
from harness.store import parquet_files
from harness.store.layout import Store, first_line, in_own_folder, is_no_room
from harness.store.rows import read_identity
from harness.store.sql_views import TABLES
from harness.store.verdicts import DecisionRecord, VerdictRecord

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

VERSION = 10  # of the index; a harness refuses one of a higher version
_UNITS = "MAP(VARCHAR, STRUCT(higher_is_better BOOLEAN, scale DOUBLE, worst DOUBLE))"  # by metric
_SCHEMA = f"""
    CREATE SCHEMA stored;
    CREATE TABLE stored.files (kind VARCHAR, path VARCHAR, modified_ns BIGINT, record JSON);
    CREATE TABLE stored.run_rows (
        run_id VARCHAR, task VARCHAR, split VARCHAR, rowset VARCHAR, base_rowset VARCHAR,
        metrics {_UNITS});
    CREATE TABLE stored.rowsets (rowset VARCHAR, n_rows BIGINT, modified_ns BIGINT);
    CREATE TABLE stored.scores (
        rowset VARCHAR, example_id VARCHAR, metric VARCHAR, parts DOUBLE[], status VARCHAR, cluster VARCHAR,
        slice VARCHAR, weight DOUBLE);
    CREATE TABLE stored.views (queries VARCHAR);
    CREATE TABLE meta (version BIGINT, written_by VARCHAR, tables VARCHAR, folder VARCHAR);
"""
_TABLES = "".join((_SCHEMA, *(table.query for table in TABLES)))
_KINDS: Mapping[str, tuple[str, type]] = {  # the files of a store that tables are made from
    "run": ("*/run.json", Run),
    "rating": ("ratings/*.json", Rating),
    "verdict": ("verdicts/*/*.json", VerdictRecord),
    "decision": ("decisions/*.json", DecisionRecord),
    "feedback": ("feedback/*/checksums.json", list),
}


def create(db: "DuckDBPyConnection", store: Store) -> None:
    """Create the tables in an empty database."""
    db.execute(_SCHEMA)
    db.execute("INSERT INTO meta VALUES (?, ?, ?, ?)", _describe_index(store))


def is_current(db: "DuckDBPyConnection", store: Store) -> bool:
    """Tell whether an index has these tables, this folder and this version of harness."""
    meta_row = list(db.execute("FROM meta").fetchone() or ()) if schema_version(db) == VERSION else []
    return meta_row == _describe_index(store)


def _describe_index(store: Store) -> list[Any]:
    return [VERSION, __version__, _TABLES, str(store.folder.resolve())]


def schema_version(db: "DuckDBPyConnection") -> int:
    """Return the schema's version, 0 for an empty file."""
    import duckdb

    try:  # a list of all tables would take 30 ms
        ((version,),) = db.execute("SELECT max(version) FROM meta").fetchall()
    except duckdb.CatalogException:
        return 0
    return int(version)


def sync(db: "DuckDBPyConnection", store: Store) -> list[str]:
    """Bring an index up to date with the folders; return unreadable files with the reason."""
    with transaction(db):
        gone_files, new_files = find_changed_files(db, store)
        for kind, path in gone_files:
            db.execute("DELETE FROM stored.files WHERE kind = ? AND path = ?", [kind, path])
            if kind == "run":
                db.execute("DELETE FROM stored.run_rows WHERE run_id = ?", [Path(path).parent.name])
        skipped: list[str] = []
        records: list[tuple[Any, ...]] = []
        rows: list[tuple[str, ...]] = []
        for (kind, name), modified in sorted(new_files.items()):
            try:
                text = (store.folder / name).read_text("utf-8")
                record: object = load(_KINDS[kind][1], text)
                if isinstance(record, Run):
                    in_own_folder(record, store.folder / name)
            except (OSError, ValueError, TypeError) as error:
                skipped.append(f"{store.folder / name}: {first_line(error)}")
                continue
            records.append((kind, name, modified, text))
            if isinstance(record, Run):
                rows += _run_rows(store, record)
        _insert(db, "files", records)
        _insert(db, "run_rows", rows, f"::JSON::{_UNITS}")
    gone, new = find_changed_rows(db, store)
    with transaction(db):
        for table in ("rowsets", "scores") if gone else ():
            db.execute(f"DELETE FROM stored.{table} WHERE rowset IN (SELECT unnest(?::VARCHAR[]))", [gone])
    damaged_files: list[str] = []
    if new and _add_rows(db, store, new):  # one by one, to find the damaged ones
        damages = {digest: _add_rows(db, store, {digest: modified}) for digest, modified in new.items()}
        damaged_files = [f"{store.parquet(digest)}: {damage}" for digest, damage in damages.items() if damage]
    _create_views(db, store, not damaged_files)
    return skipped + damaged_files


@contextmanager
def transaction(db: "DuckDBPyConnection") -> Iterator[None]:
    """Commit the work of the block, or roll all of it back."""
    db.begin()
    try:
        yield
    except BaseException:
        db.rollback()
        raise
    db.commit()


def find_changed_files(
    db: "DuckDBPyConnection", store: Store
) -> tuple[list[tuple[str, str]], dict[tuple[str, str], int]]:
    """Return kinds and paths of files that are gone, and those that the index lacks with their times."""
    on_disk: dict[tuple[str, str], int] = {}
    for kind, (glob, _) in _KINDS.items():
        for path in store.folder.glob(glob):
            with suppress(OSError):  # removed meanwhile, or a link to itself
                on_disk[kind, str(path.relative_to(store.folder))] = path.stat().st_mtime_ns
    rows = db.execute("SELECT kind, path, modified_ns FROM stored.files").fetchall()
    indexed = {(kind, path): modified for kind, path, modified in rows}
    gone = [key for key, modified in indexed.items() if on_disk.get(key) != modified]
    return gone, {key: modified for key, modified in on_disk.items() if indexed.get(key) != modified}


def find_changed_rows(db: "DuckDBPyConnection", store: Store) -> tuple[list[str], dict[str, int]]:
    """Return the digests of row sets that are gone, and those that the index lacks with their times."""
    base_rows = "SELECT base_rowset FROM stored.run_rows WHERE base_rowset <> ''"
    used_rows = db.execute(f"SELECT rowset FROM stored.run_rows UNION {base_rows}").fetchall()
    on_disk: dict[str, int] = {}
    for (digest,) in used_rows:
        with suppress(FileNotFoundError):
            on_disk[digest] = store.parquet(digest).stat().st_mtime_ns
    indexed = dict(db.execute("SELECT rowset, modified_ns FROM stored.rowsets").fetchall())
    gone = [digest for digest, modified in indexed.items() if on_disk.get(digest) != modified]
    return gone, {digest: modified for digest, modified in on_disk.items() if indexed.get(digest) != modified}


def _run_rows(store: Store, run: Run) -> Iterator[tuple[str, ...]]:
    """Yield the row sets of a run, each with the base's row set (equal but for the weights) and units."""
    for key, digest in run.rows.items():
        task, _, split = key.rpartition("/")
        try:
            base = replace(read_identity(store, digest), weights_digest=run.base_digest).digest
        except HarnessError:  # a row set without its identity is compared with nothing
            base = ""
        units = {}
        for name, metric in run.metrics.get(task, {}).items():
            scale = 100.0 if metric.is_rate else 1.0
            direction = metric.higher_is_better
            units[name] = {"higher_is_better": direction, "scale": scale, "worst": metric.worst}
        yield run.run_id, task, split, digest, base if base != digest else "", json.dumps(units)


def _insert(
    db: "DuckDBPyConnection", table: str, rows: Iterable[tuple[Any, ...]], last_cast: str = ""
) -> None:
    """Insert rows; one list per column is much faster than one statement per row."""
    if columns := list(zip(*rows, strict=True)):
        kinds = [f"unnest(?::{'BIGINT' if isinstance(c[0], int) else 'VARCHAR'}[])" for c in columns]
        query = f"INSERT INTO stored.{table} SELECT {', '.join(kinds)}{last_cast}"
        db.execute(query, list(map(list, columns)))


def _add_rows(db: "DuckDBPyConnection", store: Store, times_ns: Mapping[str, int]) -> str:
    """Add row sets, all of them or none; return the damage found, empty if they were added."""
    import duckdb

    times = "SELECT unnest(?::VARCHAR[]) AS rowset, unnest(?::BIGINT[]) AS modified_ns"
    counts = "SELECT parse_path(file_name)[-2] AS rowset, num_rows FROM parquet_file_metadata(?)"
    sets = f"SELECT rowset, num_rows, modified_ns FROM ({counts}) JOIN ({times}) USING (rowset)"
    entries = f"{parquet_files.DIGEST}, example_id, unnest(map_keys(parts)), unnest(map_values(parts))"
    scores = f"SELECT {entries}, status, cluster, slice, weight FROM {parquet_files.READ_NAMED}"
    try:
        files = [parquet_files.whole_file(store.parquet(digest)) for digest in times_ns]
        with transaction(db):
            db.execute(f"INSERT INTO stored.rowsets {sets}", [files, list(times_ns), list(times_ns.values())])
            db.execute(f"INSERT INTO stored.scores {scores}", [files])
    except (OSError, HarnessError, duckdb.Error) as error:
        if is_no_room(error):
            raise
        return first_line(error)
    return ""


def _create_views(db: "DuckDBPyConnection", store: Store, are_whole: bool) -> None:
    """Create the views of all rows, sampled answers and feedback; after damage only of whole files."""
    import duckdb

    folder = store.folder.resolve()
    all_files, sample_files = (
        [f"{parquet_files.pattern(folder)}/{files}"] if any(folder.glob(files)) else []
        for files in ("rows/*/rows.parquet", "rows/*/samples/*.jsonl")
    )
    stored_digests = db.execute("SELECT rowset FROM stored.rowsets ORDER BY rowset").fetchall()
    whole_files = [parquet_files.pattern(Store(folder).parquet(digest)) for (digest,) in stored_digests]
    all_paths = parquet_files.feedback_files(Store(folder))
    feedback_paths = [parquet_files.pattern(path) for path in all_paths if not parquet_files.is_damaged(path)]
    columns = ", ".join(f"\"{name}\": '{kind}'" for name, kind in parquet_files.SAMPLE_COLUMNS.items())
    options = "format = 'newline_delimited', hive_partitioning = false, filename = true, ignore_errors = true"
    sample_query = f"read_json({parquet_files.quote_texts(sample_files)}, columns = {{{columns}}}, {options})"

    def select_from(files: Sequence[str], columns: Mapping[str, str], query: str = "") -> str:
        nulls = ", ".join(f'NULL::{kind} AS "{name}"' for name, kind in columns.items())
        if not files:
            return f"(SELECT {nulls}, '' AS filename LIMIT 0)"
        return query or parquet_files.READ_NAMED.replace("?", parquet_files.quote_texts(files))

    sources = {
        "samples": select_from(sample_files, parquet_files.SAMPLE_COLUMNS, sample_query),
        "feedback": select_from(feedback_paths, parquet_files.FEEDBACK_COLUMNS),
    }
    for files in [all_files, whole_files] if are_whole else [whole_files]:
        rows = select_from(files, parquet_files.COLUMNS)
        query_by_view = {table.name: table.query.format(rows=rows, **sources) for table in TABLES}
        stored_queries = [str(list(query_by_view.values()))]
        try:
            with transaction(db):
                if db.execute("SELECT queries FROM stored.views").fetchall() != [tuple(stored_queries)]:
                    for name, query in query_by_view.items():
                        db.execute(f"CREATE OR REPLACE VIEW {name} AS {query}")
                    db.execute("CREATE OR REPLACE TABLE stored.views AS SELECT ? AS queries", stored_queries)
            return
        except duckdb.Error as error:
            if files is whole_files or is_no_room(error):
                raise
