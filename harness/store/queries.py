"""Queries on row sets: items with all their answers, differing items, counts of statuses.

Invariant: reads only Parquet files, never the index, so no writer is blocked.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from harness.records import SampleResult, Status
from harness.store.layout import ANEW, Store, clear_errors
from harness.store.parquet_files import (
    DIGEST,
    FAILED,
    OF_ERRORS,
    READ_NAMED,
    READ_PARQUET,
    memory,
    rows_from,
    whole_file,
)
from harness.store.rows import read_folds


class MetricColumns(NamedTuple):
    """One metric's parts of a row set, with the items' ids, clusters and weights, ordered by id.

    `parts` is None if an item could not be scored; `failed` says that its answer, or one of several, was an
    error; `references` holds the references of such items. `folds` is empty if one model answered all items.
    """

    ids: tuple[str, ...]
    clusters: tuple[str, ...]
    parts: tuple[Sequence[float] | None, ...]
    weights: tuple[float, ...]
    failed: tuple[bool, ...]
    references: tuple[Sequence[str], ...]
    folds: tuple[int, ...] = ()


def read_samples(store: Store, rows_digest: str, ids: Collection[str]) -> dict[str, SampleResult]:
    """Read some items of a complete row set by their ids, with their texts; missing ones are left out."""
    path = store.parquet(rows_digest)
    if not path.exists() or not ids:
        return {}
    where = "WHERE example_id IN (SELECT unnest(?::VARCHAR[]))"
    with clear_errors(store, f"rows {rows_digest}", ANEW), memory() as db:
        rows = rows_from(db, f"{READ_PARQUET} {where}", whole_file(path), list(ids))
    return {row.example_id: row for row in rows}


def document_digests(store: Store, rows_digests: Iterable[str]) -> dict[str, dict[str, str]]:
    """Map the items of row sets to a digest of question and references, independent of the prompt."""
    documents = {digest: dict[str, str]() for digest in rows_digests if store.parquet(digest).exists()}
    query = f'SELECT {DIGEST}, example_id, md5(list_prepend(prompt, "references")::VARCHAR) FROM {READ_NAMED}'
    with clear_errors(store, f"rows {', '.join(documents)}", ANEW), memory() as db:
        files = [whole_file(store.parquet(digest)) for digest in documents]
        for rows_digest, example_id, document in db.execute(query, [files]).fetchall() if files else ():
            documents[rows_digest][example_id] = document
    return documents


class ItemFilter(NamedTuple):
    """Filter of a task's items by text, slice, status or ids; an empty field, or None, matches all."""

    text: str = ""
    slice: str = ""
    status: str = ""
    ids: Collection[str] | None = None


class Answer(NamedTuple):
    """An answer to an item: its text, its status, and a metric's parts, None if it was not scored."""

    text: str
    status: Status
    parts: Sequence[float] | None


class AnsweredItem(NamedTuple):
    """An item with its answers by row set; `question` is the shortest prompt used for it."""

    id: str
    slice: str
    question: str
    references: Sequence[str]
    answers: Mapping[str, Answer]


def read_answers(
    store: Store,
    rows_digests: Collection[str],
    metric: str,
    filters: ItemFilter,
    *,
    offset: int = 0,
    n: int | None = None,
) -> tuple[int, list[AnsweredItem]]:
    """Count the items that match, and read n of them by position, each with every row set's answer."""
    columns = ("example_id", "cluster", "prompt", "text", """array_to_string("references", ' ')""")
    matches = " OR ".join(f"contains(lower({column}), lower($2))" for column in columns)
    query = f"""
        FROM {READ_NAMED.replace("?", "$1")}
        SELECT count(*) OVER () AS n, example_id, any_value(slice), arg_min(prompt, length(prompt)),
            any_value("references"), list({DIGEST}), list(text), list(status), list(parts[$3])
        WHERE $5 OR example_id IN (SELECT unnest($6::VARCHAR[]))
        GROUP BY example_id
        HAVING ($2 = '' OR bool_or({matches})) AND ($4 = '' OR bool_or(status = $4))
            AND ($7 = '' OR any_value(slice) = $7)
        ORDER BY min(position), example_id LIMIT $8 OFFSET $9
    """
    ids, limit = filters.ids, 1 << 60 if n is None else n
    values = (filters.text.strip(), metric, filters.status, ids is None, [*(ids or ())], filters.slice)
    rows = _select(store, query, rows_digests, *values, limit, offset)
    return rows[0][0] if rows else 0, [
        AnsweredItem(item, slice_, question, references, dict(zip(digests, map(Answer, *parts), strict=True)))
        for _, item, slice_, question, references, digests, *parts in rows
    ]


def list_slices(store: Store, rows_digests: Collection[str]) -> list[str]:
    """List the slices of the items of row sets."""
    query = f"SELECT DISTINCT slice FROM {READ_PARQUET} WHERE slice != '' ORDER BY slice"
    return [name for (name,) in _select(store, query, rows_digests)]


def list_differing_items(store: Store, first: str, second: str) -> list[str]:
    """List the ids, in order, of items that two row sets answered differently, without failed ones."""
    files = [_list_existing_files(store, [digest]) for digest in (first, second)]
    if not all(files):
        return []
    query = (
        f"SELECT a.example_id FROM {READ_PARQUET} AS a JOIN {READ_PARQUET} AS b USING (example_id) "
        "WHERE (a.output_digest != b.output_digest OR a.output_digest = '') "
        "AND a.status != 'error' AND b.status != 'error' ORDER BY a.example_id"
    )
    with clear_errors(store, "rows", ANEW), memory() as db:
        return [item for (item,) in db.execute(query, files).fetchall()]


def count_statuses(store: Store, rows_digests: Collection[str]) -> dict[str, dict[str, int]]:
    """Count the items of row sets by digest and status; missing sets are left out."""
    query = f"SELECT {DIGEST} AS digest, status, count(*) FROM {READ_NAMED} GROUP BY ALL"
    counts: dict[str, dict[str, int]] = {}
    for digest, status, n in _select(store, query, rows_digests):
        counts.setdefault(digest, {})[status] = n
    return counts


def read_columns(store: Store, rows_digests: Collection[str], metric: str) -> dict[str, MetricColumns]:
    """Read a ranking's columns from many row sets at once; sets without the metric are left out."""
    names = ("example_id", "cluster", "parts[?]", "weight", f"status IN {FAILED}", OF_ERRORS)
    lists = ", ".join(f"list({name} ORDER BY example_id)" for name in names)
    query = (
        f"FROM {READ_NAMED} SELECT {DIGEST} AS digest, {lists} WHERE map_contains(parts, ?) GROUP BY digest"
    )
    rows = _select(store, query, rows_digests, metric, metric)
    columns_by_digest = {}
    for digest, *values in rows:
        columns, folds = MetricColumns(*map(tuple, values)), read_folds(store, digest)
        numbers = tuple(folds[item] for item in columns.ids) if folds else ()
        columns_by_digest[digest] = columns._replace(folds=numbers)
    return columns_by_digest


def _select(
    store: Store, query: str, rows_digests: Collection[str], *values: object
) -> list[tuple[Any, ...]]:
    files = _list_existing_files(store, rows_digests)
    if not files:
        return []
    with clear_errors(store, "rows", ANEW), memory() as db:
        return db.execute(query, [files, *values]).fetchall()


def _list_existing_files(store: Store, rows_digests: Collection[str]) -> list[str]:
    paths = (store.parquet(digest) for digest in dict.fromkeys(rows_digests))
    return [whole_file(path) for path in paths if path.exists()]
