"""Deltas of a base, in forms of our own: bottleneck adapters, matrices in place of others.

Invariant: a folder names its form, and the file of that name in this package puts it on the base and takes it
off again; the base is then what it was, to the last bit.
Source: Ding et al. 2022 (arXiv:2203.06904), who call parameters that are added or chosen so.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import CandidateFailed
from harness.models.adapters import tensors_digest
from harness.records import digest, parse_json

if TYPE_CHECKING:
    from torch import Tensor

CONFIG, WEIGHTS = "delta_config.json", "delta_model.safetensors"


def save_delta(folder: Path, form: str, config: Mapping[str, Any], tensors: "Mapping[str, Tensor]") -> None:
    """Write a delta: the name of its form with what that needs, and its tensors."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    written = json.dumps({"form": form, **config}, indent=2, sort_keys=True)
    (folder / CONFIG).write_text(f"{written}\n", "utf-8")
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(plain, folder / WEIGHTS, {"format": "pt"})


def delta_digest(folder: Path, base_digest: str) -> str:
    """Return the digest of a delta on its base: its form and its tensors."""
    config = parse_json((folder / CONFIG).read_text("utf-8"))
    return digest([base_digest, tensors_digest(folder / WEIGHTS), config])


@contextmanager
def apply_delta(model: Any, folder: Path) -> Iterator[None]:
    """Let a loaded base compute with the delta of a folder; it is itself again afterwards.

    Raises:
        CandidateFailed: the delta is not one of this base, or of no form that is known.
    """
    from safetensors.torch import load_file

    config = parse_json((folder / CONFIG).read_text("utf-8"))
    known = sorted(file.stem for file in Path(__file__).parent.glob("[a-z]*.py"))
    if (form := config.pop("form", None)) not in known:
        found = f"{folder / CONFIG} of the form {form!r}, and the known ones are {', '.join(known)}"
        raise CandidateFailed(found, "delete that folder, and compare makes it again")
    tensors = load_file(folder / WEIGHTS, device=str(model.device))
    with import_module(f"{__name__}.{form}").put_on(model, config, tensors):
        yield
