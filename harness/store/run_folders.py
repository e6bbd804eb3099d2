"""Runs: saved, listed, found and removed.

Invariant: `run.json` is written before the index hears of the run, and the index forgets a
run before its folder goes; so whatever is interrupted, `reindex` tells the truth.
"""

from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path

from harness.errors import Problem, UserError, did_you_mean
from harness.records import Run
from harness.store import index
from harness.store.disk_use import needed_keys, own_fit_key
from harness.store.ingest import drop_orphans
from harness.store.layout import Store, failure, is_bare_name, missing_rows, remove_folder, write_whole
from harness.store.rebuild import build_missing, parsed, record_of, runs_on_disk, writing

_TAKEN = ("rows", "weights", "ratings", "control", "environments", "nightly", "noise")


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
    write_whole(store, store.run_file(run.run_id), record_of(run))
    with writing(store) as db:
        index.add_run(db, store, run, record_of(run))
        index.add_ratings(db, store)
        drop_orphans(db)


def list_runs(store: Store, experiment: str | None = None) -> list[Run]:
    """List the runs, oldest first; those of one experiment where it is given."""
    if not store.index.exists() and any(store.folder.glob("*/run.json")):
        build_missing(store)
    if not store.index.exists():
        return []
    return [parsed(record) for record in index.records(store, experiment)]


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
        return parsed(file.read_text("utf-8"))
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


def all_runs(store: Store) -> list[Run]:
    """Read every run from its folder, to know what is shared.

    Raises:
        HarnessError: a run's file is unreadable, so what it refers to is unknown.
    """
    on_disk, unreadable = runs_on_disk(store)
    if unreadable:
        expected = "readable run files, which tell what is shared"
        raise failure("runs", "; ".join(unreadable), expected, "repair or delete them")
    return on_disk


def remove_run(store: Store, run_id: str, keep: Collection[str] = ()) -> None:
    """Delete a run, and those of its row sets and weights that no other run refers to, nor `keep`.

    `keep` names row sets and weights by their digests, and folders of weights by their keys.

    Raises:
        UserError: there is no such run.
        HarnessError: another run's file is unreadable, so what it refers to is unknown.
    """
    run = get_run(store, run_id)
    others = [other for other in all_runs(store) if other.run_id != run_id]
    with writing(store) as db:
        index.drop_run(db, run_id)
        drop_orphans(db)
    remove_folder(store.folder / run_id)
    for digest in set(run.rows.values()).difference(keep, *(other.rows.values() for other in others)):
        remove_folder(store.rows(digest))
    every = [run, *others]
    fit_key = own_fit_key(run, needed_keys(every), Counter(one.weights_digest for one in every))
    if fit_key and not {fit_key, run.weights_digest} & set(keep):
        remove_folder(store.weights(fit_key))
