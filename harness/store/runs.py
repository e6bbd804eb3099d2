"""Runs, including the trials of sweeps and searches, and their exports: saving, listing and removal.

Invariant: runs are listed from the folders; the index is updated afterwards, once no other process holds it.
A trial's id ends with the key of its weights, or of a prompt's answers, so a trial shared by several searches
is one run. A trial that a run was chosen from or depends on is not removed before the run.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from harness import records
from harness.errors import HarnessError, Problem, UserError, did_you_mean, refuse, refuse_unreadable
from harness.store import garbage, index, layout
from harness.store.layout import Store
from harness.store.rows import identities, list_variants, read_identity

FOLDER = "trials"
EXPORT_RECORD = "export.json"
_EXPORT_AGAIN = "delete the folder and export again"


@dataclass(frozen=True, slots=True)
class TrialRun:
    """Run of a trial, its settings, and the metric that scores its rows, the validation answers."""

    run: records.Run
    trial: records.Trial
    metric: str

    @property
    def state(self) -> Literal["done", "pruned", "failed"]:
        """Outcome of the trial."""
        if self.run.state == "failed":
            return "failed"
        return "pruned" if self.trial.is_pruned else "done"

    def to_plain(self) -> dict[str, Any]:
        """Return the plain form, as stored in its file."""
        return {"metric": self.metric, "trial": asdict(self.trial), "run": self.run.to_plain()}


def save_trial(store: Store, trial: TrialRun) -> None:
    """Write a trial's run, replacing an earlier one of the same weights unless its outcome is equal."""
    file = _file(store, trial.run.run_id)
    stored = _read(file)
    new = (trial.trial, trial.run.rows, trial.run.error)
    if stored is None or (stored.trial, stored.run.rows, stored.run.error) != new:
        layout.write_record(store, file, trial.to_plain())


def list_trials(store: Store) -> list[TrialRun]:
    """List the runs of trials, oldest first. Damaged ones are left out."""
    trials = filter(None, map(_read, (store.folder / FOLDER).glob("*.json")))
    return sorted(trials, key=lambda trial: (trial.run.created, trial.run.run_id))


def find_trial(store: Store, run_id: str) -> TrialRun | None:
    """Find the run of a trial by its id; None if it is missing or damaged."""
    return _read(_file(store, run_id))


def _read(file: Path) -> TrialRun | None:
    with suppress(ValueError, TypeError, KeyError):
        plain = records.read_object(file)
        trial: records.Trial = records.reader(records.Trial).validate_python(plain["trial"])
        run = records.run_record(plain["run"])
        return TrialRun(run, trial, str(plain["metric"])) if run.run_id == file.stem else None
    return None


def trials_by_run(store: Store, runs: Sequence[records.Run]) -> dict[str, list[TrialRun]]:
    """Map each run to the trials it was chosen from, each once, and "" to trials without a run."""
    trials_of: dict[str, list[TrialRun]] = {name: [] for name in (*(run.run_id for run in runs), "")}
    choosers: dict[str, list[records.Run]] = defaultdict(list)
    for run in runs:
        for key in _list_tried_keys(run):
            choosers[key].append(run)
    for trial in list_trials(store):
        owners = choosers.get(_key(trial.trial), [])
        same_candidate = [run for run in owners if run.candidate == trial.run.candidate]
        trials_of[(same_candidate or owners)[0].run_id if owners else ""].append(trial)
    for run in runs:
        positions = {key: i for i, key in enumerate(dict.fromkeys(map(_key, run.training.sweep)))}
        trials_of[run.run_id].sort(key=lambda trial: positions[_key(trial.trial)])
    return trials_of


def split_trials(store: Store, runs: Iterable[records.Run]) -> tuple[set[str], list[garbage.Leftover]]:
    """Return the rows needed to repeat how the runs were chosen, and the files of unneeded trials."""
    runs_by_key, trials = _map_runs_by_key(runs), list_trials(store)
    rows = {row for trial in trials if _key(trial.trial) in runs_by_key for row in trial.run.rows.values()}
    files = [_file(store, trial.run.run_id) for trial in trials if _key(trial.trial) not in runs_by_key]
    return rows, [garbage.Leftover(file, garbage.size(file)) for file in files]


def count_freed_bytes(store: Store, runs: Sequence[records.Run]) -> dict[str, int]:
    """Map each run, and each trial that no run needs, to what removing its folders would free, in bytes."""
    used, freed = _UsedParts(store, runs), {}
    for run in runs:
        used.count(run, -1)
        freed[run.run_id] = used.list_freed(run)
        used.count(run, 1)
    idle_runs = [trial.run for trial in used.trials if not used.users["tried", _key(trial.trial)]]
    freed |= {run.run_id: used.list_freed(run) for run in idle_runs}
    folders = {name: {*own_paths, *chain(*parts.values())} for name, (own_paths, parts) in freed.items()}
    return {name: sum(map(garbage.size, paths)) for name, paths in folders.items()}


class _UsedParts:
    """Parts of a store that runs use; `users` counts runs by rows, weights, tried key and question."""

    def __init__(self, store: Store, runs: Iterable[records.Run], keep: Collection[str] = ()) -> None:
        self.trials, self.users = list_trials(store), Counter[Any]()
        self._store, self._keep = store, set(keep)
        self._identities = {rows.digest: rows for rows in identities(store)}
        self._rows_by_weights: dict[str, list[str]] = defaultdict(list)
        for digest, rows in self._identities.items():
            self._rows_by_weights[rows.weights_digest].append(digest)
        self._trial_rows = Counter(row for trial in self.trials for row in set(trial.run.rows.values()))
        self._trial_by_id = {trial.run.run_id: trial for trial in self.trials}
        self._trials_by_key: dict[str, list[TrialRun]] = defaultdict(list)
        for trial in self.trials:
            self._trials_by_key[_key(trial.trial)].append(trial)
        for run in runs:
            self.count(run, 1)

    def count(self, run: records.Run, n: int) -> None:
        """Add `n` to the user count of everything that a run refers to or depends on."""
        names, dependencies = garbage.run_references([run]), garbage.weights_behind(run)
        stored_digests = names & self._identities.keys()
        tried_keys = {("tried", key) for key in _list_tried_keys(run) | dependencies.keys()}
        questions = {garbage.question(self._identities[name]) for name in stored_digests}
        for part in {*names, *garbage.points_of(self._store, dependencies), *tried_keys, *questions}:
            self.users[part] += n

    def list_freed(self, run: records.Run) -> tuple[list[Path], dict[str, list[Path]]]:
        """List the paths that only this run needs (exports, rows, weights); and those of its trials."""
        store, key = self._store, run.training.fit_key
        own_paths = [store.place("exports", run.run_id)]
        own_paths += [store.rows(row) for row in set(run.rows.values()) if not self._is_used(row)]
        if key and not self._is_used(key) and not self._is_used(run.weights_digest):
            own_paths.append(store.weights(key))
        trials = {t.run.run_id: t for key in _list_tried_keys(run) for t in self._trials_by_key.get(key, ())}
        if run.run_id in self._trial_by_id:
            trials[run.run_id] = self._trial_by_id[run.run_id]
        row_counts = Counter(row for trial in trials.values() for row in set(trial.run.rows.values()))
        trial_paths: dict[str, list[Path]] = {}
        for trial_id, trial in trials.items():
            key = trial.trial.fit_key
            if self.users["tried", _key(trial.trial)]:
                continue
            if not key:  # a prompt is sent to weights that others share
                rows = [row for row in trial.run.rows.values() if self._trial_rows[row] == row_counts[row]]
                trial_paths[trial_id] = [store.rows(row) for row in rows if not self._is_compared(row)]
                continue
            model_digests = {trial.run.weights_digest, *garbage.points_of(store, [key])} - {""}
            if not {key, *model_digests} & self._keep:
                rows = [row for weights in model_digests for row in self._rows_by_weights.get(weights, ())]
                trial_paths[trial_id] = [store.rows(row) for row in rows if not self._is_compared(row)]
                trial_paths[trial_id].append(store.weights(key))
        return own_paths, trial_paths

    def _is_used(self, name: str) -> bool:
        return name in self._keep or self.users[name] > 0

    def _is_compared(self, digest: str) -> bool:
        if self._is_used(digest) or digest not in self._identities:
            return self._is_used(digest)
        rows = self._identities[digest]
        return self.users[rows.weights_digest] > 0 and self.users[garbage.question(rows)] > 0


def _map_runs_by_key(runs: Iterable[records.Run]) -> dict[str, list[records.Run]]:
    """Map the keys of all weights that runs depend on to these runs; diverged trials are included."""
    runs_by_key: dict[str, list[records.Run]] = {}
    for run in runs:
        for key in _list_tried_keys(run) | garbage.weights_behind(run).keys():
            runs_by_key.setdefault(key, []).append(run)
    return runs_by_key


def _key(trial: records.Trial) -> str:
    return trial.fit_key or trial.asked


def _list_tried_keys(run: records.Run) -> frozenset[str]:
    return frozenset(filter(None, map(_key, run.training.sweep)))


def _file(store: Store, run_id: str) -> Path:
    return store.place(FOLDER, f"{run_id}.json")


def save_run(store: Store, run: records.Run) -> None:
    """Write `run.json`, then update the index unless another process holds it: it catches up later."""
    file = store.run_file(run.run_id)
    layout.in_own_folder(run, file)
    if missing := [digest for digest in run.rows.values() if not store.parquet(digest).exists()]:
        raise layout.describe_missing_rows(store, missing)
    layout.write_record(store, file, run.to_plain())
    index.update(store)


def read_sampling(store: Store, run_id: str) -> records.SamplingRecord | None:
    """Read the items sampled for a run; None if the record is missing or damaged."""
    file = store.place(run_id, "sampling.json")
    return next(iter(records.load_files(records.SamplingRecord, [file])), None)


def list_runs(store: Store, experiment: str | None = None) -> list[records.Run]:
    """List the runs, oldest first, optionally of one experiment. Damaged ones are left out."""
    runs, _ = runs_on_disk(store)
    of_experiment = (run for run in runs if experiment in (None, run.experiment))
    return sorted(of_experiment, key=lambda run: (run.created, run.run_id))


def list_base_rows(
    store: Store, run: records.Run, run_rows: records.RowsIdentity, key: str
) -> list[records.RowsIdentity]:
    """List the base's complete rows to compare `run_rows` with; several if the choice is ambiguous."""
    base_rows = replace(run_rows, weights_digest=run.base_digest)
    if store.parquet(base_rows.digest).exists():
        return [base_rows]
    variants = list_variants(store, base_rows) if run_rows.computes_apart else []
    for peer in reversed(list_runs(store, run.experiment) if variants else []):
        is_stored = peer.state == "done" and peer.base_digest == run.base_digest and key in peer.rows
        if is_stored and store.parquet(peer.rows[key]).exists():
            as_base = replace(read_identity(store, peer.rows[key]), weights_digest=run.base_digest)
            if as_base in variants:
                return [as_base]
    return variants


def digest_of_base(store: Store, run: records.Run, key: str) -> str | None:
    """Return the digest of the base's rows to compare a run's with; None unless exactly one is stored."""
    if key not in run.rows:
        return None
    try:
        base_rows = list_base_rows(store, run, read_identity(store, run.rows[key]), key)
    except (HarnessError, OSError):
        return None
    return base_rows[0].digest if len(base_rows) == 1 else None


def get_run(store: Store, run_id: str) -> records.Run:
    """Find a run by its id, whether a candidate's or a trial's."""
    runs = {run.run_id: run for run in list_runs(store)}
    if run_id not in runs and (trial := find_trial(store, run_id)):
        return trial.run
    if run_id not in runs:
        where = str(store.run_file(run_id))
        expected, step = "what harness compare wrote", "repair or delete it"
        begin = f"{where}: "
        damages = [damage for damage in runs_on_disk(store)[1] if damage.startswith(begin)]
        refuse(Problem(where, damage.removeprefix(begin), expected, step) for damage in damages)
        next_step = did_you_mean(run_id, runs) if runs else "make one: harness compare"
        raise UserError("run", repr(run_id), f"a run in {store.folder}", next_step)
    return runs[run_id]


def weights_folder(store: Store, run: records.Run) -> Path | None:
    """Return the folder of a run's weights; None for a base's own weights, or if the folder is gone."""
    fit_folder = store.weights(run.training.fit_key) if run.training.fit_key else None
    kind = str(records.read_object(fit_folder / "fit.json").get("kind")) if fit_folder else ""
    folder = fit_folder / kind if fit_folder and records.is_bare_name(kind) else None
    return folder if folder and folder.is_dir() else None


def read_run(file: Path) -> records.Run | None:
    """Read a `run.json`; None if it is missing or damaged."""
    with suppress(OSError, ValueError, TypeError):
        return _parse_run(file)
    return None


def read_written_runs(store: Store, run_ids: Iterable[str]) -> dict[str, records.Run]:
    """Read runs by their ids from their folders; missing and damaged ones are left out."""
    run_by_id = {run_id: read_run(store.run_file(run_id)) for run_id in run_ids}
    return {run_id: run for run_id, run in run_by_id.items() if run}


def runs_on_disk(store: Store) -> tuple[list[records.Run], list[str]]:
    """Read every `run.json`; return the runs, and the unreadable files with the reason."""
    runs, unreadable = [], []
    for path in sorted(store.folder.glob("*/run.json")):
        try:
            runs.append(_parse_run(path))
        except FileNotFoundError:  # removed meanwhile
            continue
        except (OSError, ValueError, TypeError) as error:
            unreadable.append(f"{path}: {layout.first_line(error)}")
    return runs, unreadable


def all_runs(store: Store) -> list[records.Run]:
    """Read every run from its folder; an unreadable one is refused, as it may share files with others."""
    on_disk, unreadable = runs_on_disk(store)
    if unreadable:
        expected = "readable run files, which tell what is shared"
        raise HarnessError("runs", "; ".join(unreadable), expected, "repair or delete them")
    return on_disk


def remove_run(store: Store, run_id: str, keep: Collection[str] = ()) -> None:
    """Delete a run, its exports and trials, and what no other run needs, except what `keep` names."""
    run = get_run(store, run_id)
    other_runs = [other for other in all_runs(store) if other.run_id != run_id]
    trial = find_trial(store, run_id)
    if trial and (needing_runs := _map_runs_by_key(other_runs).get(_key(trial.trial))):
        found = f"{run_id}, a trial that {', '.join(r.run_id for r in needing_runs)} is found by way of"
        step = f"harness runs rm {needing_runs[0].run_id}, which removes its trials too"
        raise UserError("run", found, "a run that no other needs", step)
    own_paths, trial_paths = _UsedParts(store, other_runs, keep).list_freed(run)
    paths = [store.place(run_id), store.place("verdicts", run_id), *own_paths, *chain(*trial_paths.values())]
    layout.remove(store.folder, [*paths, *(_file(store, trial_id) for trial_id in trial_paths)])
    index.update(store)


def _parse_run(file: Path) -> records.Run:
    return layout.in_own_folder(records.run_record(records.parse_json(file.read_bytes())), file)


@dataclass(frozen=True, slots=True)
class ExportedFile:
    """A file of an export: the sha256 of its content in hex, and its size."""

    sha256: str
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """One run's weights in a format of other programs; `files` maps relative names to their content.

    `types` counts the tensors of each type that was really written. `limits` are those of the target's
    answers, `chat` tells whether the chat template wrote its prompts, `prompt` what else shaped them.
    `chat_template` is the sha256 of the template's text. `merge_gap` is the largest change of a logit by
    merging in fp32.
    """

    format: str
    quantization: str
    run_id: records.StoredName
    candidate: str
    seed: int
    experiment: str
    target: str
    base_model: str
    base_digest: str
    weights_digest: str
    files: dict[str, ExportedFile]
    types: dict[str, int]
    versions: dict[str, str]
    limits: dict[str, Any]
    chat: bool
    prompt: dict[str, Any]
    chat_template: str
    merge_gap: float
    created: str
    notes: tuple[str, ...] = ()

    @property
    def n_bytes(self) -> int:
        """Size of all its files."""
        return sum(file.bytes for file in self.files.values())


def read_export(folder: Path) -> Export:
    """Read the record of an export."""
    with refuse_unreadable(folder / EXPORT_RECORD, "what harness export wrote", _EXPORT_AGAIN):
        return records.load(Export, (folder / EXPORT_RECORD).read_bytes())


def verify_export(folder: Path) -> Export:
    """Read an export and hash each of its files again; changed, missing and added files are refused."""
    export, on_disk, problems = read_export(folder), list_exported_files(folder), list[Problem]()
    expected = f"the file that was exported from {export.run_id}"
    for name, file in export.files.items():
        if name not in on_disk:
            problems.append(Problem(str(folder / name), "no such file", expected, _EXPORT_AGAIN))
        elif on_disk[name].stat().st_size != file.bytes or records.checksum(on_disk[name]) != file.sha256:
            problems.append(Problem(str(folder / name), "another content", expected, _EXPORT_AGAIN))
    for name in sorted(on_disk.keys() - export.files.keys() - {EXPORT_RECORD}):
        found, step = "a file that was added", "move it elsewhere"
        problems.append(Problem(str(folder / name), found, "what export.json lists", step))
    refuse(problems)
    return export


def list_exported_files(folder: Path) -> dict[str, Path]:
    """Map the files below a folder by their relative names, without hidden ones."""
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: path for name, path in sorted(files.items()) if not f"/{name}".count("/.")}


def main_file(folder: Path, export: Export) -> Path:
    """Return the path that a program opens: the `.gguf` or `.onnx` file, or the folder."""
    return folder / next((name for name in export.files if name.endswith((".gguf", ".onnx"))), "")


def exports_of(store: Store, run_id: str) -> dict[Path, Export]:
    """Map the folders of a run's exports in the store to their records; unfinished ones are left out."""
    record_files = sorted(store.place("exports", run_id).glob(f"[!.]*/{EXPORT_RECORD}"))
    return {file.parent: read_export(file.parent) for file in record_files}
