"""Runs: saved, listed, found and removed.

Invariant: `run.json` is written before the index hears of the run, and the index forgets a
run before its folder goes; so whatever is interrupted, `reindex` tells the truth.
"""

import json
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from harness.errors import Problem, UserError, did_you_mean
from harness.records import Run
from harness.store import index
from harness.store.disk import own_fit_key
from harness.store.folders import (
    Store,
    clear_errors,
    failure,
    first_line,
    is_bare_name,
    is_no_room,
    missing_rows,
    remove_folder,
    remove_stale_parts,
    rename_when_whole,
    write_whole,
)
from harness.store.ingest import add_rows, drop_orphans, groups
from harness.store.rows import silent

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

_TAKEN = ("rows", "weights", "ratings", "control", "environments", "nightly", "noise")


class Counts(NamedTuple):
    """What the index holds; `skipped` says what could not be read, and why."""

    runs: int
    row_sets: int
    rows: int
    skipped: tuple[str, ...]


def save_run(store: Store, run: Run) -> None:
    """Write `run.json`, then bring the run and its complete row sets into the index.

    A run saved again replaces itself. Row sets that the index holds unchanged are not read; ratings that
    it has not heard of are brought along.

    Raises:
        ValueError: the run holds NaN, or its id cannot name a folder.
        HarnessError: a row set is not complete, the disk is full, or the index stays locked.
    """
    if run.run_id in _TAKEN or not is_bare_name(run.run_id):
        raise ValueError(f"{run.run_id!r} cannot name the folder of a run")
    if missing := [digest for digest in run.rows.values() if not store.parquet(digest).exists()]:
        raise missing_rows(store, missing)
    write_whole(store, store.run_file(run.run_id), _text(run))
    with index.writing(store) as db:
        index.add_run(db, store, run, _text(run))
        index.add_ratings(db, store)
        drop_orphans(db)


def list_runs(store: Store, experiment: str | None = None) -> list[Run]:
    """List the runs, oldest first; those of one experiment where it is given."""
    if not store.index.exists() and any(store.folder.glob("*/run.json")):
        reindex(store)
    if not store.index.exists():
        return []
    return [_parse(record) for record in index.records(store, experiment)]


def get_run(store: Store, run_id: str) -> Run:
    """Find a run by its id.

    Raises:
        UserError: there is no such run.
    """
    runs = {run.run_id: run for run in list_runs(store)}
    if run_id not in runs:
        next_step = did_you_mean(run_id, runs) if runs else "make one: harness compare"
        raise UserError(Problem("run", repr(run_id), f"a run in {store.folder}", next_step))
    return runs[run_id]


def read_run(file: Path) -> Run | None:
    """Read a `run.json`; None where there is none, or it is damaged."""
    try:
        return _parse(file.read_text("utf-8"))
    except (OSError, ValueError, TypeError):
        return None


def written_runs(store: Store, run_ids: Iterable[str]) -> dict[str, Run]:
    """Read runs by their ids from their folders; one that is not there, or damaged, is left out.

    An index that has not heard of a run, because its writer was ended in between, hears of it now.
    """
    found = {run_id: read_run(store.run_file(run_id)) for run_id in run_ids}
    runs = {run_id: run for run_id, run in found.items() if run}
    indexed = list_runs(store) if runs else []
    for run in runs.values():
        if run not in indexed:
            save_run(store, run)
    return runs


def remove_run(store: Store, run_id: str, keep: Collection[str] = ()) -> None:
    """Delete a run, and those of its row sets (but for `keep`) and weights that no other run refers to.

    Raises:
        UserError: there is no such run.
        HarnessError: another run's file is unreadable, so what it refers to is unknown.
    """
    run = get_run(store, run_id)
    on_disk, unreadable = runs_on_disk(store)
    if unreadable:
        expected = "readable run files, which tell what is shared"
        raise failure("runs", "; ".join(unreadable), expected, "repair or delete them")
    others = [other for other in on_disk if other.run_id != run_id]
    with index.writing(store) as db:
        index.drop_run(db, run_id)
        drop_orphans(db)
    remove_folder(store.folder / run_id)
    for digest in set(run.rows.values()).difference(keep, *(other.rows.values() for other in others)):
        remove_folder(store.rows(digest))
    fit_keys = Counter(one.training.get("fit_key") for one in [run, *others])
    if fit_key := own_fit_key(run, fit_keys, Counter(one.weights_digest for one in [run, *others])):
        remove_folder(store.weights(fit_key))


def reindex(store: Store) -> Counts:
    """Rebuild the index from the folders and put it in the old one's place.

    Raises:
        HarnessError: the disk is full, or another process keeps writing.
    """
    counts: list[Counts] = []
    with index.writer_lock(store), clear_errors(store, str(store.index), index.REINDEX):
        remove_stale_parts(store)
        rename_when_whole(store, store.index, lambda part: counts.append(_build(store, part)))
        # A log that outlived its writer belongs to the file that is gone.
        store.index.with_name(store.index.name + ".wal").unlink(missing_ok=True)
    return counts[0]


def _build(store: Store, path: Path) -> Counts:
    import duckdb

    runs, skipped = runs_on_disk(store)
    with silent(duckdb.connect(str(path))) as db:
        index.migrate(db)
        _add_all_rows(db, store, runs)
        for run in runs:
            try:
                with index.transaction(db):
                    index.add_run(db, store, run, _text(run))
            except (OSError, duckdb.Error) as error:
                if is_no_room(error):
                    raise
                skipped.append(f"{store.run_file(run.run_id)}: {first_line(error)}")
        if skipped:
            drop_orphans(db)  # rows that only a skipped run refers to
        skipped += index.add_ratings(db, store)
        return Counts(*index.sizes(db), tuple(skipped))


def _add_all_rows(db: "DuckDBPyConnection", store: Store, runs: Sequence[Run]) -> None:
    """Insert the rows of all runs, many sets at once, until one is damaged: each run then brings its own.

    What is not committed yet is in memory, so each group of sets is committed by itself.
    """
    import duckdb

    digests = dict.fromkeys(digest for run in runs for digest in run.rows.values())
    try:
        for group in groups(db, {digest: store.parquet(digest) for digest in digests}):
            with index.transaction(db):
                add_rows(db, group)
    except (OSError, duckdb.Error) as error:
        if is_no_room(error):
            raise


def _text(run: Run) -> str:
    return json.dumps(asdict(run), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _parse(text: str) -> Run:
    return Run(**json.loads(text))


def runs_on_disk(store: Store) -> tuple[list[Run], list[str]]:
    """Read every `run.json` without the index; what cannot be read is named with its reason."""
    runs, unreadable = [], []
    for path in sorted(store.folder.glob("*/run.json")):
        try:
            runs.append(_parse(path.read_text("utf-8")))
        except (ValueError, TypeError) as error:
            unreadable.append(f"{path}: {first_line(error)}")
    return runs, unreadable
