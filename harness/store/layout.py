"""The folders of a store, how files are written into them, and the progress of the process that holds it.

Invariant: a file is written under another name, synced and renamed, so one with its final name is complete;
when the disk is full, no partial file stays.
"""

import errno
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

from harness.cache import make_private_folder, sync
from harness.errors import HarnessError, NotStored, Problem, UserError, as_argument, refuse
from harness.progress import Advance, Progress
from harness.records import LONGEST_NAME, Run, canonical_json, is_bare_name, load, read_object
from harness.spec import Recipe

AGAIN = "run the same command again"
ANEW = "harness compare, which computes damaged rows again"
CLAIMS = ".claims"
_NO_ROOM_CODES = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_ROOM_WORDS = (
    *map(os.strerror, _NO_ROOM_CODES),
    "inline_container.cc",  # torch's error for a file that it could not finish writing
    "PytorchStreamWriter failed writing",
)
_INTERRUPTED = "Query interrupted"  # a RuntimeError of DuckDB's Python package
_OF_OTHERS = {  # folders of a store other than runs, besides those whose name begins with a dot
    *("answers", "control", "decisions", "environments", "exports", "feedback", "grades", "labels"),
    *("nightly", "noise", "ratings", "rows", "smoke", "trials", "verdicts", "weights"),
}

_Record = TypeVar("_Record")


@dataclass(frozen=True, slots=True)
class Store:
    """A runs folder; `wait_s` is how long to wait for a process that holds the index."""

    folder: Path
    wait_s: float = 60.0

    @property
    def index(self) -> Path:
        """The DuckDB file."""
        return self.folder / "harness.duckdb"

    @property
    def progress(self) -> Path:
        """File in which the process that holds the store notes its progress."""
        return self.folder / ".progress.json"

    def place(self, *names: str) -> Path:
        """Return the path of a file or folder; names that are paths or too long are refused."""
        for name in names:
            if not is_bare_name(name):
                found = f"the name {name[:LONGEST_NAME]!r} in a stored file"
                step = "remove what was not stored by harness: harness reindex names unreadable files"
                raise UserError(str(self.folder), found, "names of single files and folders", step)
        return self.folder.joinpath(*names)

    def rows(self, rows_digest: str) -> Path:
        """Return the folder of a row set."""
        return self.place("rows", rows_digest)

    def parquet(self, rows_digest: str) -> Path:
        """Return the file of a complete row set."""
        return self.rows(rows_digest) / "rows.parquet"

    def weights(self, fit_key: str) -> Path:
        """Return the folder of weights made by a method."""
        return self.place("weights", fit_key)

    def run_file(self, run_id: str) -> Path:
        """Return the file that holds a run."""
        return self.place(run_id, "run.json")


@contextmanager
def hold(store: Store) -> Iterator[None]:
    """Hold a store while runs are created or removed in it; a killed holder's progress note is deleted."""
    where, found = f"{store.folder} is in use", "another harness compare at work there"
    busy = HarnessError(where, found, "to be alone", "wait until it has finished")
    with hold_file(store.folder / "compare.lock", busy, wait_s=1):
        with suppress(OSError):
            store.progress.unlink(missing_ok=True)
        yield


def begin(store: Store, name: str) -> None:
    """Record that some work has begun; the record outlives the process."""
    write_whole(store, store.place(".begun", name), "")


def end(store: Store, name: str) -> None:
    """Record that some work is finished or given up."""
    store.place(".begun", name).unlink(missing_ok=True)


def list_begun(store: Store) -> list[str]:
    """List work that has begun and not finished."""
    return sorted(path.name for path in (store.folder / ".begun").glob("*"))


@contextmanager
def hold_file(lock: Path, busy: Exception, wait_s: float = -1) -> Iterator[None]:
    """Hold a lock; raise `busy` if another process holds it for longer than `wait_s` (-1: for ever)."""
    from filelock import FileLock, Timeout

    make_private_folder(lock.parent)
    try:
        acquired = FileLock(lock).acquire(timeout=wait_s)
    except Timeout:
        raise busy from None
    with acquired:
        yield


@contextmanager
def claim(store: Store, name: str) -> Iterator[None]:
    """Hold the lock of this name while a worker makes something; the claim of a killed worker ends."""
    make_private_folder(store.folder)
    with hold_file(store.folder / CLAIMS / name, TimeoutError(name)):
        yield


def read_lines(path: Path) -> list[bytes]:
    """Read the lines of a JSON Lines file; only a newline ends one, as answers may hold other line ends."""
    return path.read_bytes().removesuffix(b"\n").split(b"\n")


def write_whole(store: Store, path: Path, text: str) -> None:
    """Write a file so that it appears completely or not at all."""
    data = text.encode()
    with clear_errors(store, str(path), AGAIN), rename_when_whole(store, path) as temp_path:
        temp_path.write_bytes(data)


def write_record(store: Store, path: Path, record: Any) -> None:
    """Write a dataclass, or its plain form, as JSON so that it appears completely or not at all."""
    plain = record if isinstance(record, dict) else asdict(record)
    write_whole(store, path, json.dumps(plain, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_records(store: Store, path: Path, records: Iterable[Any]) -> None:
    """Write dataclasses as JSON Lines, all of them or none."""
    write_whole(store, path, _json_lines(records))


def _json_lines(records: Iterable[Any]) -> str:
    return "".join(canonical_json(asdict(record)) + "\n" for record in records)


def append_records(store: Store, path: Path, records: Sequence[Any]) -> None:
    """Append dataclasses to a file as `append_lines` does, one per line."""
    append_lines(store, path, _json_lines(records))


def append_lines(store: Store, path: Path, text: str) -> None:
    """Append whole lines to a file; a line that a kill cut short stays separate from them."""
    lines = text.encode()
    with clear_errors(store, str(path), AGAIN), path.open("ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            lines = lines if file.read() == b"\n" else b"\n" + lines
        file.write(lines)
        file.flush()
        os.fsync(file.fileno())


def read_records(record: type[_Record], path: Path) -> Iterator[_Record]:
    """Yield the records of a file, which may be missing; truncated lines are skipped."""
    try:
        lines = read_lines(path)
    except OSError:
        return
    for line in lines:
        with suppress(ValueError):
            yield load(record, line)


@contextmanager
def rename_when_whole(store: Store, path: Path) -> Iterator[Path]:
    """Yield a temporary file to fill, and rename it once it is on disk; delete it if the block fails."""
    temp_path = store.folder / ".unfinished" / f"{path.name}.{uuid.uuid4().hex}"
    try:
        make_private_folder(store.folder)
        temp_path.parent.mkdir(exist_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temp_path
        sync(temp_path)
        temp_path.replace(path)
        sync(path.parent)
    finally:
        for leftover in temp_path.parent.glob(temp_path.name + "*"):  # DuckDB may leave its log
            leftover.unlink()


def remove(below: Path, paths: Iterable[Path]) -> None:
    """Delete files and folders below a folder, or nothing if one lies elsewhere or behind a link."""
    all_paths, problems = list(paths), list[Problem]()
    for path in all_paths:
        names = path.relative_to(below).parts if path.is_relative_to(below) else ()
        if not names or ".." in names:
            found, expected = "a path to elsewhere", f"a path below {below}"
            problems.append(Problem(str(path), found, expected, "remove it by hand"))
        for end in range(1, len(names) + 1):
            if (parent := below.joinpath(*names[:end])).is_symlink():
                found = f"a link to {parent.readlink()}, which is not followed"
                expected = "a file or folder of the store itself"
                step = f"remove what it names by hand, then the link: rm {as_argument(str(parent))}"
                problems.append(Problem(str(parent), found, expected, step))
    refuse(problems)
    for path in all_paths:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def in_own_folder(run: Run, file: Path) -> Run:
    """Return a run after checking that its file lies in the folder of its id; ValueError otherwise."""
    Recipe.model_validate(run.recipe)
    folder = file.parent.name
    if run.run_id != folder or folder in _OF_OTHERS or folder.startswith("."):
        raise ValueError(f"the run {run.run_id!r} in the folder {folder!r}, which cannot be its own")
    return run


def describe_missing_rows(store: Store, digests: Sequence[str]) -> HarnessError:
    """Build the error for row sets that are missing or incomplete."""
    found = f"no complete rows {', '.join(sorted(set(digests)))}"
    return NotStored(str(store.folder / "rows"), found, "rows.parquet", "harness compare")


def is_no_room(error: BaseException) -> bool:
    """Tell whether an error, of Python or of DuckDB, says that the disk is full."""
    if isinstance(error, OSError):
        return error.errno in _NO_ROOM_CODES
    return any(words in str(error) for words in _NO_ROOM_WORDS)


@contextmanager
def clear_errors(store: Store, where: str, next_step: str) -> Iterator[None]:
    """Turn a full disk and DuckDB's errors into ours, an interrupted query into KeyboardInterrupt."""
    try:
        yield
    except (HarnessError, ValueError):
        raise
    except Exception as error:
        import duckdb

        if isinstance(error, RuntimeError) and str(error) == _INTERRUPTED:
            raise KeyboardInterrupt from error
        if is_no_room(error):
            free_mb = shutil.disk_usage(store.folder).free / 1e6
            found = f"no room to write ({free_mb:,.1f} MB free on this disk)"
            step = f"free some space, then: {next_step}; finished blocks are kept"
            raise UserError(where, found, "enough disk space", step) from error
        programming_errors = (duckdb.BinderException, duckdb.ParserException, duckdb.CatalogException)
        if not isinstance(error, duckdb.Error) or isinstance(error, programming_errors):
            raise
        raise HarnessError(where, first_line(error), "a file that DuckDB can use", next_step) from error


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message."""
    return str(error).partition("\n")[0]


_EVERY_S = 1.0


class StoredProgress:
    """Forwards progress and stores it at most once a second; the stored note is deleted on exit."""

    def __init__(self, inner: Progress, store: Store, activity: str, candidates: Iterable[str]) -> None:
        self._inner, self._file = inner, store.progress
        self._noted, self._candidates = 0.0, set(candidates)
        self._state: dict[str, Any] = {"what": activity, "candidates": len(self._candidates), "finished": []}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._file.unlink(missing_ok=True)

    @contextmanager
    def stage(self, label: str, expected_s: float = 0.0) -> Iterator[Advance]:
        """Open a stage; note it and its progress."""
        self._note({"stage": label, "share": 0.0}, at_once=True)
        with self._inner.stage(label, expected_s) as advance:

            def advance_and_note(done: float, total: float, note: str = "") -> None:
                self._note({"share": done / total if total else 0.0})
                advance(done, total, note)

            yield advance_and_note

    def show(self, candidate: str, line: str, *items: str) -> None:
        """Pass on a result of a candidate that is not done yet."""
        self._inner.show(candidate, line, *items)

    def finish(self, candidate: str, line: str, *items: str) -> None:
        """Note that a candidate is done or has failed."""
        if candidate in self._candidates:
            finished = dict.fromkeys([*self._state["finished"], candidate])  # interim analyses repeat them
            self._note({"finished": list(finished)}, at_once=True)
        self._inner.finish(candidate, line, *items)

    def _note(self, changes: Mapping[str, Any], *, at_once: bool = False) -> None:
        self._state |= changes
        if at_once or time.monotonic() - self._noted > _EVERY_S:
            self._noted = time.monotonic()
            temp_path = self._file.with_suffix(".part")
            with suppress(OSError):
                temp_path.write_text(json.dumps(self._state, ensure_ascii=False), encoding="utf-8")
                temp_path.replace(self._file)


def current_activity(store: Store) -> dict[str, Any] | None:
    """Return the last note of the running work; empty if nothing is noted yet, None if nothing is running."""
    from filelock import FileLock, Timeout

    if not (store.folder / "compare.lock").exists():
        return None
    try:
        FileLock(store.folder / "compare.lock").acquire(timeout=0).lock.release()
    except Timeout:
        return read_object(store.progress)
    except OSError:  # a read-only folder
        return None
    return None
