"""Files of a model's folder: its configuration, its weights by their names and headers, and their digests.

Invariant: no weights are loaded, and no pickle is read. Of weights in several forms those that transformers
reads count.
"""

import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from harness.cache import memo
from harness.errors import Problem, UserError, refuse
from harness.models.adapters import Tensor, tensors_of
from harness.models.memory.shape import config_problems
from harness.records import checksum, digest, parse_json

SAFETENSORS = "*.safetensors"
_INDEX, _WHOLE = "model.safetensors.index.json", "model.safetensors"
_TWICE = "consolidated*"  # Mistral's own form of the weights that lie beside it in shards
_AGAIN = "copy or download it again"
_SHA256 = re.compile("[0-9a-f]{64}")


def find_matching(path: Path, patterns: Iterable[str]) -> list[Path]:
    """List the files of a folder whose names match a pattern, each once, by name."""
    return sorted({p for pattern in patterns for p in path.glob(pattern)})


def weights_files(path: Path) -> list[Path]:
    """List the safetensors that transformers reads, or would if the others were not there."""
    found = find_matching(path, (SAFETENSORS,))
    if (path / _INDEX).exists() or (path / _WHOLE).exists():
        return [file for file in found if not file.match(_TWICE)]
    return found


def pickled_problems(path: Path, where: str) -> Iterator[Problem]:
    """Yield that the weights in a folder are pickled alone, with the lines that save them again."""
    if weights_files(path) or not any(path.glob("*.bin")):
        return
    found = f"{path} with pickled weights, which can run code when they are opened"
    step = (
        "save them again where you trust them: from transformers import AutoModelForCausalLM as model; "
        f"model.from_pretrained({str(path)!r}).save_pretrained({str(path)!r})"
    )
    yield Problem(where, found, "weights in safetensors", step)


def weights_bytes(folder: Path) -> int:
    """Return the bytes that the weights of a model take on disk."""
    return sum(file.stat().st_size for file in weights_files(folder))


def map_stored_tensors(path: Path) -> dict[str, Tensor]:
    """List the tensors of a folder's safetensors, read from their headers alone."""
    return {name: tensor for file in weights_files(path) for name, tensor in tensors_of(file).items()}


def read_config(path: Path) -> dict[str, Any]:
    """Read the configuration of a model's folder.

    Raises:
        UserError: it is not there or no JSON, or holds what no model has.
    """
    file = path / "config.json"
    try:
        config = parse_json(file.read_text("utf-8"), object_hook=_read_float)
    except FileNotFoundError:
        found = Problem(str(path), "no config.json", "a model saved by save_pretrained", "check the path")
        raise UserError(found) from None
    except ValueError as error:
        found = Problem(str(file), f"no JSON ({error})", "the configuration of a model", _AGAIN)
        raise UserError(found) from None
    refuse(config_problems(config, str(path)))
    return dict(config)


def _read_float(said: dict[str, Any]) -> Any:
    """Return a number that transformers writes as an object, as JSON has no word for inf."""
    with suppress(TypeError, ValueError, KeyError):
        return float(said["__float__"])
    return said


def refuse_damaged(path: Path) -> None:
    """Refuse weights that are not whole, such as those of a download that ended early.

    Raises:
        UserError: a file is cut short or none of safetensors, or one that the index names is missing.
    """
    problems = []
    for file in weights_files(path):
        try:
            tensors_of(file)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            problems.append(Problem(str(file), f"a damaged file ({error})", "whole safetensors", _AGAIN))
    missing, index = [], path / _INDEX
    if index.exists():
        try:
            named = set(parse_json(index.read_text("utf-8"))["weight_map"].values())
            missing = sorted(name for name in named if not (path / name).exists())
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            problems.append(Problem(str(index), f"a damaged file ({error})", "an index of weights", _AGAIN))
    expected = "all files of its weights"
    problems += [Problem(str(path), f"no {name}, which {_INDEX} names", expected, _AGAIN) for name in missing]
    refuse(problems)


def content_digest(files: Iterable[Path]) -> str:
    """Digest files by their names and contents."""
    return digest({p.name: file_checksum(p) for p in files})


def file_checksum(path: Path) -> str:
    """Return the checksum of a file, remembered by its path, size and time of change.

    The cache of the hub names large files by it, and was told it before it fetched them.
    """
    real = path.resolve()
    if real.parent.name == "blobs" and path.is_symlink() and _SHA256.fullmatch(real.name):
        return real.name
    stat = real.stat()
    key = digest([str(real), stat.st_size, stat.st_mtime_ns])
    return str(memo("checksums", key, lambda: checksum(real)))
