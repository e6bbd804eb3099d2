"""Row sets into the index: many at a time, each text once.

Invariant: `texts` holds just the texts that `rows` refers to, each under the lower half of its MD5;
the view `samples` gives rows with their texts.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from harness.store.rows import READ_PARQUET, pattern

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

_AT_ONCE = 500_000  # rows
_TEXTS = {"text_key": "text", "prompt_key": "prompt", "references_key": 'to_json("references")::VARCHAR'}
KEYS = ", ".join(f"md5_number_lower({text}) AS {key}" for key, text in _TEXTS.items())
_ROW_TABLES = ("rowsets", "rows", "scores")


def add_rows(db: "DuckDBPyConnection", sets: Mapping[str, Path]) -> None:
    """Insert the rows of complete sets, by digest, that the index does not hold as they are."""
    modified_ns = {digest: path.stat().st_mtime_ns for digest, path in sets.items()}
    query = "SELECT rowset, modified_ns FROM rowsets WHERE rowset IN (SELECT unnest(?::VARCHAR[]))"
    held = dict(db.execute(query, [list(sets)]).fetchall())
    new = {d: path for d, path in sets.items() if held.get(d) != modified_ns[d]}
    if outdated := list(new.keys() & held.keys()):  # a set that has grown is read again
        _delete(db, outdated)
    for group in groups(db, new):
        _add_group(db, group, {digest: modified_ns[digest] for digest in group})


def drop_orphans(db: "DuckDBPyConnection") -> None:
    """Delete the rows that no run refers to, and the texts that are then nobody's."""
    query = "SELECT rowset FROM rowsets WHERE rowset NOT IN (SELECT rowset FROM run_rows)"
    if orphans := [rowset for (rowset,) in db.execute(query).fetchall()]:
        _delete(db, orphans)


def add_texts(db: "DuckDBPyConnection", source: str) -> None:
    """Insert the texts of a table of rows with their keys, as far as they are not there."""
    pairs = " UNION ALL ".join(
        f"SELECT {key} AS key, {text} AS text FROM {source}" for key, text in _TEXTS.items()
    )
    fresh = (
        f"SELECT key, any_value(text) FROM ({pairs}) WHERE key NOT IN (SELECT key FROM texts) GROUP BY key"
    )
    db.execute(f"INSERT INTO texts {fresh}")


def _add_group(db: "DuckDBPyConnection", group: Mapping[str, Path], modified_ns: Mapping[str, int]) -> None:
    source = READ_PARQUET.replace(")", ", filename = true)")
    staged = f"SELECT parse_path(filename)[-2] AS rowset, * EXCLUDE (filename), {KEYS} FROM {source}"
    db.execute(f"CREATE OR REPLACE TEMP TABLE staged AS {staged}", [list(map(pattern, group.values()))])
    times = "SELECT unnest(?::VARCHAR[]) AS rowset, unnest(?::BIGINT[]) AS modified_ns"
    counted = "SELECT rowset, count(*) AS n_rows FROM staged GROUP BY rowset"
    db.execute(
        f"INSERT INTO rowsets BY NAME FROM ({counted}) RIGHT JOIN ({times}) USING (rowset) "
        "SELECT rowset, coalesce(n_rows, 0) AS n_rows, modified_ns",
        [list(modified_ns), list(modified_ns.values())],
    )
    columns = 'SELECT * EXCLUDE (parts, text, prompt, "references") FROM staged'
    db.execute(f"INSERT INTO rows BY NAME {columns}")
    entries = "unnest(map_keys(parts)), unnest(map_values(parts))"
    db.execute(f"INSERT INTO scores SELECT rowset, example_id, {entries} FROM staged")
    add_texts(db, "staged")
    db.execute("DROP TABLE staged")


def _delete(db: "DuckDBPyConnection", rowsets: Sequence[str]) -> None:
    for table in _ROW_TABLES:
        db.execute(f"DELETE FROM {table} WHERE rowset IN (SELECT unnest(?::VARCHAR[]))", [rowsets])
    used = " UNION ALL ".join(f"SELECT {key} FROM rows" for key in _TEXTS)
    db.execute(f"DELETE FROM texts WHERE key NOT IN ({used})")


def groups(db: "DuckDBPyConnection", sets: Mapping[str, Path]) -> Iterator[dict[str, Path]]:
    """Cut sets into groups that fit into memory."""
    query = "SELECT parse_path(file_name)[-2], num_rows FROM parquet_file_metadata(?)"
    sizes = dict(db.execute(query, [list(map(pattern, sets.values()))]).fetchall()) if sets else {}
    group: dict[str, Path] = {}
    n_rows = 0
    for digest, path in sets.items():
        group[digest] = path
        n_rows += sizes[digest]
        if n_rows >= _AT_ONCE:
            yield group
            group, n_rows = {}, 0
    if group:
        yield group
