"""Records of exports: what `harness export` wrote into a folder, and whether it is still whole.

Invariant: the record, `export.json`, names no path of a machine. Whether a folder is still whole is asked of
its content alone, never of a remembered checksum.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import Problem, refuse, refuse_unreadable
from harness.records import StoredName, checksum, load
from harness.store.layout import Store

RECORD = "export.json"
_AGAIN = "delete the folder and export again"


@dataclass(frozen=True, slots=True)
class ExportedFile:
    """A file of an export: the sha256 of its content in hex, and its size."""

    sha256: str
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """One run's weights in a format of other programs; `files` maps relative names to their content.

    `types` counts the tensors of each type that was really written. `limits` are those of the target's
    answers (`max_new_tokens`, `stop`, `temperature`, `top_p`), `chat` says that the chat template wrote its
    prompts, `prompt` what else did (`system`, `template`, `prompting`, `answer`). `chat_template` is the
    sha256 of the template's text, empty without one. `merge_gap` is the largest change of a logit by merging
    in fp32.
    """

    format: str
    quantization: str
    run_id: StoredName
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
    """Read the record of an export.

    Raises:
        UserError: the folder holds none, or one that cannot be read.
    """
    with refuse_unreadable(folder / RECORD, "what harness export wrote", _AGAIN):
        return load(Export, (folder / RECORD).read_bytes())


def verify_export(folder: Path) -> Export:
    """Read an export whose files are those that were written, each hashed anew.

    Raises:
        UserError: a file is missing, has changed, or was added.
    """
    export, there, problems = read_export(folder), list_files(folder), list[Problem]()
    expected = f"the file that was exported from {export.run_id}"
    for name, file in export.files.items():
        if name not in there:
            problems.append(Problem(str(folder / name), "no such file", expected, _AGAIN))
        elif there[name].stat().st_size != file.bytes or checksum(there[name]) != file.sha256:
            problems.append(Problem(str(folder / name), "another content", expected, _AGAIN))
    for name in sorted(there.keys() - export.files.keys() - {RECORD}):
        found, step = "a file that was added", "move it elsewhere"
        problems.append(Problem(str(folder / name), found, "what export.json lists", step))
    refuse(problems)
    return export


def list_files(folder: Path) -> dict[str, Path]:
    """Map the files below a folder by their relative names, without hidden ones."""
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: path for name, path in sorted(files.items()) if not f"/{name}".count("/.")}


def main_file(folder: Path, export: Export) -> Path:
    """Return what a program opens: the `.gguf` or `.onnx` file, or the folder."""
    return folder / next((name for name in export.files if name.endswith((".gguf", ".onnx"))), "")


def exports_of(at: Store, run_id: str) -> dict[Path, Export]:
    """Map the folders of a run's exports in the store to their records; unfinished ones are left out.

    Raises:
        UserError: a record cannot be read.
    """
    found = sorted(at.place("exports", run_id).glob(f"[!.]*/{RECORD}"))
    return {file.parent: read_export(file.parent) for file in found}
