"""Files of weights: tensors and parameters by their headers, low-rank adapters, digests.

Invariant: a digest depends on what the weights compute (tensors, and what scales them), never on
paths, versions or how a file is laid out.
"""

import hashlib
import re
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from harness.records import digest, parse_json

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# What an adapter computes does not depend on where it came from and how it was trained.
_OF_TRAINING = (
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "eva_config",
    "inference_mode",
    "init_lora_weights",
    "loftq_config",
    "lora_dropout",
    "lora_ga_config",
    "peft_version",
    "revision",
    "runtime_config",
    "task_type",
)


class Tensor(NamedTuple):
    """One tensor of a safetensors file: its type, its shape, and where its bytes lie."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def tensors_of(path: Path) -> dict[str, Tensor]:
    """List the tensors of a safetensors file by name, read from its header alone.

    Raises:
        ValueError: the file is no safetensors file, or it is cut short.
    """
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size > path.stat().st_size:
            raise ValueError(f"{path} has no safetensors header")
        header: dict[str, Any] = parse_json(file.read(size))
    header.pop("__metadata__", None)
    start, there = 8 + size, path.stat().st_size
    tensors = {
        name: Tensor(t["dtype"], tuple(t["shape"]), *(start + offset for offset in t["data_offsets"]))
        for name, t in header.items()
    }
    if (whole := max((t.end for t in tensors.values()), default=start)) > there:
        raise ValueError(f"{path} has {there:,} of {whole:,} bytes")
    return tensors


# Beside a quantised weight: its scales, zeros and order.
_OF_QUANTIZATION = re.compile(
    r"(^|[._])(qzeros|scales|g_idx|(weight|input)_scale(_inv)?|(nested_)?(absmax|quant_map)|quant_state\..*)$"
)
_EXPERT = re.compile(r"\.experts\.")


def parameters_of(tensors: Mapping[str, Tensor], bits: int = 4) -> dict[str, int]:
    """Count the parameters of a model's tensors, by name; several of a quantised one lie in a number.

    `bits` is the width of a weight that AWQ and GPTQ pack into 32. Masks that old files keep are none.
    """
    return {
        name: prod(tensor.shape) * _packed_in(name, tensor, tensors, bits)
        for name, tensor in tensors.items()
        if not _OF_QUANTIZATION.search(name) and not (len(tensor.shape) == 4 and tensor.shape[:2] == (1, 1))
    }


def _packed_in(name: str, tensor: Tensor, tensors: Mapping[str, Tensor], bits: int) -> int:
    """Return how many weights a number of a tensor holds."""
    if name.endswith("qweight"):
        return 32 // bits
    is_half_bytes = name.endswith("_blocks") or f"{name}.absmax" in tensors
    return 2 if tensor.dtype == "U8" and is_half_bytes else 1


def expert_parameters(counted: Mapping[str, int]) -> int:
    """Count the parameters of experts, of which a token passes some, by the names of their tensors."""
    return sum(n for name, n in counted.items() if _EXPERT.search(name))


def adapter_digest(folder: Path, base_digest: str) -> str:
    """Return the digest of an adapter on its base: its tensors and what scales them, no paths."""
    config = parse_json((folder / CONFIG).read_text())
    kept = {k: v for k, v in config.items() if k not in _OF_TRAINING and v is not None}
    plain = {k: sorted(v) if isinstance(v, list) else v for k, v in kept.items()}
    return digest([base_digest, tensors_digest(folder / WEIGHTS), plain])


def model_digest(folder: Path, base_digest: str) -> str:
    """Return the digest of a whole model that was trained from a base: its tensors."""
    files = sorted(folder.glob("*.safetensors"))
    return digest([base_digest, {path.name: tensors_digest(path) for path in files}])


def tensors_digest(path: Path) -> str:
    """Digest the tensors of a safetensors file in the order of their names, whatever its own order."""
    content = hashlib.sha256()
    with path.open("rb") as file:
        for name, tensor in sorted(tensors_of(path).items()):
            content.update(f"{name} {tensor.dtype} {tensor.shape}\n".encode())
            file.seek(tensor.begin)
            left = tensor.end - tensor.begin
            while left > 0 and (part := file.read(min(left, 1 << 24))):
                content.update(part)
                left -= len(part)
    return content.hexdigest()
