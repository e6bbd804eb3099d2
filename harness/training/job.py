"""Job folder of a fit: the job and its rows, later the weights.

Invariant: `job.json` and `rows.jsonl` contain everything that the weights depend on, so any process makes the
same weights. `fit.json` is written last and marks them as complete. One process at a time works in a folder.
"""

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from harness import plugins
from harness.errors import HarnessError, Problem, UserError
from harness.masking import mask_values
from harness.models import hardware
from harness.models.hub import has_tokenizer, load_tokenizer
from harness.models.later import torch
from harness.models.weight_files import weights_bytes
from harness.progress import Advance
from harness.provenance import versions_of
from harness.records import Example, canonical_json, drop_defaults, load
from harness.regularizers import prepare
from harness.training.context import (
    CHECKPOINTS,
    FIT,
    TRACKED,
    FitContext,
    FitSettings,
    TrainingPaused,
    find_last_checkpoint,
)
from harness.training.live_trackers import LiveRun, open_trackers
from harness.training.parallel import LAUNCH, is_first, name_sharding, process_count, wait_for_all

JOB, ROWS, LOCK, LOG = "job.json", "rows.jsonl", ".lock", "worker.log"
_KEPT = (CHECKPOINTS, TRACKED)  # folders from which an interrupted job resumes
_INPUT = (JOB, ROWS, LOCK, LOG, LAUNCH, *_KEPT)
_SPLITS = ("train", "validation", "pairs")
_GENERAL = "general:"  # prefix of the rows that a regulariser's penalty reads
_WAIT_S = 60  # a worker whose parent was killed ends at its next step


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingJob(FitSettings):
    """Fit without its rows: its settings, and `method` with its `params`.

    The last `n_mixed` training rows were mixed in by regularisers. `threads` is 0 without torch; `processes`
    share the rows, and the weights as `shards` says (see `AcceleratePolicy`). `code` are the versions of the
    code that the weights depend on, `live` the trackers that follow the training.
    """

    method: str
    params: dict[str, Any]
    n_mixed: int = 0
    threads: int = 0
    processes: int = 1
    shards: str = ""
    live: LiveRun | None = None
    code: tuple[Any, ...]


def code_of(method: str, regularizers: Iterable[str]) -> tuple[Any, ...]:
    """Return the versions of the code that a method's weights depend on."""
    versions = [plugins.version("regularizers", name) for name in regularizers]
    return plugins.version("methods", method), versions_of(*plugins.method(method).loops), versions


def threads_of(method: str) -> int:
    """Return the number of threads of a training here; 0 for methods without a language model."""
    return torch.get_num_threads() if plugins.method(method).trains else 0


def write_job(
    folder: Path,
    job: TrainingJob,
    *,
    train: Iterable[Example],
    validation: Iterable[Example],
    pairs: Iterable[Example],
    general: Mapping[str, Iterable[Example]] | None = None,
) -> None:
    """Write a job and its rows into a folder, which is created if missing."""
    folder.mkdir(parents=True, exist_ok=True)
    splits = dict(zip(_SPLITS, (train, validation, pairs), strict=True))
    splits |= {f"{_GENERAL}{name}": rows for name, rows in (general or {}).items()}
    lines = (canonical_json([name, drop_defaults(row)]) for name, rows in splits.items() for row in rows)
    _write_whole(folder / ROWS, "".join(f"{line}\n" for line in lines))
    content = asdict(job) | {"source": job.source._asdict(), "machine": job.machine._asdict()}
    if job.reward and job.reward.task:
        content["reward"]["task"] = job.reward.task.model_dump(mode="json", exclude_defaults=True)
    _write_whole(folder / JOB, json.dumps(content, indent=2, default=str) + "\n")


def read_job(folder: Path) -> tuple[TrainingJob, dict[str, tuple[Example, ...]]]:
    """Read a job and its rows by split (`general:NAME` for a penalty); UserError if missing or outdated."""
    expected = "a job folder of this version of harness"
    try:
        job = load(TrainingJob, (folder / JOB).read_bytes())
        lines = (folder / ROWS).read_text("utf-8").split("\n")[:-1]
        rows = [(split, load(Example, json.dumps(row))) for split, row in map(json.loads, lines)]
    except (OSError, ValueError) as error:
        found = f"no job ({str(error).partition(chr(10))[0]})"
        raise UserError(str(folder), found, expected, "harness train") from error
    job_code, current_code = map(canonical_json, (job.code, code_of(job.method, job.regularize)))
    if job_code != current_code:
        found = f"a job for code of the versions {job_code}"
        raise UserError(str(folder), found, f"one for {current_code}", "harness train")
    names = dict.fromkeys((*_SPLITS, *(split for split, _ in rows)))
    return job, {name: tuple(row for split, row in rows if split == name) for name in names}


def run_job(folder: Path, advance: Advance) -> None:
    """Run or resume the job of a folder; UserError of `read_job`, HarnessError if another process runs it."""
    from filelock import FileLock, Timeout

    try:
        with FileLock(folder / LOCK, timeout=_WAIT_S) if is_first() else nullcontext():
            job, rows = read_job(folder)
            at_work = process_count(), name_sharding()
            required = job.processes, job.shards.partition("/")[0]
            if at_work != required:
                found, expected = (f"{n} processes, sharding {by or 'none'}" for n, by in (at_work, required))
                worker = f"-m harness.training.job_worker {folder}"
                step = f"accelerate launch --config_file {folder / LAUNCH} {worker}"
                raise UserError(str(folder), found, f"{expected}, as its {JOB} says", step)
            wait_for_all(job.machine.device)
            if not (folder / FIT).exists():
                _make(folder, job, rows, advance)
            wait_for_all()
    except Timeout:
        found, step = "another process at work there", "wait until it has finished"
        raise HarnessError(str(Problem(str(folder), found, "to be alone", step))) from None


def _make(folder: Path, job: TrainingJob, rows: Mapping[str, tuple[Example, ...]], advance: Advance) -> None:
    if is_first():
        remove_all_but(folder, _INPUT)
    wait_for_all()
    if job.threads:
        torch.set_num_threads(max(1, job.threads // job.processes))
    values: dict[str, Any] = {f.name: getattr(job, f.name) for f in fields(FitSettings)}
    values |= {split: rows[split] for split in _SPLITS} | {"show_at": job.live.pause_at if job.live else 0}
    values["general"] = {n.removeprefix(_GENERAL): r for n, r in rows.items() if n.startswith(_GENERAL)}
    context = FitContext(folder=folder, advance=advance, prepare=partial(prepare, job.regularize), **values)
    method, live = plugins.method(job.method), job.live if is_first() else None
    last = find_last_checkpoint(folder / CHECKPOINTS)
    with open_trackers(live, last.step if last else None) as send, suppress(TrainingPaused):
        context = replace(context, send=send if live else None)
        start, is_own_peak = hardware.load(), hardware.reset_peak() or job.machine.device == "cuda"
        weights = method.fit(context, method.params(**job.params))
        if not is_first():
            return
        path, source, n_trainable = folder / weights.kind, job.source, weights.training.n_trainable
        if source.template and path.is_dir() and not has_tokenizer(path):
            load_tokenizer(source).save_pretrained(path)  # for use elsewhere: the base has no chat template
        spent = hardware.load().since(start)
        key = folder.name.removesuffix(".part")
        training = replace(weights.training, n_replayed=job.n_mixed or None, fit_key=key)
        if n_trainable is not None:
            training = training.add(trainable_share=n_trainable / source.n_parameters)
        if path.is_dir():
            sizes = weights_bytes(path), weights_bytes(source.path)
            training = training.add(size_bytes=sizes[0], base_size_bytes=sizes[1])
        if method.trains:
            waited = None if spent.waited_s is None else round(min(1.0, spent.waited_s / spent.wall_s), 3)
            before = None if is_own_peak else "what this process did before"
            training = replace(training, waited_share=waited).add(peak_includes=before)
        record = {"kind": weights.kind, "digest": weights.digest, "trained_on": source.weights_digest}
        _write_whole(folder / FIT, json.dumps(record | {"training": training.to_plain()}))


def clean_up(folder: Path, *, complete: bool) -> None:
    """Delete what a finished job, or resuming an interrupted one, does not need; mask its secrets."""
    with suppress(OSError, ValueError):  # the job may be missing
        job = json.loads((folder / JOB).read_text("utf-8"))
        _write_whole(folder / JOB, json.dumps(mask_values(job), indent=2) + "\n")
    if complete:
        for name in (ROWS, LOCK, LOG, LAUNCH):
            (folder / name).unlink(missing_ok=True)
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    elif any((folder / CHECKPOINTS).glob("*")):
        remove_all_but(folder, _KEPT)
    else:
        shutil.rmtree(folder, ignore_errors=True)


def remove_all_but(folder: Path, names: Iterable[str]) -> None:
    """Delete everything in a folder except these names."""
    for path in (path for path in folder.iterdir() if path.name not in names):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _write_whole(path: Path, text: str) -> None:
    part_file = path.with_name(f"{path.name}.part")
    with part_file.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part_file.replace(path)
