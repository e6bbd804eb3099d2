"""Saved edits: a new file of rows with its manifest, `NAME.manifest.json`.

Invariant: a file appears whole or not at all, never before its manifest and never in place of another; the
manifest holds no date, so that one command on the same files gives the same bytes.
"""

import hashlib
import json
import os
import shutil
import signal
import threading
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from harness import __version__
from harness.cache import sync
from harness.data import readers
from harness.data.columns import join_texts
from harness.data.edit import row_files
from harness.data.edit.changes import NOT_DRAWN, Change, EditedRow
from harness.data.edit.split import SplitRows
from harness.data.text_files import Row
from harness.errors import Problem, UserError, as_argument
from harness.provenance import versions_of
from harness.records import canonical_json, checksum

_BESIDE = (row_files.MANIFEST, ".decisions.json")
_LIBRARIES = ("datasketch", "ftfy", "pyarrow")  # libraries whose version may change the output


class Edit(NamedTuple):
    """Verb with its parameters and input files, and remarks on licence and personal data.

    `command` is the whole command if it is not a `harness data` verb. `cost_usd` was paid for the rows;
    `taught` says that a teacher labelled all of them.
    """

    verb: str
    parameters: Mapping[str, Any]
    inputs: Sequence[str]
    licenses: Sequence[str] = ()
    notes: Sequence[str] = ()
    command: str = ""
    cost_usd: float | None = None
    taught: bool = False


class SavedEdit(NamedTuple):
    """Manifest of an edit and the changes in it; written to disk but for a dry run."""

    manifest: dict[str, Any]
    changes: list[Change]


def refuse_output(out: Path, inputs: Sequence[str], *, folder: bool = False) -> None:
    """Refuse an output that exists or cannot be written.

    Raises:
        UserError: the output is one of the inputs, also by a link, exists, is of no known kind, or its folder
            is missing.
    """
    shown = readers.display_path(str(out))
    if out.exists() and any(Path(path).exists() and out.samefile(path) for path in inputs):
        found, expected = "the file that is read", "a new file: rows are never changed in place"
        raise UserError(Problem(f"--out {shown}", found, expected, "name another file"))
    if not out.absolute().parent.is_dir():
        step = f"mkdir -p {as_argument(str(out.parent))}"
        raise UserError(Problem(f"--out {shown}", f"no folder {out.parent}", "an existing folder", step))
    if inside := next((path for path in inputs if Path(path).resolve() in out.resolve().parents), None):
        found = f"a file in the folder that is read, {inside}"
        raise UserError(Problem(f"--out {shown}", found, "a place outside", "name another folder"))
    if folder:
        is_taken = out.resolve() == Path.cwd() or out.is_symlink() or (out.exists() and not out.is_dir())
        if is_taken or (out.is_dir() and any(out.iterdir())):
            found, step = "an existing file, or a folder in use", "name another folder, or remove that one"
            raise UserError(Problem(f"--out {shown}", found, "a new folder", step))
        return
    if out.name.endswith(_BESIDE):
        found, expected = "a name that is kept for the files next to rows", "a name of rows"
        raise UserError(Problem(f"--out {shown}", found, expected, "such as --out new.jsonl"))
    if not row_files.row_suffix(out.name):
        expected = f"a name that ends with {', '.join(row_files.KINDS)} (all but the last also .gz)"
        step = f"such as --out {as_argument(f'{out.stem}.jsonl')}"
        raise UserError(Problem(f"--out {shown}", f"a file of the kind {out.suffix!r}", expected, step))
    for there in (out, out.with_name(out.name + row_files.MANIFEST)):
        refuse_existing(there)


def refuse_existing(there: Path) -> None:
    """Refuse to write over a file."""
    if os.path.lexists(there):
        found, step = "a file that is there already", "name another file, or remove that one"
        raise UserError(Problem(f"--out {readers.display_path(str(there))}", found, "a new file", step))


@contextmanager
def _end_on_signals() -> Iterator[None]:
    """Turn a signal that ends a program into an exception, so that no half-written file is left."""

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    is_main = threading.current_thread() is threading.main_thread()
    ending = (signal.SIGTERM, signal.SIGHUP) if is_main else ()
    caught = [number for number in ending if signal.getsignal(number) is signal.SIG_DFL]
    for number in caught:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in caught:
            signal.signal(number, signal.SIG_DFL)


@_end_on_signals()
def save(edit: Edit, outcomes: Iterable[EditedRow], out: Path, *, dry_run: bool = False) -> SavedEdit:
    """Write the remaining rows and the manifest; a dry run only counts.

    Raises:
        UserError: a row has a value that the format cannot store, or no row is left.
    """
    changes: list[Change] = []
    counts: Counter[str] = Counter(read=0, written=0, dropped=0, changed=0, reported=0)
    persons: Counter[str] = Counter()
    rows = _count_persons(_tally(outcomes, changes, counts), persons)
    data, told = (out.with_name(f".{out.name}{end}.{os.getpid()}.part") for end in ("", row_files.MANIFEST))
    try:
        if dry_run:
            for _ in rows:
                pass
        else:
            row_files.write_rows(data, row_files.row_suffix(out.name), rows, edit.inputs)
        if not counts["written"] and not dry_run:
            raise phrase_no_rows(edit, counts["dropped"])
        outputs = [] if dry_run else [_output(out.name, data, counts["written"])]
        made = manifest(edit, outputs, counts, changes, persons)
        if not dry_run:
            told.write_text(manifest_text(made), encoding="utf-8")
            sync(told)
            sync(data)
            _appear((told, out.with_name(out.name + row_files.MANIFEST)), (data, out))
    finally:
        data.unlink(missing_ok=True)
        told.unlink(missing_ok=True)
    return SavedEdit(made, changes)


def _appear(*files: tuple[Path, Path]) -> None:
    """Rename files to their final names, or none of them if a name has been taken meanwhile."""
    made: list[Path] = []
    for scratch, name in files:
        try:
            _link(scratch, name)
        except FileExistsError:
            for earlier in made:
                earlier.unlink()
            found, step = "a file that came while this one was made", "name another file"
            problem = Problem(f"--out {readers.display_path(str(name))}", found, "a new file", step)
            raise UserError(problem) from None
        made.append(name)
    sync(made[-1].absolute().parent)


def _link(scratch: Path, name: Path) -> None:
    """Name a file without replacing another; without hard links, the name is checked first."""
    try:
        name.hardlink_to(scratch)
    except FileExistsError:
        raise
    except OSError:  # no hard links here
        if os.path.lexists(name):
            raise FileExistsError(name) from None
        scratch.replace(name)


@_end_on_signals()
def save_split(edit: Edit, found: SplitRows, out: Path, suffix: str) -> SavedEdit:
    """Write the parts of a split and one manifest into a new folder, atomically.

    Raises:
        UserError: a row has a value that the format cannot store.
    """
    scratch = out.with_name(f".{out.name}.{os.getpid()}.part")
    scratch.mkdir()
    try:
        outputs, persons = [], Counter[str]()
        for name, rows in found.parts.items():
            file = scratch / f"{name}{suffix}"
            row_files.write_rows(file, suffix, _count_persons(rows, persons), edit.inputs)
            outputs.append(_output(file.name, file, len(rows)))
        n_written, n_dropped = sum(map(len, found.parts.values())), len(found.changes)
        counts = {"read": n_written + n_dropped, "written": n_written, "dropped": n_dropped}
        made = manifest(edit, outputs, counts, found.changes, persons)
        (scratch / row_files.SPLIT_MANIFEST).write_text(manifest_text(made), encoding="utf-8")
        for file in (*scratch.iterdir(), scratch):
            sync(file)
        scratch.rename(out)
        sync(out.absolute().parent)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return SavedEdit(made, found.changes)


def phrase_no_rows(edit: Edit, n_dropped: int) -> UserError:
    """Return the error of an edit that leaves no row."""
    if n_dropped:
        shown, step = ", ".join(map(readers.display_path, edit.inputs)), "the same with --dry-run says why"
        return UserError(Problem(shown, f"{n_dropped:,} rows, all of them dropped", "at least one row", step))
    step = "name a file with rows"
    return UserError([readers.phrase_no_rows(path, "at least one row", step) for path in edit.inputs])


def manifest(
    edit: Edit,
    outputs: Sequence[Mapping[str, Any]],
    counts: Mapping[str, int],
    changes: Sequence[Change],
    persons: Mapping[str, int],
) -> dict[str, Any]:
    """Return the manifest of an edit in plain types, with every change by file and line.

    `persons` counts the written rows with personal data of each kind.

    Raises:
        UserError: the manifest of an input cannot be read.
    """
    before = {path: row_files.manifest_of(path) for path in edit.inputs}
    inputs = []
    for path in edit.inputs:
        found = before[path]
        digest = {"manifest": hashlib.sha256(canonical_json(found).encode()).hexdigest()} if found else {}
        inputs.append({"file": readers.display_path(path), "sha256": digest_of(path), **digest})
    # Rows that were not sampled keep their part of the payment.
    left = Counter(readers.file_of(c.where) for c in changes if c.reasons == (NOT_DRAWN,))
    paid_before: list[row_files.Payment] = []
    for path in edit.inputs:
        share = 1 - left[readers.display_path(path)] / (row_files.n_rows_of(path) or 1)
        paid_before += row_files.take_share(row_files.payments_for(path), share)
    paid = row_files.join_payments(paid_before)
    if edit.cost_usd is not None and outputs:
        paid = row_files.join_payments([row_files.Payment(str(outputs[0]["sha256"]), edit.cost_usd), *paid])
    is_taught = edit.taught or (edit.inputs and all(map(row_files.is_taught, edit.inputs)))
    libraries = {name: version(name) for name in _LIBRARIES} | {"unicode": unicodedata.unidata_version}
    return {
        "command": edit.command or f"harness data {edit.verb}",
        "parameters": dict(edit.parameters),
        "versions": {"harness": __version__, **versions_of("data", "edit"), "libraries": libraries},
        "inputs": inputs,
        "outputs": list(outputs),
        "counts": dict(counts),
        "reasons": dict(Counter(f"{c.kind}: {reason}" for c in changes for reason in c.reasons)),
        "licenses": _join_unique(map(row_files.licenses_of, edit.inputs), edit.licenses),
        "notes": _join_unique((b["notes"] for b in before.values() if b), edit.notes),
        **({"personal_data": dict(sorted(persons.items()))} if persons else {}),
        **({"cost_usd": row_files.total_usd(paid), "paid": [one._asdict() for one in paid]} if paid else {}),
        **({"labels": row_files.TAUGHT} if is_taught else {}),
        "rows": [change.plain() for change in changes],
    }


def manifest_text(made: Mapping[str, Any]) -> str:
    """Write a manifest as JSON, one row a line."""
    beside_rows = {key: value for key, value in made.items() if key != "rows"}
    head = json.dumps(beside_rows, indent=2, ensure_ascii=False)
    rows = ",\n".join(f"    {json.dumps(row, ensure_ascii=False)}" for row in made["rows"])
    return f'{head[:-2]},\n  "rows": [{f"{chr(10)}{rows}{chr(10)}  " if rows else ""}]\n}}\n'


def _output(name: str, written: Path, n_rows: int) -> dict[str, Any]:
    return {"file": name, "rows": n_rows, "sha256": checksum(written)}


def _tally(outcomes: Iterable[EditedRow], changes: list[Change], counts: Counter[str]) -> Iterator[Row]:
    before = ""
    for row, change in outcomes:
        where = row.where if row else change.where if change else ""
        counts["read"] += where != before  # a row that is drawn again was read once
        before = where
        if change:
            changes.append(change)
            counts[change.kind] += 1
        if row is not None:
            counts["written"] += 1
            yield row


def _count_persons(rows: Iterable[Row], persons: Counter[str]) -> Iterator[Row]:
    from harness.data.check.personal_data import find_personal_data

    for row in rows:
        text = join_texts([value for value in row.fields.values() if isinstance(value, str | list | dict)])
        persons.update({kind for kind, _ in find_personal_data(text)})
        yield row


def digest_of(path: str) -> str:
    """Return the sha256 of a file's content, or of the rows of a data set of the hub, in hex."""
    if Path(path).is_file():
        return checksum(Path(path))
    rows = hashlib.sha256()
    for row in readers.stream(path, "train"):
        rows.update(json.dumps(row.fields, sort_keys=True, default=str).encode())
    return rows.hexdigest()


def _join_unique(before: Iterable[Sequence[str]], given: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(chain(*before, given)))
