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
from contextlib import contextmanager, suppress
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from harness import __version__
from harness.cache import sync
from harness.data import readers
from harness.data.column_roles import join_texts
from harness.data.edit import row_files
from harness.data.edit.changes import NOT_DRAWN, Change, EditedRow
from harness.data.edit.split import SplitRows
from harness.data.text_files import Row
from harness.errors import UserError, as_argument
from harness.provenance import versions_of
from harness.records import canonical_json, checksum
from harness.spec import HUB

_KEPT_NAMES = (row_files.MANIFEST, ".decisions.json")
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
    """Manifest of an edit and the changes in it; written to disk except in a dry run."""

    manifest: dict[str, Any]
    changes: list[Change]


def refuse_output(out: Path, inputs: Sequence[str], *, folder: bool = False) -> None:
    """Refuse an output that is an input, exists, has an unknown ending, or has no folder."""
    shown_option = f"--out {readers.display_path(str(out))}"
    is_taken = out.resolve() == Path.cwd() or out.is_symlink() or (out.exists() and not out.is_dir())
    if out.exists() and any(Path(path).exists() and out.samefile(path) for path in inputs):
        found, expected = "the file that is read", "a new file: rows are never changed in place"
        step = "name another file"
    elif not out.absolute().parent.is_dir():
        found, expected = f"no folder {out.parent}", "an existing folder"
        step = f"mkdir -p {as_argument(str(out.parent))}"
    elif parent := next((path for path in inputs if Path(path).resolve() in out.resolve().parents), None):
        found, expected = f"a file in the folder that is read, {parent}", "a place outside"
        step = "name another folder"
    elif folder and (is_taken or (out.is_dir() and any(out.iterdir()))):
        found, expected = "an existing file, or a folder in use", "a new folder"
        step = "name another folder, or remove that one"
    elif folder:
        return
    elif out.name.endswith(_KEPT_NAMES):
        found, expected = "a name that is kept for the files next to rows", "a name of rows"
        step = "such as --out new.jsonl"
    elif not row_files.row_suffix(out.name):
        found = f"a file of the kind {out.suffix!r}"
        expected = f"a name that ends with {', '.join(row_files.KINDS)} (all but the last also .gz)"
        step = f"such as --out {as_argument(f'{out.stem}.jsonl')}"
    else:
        refuse_existing(out)
        refuse_existing(out.with_name(out.name + row_files.MANIFEST))
        return
    raise UserError(shown_option, found, expected, step)


def refuse_existing(file: Path, found: str = "a file that is there already") -> None:
    """Refuse to write over a file."""
    if os.path.lexists(file):
        step = "name another file, or remove that one"
        raise UserError(f"--out {readers.display_path(str(file))}", found, "a new file", step)


@contextmanager
def _end_on_signals() -> Iterator[None]:
    """Turn a signal that ends a program into an exception, so that no half-written file is left."""

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    is_main = threading.current_thread() is threading.main_thread()
    ending_signals = (signal.SIGTERM, signal.SIGHUP) if is_main else ()
    caught_signals = [number for number in ending_signals if signal.getsignal(number) is signal.SIG_DFL]
    for number in caught_signals:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in caught_signals:
            signal.signal(number, signal.SIG_DFL)


@_end_on_signals()
def save(edit: Edit, outcomes: Iterable[EditedRow], out: Path, *, dry_run: bool = False) -> SavedEdit:
    """Write the remaining rows, at least one, and the manifest; a dry run only counts."""
    changes: list[Change] = []
    counts: Counter[str] = Counter(read=0, written=0, dropped=0, changed=0, reported=0)
    persons: Counter[str] = Counter()

    def tally() -> Iterator[Row]:
        previous_place = ""
        for row, change in outcomes:
            where = row.where if row else change.where if change else ""
            counts["read"] += where != previous_place  # a row that is drawn again was read once
            previous_place = where
            if change:
                changes.append(change)
                counts[change.kind] += 1
            if row is not None:
                counts["written"] += 1
                yield row

    rows, manifest_file = _count_persons(tally(), persons), out.with_name(out.name + row_files.MANIFEST)
    data_part = out.with_name(f".{out.name}.{os.getpid()}.part")
    manifest_part = out.with_name(f".{out.name}{row_files.MANIFEST}.{os.getpid()}.part")
    try:
        if dry_run:
            for _ in rows:
                pass
            return SavedEdit(manifest(edit, [], counts, changes, persons), changes)
        row_files.write_rows(data_part, row_files.row_suffix(out.name), rows, edit.inputs)
        if not counts["written"]:
            raise phrase_no_rows(edit, counts["dropped"])
        output = {"file": out.name, "rows": counts["written"], "sha256": checksum(data_part)}
        saved_manifest = manifest(edit, [output], counts, changes, persons)
        manifest_part.write_text(manifest_text(saved_manifest), encoding="utf-8")
        sync(manifest_part)
        sync(data_part)
        _link(manifest_part, manifest_file)
        try:
            _link(data_part, out)
        except UserError:
            manifest_file.unlink()
            raise
        sync(out.absolute().parent)
    finally:
        data_part.unlink(missing_ok=True)
        manifest_part.unlink(missing_ok=True)
    return SavedEdit(saved_manifest, changes)


def _link(scratch: Path, name: Path) -> None:
    """Name a file without replacing another; without hard links, the name is checked first."""
    try:
        name.hardlink_to(scratch)
    except OSError:  # another file came, or there are no hard links here
        refuse_existing(name, "a file that came while this one was made")
        scratch.replace(name)


@_end_on_signals()
def save_split(edit: Edit, result: SplitRows, out: Path, suffix: str) -> SavedEdit:
    """Write the parts of a split and one manifest into a new folder, atomically."""
    scratch = out.with_name(f".{out.name}.{os.getpid()}.part")
    scratch.mkdir()
    try:
        outputs, persons = [], Counter[str]()
        for name, rows in result.parts.items():
            file = scratch / f"{name}{suffix}"
            row_files.write_rows(file, suffix, _count_persons(rows, persons), edit.inputs)
            outputs.append({"file": file.name, "rows": len(rows), "sha256": checksum(file)})
        n_written, n_dropped = sum(map(len, result.parts.values())), len(result.changes)
        counts = {"read": n_written + n_dropped, "written": n_written, "dropped": n_dropped}
        saved_manifest = manifest(edit, outputs, counts, result.changes, persons)
        (scratch / row_files.SPLIT_MANIFEST).write_text(manifest_text(saved_manifest), encoding="utf-8")
        for file in (*scratch.iterdir(), scratch):
            sync(file)
        scratch.rename(out)
        sync(out.absolute().parent)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return SavedEdit(saved_manifest, result.changes)


def phrase_no_rows(edit: Edit, n_dropped: int) -> UserError:
    """Return the error of an edit that leaves no row."""
    if n_dropped:
        paths, step = ", ".join(map(readers.display_path, edit.inputs)), "the same with --dry-run says why"
        return UserError(paths, f"{n_dropped:,} rows, all of them dropped", "at least one row", step)
    return UserError([readers.phrase_no_rows(path, "name a file with rows") for path in edit.inputs])


def manifest(
    edit: Edit,
    outputs: Sequence[Mapping[str, Any]],
    counts: Mapping[str, int],
    changes: Sequence[Change],
    persons: Mapping[str, int],
) -> dict[str, Any]:
    """Return the manifest of an edit in plain types, with every change by file and line."""
    manifests = {path: row_files.manifest_of(path) for path in edit.inputs}
    inputs = []
    for path in edit.inputs:
        record = manifests[path]
        digest = {"manifest": hashlib.sha256(canonical_json(record).encode()).hexdigest()} if record else {}
        inputs.append({"file": readers.display_path(path), "sha256": digest_of(path), **digest})
    # Rows that were not sampled keep their part of the payment.
    n_not_drawn = Counter(readers.file_of(c.where) for c in changes if c.reasons == (NOT_DRAWN,))
    input_payments: list[row_files.Payment] = []
    for path in edit.inputs:
        share = 1 - n_not_drawn[readers.display_path(path)] / (row_files.n_rows_of(path) or 1)
        input_payments += row_files.take_share(row_files.payments_for(path), share)
    paid = row_files.join_payments(input_payments)
    if edit.cost_usd is not None and outputs:
        paid = row_files.join_payments([row_files.Payment(str(outputs[0]["sha256"]), edit.cost_usd), *paid])
    is_taught = edit.taught or (edit.inputs and all(map(row_files.is_taught, edit.inputs)))
    licenses = chain(*map(_list_licenses, manifests, manifests.values()))
    libraries = {name: version(name) for name in _LIBRARIES} | {"unicode": unicodedata.unidata_version}
    return {
        "command": edit.command or f"harness data {edit.verb}",
        "parameters": dict(edit.parameters),
        "versions": {"harness": __version__, **versions_of("data", "edit"), "libraries": libraries},
        "inputs": inputs,
        "outputs": list(outputs),
        "counts": dict(counts),
        "reasons": dict(Counter(f"{c.kind}: {reason}" for c in changes for reason in c.reasons)),
        "licenses": list(dict.fromkeys([*licenses, *edit.licenses])),
        "notes": list(dict.fromkeys([*chain(*(m["notes"] for m in manifests.values() if m)), *edit.notes])),
        **({"personal_data": dict(sorted(persons.items()))} if persons else {}),
        **({"cost_usd": row_files.total_usd(paid), "paid": [p._asdict() for p in paid]} if paid else {}),
        **({"labels": row_files.TAUGHT} if is_taught else {}),
        "rows": [change.plain() for change in changes],
    }


def _list_licenses(path: str, file_manifest: Mapping[str, Any] | None) -> list[str]:
    """List the licences of a file by its manifest, or of a data set by the metadata in its README.md."""
    if file_manifest or not (path.startswith(HUB) or Path(path).is_dir()):
        return list(file_manifest["licenses"]) if file_manifest else []
    from huggingface_hub import hf_hub_download, metadata_load

    source, card = readers.hub_source(path)[0] if path.startswith(HUB) else path, dict[str, Any]()
    file = Path(source, "README.md")
    with suppress(OSError, ValueError):  # an unreadable card does not matter
        if not Path(source).is_dir():
            file = Path(hf_hub_download(source, file.name, repo_type="dataset"))
        card = metadata_load(file) or {}
    licenses = card.get("license") or []
    licenses = licenses if isinstance(licenses, list) else [licenses]
    return [str(card.get("license_name") or name) if name == "other" else str(name) for name in licenses]


def manifest_text(content: Mapping[str, Any]) -> str:
    """Write a manifest as JSON, one row a line."""
    head = json.dumps({k: value for k, value in content.items() if k != "rows"}, indent=2, ensure_ascii=False)
    rows = ",\n".join(f"    {json.dumps(row, ensure_ascii=False)}" for row in content["rows"])
    return f'{head[:-2]},\n  "rows": [{f"{chr(10)}{rows}{chr(10)}  " if rows else ""}]\n}}\n'


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
    rows_digest = hashlib.sha256()
    for row in readers.stream(path, "train"):
        rows_digest.update(json.dumps(row.fields, sort_keys=True, default=str).encode())
    return rows_digest.hexdigest()
