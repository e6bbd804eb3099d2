"""Runs: saved, listed, found and removed.

Invariant: `run.json` is the run, whole or not there. Runs are listed from the folders, which takes no longer
than an index would; that hears of a run afterwards, as soon as nobody holds it.

    runs/<run_id>/run.json         a run
    runs/<run_id>/sampling.json    which items it was evaluated on, where `--sequential` sampled them

Runs of the trials of sweeps and searches, apart from the runs of candidates.

Invariant: a trial's id ends with the key of its weights, or of a prompt's answers, so one that several
searches try is one run. What a run was chosen among, or stands on, is not removed before it. A trial of a
prompt has no weights of its own.

    runs/trials/<run_id>.json
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from harness.errors import Problem, UserError, did_you_mean, refuse
from harness.records import Run, SamplingRecord, Trial, load, parse_json, read_object, reader, run_record
from harness.store import index
from harness.store.garbage import (
    Leftover,
    References,
    count_needed_keys,
    find_own_fit_key,
    list_wanted_rows,
    points_of,
    run_references,
    size,
    weights_behind,
)
from harness.store.layout import (
    Store,
    describe_missing_rows,
    failure,
    first_line,
    in_own_folder,
    remove,
    write_record,
)
from harness.store.rows import identities

FOLDER = "trials"


@dataclass(frozen=True, slots=True)
class TrialRun:
    """Run of one trial: what it tried and scored on validation, and the training that this took.

    The rows of `run` are those of its last answers to the validation items, `metric` is what they score by.
    """

    run: Run
    trial: Trial
    metric: str

    @property
    def state(self) -> Literal["done", "pruned", "failed"]:
        """Outcome of the trial."""
        if self.run.state == "failed":
            return "failed"
        return "pruned" if self.trial.is_pruned else "done"

    def to_plain(self) -> dict[str, Any]:
        """Return the plain form, as its file holds it."""
        return {"metric": self.metric, "trial": asdict(self.trial), "run": self.run.to_plain()}


def save_trial(store: Store, found: TrialRun) -> None:
    """Write a trial's run, in place of an earlier one of the same weights; what is there already stays."""
    file = _file(store, found.run.run_id)
    before = _read(file)
    if before is None or _outcome(before) != _outcome(found):
        write_record(store, file, found.to_plain())


def list_trials(store: Store) -> list[TrialRun]:
    """List the runs of trials, oldest first. Damaged ones are left out."""
    found = filter(None, map(_read, (store.folder / FOLDER).glob("*.json")))
    return sorted(found, key=lambda one: (one.run.created, one.run.run_id))


def find_trial(store: Store, run_id: str) -> TrialRun | None:
    """Find the run of a trial by its id; None where there is none, or it is damaged."""
    return _read(_file(store, run_id))


def _read(file: Path) -> TrialRun | None:
    """Read the file of a trial's run; None where there is none, or it is damaged."""
    try:
        plain = read_object(file)
        trial: Trial = reader(Trial).validate_python(plain["trial"])
        run = run_record(plain["run"])
        return TrialRun(run, trial, str(plain["metric"])) if run.run_id == file.stem else None
    except (ValueError, TypeError, KeyError):
        return None


def find_choosers(trial: TrialRun, runs: Iterable[Run]) -> list[Run]:
    """List the runs whose weights were chosen among trials of which this is one."""
    return [run for run in runs if _key(trial.trial) in _list_tried_keys(run)]


def trials_by_run(store: Store, runs: Sequence[Run]) -> dict[str, list[TrialRun]]:
    """Map each run to the trials that it was chosen among, in their order; no run to those of none.

    A trial that several runs were chosen among is with the first of its own candidate, else the first.
    """
    found: dict[str, list[TrialRun]] = {name: [] for name in (*(run.run_id for run in runs), "")}
    for trial in list_trials(store):
        owners = find_choosers(trial, runs)
        own = [run for run in owners if run.candidate == trial.run.candidate]
        found[(own or owners)[0].run_id if owners else ""].append(trial)
    for run in runs:
        keys = dict.fromkeys(map(_key, run.training.sweep))
        tried = found[run.run_id]
        found[run.run_id] = [one for key in keys for one in tried if _key(one.trial) == key]
    return found


def list_unneeded_trials(store: Store, runs: Iterable[Run]) -> list[Leftover]:
    """List the files of trials that none of some runs needs."""
    needed = _map_runs_by_key(runs)
    files = [_file(store, one.run.run_id) for one in list_trials(store) if _key(one.trial) not in needed]
    return [Leftover(file, size(file)) for file in files]


def trial_references(store: Store, runs: Iterable[Run]) -> References:
    """Return the rows of the trials that some runs were chosen among: what a chosen prompt is found by."""
    needed = _map_runs_by_key(runs)
    trials = (one for one in list_trials(store) if _key(one.trial) in needed)
    return References(rows=frozenset(digest for one in trials for digest in one.run.rows.values()))


def list_trial_parts(
    store: Store, trials: Iterable[TrialRun], runs: Sequence[Run], keep: Collection[str] = ()
) -> list[Path]:
    """List the files of those of some trials that no run needs, with weights and rows that are theirs alone.

    `keep` names row sets and weights by their digests, and folders of weights by their keys.
    """
    own = _map_own_parts(store, trials, runs, keep)
    return [path for run_id, folders in own.items() for path in (*folders, _file(store, run_id))]


def count_freed_by_trials(store: Store, runs: Sequence[Run]) -> dict[str, int]:
    """Map a run to the bytes of the trials that it alone needs, and each trial that none needs to its own."""
    alone: dict[str, list[TrialRun]] = {}
    needing = _map_runs_by_key(runs)
    for trial in list_trials(store):
        owners = needing.get(_key(trial.trial)) or [trial.run]
        if len(owners) == 1 and (owners[0] is trial.run or find_choosers(trial, owners)):
            alone.setdefault(owners[0].run_id, []).append(trial)
    own = {run.run_id: run for run in runs}
    freed = {}
    for run_id, trials in alone.items():
        others = [run for run in runs if run.run_id != run_id]
        parts = _map_own_parts(store, trials, others).values()
        counted = _find_own_folders(store, own[run_id]) if run_id in own else frozenset()
        freed[run_id] = sum(map(size, {path for folders in parts for path in folders} - counted))
    return freed


def refuse_needed(trial: TrialRun, runs: Iterable[Run]) -> None:
    """Refuse to remove a trial that runs are found by way of."""
    if needing := _map_runs_by_key(runs).get(_key(trial.trial)):
        names = ", ".join(run.run_id for run in needing)
        found = f"{trial.run.run_id}, a trial that {names} is found by way of"
        step = f"harness runs rm {needing[0].run_id}, which removes its trials too"
        raise UserError(Problem("run", found, "a run that no other needs", step))


def _outcome(one: TrialRun) -> tuple[Trial, dict[str, str], str]:
    return one.trial, one.run.rows, one.run.error


def _map_runs_by_key(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """Map the keys of all weights that runs are found by way of to these, of those too that diverged."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        for key in _list_tried_keys(run) | weights_behind(run).keys():
            found.setdefault(key, []).append(run)
    return found


def _key(trial: Trial) -> str:
    """Return what tells a trial from others: the key of its weights, of a prompt its digest."""
    return trial.fit_key or trial.asked


def _list_tried_keys(run: Run) -> frozenset[str]:
    return frozenset(filter(None, map(_key, run.training.sweep)))


def _find_own_folders(store: Store, run: Run) -> frozenset[Path]:
    """Return the folders that are a run's own, so that its trials do not free them as well."""
    weights = {store.weights(run.training.fit_key)} if run.training.fit_key else set()
    return frozenset(weights | set(map(store.rows, run.rows.values())))


def _map_own_parts(
    store: Store, trials: Iterable[TrialRun], runs: Sequence[Run], keep: Collection[str] = ()
) -> Mapping[str, list[Path]]:
    """Map each trial that no run needs to the folders of its weights and of the rows that no run wants."""
    trials = list(trials)
    wanted = list_wanted_rows(store, run_references(runs)).union(keep)
    known, needing = identities(store), _map_runs_by_key(runs)
    names = {one.run.run_id for one in trials}
    shared = {
        row for one in list_trials(store) if one.run.run_id not in names for row in one.run.rows.values()
    }
    found = {}
    for one in trials:
        key = one.trial.fit_key
        if _key(one.trial) in needing:
            continue
        if not key:  # a prompt is sent to weights that are others' too
            own = [digest for digest in one.run.rows.values() if digest not in wanted | shared]
            found[one.run.run_id] = list(map(store.rows, own))
            continue
        answering = {one.run.weights_digest, *points_of(store, [key])} - {""}
        if {key, *answering} & set(keep):
            continue
        own = [row.digest for row in known if row.weights_digest in answering and row.digest not in wanted]
        found[one.run.run_id] = [*map(store.rows, own), store.weights(key)]
    return found


def _file(store: Store, run_id: str) -> Path:
    return store.place(FOLDER, f"{run_id}.json")


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
