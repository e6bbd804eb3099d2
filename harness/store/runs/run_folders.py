"""Runs: saved, listed, found and removed.

Invariant: `run.json` is the run, whole or not there. Runs are listed from the folders, which takes no longer
than an index would; that hears of a run afterwards, as soon as nobody holds it.

    runs/<run_id>/run.json         a run
    runs/<run_id>/sampling.json    which items it was evaluated on, where `--sequential` sampled them
"""

from collections import Counter
from collections.abc import Collection, Iterable
from contextlib import suppress
from pathlib import Path

from harness.errors import Problem, UserError, did_you_mean, refuse
from harness.records import Run, SamplingRecord, load, parse_json, read_object, run_record
from harness.store import index
from harness.store.garbage import count_needed_keys, find_own_fit_key
from harness.store.layout import (
    Store,
    describe_missing_rows,
    failure,
    first_line,
    in_own_folder,
    remove,
    write_record,
)
from harness.store.runs.trial_runs import (
    find_choosers,
    find_trial,
    list_trial_parts,
    list_trials,
    refuse_needed,
)


def save_run(store: Store, run: Run) -> None:
    """Write `run.json`, then let the index hear of it, unless somebody holds that open: it catches up later.

    A run saved again replaces itself.

    Raises:
        ValueError: the run holds NaN, or its id is the name of a folder of something else.
        UserError: its id cannot name a folder.
        HarnessError: a row set is not complete, the disk is full, or the index is damaged.
    """
    file = store.run_file(run.run_id)
    in_own_folder(run, file)
    if missing := [digest for digest in run.rows.values() if not store.parquet(digest).exists()]:
        raise describe_missing_rows(store, missing)
    write_record(store, file, run.to_plain())
    index.update(store)


def save_sampling(store: Store, run_id: str, sampling: SamplingRecord) -> None:
    """Write beside a run which of the items were drawn for it, in place of an earlier analysis's."""
    write_record(store, _locate_sampling(store, run_id), sampling)


def read_sampling(store: Store, run_id: str) -> SamplingRecord | None:
    """Read which items were drawn for a run; None where no such record is stored, or it is damaged."""
    try:
        return load(SamplingRecord, _locate_sampling(store, run_id).read_bytes())
    except (OSError, ValueError):
        return None


def _locate_sampling(store: Store, run_id: str) -> Path:
    return store.run_file(run_id).with_name("sampling.json")


def list_runs(store: Store, experiment: str | None = None) -> list[Run]:
    """List the runs, oldest first; those of one experiment where it is given. Damaged ones are left out."""
    runs, _ = runs_on_disk(store)
    of_experiment = (run for run in runs if experiment in (None, run.experiment))
    return sorted(of_experiment, key=lambda run: (run.created, run.run_id))


def get_run(store: Store, run_id: str) -> Run:
    """Find a run by its id, a candidate's or a trial's.

    Raises:
        UserError: there is no such run.
    """
    runs = {run.run_id: run for run in list_runs(store)}
    if run_id not in runs and (trial := find_trial(store, run_id)):
        return trial.run
    if run_id not in runs:
        where = str(store.run_file(run_id))
        unreadable = (one for one in runs_on_disk(store)[1] if one.startswith(f"{where}: "))
        refuse(
            Problem(
                where, said.removeprefix(f"{where}: "), "what harness compare wrote", "repair or delete it"
            )
            for said in unreadable
        )
        next_step = did_you_mean(run_id, runs) if runs else "make one: harness compare"
        raise UserError(Problem("run", repr(run_id), f"a run in {store.folder}", next_step))
    return runs[run_id]


def weights_folder(store: Store, run: Run) -> Path | None:
    """Return the folder in which the weights of a run lie; None of a base's own, and where they are gone."""
    if not run.training.fit_key:
        return None
    made = store.weights(run.training.fit_key)
    kind = read_object(made / "fit.json").get("kind")
    with suppress(UserError):
        folder = store.place("weights", run.training.fit_key, str(kind))
        return folder if folder.is_dir() else None
    return None


def read_run(file: Path) -> Run | None:
    """Read a `run.json`; None where there is none, or it is damaged."""
    try:
        return _parse_run(file)
    except (OSError, ValueError, TypeError):
        return None


def read_written_runs(store: Store, run_ids: Iterable[str]) -> dict[str, Run]:
    """Read runs by their ids from their folders; one that is not there, or damaged, is left out."""
    found = {run_id: read_run(store.run_file(run_id)) for run_id in run_ids}
    return {run_id: run for run_id, run in found.items() if run}


def runs_on_disk(store: Store) -> tuple[list[Run], list[str]]:
    """Read every `run.json`; what cannot be read is named with its reason."""
    runs, unreadable = [], []
    for path in sorted(store.folder.glob("*/run.json")):
        try:
            runs.append(_parse_run(path))
        except FileNotFoundError:  # removed meanwhile
            continue
        except (OSError, ValueError, TypeError) as error:
            unreadable.append(f"{path}: {first_line(error)}")
    return runs, unreadable


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

    The trials that it was chosen among go with it, but for those that another run needs. `keep` names row
    sets and weights by their digests, and folders of weights by their keys.

    Raises:
        UserError: there is no such run, it is a trial that a run is found by way of, or a part is a link.
        HarnessError: another run's file is unreadable, so what it refers to is unknown.
    """
    run = get_run(store, run_id)
    others = [other for other in all_runs(store) if other.run_id != run_id]
    trials = [one for one in list_trials(store) if one.run.run_id == run_id or find_choosers(one, [run])]
    for trial in trials:
        if trial.run.run_id == run_id:
            refuse_needed(trial, others)
    paths = [store.place(run_id), store.place("verdicts", run_id)]
    own_rows = set(run.rows.values()).difference(keep, *(other.rows.values() for other in others))
    paths += map(store.rows, own_rows)
    every = [run, *others]
    fit_key = find_own_fit_key(run, count_needed_keys(every), Counter(one.weights_digest for one in every))
    if fit_key and not {fit_key, run.weights_digest} & set(keep):
        paths.append(store.weights(fit_key))
    remove(store.folder, [*paths, *list_trial_parts(store, trials, others, keep)])
    index.update(store)


def _parse_run(file: Path) -> Run:
    return in_own_folder(run_record(parse_json(file.read_bytes())), file)
