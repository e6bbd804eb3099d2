"""The DuckDB file: connections, tables and their migrations.

Invariant: DuckDB lets one process write or many read, so connections are short, writers
queue at one lock, and let readers in between two of them.
"""

import json
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import HarnessError
from harness.records import Rating, Run
from harness.store.ingest import KEYS, add_rows, add_texts
from harness.store.layout import Store, clear_errors, failure, first_line
from harness.store.rows import silent

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

REINDEX = "harness reindex"
_RUN_COLUMNS = (
    "run_id",
    "experiment",
    "candidate",
    "method",
    "prompting",
    "answer",
    "seed",
    "state",
    "created",
)
_PAUSE_S = 0.01  # between two tries at a file that is held
_TURN_S = 0.05  # which a writer that had to queue leaves to readers
_PAUSES_S = (0.05, 0.1, 0.2, 0.4)  # before a file that cannot be read is looked at again


def fetched(store: Store, query: str, *values: object) -> list[tuple[Any, ...]]:
    """Ask the index, read-only, after bringing an older one to the present schema.

    A process that closes a file drops all its locks on it (POSIX), and DuckDB closes some late: so a writer
    may come while the file is read. What is damaged after some tries is damaged.

    Raises:
        HarnessError: the file is damaged or of a newer harness, or a writer keeps holding it.
    """
    import duckdb

    with clear_errors(store, str(store.index), REINDEX):
        for pause_s in _PAUSES_S:
            try:
                return _fetched(store, query, values)
            except duckdb.Error:
                time.sleep(pause_s)
        return _fetched(store, query, values)


def _fetched(store: Store, query: str, values: Sequence[object]) -> list[tuple[Any, ...]]:
    with _connect(store, read_only=True) as db:
        if _version(db) == len(MIGRATIONS):
            return db.execute(query, values).fetchall()
    with writer_lock(store), opened(store):
        pass
    with _connect(store, read_only=True) as db:
        return db.execute(query, values).fetchall()


@contextmanager
def opened(store: Store) -> Iterator["DuckDBPyConnection"]:
    """Open an index that is there for one transaction, by whoever holds the writers' lock."""
    with clear_errors(store, str(store.index), REINDEX), _connect(store, read_only=False) as db:
        migrate(db)
        with transaction(db):
            yield db


@contextmanager
def writer_lock(store: Store) -> Iterator[None]:
    """Hold the lock that all writers of a store take.

    Raises:
        HarnessError: another process holds it for longer than the store waits.
    """
    # DuckDB's own lock goes with its file, which reindex replaces; hence one beside it.
    from filelock import FileLock, Timeout

    store.folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(store.folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        try:
            lock.acquire(timeout=store.wait_s)
        except Timeout as error:
            raise _busy(store) from error
        time.sleep(_TURN_S)
    try:
        yield
    finally:
        lock.release()


@contextmanager
def transaction(db: "DuckDBPyConnection") -> Iterator[None]:
    """Commit what is done inside, or nothing of it."""
    db.begin()
    try:
        yield
    except BaseException:
        db.rollback()
        raise
    db.commit()


def records(store: Store, experiment: str | None) -> list[str]:
    """Read the runs' JSON, oldest first; of one experiment where it is given."""
    query = "SELECT record FROM runs WHERE experiment = coalesce(?, experiment) ORDER BY created, run_id"
    return [record for (record,) in fetched(store, query, experiment)]


def add_run(db: "DuckDBPyConnection", store: Store, run: Run, record: str) -> None:
    """Insert a run, in place of an older one of its id, and those of its row sets that are not there."""
    drop_run(db, run.run_id)
    values = [*(getattr(run, name) for name in _RUN_COLUMNS), record]
    db.execute(f"INSERT INTO runs VALUES ({', '.join('?' * len(values))})", values)
    names, digests = list(run.rows), list(run.rows.values())
    add_rows(db, {digest: store.parquet(digest) for digest in sorted(set(digests))})
    pairs = "SELECT ?, unnest(?::VARCHAR[]), unnest(?::VARCHAR[])"
    db.execute(f"INSERT INTO run_rows {pairs}", [run.run_id, names, digests])


def drop_run(db: "DuckDBPyConnection", run_id: str) -> None:
    """Delete a run and its references to row sets."""
    for table in ("runs", "run_rows"):
        db.execute(f"DELETE FROM {table} WHERE run_id = ?", [run_id])


def ratings_folder(store: Store) -> Path:
    """Return where each rating has its file."""
    return store.folder / "ratings"


def add_ratings(db: "DuckDBPyConnection", store: Store) -> list[str]:
    """Insert the ratings that the index has not heard of; names what cannot be read."""
    known = {rating_id for (rating_id,) in db.execute("SELECT rating_id FROM ratings").fetchall()}
    ratings, unreadable = ratings_on_disk(store, known)
    if ratings:
        values = [astuple(rating) for rating in ratings]
        db.executemany(f"INSERT INTO ratings VALUES ({', '.join('?' * len(values[0]))})", values)
    return unreadable


def ratings_on_disk(store: Store, known: Collection[str] = ()) -> tuple[list[Rating], list[str]]:
    """Read the ratings' files but for those of known ids; what cannot be read is named with its reason."""
    ratings, unreadable = [], []
    for path in sorted(ratings_folder(store).glob("*.json")):
        if path.stem in known:
            continue
        try:
            ratings.append(Rating(**json.loads(path.read_text("utf-8"))))
        except (OSError, ValueError, TypeError) as error:
            unreadable.append(f"{path}: {first_line(error)}")
    return ratings, unreadable


def sizes(db: "DuckDBPyConnection") -> tuple[int, int, int]:
    """Count runs, row sets and rows."""
    query = "SELECT (SELECT count(*) FROM runs), (SELECT count(*) FROM rowsets), (SELECT count(*) FROM rows)"
    ((n_runs, n_row_sets, n_rows),) = db.execute(query).fetchall()
    return n_runs, n_row_sets, n_rows


def _connect(store: Store, *, read_only: bool) -> "DuckDBPyConnection":
    import duckdb

    deadline = time.monotonic() + store.wait_s
    while True:
        try:
            return silent(duckdb.connect(str(store.index), read_only=read_only))
        except (duckdb.IOException, duckdb.ConnectionException) as error:
            if isinstance(error, duckdb.IOException) and "set lock" not in str(error):
                raise
            if time.monotonic() > deadline:
                raise _busy(store) from error
        time.sleep(_PAUSE_S)


def _busy(store: Store) -> HarnessError:
    found = f"another process that has held it for {store.wait_s:g} s"
    return failure(str(store.index), found, "one writer at a time", f"end that process, then: {REINDEX}")


def m001_runs_rows_and_scores(db: "DuckDBPyConnection") -> None:
    """Create the tables: runs, the row sets they refer to, rows, and a line for each row and metric."""
    db.execute("""
        CREATE TABLE runs (
            run_id VARCHAR, experiment VARCHAR, candidate VARCHAR, method VARCHAR, prompting VARCHAR,
            answer VARCHAR, seed BIGINT, state VARCHAR, created VARCHAR, record VARCHAR);
        CREATE TABLE run_rows (run_id VARCHAR, task_split VARCHAR, rowset VARCHAR);
        CREATE TABLE rowsets (rowset VARCHAR, n_rows BIGINT, modified_ns BIGINT);
        CREATE TABLE rows (
            rowset VARCHAR, task VARCHAR, split VARCHAR, example_id VARCHAR, position BIGINT,
            status VARCHAR, text VARCHAR, prompt VARCHAR, "references" VARCHAR[], cluster VARCHAR,
            slice VARCHAR, gold_logprob DOUBLE, gold_bytes BIGINT, margin DOUBLE,
            n_prompt_tokens BIGINT, n_output_tokens BIGINT, compute_s DOUBLE, prompt_digest VARCHAR,
            output_digest VARCHAR, boundary_merged BOOLEAN, finish_reason VARCHAR, passages VARCHAR[],
            recall DOUBLE, attempt BIGINT, weight DOUBLE, error VARCHAR);
        CREATE TABLE scores (rowset VARCHAR, example_id VARCHAR, metric VARCHAR, parts DOUBLE[]);
    """)


def m002_each_text_once(db: "DuckDBPyConnection") -> None:
    """Move prompts, references and answers into a table of texts, and give rows their keys."""
    db.execute(f"""
        CREATE TABLE texts (key UBIGINT, text VARCHAR);
        CREATE TEMP TABLE keyed AS SELECT *, {KEYS} FROM rows;
        DROP TABLE rows;
        CREATE TABLE rows AS SELECT * EXCLUDE (text, prompt, "references") FROM keyed;
    """)
    add_texts(db, "keyed")
    db.execute("""
        DROP TABLE keyed;
        CREATE VIEW samples AS
        SELECT rows.* EXCLUDE (text_key, prompt_key, references_key), answer.text AS text,
            asked.text AS prompt, from_json(accepted.text, '["VARCHAR"]') AS "references"
        FROM rows
        JOIN texts AS answer ON answer.key = text_key
        JOIN texts AS asked ON asked.key = prompt_key
        JOIN texts AS accepted ON accepted.key = references_key;
    """)


def m003_ratings(db: "DuckDBPyConnection") -> None:
    """Create the table of what people preferred."""
    db.execute("""
        CREATE TABLE ratings (
            rating_id VARCHAR, rater VARCHAR, created VARCHAR, task VARCHAR, split VARCHAR,
            example_id VARCHAR, run_a VARCHAR, run_b VARCHAR, rows_a VARCHAR, rows_b VARCHAR,
            left_side VARCHAR, choice VARCHAR, seconds DOUBLE);
    """)


MIGRATIONS: tuple[Callable[["DuckDBPyConnection"], None], ...] = (
    m001_runs_rows_and_scores,
    m002_each_text_once,
    m003_ratings,
)


def migrate(db: "DuckDBPyConnection") -> None:
    """Apply the migrations that the file has not seen, each in its own transaction."""
    for version in range(_version(db) + 1, len(MIGRATIONS) + 1):
        with transaction(db):
            MIGRATIONS[version - 1](db)
            db.execute("CREATE TABLE IF NOT EXISTS meta (version BIGINT)")
            db.execute("INSERT INTO meta VALUES (?)", [version])


def _version(db: "DuckDBPyConnection") -> int:
    """Return the schema's version, 0 for an empty file.

    Raises:
        HarnessError: the file was written by a newer harness.
    """
    if not db.execute("SELECT 1 FROM duckdb_tables() WHERE table_name = 'meta'").fetchone():
        return 0
    ((version,),) = db.execute("SELECT max(version) FROM meta").fetchall()
    if version > len(MIGRATIONS):
        found = f"version {version} of the index, written by a newer harness"
        expected = f"version {len(MIGRATIONS)} at most"
        raise failure("index", found, expected, f"upgrade harness, or rebuild the index: {REINDEX}")
    return int(version)
